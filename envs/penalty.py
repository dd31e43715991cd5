"""Environments whose costs are taken off the reward, for methods that know of rewards only."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Env, EnvParams, Key, TimeStep, UsageError, measure_names

_NAME = re.compile(r"(?P<env>.+)-penalty(?P<weight>.*)")


class Penalised(NamedTuple):
    """Parameters of such an environment."""

    env: EnvParams
    weight: jax.Array  # (): a unit of cost in units of reward


def split(name: str) -> tuple[str, float] | None:
    """The environment and the weight that `ENV-penaltyWEIGHT` stands for; None for any other name.

    Raises UsageError for a weight that is no number, negative or infinite.
    """
    if (found := _NAME.fullmatch(name)) is None:
        return None
    try:
        weight = float(found["weight"])
    except ValueError:
        weight = -1.0
    if not 0.0 <= weight < float("inf"):
        raise UsageError(
            f"environment {name!r}: the penalty {found['weight']!r} must be a number, 0 or more, e.g. "
            f"{found['env']}-penalty1"
        )
    return found["env"], weight


def penalised(env: Env, weight: float) -> Env:
    """`env` with reward - weight x cost for its reward; its measures, the raw cost among them, stay.

    Raises UsageError for an environment without costs.
    """
    if "cost" not in measure_names(env):
        raise UsageError(f"environment {env.name!r} has no costs to penalise: choose one that has, e.g. safe-hopper")

    def reset(key: Key, params: Penalised) -> tuple[Any, jax.Array]:
        return env.reset(key, params.env)

    def step(key: Key, state: Any, action: jax.Array, params: Penalised) -> tuple[Any, TimeStep]:
        state, step = env.step(key, state, action, params.env)
        return state, step._replace(reward=step.reward - params.weight * step.measures["cost"])

    params = Penalised(env.params, jnp.float32(weight))
    return Env(f"{env.name}-penalty{weight:g}", env.spec, env.horizon, params, reset, step)
