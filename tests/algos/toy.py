"""A tiny environment that the online and offline methods learn within seconds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Env, Spec, TimeStep

HORIZON = 30


class PointState(NamedTuple):
    position: jax.Array  # (2,)
    time: jax.Array  # ()


def reset(key, params):
    position = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
    return PointState(position, jnp.zeros((), jnp.int32)), position


def step(key, state, action, params):
    """Move by 0.15 action in the box [-1, 1]^2; the reward is minus the distance to the goal `params`."""
    position = jnp.clip(state.position + 0.15 * action, -1.0, 1.0)
    time = state.time + 1
    reward = -jnp.linalg.norm(position - params)
    return PointState(position, time), TimeStep(position, reward, jnp.zeros((), bool), time >= HORIZON)


POINT = Env("point", Spec(2, 2), HORIZON, jnp.array([0.7, 0.7]), reset, step)


def mean_return(env, policy, key, episodes=100):
    """Mean undiscounted return of policy(key, obs) over one horizon; `policy` takes (episodes, obs_dim)."""

    def body(carry, key):
        state, obs = carry
        action = policy(key, obs)
        state, out = jax.vmap(env.step, (None, 0, 0, None))(key, state, action, env.params)
        return (state, out.obs), out.reward

    reset_key, run_key = jax.random.split(key)
    start = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, episodes), env.params)
    return jax.lax.scan(body, start, jax.random.split(run_key, env.horizon))[1].sum(0).mean()
