"""Directional claims, judged on pairs of runs that share a seed."""

from dataclasses import dataclass

import numpy as np

from experiments import stats
from experiments.reporting.analysis import CellResult, TableResult, Verdict, shortfall
from experiments.reporting.plan import BEHAVIOUR, Claim


@dataclass
class ClaimResult:
    """What was measured of a claim; `paired` is None where it was not tested."""

    claim: Claim
    paired: stats.Paired | None  # how much better `better` is; wins: seeds with the sign, or without any difference
    verdict: Verdict

    @property
    def sign(self) -> str:
        """For how many seeds it is as claimed."""
        if self.paired is None:
            return "–"
        count = f"{self.paired.wins} of {self.paired.n}"
        return f"= 0 for {count} seeds" if self.claim.relation == "equal" else count

    @property
    def required(self) -> str:
        """What the claim needs to hold."""
        if self.claim.relation == "equal":
            return "= 0, every seed"
        gap = f"> {self.claim.min_gap:g}"
        return gap if self.claim.min_wins is None else f"{gap}, ≥ {self.claim.min_wins} seeds"


def judge(claims: list[Claim], tables: list[TableResult]) -> list[ClaimResult]:
    """Every claim with its verdict, in the plan's order."""
    by_name = {result.table.name: result for result in tables}
    return [_judge(claim, by_name.get(claim.table)) for claim in claims]


def _judge(claim: Claim, table: TableResult | None) -> ClaimResult:
    """A claim holds if the mean paired difference exceeds its gap and enough seeds have the sign.

    One of equality holds if no seed has any difference.
    """
    if table is None:
        return _untested(claim, f"there is no table {claim.table}")
    names = (claim.better, claim.worse)
    cells = [table.cell(claim.task, name) for name in names]
    constants = [_constant(name, cells[0]) if cell is None else None for name, cell in zip(names, cells)]
    lacking = [_lacking(cell, name) for name, cell, constant in zip(names, cells, constants) if constant is None]
    if why := next(filter(None, lacking), "two numbers are no claim" if not lacking else ""):
        return _untested(claim, why)
    found = [_by_seed(cell, table.table.score) for cell in cells if cell is not None]
    seeds = set.intersection(*(set(values) for values in found))
    x, y = (
        dict.fromkeys(seeds, constant) if cell is None else _by_seed(cell, table.table.score)
        for cell, constant in zip(cells, constants)
    )
    shared = sorted(seeds)
    if not shared:
        return _untested(claim, f"{claim.better} and {claim.worse} share no seed")
    if claim.min_wins is not None and claim.min_wins > len(shared):
        return _untested(claim, f"it needs {claim.min_wins} seeds, there are {len(shared)}")
    sign = -1 if table.table.lower_is_better else 1
    ours, others = (sign * np.array([side[s] for s in shared], np.float64) for side in (x, y))
    paired = stats.paired_difference(ours, others)
    if claim.relation == "equal":
        paired = paired._replace(wins=int((ours == others).sum()))
        return ClaimResult(claim, paired, Verdict("holds" if paired.wins == paired.n else "does not hold"))
    holds = paired.difference.value > claim.min_gap and paired.wins >= (claim.min_wins or 0)
    return ClaimResult(claim, paired, Verdict("holds" if holds else "does not hold"))


def _constant(name: str, beside: CellResult | None) -> float | None:
    """The value of a side that is no method: a number, or the behaviour policy's where it is known."""
    if name == BEHAVIOUR:
        return None if beside is None else beside.behaviour
    try:
        return float(name)
    except ValueError:
        return None


def _by_seed(cell: CellResult, kind: str) -> dict[int, float]:
    return {member.seed: getattr(member, kind) for member in cell.counted}


def _lacking(cell: CellResult | None, method: str) -> str:
    """Why a side cannot be tested; empty if it can."""
    if method == BEHAVIOUR:
        return "the behaviour policy's score is not known"
    if cell is None:
        return f"{method} is not in the plan for this task"
    if not cell.members:
        return f"{method}: {cell.cell.missing or 'no runs are planned'}"
    return f"{method}: {shortfall(cell)}" if len(cell.counted) < len(cell.members) else ""


def _untested(claim: Claim, why: str) -> ClaimResult:
    return ClaimResult(claim, None, Verdict("not tested", why))
