"""Parts of a data set: episodes held out, the best safe episodes, random episodes, a random share of the rows.

They are cut in this order, each from what the one before leaves. Each random draw has its own stream of the seed
and takes the beginning of one random order, so that 10 episodes of a seed are among its 30, and the same ones are
held out whatever is trained on.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from envs.core import UsageError


class EpisodeTable(NamedTuple):
    """What is known of the E episodes that n transitions belong to."""

    of: np.ndarray  # (n,) int64: the episode of each transition
    returns: np.ndarray  # (E,) float64, undiscounted
    costs: np.ndarray | None  # (E,) float64, undiscounted; None for data without costs
    whole: np.ndarray  # (E,) bool: not broken off by the end of the file


@dataclass(frozen=True)
class Selection:
    """What is asked for, as in the keys of `data`; the defaults take everything."""

    holdout: int = 0  # episodes kept apart
    best_safe: int | None = None  # of the episodes that cost at most half the limit, those of highest return
    episodes: int | None = None  # drawn at random
    fraction: float | None = None  # share of the transitions, drawn at random
    cost_limit: float = 10.0
    seed: int = 0


def select(name: str, episodes: EpisodeTable, wanted: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Which transitions of data set `name` to train on and which to hold out: two (n,) bool arrays.

    Raises UsageError, naming the key, for more than there is, for nothing left and for numbers out of range.
    """
    _check(wanted)
    available = np.flatnonzero(episodes.whole & (np.bincount(episodes.of, minlength=len(episodes.whole)) > 0))
    held = _drawn(available, wanted, stream=0)[: wanted.holdout]
    if wanted.holdout and wanted.holdout >= len(available):
        has = f"{name} has {len(available)} whole episodes"
        raise UsageError(f"data.holdout={wanted.holdout} leaves nothing to train on: {has}; hold out fewer")
    rest = np.setdiff1d(available, held)
    keep = ~np.isin(episodes.of, held)
    if wanted.best_safe is not None:
        rest = _best_safe(name, rest, episodes, wanted)
    if wanted.episodes is not None:
        if wanted.episodes > len(rest):
            raise UsageError(f"data.episodes={wanted.episodes}: {name} has {len(rest)} to choose from; ask for no more")
        drawn = _drawn(available, wanted, stream=1)
        rest = drawn[np.isin(drawn, rest)][: wanted.episodes]
    if wanted.best_safe is not None or wanted.episodes is not None:
        keep &= np.isin(episodes.of, rest)
    if wanted.fraction is not None:
        keep = _share(name, keep, wanted)
    return keep, np.isin(episodes.of, held)


def _check(wanted: Selection) -> None:
    for key, least in (("holdout", 0), ("best_safe", 1), ("episodes", 1), ("seed", 0)):
        value = getattr(wanted, key)
        if value is not None and value < least:
            raise UsageError(f"data.{key}={value} must be at least {least}")
    if wanted.fraction is not None and not 0.0 < wanted.fraction <= 1.0:
        raise UsageError(f"data.fraction={wanted.fraction} must be more than 0 and at most 1")
    if not wanted.cost_limit > 0.0:
        raise UsageError(f"data.cost_limit={wanted.cost_limit} must be more than 0")


def _drawn(items: np.ndarray, wanted: Selection, stream: int) -> np.ndarray:
    """`items` in random order."""
    return np.random.default_rng([wanted.seed, stream]).permutation(items)


def _best_safe(name: str, among: np.ndarray, episodes: EpisodeTable, wanted: Selection) -> np.ndarray:
    key, limit = f"data.best_safe={wanted.best_safe}", 0.5 * wanted.cost_limit
    if episodes.costs is None:
        raise UsageError(f"{key}: {name} has no costs; choose a data set that has, e.g. one of DSRL's")
    safe = among[episodes.costs[among] <= limit]
    if len(safe) < (wanted.best_safe or 0):
        half = f"a cost of at most {limit:g}, half of data.cost_limit"
        raise UsageError(f"{key}: {len(safe)} episodes of {name} have {half}; ask for no more")
    best_first = np.argsort(-episodes.returns[safe], kind="stable")
    return safe[best_first][: wanted.best_safe]


def _share(name: str, keep: np.ndarray, wanted: Selection) -> np.ndarray:
    """(n,) bool: a random share of the transitions in `keep`."""
    rows = np.flatnonzero(keep)
    count = round((wanted.fraction or 0.0) * len(rows))
    if count == 0:
        raise UsageError(
            f"data.fraction={wanted.fraction} of {name}'s {len(rows)} transitions is none; take a larger one"
        )
    share = np.zeros(len(keep), bool)
    share[_drawn(rows, wanted, stream=2)[:count]] = True
    return share
