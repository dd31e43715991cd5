"""An episode under way: decisions made in an allocation environment, and what they earned.

Shared by everything here that is an `Algorithm`: one step is one decision and one step of the environment.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Env, Key, Metrics, UsageError
from envs.core import EnvParams, EnvState, autoreset


class Episode(NamedTuple):
    """Where an environment is, and what the policy earned in it. Returns are profits: rewards less costs."""

    env_state: EnvState
    obs: jax.Array  # (obs_dim,)
    profit: jax.Array  # () of this episode so far
    gross: jax.Array  # (): rewards of completed tasks
    last_profit: jax.Array  # () of the episode that ended last
    last_gross: jax.Array  # ()


def check_env(algo: str, env: Env) -> None:
    """Raise UsageError for an environment that does not ask who shall serve which task."""
    if env.view is None:
        raise UsageError(f"algo={algo} allocates tasks, env={env.name} has none: set env=almighty, env=rbf-a, ...")


def problem_of(env: Env, obs: jax.Array) -> Any:
    """The problem that an observation (obs_dim,) asks to decide."""
    assert env.view is not None
    return env.view(obs)


def example(env: Env) -> Any:
    """A problem of the environment's sizes, all zero."""
    return problem_of(env, jnp.zeros(env.spec.obs_dim))


def action_of(teams: jax.Array) -> jax.Array:
    """Teams (T, N) bool as an action (T * N,)."""
    return jnp.where(teams, 1.0, -1.0).ravel()


def begin(key: Key, env: Env, params: EnvParams) -> Episode:
    """A first episode."""
    env_state, obs = env.reset(key, params)
    zero = jnp.zeros(())
    return Episode(env_state, obs, zero, zero, zero, zero)


def advance(key: Key, env: Env, params: EnvParams, episode: Episode, teams: jax.Array) -> tuple[Episode, jax.Array]:
    """Hand the teams (T, N) to the environment; the episode, or a fresh one if it ended, and whether () it did."""
    env_state, obs, step = autoreset(env, key, episode.env_state, action_of(teams), params)
    over = step.terminated | step.truncated
    profit, gross = episode.profit + step.reward, episode.gross + step.measures["gross"]
    return Episode(
        env_state,
        obs,
        profit=jnp.where(over, 0.0, profit),
        gross=jnp.where(over, 0.0, gross),
        last_profit=jnp.where(over, profit, episode.last_profit),
        last_gross=jnp.where(over, gross, episode.last_gross),
    ), over


def returns(episode: Episode) -> Metrics:
    """Training returns: of the episode that ended last, so that means over steps are means over episodes."""
    return {"train_profit": episode.last_profit, "train_gross": episode.last_gross}


def for_each(key: Key, env: Env, obs: jax.Array, teams_for: Callable[[Key, Any], jax.Array]) -> jax.Array:
    """Actions (..., action_dim) of `teams_for(key, problem)` -> (T, N) for observations (..., obs_dim)."""
    rows = obs.reshape(-1, obs.shape[-1])
    one = lambda key, row: action_of(teams_for(key, problem_of(env, row)))  # noqa: E731
    actions = jax.vmap(one)(jax.random.split(key, len(rows)), rows)
    return actions.reshape(*obs.shape[:-1], -1)
