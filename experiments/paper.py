"""A paper's tables as a matrix of runs: what `configs/paper/*.yaml` says, and the plan made from it.

A table crosses tasks with methods; each cell is a population of seeds. Every entry is a list of overrides, as on
the command line of `experiments.train`. They are applied in the order table, preset, task, method; later ones win.
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
    metric: str = "D4RL normalised score"
    score: str = "last"  # last | best | mean_of_last_ten: which the paper reports
    published: str | None = None  # the `experiment` of the rows in experiments/published that it answers
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
    """A population of seeds: one method on one task."""

    table: Table
    task: Entry
    method: Entry
    members: list[Config]
    overrides: list[str]  # that all members share

    def overrides_of(self, member: Config) -> tuple[str, ...]:
        """A member as on the command line of `experiments.train`."""
        return (*self.overrides, f"seed={member.seed}")


def select(paper: Paper, preset: str, only: list[str] | None) -> list[Table]:
    """The tables of a preset, or those of them that are asked for.

    Raises:
        UsageError: an unknown preset or table, or one that the preset does not hold.
    """
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
        UsageError: an override that does not fit, or a method's task that the table does not have.
    """
    found = []
    names = [task.name for task in table.tasks]
    for method in table.methods:
        if unknown := sorted(set(method.tasks or names) - set(names)):
            raise UsageError(f"paper table {table.name}: method {method.name} names the unknown task {unknown[0]}")
    for task in table.tasks:
        for method in table.methods:
            if method.tasks is None or task.name in method.tasks:
                fitting = [text for text in task.overrides if text.split("=")[0] not in method.ignore]
                overrides = [*table.overrides, *table.presets[preset], *fitting, *method.overrides]
                overrides.append(f"run.root={root}")
                config = schema.to_config(compose("config", [*overrides, f"seed={list(range(table.seeds))}"]))
                found.append(Cell(table, task, method, schema.members(config), overrides))
    return found


def populations(members: list[Config]) -> list[list[Config]]:
    """Members that can be trained in one program: they differ in nothing but seed and hyperparameters."""
    groups: dict[str, dict[Path, Config]] = {}
    for member in members:
        plain = as_dict(dataclasses.replace(member, seed=0))
        plain["algo"].pop("hyper")
        groups.setdefault(json.dumps(plain, sort_keys=True), {})[run_dir(member)] = member
    return [list(group.values()) for group in groups.values()]


def plan(paper: Paper, preset: str, command: str, cells: list[Cell], root: Path, missing: dict[str, str]) -> Plan:
    """What the report needs to know of the matrix; `missing` has a reason for each data set that cannot be had."""
    tables = []
    for table in {cell.table.name: cell.table for cell in cells}.values():
        held = [_cell(cell, root, missing) for cell in cells if cell.table is table]
        shared = {key: getattr(table, key) for key in ("title", "protocol", "metric", "score", "published")}
        tables.append(report.Table(table.name, held, not_comparable=table.not_comparable, **shared))
    claims = [claim for claim in paper.claims if claim.table in {table.name for table in tables}]
    return Plan(tables, claims, paper.name, preset, paper.title, command)


def _cell(cell: Cell, root: Path, missing: dict[str, str]) -> report.Cell:
    return report.Cell(
        cell.task.name,
        cell.method.name,
        cell.task.published or cell.task.name,
        cell.method.published or cell.method.name,
        cell.table.unavailable or missing.get(cell.members[0].data.name),
        cell.members[0].run.updates,
        [report.Run(member.seed, run_dir(member).relative_to(root).as_posix()) for member in cell.members],
    )
