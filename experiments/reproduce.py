"""Reproduce a paper's tables: `python -m experiments.reproduce paper=a2pr preset=cpu`.

Prints the plan, trains what is not finished yet, and writes the report. Everything goes to ROOT/PAPER-PRESET; the same
command goes on where it stopped, and once everything is finished it only writes the report again.

    preset=cpu          the paper's directional claims, within 30 minutes on two cores
    preset=gpu          tables for one GPU; each call stops after 10 minutes (minutes=N), with status 75 if work is left
    preset=full         the paper's whole matrix; submit=slurm sends each population as a job of an array
    only=TABLE          train this table alone, or several: only=[TABLE,TABLE]
    dry_run=true        print the plan, do nothing
"""

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table as Grid

from envs.core import UsageError
from envs.datasets import download
from experiments import config as schema
from experiments import submission
from experiments.cli import guarded, hydra_job, use_compilation_cache
from experiments.log import write_atomically
from experiments.paper import Cell, Paper, cells, plan, select
from experiments.report import report
from experiments.reporting.plan import PLAN, Plan, dump, load
from experiments.work import Work, arrange, missing_data, missing_files, run_all, seconds_per_update
from hydra_plugins.adaptax_launcher.config import LauncherConf
from slurm.submit import check

GPU_MINUTES = 10.0


@dataclass
class ReproduceConfig:
    """One command."""

    paper: Paper = field(default_factory=lambda: Paper("", "", []))  # a file of configs/paper
    preset: str = "cpu"  # cpu | gpu | full
    only: Any = None  # tables to train: a name or a list; null: all of the preset
    dry_run: bool = False
    root: str = "runs/reproduce"  # everything goes to ROOT/PAPER-PRESET
    out: str | None = None  # folder of the report; null: ROOT/PAPER-PRESET/report
    minutes: float | None = None  # stop, to be called again, after so long; null: 10 for preset=gpu, else no limit
    submit: str = "none"  # none: train here | slurm: send what is left to the cluster | slurm_local: to try that out
    slurm: LauncherConf = field(default_factory=lambda: LauncherConf(gpus_per_node=1, cpus_per_task=8))


def register() -> None:
    """Make the schema known to Hydra."""
    schema.register()
    ConfigStore.instance().store(name="reproduce_schema", node=ReproduceConfig)


def show_plan(paper: Paper, preset: str, matrix: list[Cell], work: list[Work]) -> None:
    """Print what there is to do: a row a table, then what is missing.

    A run that several tables share is the first one's; the others have it after a plus.
    """
    grid = Grid("table", "populations", "runs", "finished", "updates each", "time left", title=paper.title)
    total: list[float | None] = []
    tables = {cell.table.name: cell.table for cell in matrix}
    for name, table in tables.items():
        held = [one for one in work if one.cell.table.name == name]
        unfinished = [members for one in held if (members := one.left)]
        runs, left = sum(len(one.members) for one in held), sum(len(members) for members in unfinished)
        each_takes = seconds_per_update(held)
        times = [each_takes and each_takes * sum(member.run.updates for member in members) for members in unfinished]
        total += times
        updates = sorted({member.run.updates for one in held for member in one.members})
        each = " to ".join(f"{number:,}" for number in dict.fromkeys(updates[:1] + updates[-1:]))
        shown = "-" if table.unavailable else _time(times)
        shared = sum(len(one.members) for one in work if name in one.tables) - runs
        grid.add_row(name, str(len(held)), f"{runs} + {shared}" if shared else str(runs), str(runs - left), each, shown)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(grid)
    print(f"preset={preset}: {len(work)} programs, {_time(total)} on this device (estimated)")
    missing = missing_files(matrix)
    if files := sorted({file for name, files in missing.items() for file in files if name != file}):
        print(
            f"missing data: {', '.join(files)}: fetched when needed; without a network put them into "
            f"{download.default_cache()} (ADAPTAX_DATA names another folder)"
        )
    if files := sorted(name for name, files in missing.items() if files == [name]):
        print(f"missing data: {', '.join(files)}: make them with experiments.make_dataset, as the tables say")
    for table in tables.values():
        if table.unavailable:
            print(f"not run: {table.name}: {table.unavailable}")


