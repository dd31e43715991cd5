"""Reference returns of D4RL's data sets and the normalised score.

The table holds, for each data set, the return of a random policy (score 0) and of an expert (score 100). It
is the table of the D4RL package (Fu et al., 2020, arXiv 2004.07219); a score may leave [0, 100].
"""

import csv
import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from envs.core import UsageError

TABLE = Path(__file__).with_name("d4rl_reference_scores.csv")
TOP_SCORE = 100.0
Reference = tuple[float, float]  # (ref_min, ref_max): returns of score 0 and of the top score


@cache
def table() -> dict[str, Reference]:
    """All rows of the reference table, by data set name."""
    with TABLE.open(newline="") as file:
        return {row["dataset"]: (float(row["ref_min"]), float(row["ref_max"])) for row in csv.DictReader(file)}


def unknown(name: str, known: Iterable[str], mend: str = "") -> UsageError:
    """The error for a data set name that is not in `known`, with the nearest names that are."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "no known name is near it"
    return UsageError(f"unknown data set {name!r}: {hint}{mend}")


def reference(name: str) -> Reference:
    """(ref_min, ref_max) of a D4RL data set. Raises UsageError for a name that has no row."""
    if name not in table():
        raise unknown(name, table())
    return table()[name]


def score(returns: npt.ArrayLike, ref: Reference, top: float = TOP_SCORE) -> np.ndarray:
    """top * (returns - ref_min) / (ref_max - ref_min), float64, elementwise on undiscounted returns."""
    low, high = ref
    return top * (np.asarray(returns, np.float64) - low) / (high - low)


def normalized_cost(costs: npt.ArrayLike, limit: float) -> np.ndarray:
    """Undiscounted costs of episodes in units of the limit, float64: (cost + e) / (limit + e), as in DSRL.

    e is 1 for a limit of 0 and 0 otherwise. An episode is safe below 1. Raises UsageError for a negative limit.
    """
    if not limit >= 0.0:
        raise UsageError(f"cost limit {limit} must not be negative")
    offset = 1.0 if limit == 0.0 else 0.0
    return (np.asarray(costs, np.float64) + offset) / (limit + offset)


def normalized_score(name: str, returns: npt.ArrayLike) -> np.ndarray:
    """The normalised score of undiscounted returns on a D4RL data set; UsageError for an unknown name."""
    return score(returns, reference(name))
