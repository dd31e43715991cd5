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
Reference = tuple[float, float]  # (ref_min, ref_max): returns of score 0 and of score 100


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


def score(returns: npt.ArrayLike, ref: Reference) -> np.ndarray:
    """100 * (returns - ref_min) / (ref_max - ref_min), float64, elementwise on undiscounted returns."""
    low, high = ref
    return 100.0 * (np.asarray(returns, np.float64) - low) / (high - low)


def normalized_score(name: str, returns: npt.ArrayLike) -> np.ndarray:
    """The normalised score of undiscounted returns on a D4RL data set; UsageError for an unknown name."""
    return score(returns, reference(name))
