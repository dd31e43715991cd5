"""Episodes of a flat file, counted cleanly (not with the quirks of D4RL's conversions), and their returns."""

from typing import NamedTuple

import numpy as np

from envs.datasets.hdf5 import Raw


class Episodes(NamedTuple):
    """Where each episode lies. `complete` is false only for a last one that the file breaks off."""

    start: np.ndarray  # (E,) int64
    length: np.ndarray  # (E,) int64
    complete: np.ndarray  # (E,) bool


def bounds(raw: Raw, max_episode_steps: int | None = None, split_at_terminals: bool = True) -> Episodes:
    """Split the rows into episodes, each ending with a terminal or timeout row.

    Without `timeouts` in the file an episode also ends after `max_episode_steps` rows, if given. AntMaze's
    trajectories go on after a terminal row, so they are split with `split_at_terminals=False`.
    """
    rows = len(raw.rewards)
    ends = raw.terminals.copy() if split_at_terminals else np.zeros(rows, bool)
    if raw.timeouts is not None:
        ends |= raw.timeouts
    elif max_episode_steps is not None:
        row = np.arange(rows)
        begins = np.concatenate([[True], ends[:-1]])
        since_start = row - np.maximum.accumulate(np.where(begins, row, 0))
        ends |= since_start % max_episode_steps == max_episode_steps - 1
    complete = bool(ends[-1])
    last = np.flatnonzero(ends) if complete else np.append(np.flatnonzero(ends), rows - 1)
    start = np.concatenate([[0], last[:-1] + 1])
    return Episodes(start, last + 1 - start, np.append(np.ones(len(last) - 1, bool), complete))


def sums(values: np.ndarray, episodes: Episodes) -> np.ndarray:
    """(E,) float64: the sum of (N,) values over each episode, unfinished ones included."""
    return np.add.reduceat(values.astype(np.float64), episodes.start)


def numbers(episodes: Episodes) -> np.ndarray:
    """(N,) int64: the episode that each row belongs to."""
    return np.repeat(np.arange(len(episodes.length)), episodes.length)


def returns(rewards: np.ndarray, episodes: Episodes) -> np.ndarray:
    """Undiscounted return (float64) of each complete episode, in order."""
    return sums(rewards, episodes)[episodes.complete]


def episode_returns(raw: Raw, max_episode_steps: int | None = None, split_at_terminals: bool = True) -> np.ndarray:
    """Undiscounted return of each complete episode; a trailing unfinished one is dropped."""
    return returns(raw.rewards, bounds(raw, max_episode_steps, split_at_terminals))
