"""The plan of a report: which runs answer which cell of which table, and which claims are tested on them.

A plan is `plan.json` in the folder that holds the runs. `experiments.reporting.found` makes one where there is none.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from envs.core import UsageError

PLAN = "plan.json"
SCORES = {"last": "last evaluation", "mean_of_last_ten": "mean of last ten", "best": "best"}
MEASURE = "score"  # of a run, unless its table asks for another column of metrics.csv
BEHAVIOUR = "behaviour policy"
RELATIONS = ("better", "equal")


@dataclass(frozen=True)
class Run:
    """One planned member: its seed and its run directory, relative to the folder of the plan."""

    seed: int
    dir: str


@dataclass(frozen=True)
class Cell:
    """One method on one task."""

    task: str
    method: str
    published_task: str | None = None
    published_method: str | None = None
    missing: str | None = None  # what is missing to run it, and how to get it
    updates: int | None = None
    runs: list[Run] = field(default_factory=list)
    start: list[str] = field(default_factory=list)  # folders of the seeds of all runs that these begin from
    failed: str | None = None  # why it could not be trained, where no data are missing


@dataclass(frozen=True)
class Table:
    """One table of a paper, or of the runs found."""

    name: str
    cells: list[Cell]
    title: str = ""
    protocol: str = ""
    metric: str = "score"
    score: str = "last"  # the protocol's choice among SCORES: what is held against the published numbers
    published: str | None = None  # the `experiment` of the published rows
    not_comparable: str | None = None
    measure: str = MEASURE  # a column of metrics.csv; where it is not the score, the `metric` of the published rows too
    published_metric: str | None = None  # that `metric`, if it has another name
    lower_is_better: bool = False

    @property
    def usual(self) -> bool:
        """Whether it holds scores as every result.json has them."""
        return self.measure == MEASURE and not self.lower_is_better

    @property
    def tasks(self) -> list[str]:
        """Tasks in their order of appearance."""
        return list(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def methods(self) -> list[str]:
        """Methods in their order of appearance."""
        return list(dict.fromkeys(cell.method for cell in self.cells))


@dataclass  # not frozen: Hydra reads it from configs/paper
class Claim:
    """`better` exceeds `worse` on one task, by more than `min_gap` on average and for `min_wins` seeds.

    With relation=equal the two have exactly the same value for every seed. Where lower is better, `better` falls short
    of `worse`.
    """

    name: str
    text: str
    table: str
    task: str
    better: str  # a method, or a number, as published or expected
    worse: str  # the same, or BEHAVIOUR
    source: str = ""
    min_gap: float = 0.0
    min_wins: int | None = None
    relation: str = "better"  # better | equal


@dataclass(frozen=True)
class Plan:
    """Everything that a report is to show."""

    tables: list[Table]
    claims: list[Claim] = field(default_factory=list)
    paper: str | None = None
    preset: str | None = None
    title: str = ""
    command: str = ""
    found: bool = False  # made from the runs found, so to be made anew when there are more


def load(root: Path) -> Plan | None:
    """The plan in `root`; None if there is none.

    Raises:
        UsageError: it is no plan, with the key that is wrong.
    """
    path = root / PLAN
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); write it again with experiments.reproduce") from None
    return parse(content, str(path))


def parse(content: Any, place: str) -> Plan:
    """A plan from what JSON gives; `place` names it in errors.

    Raises:
        UsageError: a key is missing or unknown, or a value is none of those allowed.
    """
    plan = _make(Plan, content, place)
    tables = [_table(table, f"{place}: tables[{i}]") for i, table in enumerate(plan.tables)]
    claims = [_make(Claim, claim, f"{place}: claims[{i}]") for i, claim in enumerate(plan.claims)]
    for claim in claims:
        check_claim(claim, place)
    if len({table.name for table in tables}) < len(tables):
        raise UsageError(f"{place}: two tables of one name; give each table its own")
    return dataclasses.replace(plan, tables=tables, claims=claims)


def check_claim(claim: Claim, place: str) -> None:
    """Refuse a relation that does not exist, or one that has no gap with a gap; `place` names its origin in errors.

    Raises:
        UsageError: naming the claim and the mend.
    """
    if claim.relation not in RELATIONS:
        raise UsageError(f"{place}: claim {claim.name}: relation={claim.relation} must be {' or '.join(RELATIONS)}")
    if claim.relation == "equal" and (claim.min_gap or claim.min_wins is not None):
        raise UsageError(f"{place}: claim {claim.name}: relation=equal has no min_gap and no min_wins; leave them out")


def dump(plan: Plan) -> bytes:
    """The plan as JSON."""
    return (json.dumps(dataclasses.asdict(plan), indent=1, ensure_ascii=False) + "\n").encode()


def _table(content: Any, place: str) -> Table:
    table = _make(Table, content, place)
    if table.score not in SCORES:
        raise UsageError(f"{place}: score={table.score} must be one of {', '.join(SCORES)}")
    cells = []
    for i, cell in enumerate(table.cells):
        made = _make(Cell, cell, f"{place}.cells[{i}]")
        runs = [_make(Run, run, f"{place}.cells[{i}].runs") for run in made.runs]
        if len({run.seed for run in runs}) < len(runs):
            raise UsageError(f"{place}.cells[{i}]: a seed is there twice")
        cells.append(dataclasses.replace(made, runs=runs))
    if len({(cell.task, cell.method) for cell in cells}) < len(cells):
        raise UsageError(f"{place}: a method is there twice for one task; tell them apart by their names")
    return dataclasses.replace(table, cells=cells)


T = TypeVar("T")


def _make(kind: type[T], content: Any, place: str) -> T:
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, dict):
        raise UsageError(f"{place}: expected an object with the keys {', '.join(fields)}")
    if unknown := sorted(set(content) - set(fields)):
        raise UsageError(f"{place}: unknown key {unknown[0]}; there are {', '.join(fields)}")
    needed = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if lacking := sorted(needed - set(content)):
        raise UsageError(f"{place}: the key {lacking[0]} is missing")
    return kind(**content)
