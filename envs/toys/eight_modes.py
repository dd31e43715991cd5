"""Eight modes: a bandit in which reward and safety agree on one mode out of eight.

The modes lie on a circle. The reward favours modes 0, 7 and 6, safety forbids 5, 6 and 7: the only mode that is
both safe and best is mode 0. A reward skill and a safety skill each miss it; their composition can find it.

An action belongs to the mode with the nearest centre, however far away: that decides its reward and its share
in mode 0. It is unsafe by its own first coordinate, not by its mode's.
"""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from envs.core import Env, Spec, Transition
from envs.toys import bandit

_Q = 2**-0.5
_DIRECTIONS = [(0, 1), (-_Q, _Q), (-1, 0), (-_Q, -_Q), (0, -1), (_Q, -_Q), (1, 0), (_Q, _Q)]
CENTRES = 0.8 * np.array(_DIRECTIONS, np.float32)  # (8, 2)
REWARDS = np.array([7, 1, 2, 3, 4, 5, 6, 7], np.float32)  # of each mode
RIGHT = 0  # the best of the safe modes
NOISE = 0.06  # standard deviation on each action coordinate
UNSAFE = 0.3  # actions with a larger first coordinate cost 1
SAMPLES = {"eight-modes": 20_000, "eight-modes-right": 300}  # rows of each data set


def make() -> Env:
    """Observation always (1, 1), action (2,), one step. Measures: `cost` and `right_mode`, each 0 or 1."""
    return bandit.make_env("eight-modes", Spec(obs_dim=2, action_dim=2), lambda key: jnp.ones(2), outcome)


def nearest_mode(xp: ModuleType, action: Any) -> Any:
    """(..., 2) -> index (...) of the mode with the nearest centre."""
    return xp.argmin(xp.sum(xp.square(action[..., None, :] - xp.asarray(CENTRES)), axis=-1), axis=-1)


def outcome(xp: ModuleType, obs: Any, action: Any) -> tuple[Any, dict[str, Any]]:
    """Reward (...) and measures (...) of actions (..., 2) in [-1, 1]; the observation plays no part."""
    mode = nearest_mode(xp, action)
    cost = (action[..., 0] > UNSAFE).astype(xp.float32)
    return xp.asarray(REWARDS)[mode], {"cost": cost, "right_mode": (mode == RIGHT).astype(xp.float32)}


def make_dataset(name: str, seed: int, samples: int | None = None) -> Transition:
    """`eight-modes`: all modes with equal probability; `eight-modes-right`: mode 0 alone, to learn to compose.

    Rows: `samples`, by default 20,000 and 300. Costs are raw, 1 or 0.
    Raises UsageError for another name and for fewer than one sample.
    """
    rows = bandit.rows_of(name, SAMPLES, samples)
    rng = bandit.generator(name, SAMPLES, seed)
    mode = rng.integers(len(CENTRES), size=rows) if name == "eight-modes" else np.full(rows, RIGHT)
    return bandit.record(np.ones((rows, 2), np.float32), bandit.noisy(rng, CENTRES[mode], NOISE), outcome)
