"""Two regions: a bandit in which the skill to use depends on where one is.

The observation s is uniform on the square [-1, 1]^2. The skill "left" acts near one centre, "right" near another,
both everywhere; the task wants left where s_x < 0 and right elsewhere. A composition whose weights depend on s
can switch between the two skills at s_x = 0, one with constant weights cannot.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Env, Spec, Transition
from envs.toys import bandit

LEFT, RIGHT = 0, 1
CENTRES = np.array([(-0.5, 0.5), (0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)], np.float32)  # left, right, two others
NOISE = 0.1  # standard deviation on each action coordinate
WIDTH = 0.4  # distance from the wanted centre at which the reward has fallen to exp(-1/2)
SAMPLES = {"two-regions-base": 20_000, "two-regions-left": 5_000, "two-regions-right": 5_000, "two-regions": 2_000}


def make() -> Env:
    """Observation (2,) in [-1, 1], action (2,), one step."""
    draw_obs = lambda key: jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0)  # noqa: E731
    return bandit.make_env("two-regions", Spec(obs_dim=2, action_dim=2), draw_obs, outcome)


def wanted_centre(xp: ModuleType, obs: Any) -> Any:
    """(..., 2) -> index (...) of the centre that the task wants: LEFT where the first coordinate is negative."""
    return xp.where(obs[..., 0] < 0, LEFT, RIGHT)


def outcome(xp: ModuleType, obs: Any, action: Any) -> tuple[Any, dict[str, Any]]:
    """Reward exp(-d^2 / (2 WIDTH^2)) for the distance d to the wanted centre: 1 at best, 0.04 at the other one."""
    offset = action - xp.asarray(CENTRES)[wanted_centre(xp, obs)]
    return xp.exp(-xp.sum(xp.square(offset), axis=-1) / (2 * WIDTH**2)), {}


def make_dataset(name: str, seed: int, samples: int | None = None) -> Transition:
    """Actions near centres, at observations drawn uniformly.

    `two-regions-base`: all four centres with equal probability, whatever the observation; `two-regions-left` and
    `two-regions-right`: that centre alone; `two-regions`: the wanted centre, to learn to compose. Rewards are the
    task's in all of them. Rows: `samples`, by default SAMPLES.
    Raises UsageError for another name and for fewer than one sample.
    """
    rows = bandit.rows_of(name, SAMPLES, samples)
    rng = bandit.generator(name, SAMPLES, seed)
    obs = rng.uniform(-1.0, 1.0, (rows, 2)).astype(np.float32)
    centre = {
        "two-regions-base": rng.integers(len(CENTRES), size=rows),
        "two-regions-left": np.full(rows, LEFT),
        "two-regions-right": np.full(rows, RIGHT),
        "two-regions": wanted_centre(np, obs),
    }[name]
    return bandit.record(obs, bandit.noisy(rng, CENTRES[centre], NOISE), outcome)