def _time(seconds: list[float | None]) -> str:
    known = [value for value in seconds if value is not None]
    minutes = sum(known) / 60
    text = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    if len(known) == len(seconds):
        return text if seconds else "0 min"
    return f"over {text}" if known else "not known yet"


def notice_changes(old: Plan | None, new: Plan) -> None:
    """Say which cells have another configuration than at the last call; their earlier runs are kept, not used."""

    def folders(plan: Plan) -> dict[tuple[str, str, str], str]:
        cells = [(table.name, cell) for table in plan.tables for cell in table.cells if cell.runs]
        return {(name, cell.task, cell.method): str(Path(cell.runs[0].dir).parent) for name, cell in cells}

    before = folders(old) if old else {}
    for key, folder in folders(new).items():
        if before.get(key, folder) != folder:
            print(f"changed configuration: {' / '.join(key)}: trained anew; the earlier runs stay in {before[key]}")


def reproduce(config: ReproduceConfig, command: str) -> int:
    """The whole command; its exit status.

    Raises:
        UsageError: a preset, table or population that does not exist, or an override that does not fit.
    """
    paper, root = config.paper, Path(config.root) / f"{config.paper.name}-{config.preset}"
    if config.minutes is not None and config.minutes <= 0:
        raise UsageError(f"minutes={config.minutes} must be more than 0")
    asked = [config.only] if isinstance(config.only, str) else config.only
    chosen = {table.name for table in select(paper, config.preset, asked)}
    matrix = [cell for table in select(paper, config.preset, None) for cell in cells(table, config.preset, root)]
    work = arrange(matrix)
    options = dataclasses.replace(config.slurm, cluster=config.submit)
    if config.submit not in ("none", "slurm", "slurm_local"):
        raise UsageError(f"submit={config.submit}: there are none, slurm, slurm_local")
    if config.submit != "none":
        check(options)

    show_plan(paper, config.preset, matrix, work)
    if config.dry_run:
        return 0
    new = plan(paper, config.preset, command, matrix, root, missing_data(matrix))
    notice_changes(load(root), new)
    _write(root / PLAN, new)
    if config.submit != "none":
        return submission.send(options, root, command, work, [one for one in work if chosen & set(one.tables)])
    return _train_and_report(config, command, root, matrix, [one for one in work if chosen & set(one.tables)])


def _train_and_report(config: ReproduceConfig, command: str, root: Path, matrix: list[Cell], todo: list[Work]) -> int:
    limit = GPU_MINUTES if config.minutes is None and config.preset == "gpu" else config.minutes
    deadline = None if limit is None else time.monotonic() + 60.0 * limit
    status = 0
    failed: dict[Path, str] = {}
    try:
        run_all(todo, deadline, failed)
    except SystemExit as leaving:
        if deadline is None or time.monotonic() < deadline:  # a signal: leave at once
            raise
        status = leaving.code if isinstance(leaving.code, int) else 1
        print("time is up; the same command goes on from here", file=sys.stderr)
    _write(root / PLAN, plan(config.paper, config.preset, command, matrix, root, missing_data(matrix), failed))
    out = root / "report" if config.out is None else Path(config.out)
    report(root, out)
    print(f"report: {out / 'report.md'}, {out / 'report.html'}")
    return status


def _write(path: Path, content: Plan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump(content))


register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="reproduce")
@hydra_job
def run(config: DictConfig) -> None:
    """One Hydra job."""
    use_compilation_cache()
    schema.refuse_unknown(config, OmegaConf.structured(ReproduceConfig))
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, ReproduceConfig)
    shown = [text for text in HydraConfig.get().overrides.task if not text.startswith(("root=", "out="))]
    if status := reproduce(typed, " ".join(["python -m experiments.reproduce", *shown])):
        raise SystemExit(status)


if __name__ == "__main__":
    sys.exit(guarded(run))
