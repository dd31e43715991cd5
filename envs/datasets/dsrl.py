"""DSRL, data sets with costs for safe offline RL (Liu et al., arXiv 2306.09303): its 38 tasks and its file layout.

A file is flat like D4RL's but has `costs` and `next_observations`, so every row has its true successor and
none is dropped. Termination and the time limit stay apart here; a method that counts both as an end does so itself.
The table is that of the `dsrl` package, version 0.1.0; the data are CC BY 4.0.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from envs.core import Transition, UsageError
from envs.datasets.d4rl import as_transition
from envs.datasets.hdf5 import Raw
from envs.datasets.scores import Reference, score, unknown

TABLE = Path(__file__).with_name("dsrl_tasks.csv")
# The authors' copy, then their own server, which the package names and which is often down.
SERVERS = ("https://huggingface.co/datasets/YYY-45/DSRL/resolve/main", "http://data.offline-saferl.org/download")
TOP_SCORE = 1.0  # normalised return of the upper reference: DSRL multiplies nothing by 100


@dataclass(frozen=True)
class Task:
    """A row of the table. Its returns and costs are undiscounted sums over an episode of its data."""

    dataset: str
    env: str | None  # our environment, where there is one
    max_episode_steps: int
    reference: Reference  # smallest and largest return
    costs: tuple[float, float]  # smallest and largest; no score uses them
    file: str

    @property
    def reward_scale(self) -> float:
        """DSRL's users train on rewards times this: the references are then H apart for H steps an episode."""
        low, high = self.reference
        return self.max_episode_steps / (high - low)


@cache
def tasks() -> dict[str, Task]:
    """All tasks by the name of their data set."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["dataset"]: Task(
            row["dataset"],
            row["env"] or None,
            int(row["max_episode_steps"]),
            (float(row["min_return"]), float(row["max_return"])),
            (float(row["min_cost"]), float(row["max_cost"])),
            row["file"],
        )
        for row in rows
    }


def normalized_return(name: str, returns: npt.ArrayLike) -> np.ndarray:
    """(R - R_min) / (R_max - R_min) of undiscounted returns on a DSRL task, float64; UsageError for an unknown name."""
    if name not in tasks():
        raise unknown(name, tasks())
    return score(returns, tasks()[name].reference, TOP_SCORE)


def transitions(raw: Raw) -> Transition:
    """Every row as a transition with its cost, float32 numpy arrays; raises UsageError where a key is missing."""
    for key in ("costs", "next_observations", "timeouts"):
        if getattr(raw, key) is None:
            raise UsageError(f"key '{key}' is missing; DSRL's layout needs costs, next_observations and timeouts")
    return as_transition(
        raw.observations,
        raw.actions,
        raw.rewards,
        raw.next_observations,
        raw.terminals,
        raw.timeouts,
        raw.costs,
    )
