"""D4RL's two conversions of a flat file, with their quirks (the `d4rl` package, version 1.1).

`qlearning` is what offline algorithms train on. A row's successor observation is the next row's, whatever
episode
that belongs to: rows cut by the time limit are therefore dropped, and the successor of a terminal row is
the first observation of another episode, harmless only where termination masks it. Do not fit dynamics to
those rows.
"""

from typing import Any

import numpy as np

from envs.core import Transition, UsageError
from envs.datasets.hdf5 import Raw, read_hdf5

__all__ = ["Raw", "as_transition", "qlearning", "read_hdf5", "sequence"]


def as_transition(*fields: Any) -> Transition:
    """A Transition of float32 numpy arrays: obs, action, reward, next_obs, terminated, truncated and perhaps cost."""
    arrays: list[Any] = [np.ascontiguousarray(field, np.float32) for field in fields]
    return Transition(*arrays)


def qlearning(raw: Raw, max_episode_steps: int | None, terminate_on_end: bool = False) -> tuple[Transition, np.ndarray]:
    """One-step transitions and the raw row of each: (Transition of n rows, source_index (n,) int32).

    The last raw row never counts, as it has no successor. By default a row that the time limit ended is
    dropped, even where it is terminal too. With `terminate_on_end` it is kept, although its successor is
    another episode's first observation, and bootstrapping from it crosses episodes. `terminated` is the
    file's terminals; `truncated` marks the rows that the time limit ended, so it is zero everywhere by
    default.

    Without `timeouts` the time limit is found by counting to `max_episode_steps`. Raises UsageError where
    it is None, or where no transition is left.
    """
    rows = len(raw.rewards) - 1
    cut = _time_limit(raw, max_episode_steps, restart_at_zero=not terminate_on_end)[:rows]
    keep = np.ones(rows, bool) if terminate_on_end else ~cut
    index = np.flatnonzero(keep).astype(np.int32)
    if len(index) == 0:
        raise UsageError(f"the data hold no transition: {rows + 1} rows, of which none has a successor")
    transitions = as_transition(
        raw.observations[index],
        raw.actions[index],
        raw.rewards[index],
        raw.observations[index + 1],
        raw.terminals[index],
        cut[index],
    )
    return transitions, index


def sequence(raw: Raw, max_episode_steps: int | None) -> tuple[np.ndarray, np.ndarray]:
    """First row and length of each episode, int32, as D4RL's sequence iterator yields them.

    An episode ends with the row that is terminal or that the time limit ended; a trailing unfinished one is
    dropped. Without `timeouts`, every episode after the first is cut one row short of `max_episode_steps`.
    """
    ends = raw.terminals | _time_limit(raw, max_episode_steps, restart_at_zero=False)
    last = np.flatnonzero(ends)
    start = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    return start.astype(np.int32), (last + 1 - start).astype(np.int32)


def _time_limit(raw: Raw, max_episode_steps: int | None, restart_at_zero: bool) -> np.ndarray:
    """(N,) bool: the time limit ended the episode at this row, by the file's timeouts or else by counting.

    D4RL resets its counter at an episode's end and then still counts that row, so the next episode starts
    at 1. Only where the row is dropped does it start at 0 (`restart_at_zero`).
    """
    if raw.timeouts is not None:
        return raw.timeouts
    if max_episode_steps is None:
        mend = "give data.name=DATASET, or an attribute 'max_episode_steps' in the file"
        raise UsageError(f"key 'timeouts' is missing and the time limit is not known; {mend}")
    flags, steps, limit = [], 0, max_episode_steps
    for terminal in raw.terminals.tolist():
        cut = steps == limit - 1
        flags.append(cut)
        steps = 1 if cut or terminal else steps + 1
        if cut and restart_at_zero:
            steps = 0
    return np.asarray(flags, bool)
