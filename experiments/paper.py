"""A paper's tables as a matrix of runs: what `configs/paper/*.yaml` says, and the plan made from it.

A table crosses tasks with methods; each cell is a population of seeds. Every entry is a list of overrides, as on
the command line of `experiments.train`. They are applied in the order table, preset, task, method; later ones win.

Methods of several phases begin from stages: populations of the same seeds that are trained before, once for all
tasks, methods and tables that ask for the same configuration. A stage's overrides are those of table, preset, stage,
and of the task for that stage. Stages have no rows in the report.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from hydra import compose

from envs.core import UsageError
from experiments import config as schema
from experiments.config import Config, as_dict, run_dir
from experiments.reporting import plan as report
from experiments.reporting.plan import Claim, Plan

PRESETS = ("cpu", "gpu", "full")


@dataclass
class Entry:
    """A task (row) or method (column) of a table."""

    name: str
    overrides: list[str] = field(default_factory=list)
    published: str | None = None  # its name in experiments/published/PAPER.csv; null: the same name
    tasks: list[str] | None = None  # of a method: the tasks that it is run on; null: all
    ignore: list[str] = field(default_factory=list)  # of a method: keys of the task's overrides that it does not have
    start: list[str] = field(default_factory=list)  # of a method: the stages that it begins from, in order
    stages: dict[str, list[str]] = field(default_factory=dict)  # of a task: further overrides, by stage


@dataclass
class Stage:
    """An earlier phase that methods of a table begin from."""

    name: str
    overrides: list[str] = field(default_factory=list)
    start: list[str] = field(default_factory=list)  # earlier stages that it begins from itself, in order


@dataclass
class Table:
    """One table of the report."""

    name: str
    title: str
    protocol: str  # data, updates and evaluation, in a sentence or two
    tasks: list[Entry]
    methods: list[Entry]
    presets: dict[str, list[str]]  # the presets that hold it, each with overrides of its own
    seeds: int = 5
    overrides: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    metric: str = "D4RL normalised score"  # what is measured, in words
    measure: str = "score"  # the column of metrics.csv: score, or e.g. cost_mean; also the `metric` of published rows
    lower_is_better: bool = False
    score: str = "last"  # last | best | mean_of_last_ten: which the paper reports
    published: str | None = None  # the `experiment` of the rows in experiments/published that it answers
    published_metric: str | None = None  # the `metric` of those rows, where it is not named as the measure
    not_comparable: str | None = None  # why its numbers cannot be held against published ones
    unavailable: str | None = None  # why it cannot be run in this version
    updates_per_second: dict[str, float] = field(default_factory=dict)  # by platform, members together: for estimates


@dataclass
class Paper:
    """A file of configs/paper."""

    name: str
    title: str
    tables: list[Table]
    claims: list[Claim] = field(default_factory=list)


@dataclass
class Cell:
    """A population of seeds: one method, or stage, on one task."""

    table: Table
    task: Entry
    method: Entry | Stage
    members: list[Config]
    overrides: list[str]  # that all members share
    start: list["Cell"] = field(default_factory=list)  # the stages that it begins from

    @property
    def folder(self) -> Path:
        """Where the run directories of its seeds are."""
        return run_dir(self.members[0]).parent

    @property
    def stages(self) -> list["Cell"]:
        """All stages that must be trained before, the first one first."""
        found = {cell.folder: cell for stage in self.start for cell in [*stage.stages, stage]}
        return list(found.values())

    def overrides_of(self, member: Config) -> tuple[str, ...]:
        """A member as on the command line of `experiments.train`."""
        return (*self.overrides, f"seed={member.seed}")


def select(paper: Paper, preset: str, only: list[str] | None) -> list[Table]:
    """The tables of a preset, or those of them that are asked for.

    Raises:
        UsageError: an unknown preset or table, or one that the preset does not hold; a claim of no known relation.
    """
    for claim in paper.claims:
        report.check_claim(claim, f"paper={paper.name}")
    if preset not in PRESETS:
        raise UsageError(f"preset={preset}: there are {', '.join(PRESETS)}")
    held = {table.name: table for table in paper.tables if preset in table.presets}
    if not held:
        raise UsageError(f"paper={paper.name} preset={preset} has no table")
    for name in only or []:
        if name not in held:
            raise UsageError(f"only={name}: paper={paper.name} preset={preset} has the tables {', '.join(held)}")
    return [table for name, table in held.items() if only is None or name in only]


def cells(table: Table, preset: str, root: Path) -> list[Cell]:
    """All cells of a table, with the configuration of every member.

    Raises:
        UsageError: an override that does not fit, a method's task or a stage that the table does not have, or a stage
            that begins from one that comes after it.
    """
    _check_names(table)
    found = []
    for task in table.tasks:
        stages: dict[str, Cell] = {}
        for method in table.methods:
            if method.tasks is None or task.name in method.tasks:
                fitting = [text for text in task.overrides if text.split("=")[0] not in method.ignore]
                start = [_stage(table, task, name, preset, root, stages) for name in method.start]
                found.append(_cell(table, task, method, [*fitting, *method.overrides], start, preset, root))
    return found


def _stage(table: Table, task: Entry, name: str, preset: str, root: Path, made: dict[str, Cell]) -> Cell:
    """The stage of that name for a task; `made` holds those that exist already."""
    if name not in made:
        stage = next(stage for stage in table.stages if stage.name == name)
        start = [_stage(table, task, earlier, preset, root, made) for earlier in stage.start]
        overrides = [*stage.overrides, *task.stages.get(name, [])]
        made[name] = _cell(table, task, stage, overrides, start, preset, root)
    return made[name]


def _cell(
    table: Table, task: Entry, method: Entry | Stage, own: list[str], start: list[Cell], preset: str, root: Path
) -> Cell:
    overrides = [*table.overrides, *table.presets[preset], *own]
    if start:
        folders = ",".join(f'"{stage.folder}"' for stage in start)
        overrides.append(f"start=[{folders}]")
    overrides.append(f"run.root={root}")
    config = schema.to_config(compose("config", [*overrides, f"seed={list(range(table.seeds))}"]))
    return Cell(table, task, method, schema.members(config), overrides, start)


def _check_names(table: Table) -> None:
    """Refuse names of tasks and stages that the table does not have.

    Raises:
        UsageError: naming who asks for what.
    """
    place = f"paper table {table.name}"
    tasks, stages = [task.name for task in table.tasks], [stage.name for stage in table.stages]
    if repeated := next((name for i, name in enumerate(stages) if name in stages[:i]), None):
        raise UsageError(f"{place}: there are two stages {repeated}; give each its own name")
    for method in table.methods:
        if unknown := sorted(set(method.tasks or tasks) - set(tasks)):
            raise UsageError(f"{place}: method {method.name} names the unknown task {unknown[0]}")
    asked = [(f"method {method.name}", name) for method in table.methods for name in method.start]
    asked += [(f"task {task.name}", name) for task in table.tasks for name in task.stages]
    asked += [(f"stage {stage.name}", name) for stage in table.stages for name in stage.start]
    for who, name in asked:
        if name not in stages:
            raise UsageError(f"{place}: {who} names the unknown stage {name}; there are {', '.join(stages) or 'none'}")
    for i, stage in enumerate(table.stages):
        if late := [name for name in stage.start if name not in stages[:i]]:
            raise UsageError(f"{place}: stage {stage.name} begins from {late[0]}, which must come before it")


def with_stages(matrix: list[Cell]) -> list[Cell]:
    """The cells, and before each one the stages that it begins from."""
    return [one for cell in matrix for one in [*cell.stages, cell]]


def program_of(member: Config) -> str:
    """The same text for members that one program can train: they differ in nothing but seed and hyperparameters."""
    plain = as_dict(dataclasses.replace(member, seed=0))
    plain["algo"].pop("hyper")
    return json.dumps(plain, sort_keys=True)


def plan(
    paper: Paper, preset: str, command: str, cells: list[Cell], root: Path, missing: dict[str, str],
    failed: dict[Path, str] | None = None,
) -> Plan:  # fmt: skip
    """What the report needs to know of the matrix.

    missing: a reason for each data set that cannot be had.
    failed: a reason for each run directory that could not be trained.
    """
    tables = []
    for table in {cell.table.name: cell.table for cell in cells}.values():
        held = [_planned(cell, root, missing, failed or {}) for cell in cells if cell.table is table]
        same = {field.name for field in dataclasses.fields(report.Table)} - {"name", "cells"}
        tables.append(report.Table(table.name, held, **{key: getattr(table, key) for key in same}))
    claims = [claim for claim in paper.claims if claim.table in {table.name for table in tables}]
    return Plan(tables, claims, paper.name, preset, paper.title, command)


def _planned(cell: Cell, root: Path, missing: dict[str, str], failed: dict[Path, str]) -> report.Cell:
    lacking = [f"stage {stage.method.name}: {why}" for stage in cell.stages if (why := _missing(stage, missing))]
    why_missing = cell.table.unavailable or _missing(cell, missing) or next(iter(lacking), None)
    whys = [failed[run_dir(member)] for member in cell.members if run_dir(member) in failed]
    return report.Cell(
        cell.task.name,
        cell.method.name,
        cell.task.published or cell.task.name,
        getattr(cell.method, "published", None) or cell.method.name,
        why_missing,
        cell.members[0].run.updates,
        [report.Run(member.seed, run_dir(member).relative_to(root).as_posix()) for member in cell.members],
        [stage.folder.relative_to(root).as_posix() for stage in cell.stages],
        # A file that is simply not there is said in words of its own: the error names this machine's folders.
        None if why_missing or not whys else whys[0],
    )


def _missing(cell: Cell, missing: dict[str, str]) -> str | None:
    """Why its data cannot be had."""
    return next((missing[name] for name in data_of(cell) if name in missing), None)


def data_of(cell: Cell) -> list[str]:
    """Its data sets: names, or files where they are read from one of the user's."""
    data = cell.members[0].data
    return [data.path or data.name, *data.also]
