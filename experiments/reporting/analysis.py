"""Statistics of a plan's members: scores per cell, averages over tasks, profiles, comparisons; and each verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments import stats
from experiments.reporting.plan import SCORES, Cell, Plan, Table
from experiments.reporting.published import Published, lookup
from experiments.reporting.records import Member
from experiments.stats import Interval

SEED = 0  # of every bootstrap
REPLICATES = 2000
THRESHOLDS = 61  # points of a performance profile


class Verdict(NamedTuple):
    """One word, and why where it is `not comparable` or `not tested`."""

    word: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.why}" if self.why else self.word


class Score(NamedTuple):
    """Both aggregates of one kind of score."""

    iqm: Interval
    mean: Interval


@dataclass
class CellResult:
    """One method on one task."""

    cell: Cell
    members: list[Member]  # all planned
    published: Published | None
    scores: dict[str, Score]  # by kind; empty if no member counts
    difference: Interval | None  # ours minus published, if that can be said
    verdict: Verdict | None  # None: the table has no published numbers

    @property
    def counted(self) -> list[Member]:
        """Finished members that did not diverge, in the order of seeds."""
        return sorted((m for m in self.members if m.counts), key=lambda m: m.seed)

    @property
    def behaviour(self) -> float | None:
        """Score of the policy that made the data, if a member says it."""
        known = [m.behaviour_score for m in self.members if m.behaviour_score is not None]
        return known[0] if known and math.isfinite(known[0]) else None

    @property
    def n(self) -> str:
        """How many members count, of how many, and what became of the others."""
        others = [m.status for m in self.members if not m.counts]
        if not others:
            return str(len(self.members))
        words = [f"{others.count(status)} {status}" for status in dict.fromkeys(others)]
        return f"{len(self.counted)} of {len(self.members)}" + (f" ({', '.join(words)})" if words else "")

    def values(self, kind: str) -> np.ndarray:
        """Scores (n,) of the members that count."""
        return np.array([getattr(m, kind) for m in self.counted], np.float64)


class Average(NamedTuple):
    """One method over all tasks of a table."""

    method: str
    tasks: int
    n: str  # seeds of all tasks that count, and of how many where some do not
    published: float | None  # mean of the published means, where all are known
    scores: dict[str, Score]


class Improvement(NamedTuple):
    """Probability that a run of `better` is better than one of `worse`, on the tasks that both have."""

    better: str
    worse: str
    tasks: int
    probability: Interval


@dataclass
class TableResult:
    """One table of the plan."""

    table: Table
    cells: list[CellResult]
    averages: list[Average]
    thresholds: np.ndarray  # (THRESHOLDS,)
    profiles: dict[str, stats.Profile]  # by method
    improvements: list[Improvement]

    def cell(self, task: str, method: str) -> CellResult | None:
        """A cell by its names."""
        return next((c for c in self.cells if (c.cell.task, c.cell.method) == (task, method)), None)


def analyse(plan: Plan, members: list[Member]) -> list[TableResult]:
    """All statistics of a plan, table by table."""
    groups: dict[tuple[str, str, str], list[Member]] = {}
    for member in members:
        groups.setdefault((member.table, member.task, member.method), []).append(member)
    return [_table(plan, table, groups) for table in plan.tables]


def _table(plan: Plan, table: Table, groups: dict[tuple[str, str, str], list[Member]]) -> TableResult:
    cells = []
    for cell in table.cells:
        metric = table.published_metric or table.measure
        published = lookup(plan.paper, table.published, cell.published_task, cell.published_method, metric)
        members = groups.get((table.name, cell.task, cell.method), [])
        cells.append(_judged(CellResult(cell, members, published, {}, None, None), table))
    result = TableResult(table, cells, [], np.zeros(0), {}, [])
    whole = {method: found for method in table.methods if (found := _on_all_tasks(result, method))}
    if len(table.tasks) > 1 and whole:
        result.averages = [_average(method, found) for method, found in whole.items()]
        samples = {method: [cell.values(table.score) for cell in found] for method, found in whole.items()}
        result.thresholds, result.profiles = _profiles(samples, table.lower_is_better)
    result.improvements = _improvements(result)
    return result


def _judged(result: CellResult, table: Table) -> CellResult:
    """Fill in scores, difference and verdict."""
    for kind in SCORES if result.counted else ():
        values = result.values(kind)
        iqm = stats.iqm_interval([values], SEED, REPLICATES)
        result.scores[kind] = Score(iqm, stats.mean_interval(values))
    published, values = result.published, result.values(table.score)
    if published is not None and published.value is not None and len(values):
        result.difference = stats.difference_to_published(values, published.value, *published.std, published.slack)
    if table.published is not None:
        result.verdict = _verdict(result, table)
    return result


def _verdict(result: CellResult, table: Table) -> Verdict:
    """Whether the cell agrees with the published number; the first reason against comparing them is given."""
    reasons: list[tuple[Callable[[], bool], str]] = [
        (lambda: not result.members, "data missing" if result.cell.missing else "no runs are planned"),
        (lambda: any(m.status != "finished" for m in result.members), shortfall(result)),
        (lambda: None in (result.cell.published_task, result.cell.published_method), "the paper has no such number"),
        (lambda: result.published is None, "no such published row"),
        (lambda: result.published is not None and result.published.value is None, "the paper's number was not found"),
        (lambda: table.not_comparable is not None, table.not_comparable or ""),
        (lambda: len(result.counted) == 1, "one seed"),
    ]
    for applies, why in reasons:
        if applies():
            return Verdict("not comparable", why)
    assert result.difference is not None
    if result.difference.low > 0:
        return Verdict("above")
    return Verdict("below") if result.difference.high < 0 else Verdict("agrees")


def shortfall(result: CellResult) -> str:
    """What became of the members that do not count, e.g. `1 of 5 seeds diverged`."""
    others = [m.status for m in result.members if not m.counts]
    total = len(result.members)
    words = [
        f"{others.count(status)} of {total} seeds {'data missing' if status == 'missing' else status}"
        for status in dict.fromkeys(others)
    ]
    return ", ".join(words)


def _on_all_tasks(result: TableResult, method: str) -> list[CellResult]:
    """The method's cells, one for each task in order; empty unless each has a member that counts."""
    cells = [result.cell(task, method) for task in result.table.tasks]
    present = [cell for cell in cells if cell is not None and cell.counted]
    return present if len(present) == len(cells) else []


