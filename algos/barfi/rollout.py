"""Whole episodes as padded arrays: (P,) with P = horizon + 1, zeros behind the end, the last slot never in use."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Env, Key
from envs.core import EnvParams, EnvState

CHUNK = 10  # steps between two looks whether an episode has ended


class Trajectory(NamedTuple):
    """An episode, or a batch of them along leading axes."""

    obs: jax.Array  # (..., P, obs_dim)
    action: jax.Array  # (..., P) int32, or (..., P, action_dim); in the form that is stored, see `policy`
    beta: jax.Array  # (..., P): probability (density) of the action under the policy that acted
    reward: jax.Array  # (..., P): the true reward r_p
    auxiliary: jax.Array  # (..., P): the designer's reward r_aux, not weighted
    mask: jax.Array  # (..., P): 1 in steps of the episode, 0 in padding


Act = Callable[[Key, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
"""(key, obs) -> (action as stored, action as `Env.step` takes it, its probability)."""


class _Walk(NamedTuple):
    env_state: EnvState
    obs: jax.Array
    alive: jax.Array  # () bool: the episode goes on


def empty(env: Env, act: Act) -> Trajectory:
    """An episode of padding only."""
    obs = jnp.zeros(env.spec.obs_dim)
    action = jax.eval_shape(act, jax.random.key(0), obs)[0]
    length = env.horizon + 1
    scalar = jnp.zeros(length)
    actions = jnp.zeros((length, *action.shape), action.dtype)
    return Trajectory(jnp.zeros((length, *obs.shape)), actions, scalar, scalar, scalar, scalar)


def rollout(reset_key: Key, key: Key, env: Env, params: EnvParams, act: Act, chunk: int = CHUNK) -> Trajectory:
    """One episode from a reset with `reset_key`. The end is looked for every `chunk` steps, and nothing is run on.

    Under `vmap` all go on until the longest of the episodes has ended.
    """
    env_state, obs = env.reset(reset_key, params)
    chunk = min(chunk, env.horizon)
    keys = jax.random.split(key, env.horizon)

    def advance(walk: _Walk, key: Key) -> tuple[_Walk, Trajectory]:
        act_key, env_key = jax.random.split(key)
        action, for_env, beta = act(act_key, walk.obs)
        env_state, step = env.step(env_key, walk.env_state, for_env, params)
        mask = jnp.ones(())
        row = Trajectory(walk.obs, action, beta, step.reward, step.measures["auxiliary"], mask)
        # A selection, as what an environment computes behind the end need not be finite.
        row = jax.tree.map(lambda x: jnp.where(walk.alive, x, jnp.zeros_like(x)), row)
        return _Walk(env_state, step.obs, walk.alive & ~(step.terminated | step.truncated)), row

    def chunk_of(start: jax.Array, length: int, walk: _Walk, rows: Trajectory) -> tuple[_Walk, Trajectory]:
        walk, new = jax.lax.scan(advance, walk, jax.lax.dynamic_slice_in_dim(keys, start, length))
        write = lambda all_rows, part: jax.lax.dynamic_update_slice_in_dim(all_rows, part, start, 0)  # noqa: E731
        return walk, jax.tree.map(write, rows, new)

    walk, rows = _Walk(env_state, obs, jnp.ones((), bool)), empty(env, act)
    whole, rest = divmod(env.horizon, chunk)
    _, walk, rows = jax.lax.while_loop(
        lambda carry: (carry[0] < whole * chunk) & carry[1].alive,
        lambda carry: (carry[0] + chunk, *chunk_of(carry[0], chunk, *carry[1:])),
        (jnp.zeros((), jnp.int32), walk, rows),
    )
    # The steps that no whole chunk covers are few; they are run in any case.
    return chunk_of(jnp.int32(whole * chunk), rest, walk, rows)[1] if rest else rows
