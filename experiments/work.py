"""The populations of a paper's plan: which there are, in which order they can be trained, and training them."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax

from envs.core import UsageError
from envs.datasets import download, registry
from experiments import results
from experiments.config import Config, run_dir
from experiments.interrupt import EX_TEMPFAIL
from experiments.loop import train
from experiments.paper import Cell, data_of, program_of, with_stages
from slurm.pack import Overrides


@dataclass
class Work:
    """One population of the plan: what is trained in one program."""

    cell: Cell  # the first of its cells
    members: list[Config]
    overrides: list[Overrides]  # of each member
    tables: list[str]  # that hold its runs, or begin from them

    @property
    def left(self) -> list[Config]:
        """The members that have not finished."""
        return [member for member in self.members if results.read(run_dir(member)) is None]

    @property
    def ready(self) -> bool:
        """Whether all runs that it begins from have finished."""
        return all(results.read(place) is not None for member in self.members for place in begins_from(member))


def begins_from(member: Config) -> list[Path]:
    """The run directories that a planned member begins from: `start` names the folders of the seeds."""
    return [Path(folder) / f"seed{member.seed}" for folder in member.start]


def arrange(matrix: list[Cell]) -> list[Work]:
    """The populations of a matrix and of its stages, in the order of the cells, stages before what begins from them.

    A run that several cells or tables share is in one population, that of the first of them. Members train together
    if they differ in nothing but seed and hyperparameters, and are needed by the same tables.
    """
    every = with_stages([cell for cell in matrix if cell.table.unavailable is None])
    owners: dict[Path, Cell] = {}
    tables: dict[Path, dict[str, None]] = {}
    for cell in every:
        for member in cell.members:
            owners.setdefault(run_dir(member), cell)
            tables.setdefault(run_dir(member), {})[cell.table.name] = None
    # The first member of a group comes after all that the group begins from, as these are the same for each of it.
    groups: dict[tuple[str, ...], dict[Path, Config]] = {}
    for member in (member for cell in every for member in cell.members):
        place = run_dir(member)
        groups.setdefault((program_of(member), *tables[place]), {}).setdefault(place, member)
    return [
        Work(
            owners[next(iter(group))],
            list(group.values()),
            [owners[place].overrides_of(member) for place, member in group.items()],
            list(key[1:]),
        )
        for key, group in groups.items()
    ]


def missing_files(matrix: list[Cell]) -> dict[str, list[str]]:
    """Data sets that are not in the cache, and files that do not exist, with what they lack. Nothing is fetched."""
    needed = with_stages([cell for cell in matrix if cell.table.unavailable is None])
    found = {}
    for name in dict.fromkeys(name for cell in needed for name in data_of(cell)):
        if name in registry.registry():
            files = [str(entry.file) for entry in registry.files(registry.lookup(name))]
            if lacking := [file for file in files if not (download.default_cache() / file).is_file()]:
                found[name] = lacking
        elif Path(name).suffix and not Path(name).exists():
            found[name] = [name]
    return found


def missing_data(matrix: list[Cell]) -> dict[str, str]:
    """The reason for each data set that is not in the cache, for the report."""
    fetched = "get it with a network, or put it into the folder named by ADAPTAX_DATA"
    made = "make it as the table says"
    return {
        name: f"the data file {' and '.join(files)} is missing: {fetched if name in registry.registry() else made}"
        for name, files in missing_files(matrix).items()
    }


def seconds_per_update(held: list[Work]) -> float | None:
    """Of a member of one table's populations: from those finished here, else from the table's configuration."""
    spent, done = 0.0, 0
    for one in held:
        told = [result for member in one.members if (result := results.read(run_dir(member))) is not None]
        if told and (rate := told[0]["updates_per_second"]):
            spent += told[0]["updates"] / rate + told[0]["eval_seconds"] + told[0]["compile_seconds"]
            done += sum(result["updates"] for result in told)
    if done:
        return spent / done
    rate = held[0].cell.table.updates_per_second.get(jax.default_backend()) if held else None
    return 1 / rate if rate else None


def run_all(work: list[Work], deadline: float | None, failed: dict[Path, str]) -> None:
    """Train the populations in turn. `failed` gets the reason for each run directory that could not be trained.

    Raises:
        SystemExit: stopped by a signal or because time is up; the state is saved.
    """
    lacking: set[str] = set()  # data sets that could not be had: not asked for again
    for one in work:
        left = one.left
        if left and deadline is not None and time.monotonic() >= deadline:
            raise SystemExit(EX_TEMPFAIL)
        for member in left:
            if why := _hopeless(one, member, lacking, failed):
                failed[run_dir(member)] = why
        if able := [member for member in left if run_dir(member) not in failed]:
            refused = _train(able, deadline)
            failed |= refused
            for why in dict.fromkeys(refused.values()):
                print(f"not run: {one.cell.table.name}: {why}", file=sys.stderr)
            if refused:
                lacking |= set(missing_files([one.cell])) & set(data_of(one.cell))
        elif left:
            print(f"not run: {one.cell.table.name}: {one.cell.method.name}, for the same reason", file=sys.stderr)


def _hopeless(one: Work, member: Config, lacking: set[str], failed: dict[Path, str]) -> str | None:
    """Why a member need not be tried: its data, or what it begins from, could not be had."""
    if names := lacking & set(data_of(one.cell)):
        return f"{min(names)} could not be had"
    for stage in one.cell.start:
        if why := failed.get(stage.folder / f"seed{member.seed}"):
            return why if why.startswith("stage ") else f"stage {stage.method.name}: {why}"
    return None


def _train(members: list[Config], deadline: float | None) -> dict[Path, str]:
    """Train members of one program; those that could not be, with the reason."""
    refused: dict[Path, str] = {}
    try:
        train(members, deadline=deadline, refused=refused)
    except UsageError as error:
        refused = {run_dir(member): str(error) for member in members}
    return {place: " ".join(why.split()) for place, why in refused.items()}