def _average(method: str, cells: list[CellResult]) -> Average:
    published = [cell.published.value if cell.published else None for cell in cells]
    known = [value for value in published if value is not None]
    scores = {}
    for kind in SCORES:
        samples = [cell.values(kind) for cell in cells]
        mean = stats.bootstrap(lambda drawn: sum(x.mean(-1) for x in drawn) / len(drawn), samples, SEED, REPLICATES)
        scores[kind] = Score(stats.iqm_interval(samples, SEED, REPLICATES), mean)
    mean_of_published = float(np.mean(known)) if len(known) == len(cells) else None
    n, planned = sum(len(cell.counted) for cell in cells), sum(len(cell.members) for cell in cells)
    return Average(method, len(cells), str(n) if n == planned else f"{n} of {planned}", mean_of_published, scores)


def _profiles(samples: dict[str, list[np.ndarray]], lower: bool) -> tuple[np.ndarray, dict[str, stats.Profile]]:
    """Performance profiles on common thresholds, from just below the lowest score to the highest.

    Where lower is better they are shares of runs below the thresholds, and these go from high to low.
    """
    if lower:
        thresholds, found = _profiles({method: [-x for x in tasks] for method, tasks in samples.items()}, lower=False)
        return 0.0 - thresholds, found  # no negative zero
    every = np.concatenate([scores for tasks in samples.values() for scores in tasks])
    low, high = float(every.min()), float(every.max())
    margin = 0.02 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, THRESHOLDS)
    return thresholds, {
        method: stats.performance_profile_band(tasks, thresholds, SEED, REPLICATES) for method, tasks in samples.items()
    }


def _improvements(result: TableResult) -> list[Improvement]:
    """Each pair of methods, on the tasks where both have scores; the reverse is one minus it."""
    methods, found = result.table.methods, []
    for i, better in enumerate(methods):
        for worse in methods[i + 1 :]:
            pairs = [(result.cell(task, better), result.cell(task, worse)) for task in result.table.tasks]
            both = [(x, y) for x, y in pairs if x and y and x.counted and y.counted]
            if not both:
                continue
            sign = -1 if result.table.lower_is_better else 1
            x, y = ([sign * cell.values(result.table.score) for cell in side] for side in zip(*both))
            p = stats.probability_of_improvement_interval(x, y, SEED, REPLICATES)
            found.append(Improvement(better, worse, len(both), p))
            found.append(Improvement(worse, better, len(both), Interval(1 - p.value, 1 - p.high, 1 - p.low)))
    return found
