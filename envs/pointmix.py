"""PointMix: a point on a square that has to reach a goal; offline methods differ on it within seconds.

The data mix episodes of an expert with episodes of uniformly random actions. No file is needed.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Env, EnvParams, Key, Spec, TimeStep, Transition, UsageError

HORIZON = 30
GOAL = 0.7  # both coordinates
STEP_SIZE = 0.15
EXPERT_NOISE = 0.1  # standard deviation on each action coordinate


class State(NamedTuple):
    """Where the point is, and when."""

    position: jax.Array  # (2,) in [-1, 1]
    t: jax.Array  # () int32, steps taken


def make() -> Env:
    """A point sees its position in [-1, 1]^2 and earns minus its distance to the goal. Never terminal."""
    return Env("pointmix", Spec(obs_dim=2, action_dim=2), HORIZON, (), _reset, _step)


def _reset(key: Key, params: EnvParams) -> tuple[State, jax.Array]:
    position = jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0)
    return State(position, jnp.int32(0)), position


def _step(key: Key, state: State, action: jax.Array, params: EnvParams) -> tuple[State, TimeStep]:
    position, reward = _move(jnp, state.position, action)
    t = state.t + 1
    return State(position, t), TimeStep(position, reward, jnp.asarray(False), t >= HORIZON)


def _move(xp: ModuleType, position: Any, action: Any) -> tuple[Any, Any]:
    """(..., 2), (..., 2) -> position (..., 2) and reward (...)."""
    position = xp.clip(position + STEP_SIZE * xp.clip(action, -1.0, 1.0), -1.0, 1.0)
    return position, -xp.sqrt(xp.sum(xp.square(position - GOAL), axis=-1))


def make_dataset(seed: int, rho: float, episodes: int = 700) -> Transition:
    """Whole episodes, each of the noisy expert with probability `rho`, else of uniform actions.

    Leading size 30 * episodes, one episode after another; `truncated` marks each last step.
    Raises UsageError for a `rho` outside [0, 1] or fewer than one episode.
    """
    if not 0.0 <= rho <= 1.0:
        raise UsageError(f"rho={rho} is the share of expert episodes; choose it between 0 and 1")
    if episodes < 1:
        raise UsageError(f"episodes={episodes} leaves no data; ask for at least 1")
    rng = np.random.default_rng(seed)
    expert = rng.random((episodes, 1)) < rho
    position = rng.uniform(-1.0, 1.0, (episodes, 2)).astype(np.float32)
    steps = []
    for t in range(HORIZON):
        guided = np.clip((GOAL - position) / STEP_SIZE, -1.0, 1.0)
        guided = np.clip(guided + EXPERT_NOISE * rng.standard_normal((episodes, 2)), -1.0, 1.0)
        uniform = rng.uniform(-1.0, 1.0, (episodes, 2))
        action = np.where(expert, guided, uniform).astype(np.float32)
        after, reward = _move(np, position, action)
        truncated = np.full(episodes, t == HORIZON - 1, np.float32)
        steps.append((position, action, reward, after, np.zeros_like(truncated), truncated))
        position = after
    fields = (np.stack(x, axis=1) for x in zip(*steps))  # (episodes, 30, ...)
    return Transition(*(jnp.asarray(x.reshape(-1, *x.shape[2:])) for x in fields))
