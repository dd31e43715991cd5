"""Evaluation: every member of a population acts in many episodes at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.core import Algorithm, Env
from algos.runner import Population, over_members
from envs.adapters import GymnasiumPool

Normalizer = tuple[jax.Array, jax.Array]  # mean and std of observations, (obs_dim,) each
Evaluator = Callable[[Population, Normalizer, np.ndarray], np.ndarray]
PoolMaker = Callable[[int], GymnasiumPool]  # number of environments -> pool


class _Carry(NamedTuple):
    t: jax.Array
    env_state: Any  # leading axis: members x episodes
    obs: jax.Array
    done: jax.Array  # (members x episodes,)
    returns: jax.Array


def make_evaluator(algo: Algorithm, env: Env | PoolMaker, episodes: int, how: str) -> Evaluator:
    """Undiscounted returns: (population, normaliser, seeds (members, episodes)) -> (members, episodes).

    Actions of one member are computed for all its episodes together, members by `how` (see the runner), so that
    a member's returns do not depend on who else is in the population when `how` is "map". Environments step all
    at once; an episode's return stops growing when it ends, and the rollout stops when all have ended.
    """
    act = over_members(how, lambda state, hyper, obs: algo.act(jax.random.key(0), state, obs, hyper))

    def policy(population: Population, normalizer: Normalizer, obs: jax.Array) -> jax.Array:
        mean, std = normalizer
        by_member = ((obs - mean) / std).reshape(-1, episodes, obs.shape[-1])
        action = act(population.state, population.hyper, by_member)
        return action.reshape(-1, action.shape[-1])

    if not isinstance(env, Env):
        return _on_host(env, jax.jit(policy), episodes)

    @jax.jit
    def evaluate(population: Population, normalizer: Normalizer, seeds: jax.Array) -> jax.Array:
        keys = jax.vmap(jax.random.key)(seeds.reshape(-1))
        env_state, obs = jax.vmap(env.reset, (0, None))(keys, env.params)

        def unfinished(carry: _Carry) -> jax.Array:
            return (carry.t < env.horizon) & ~carry.done.all()

        def advance(carry: _Carry) -> _Carry:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, carry.t)
            action = policy(population, normalizer, carry.obs)
            env_state, step = jax.vmap(env.step, (0, 0, 0, None))(step_keys, carry.env_state, action, env.params)
            returns = carry.returns + jnp.where(carry.done, 0.0, step.reward)
            return _Carry(carry.t + 1, env_state, step.obs, carry.done | step.terminated | step.truncated, returns)

        start = _Carry(jnp.int32(0), env_state, obs, jnp.zeros(seeds.size, bool), jnp.zeros(seeds.size))
        return jax.lax.while_loop(unfinished, advance, start).returns.reshape(seeds.shape)

    return lambda population, normalizer, seeds: np.asarray(evaluate(population, normalizer, jnp.asarray(seeds)))


def _on_host(make_pool: PoolMaker, policy: Callable, episodes: int) -> Evaluator:
    """The same for environments that are Python objects: stepped by the host, actions of all in one call."""
    make_pool = functools.cache(make_pool)

    def evaluate(population: Population, normalizer: Normalizer, seeds: np.ndarray) -> np.ndarray:
        pool = make_pool(seeds.size)
        obs = pool.reset([int(seed) for seed in seeds.reshape(-1)])
        returns, done = np.zeros(seeds.size), np.zeros(seeds.size, bool)
        while not done.all():
            action = np.asarray(policy(population, normalizer, jnp.asarray(obs)))
            obs, reward, terminated, truncated = pool.step(action)
            returns += np.where(done, 0.0, reward)
            done |= np.maximum(terminated, truncated) > 0
        return returns.reshape(seeds.shape)

    return evaluate


def episode_seeds(member_seeds: list[int], episodes: int, update: int, mode: str) -> np.ndarray:
    """Seeds of the initial states, (members, episodes): the same at each evaluation, or fresh ones."""
    salt = [] if mode == "fixed" else [update]
    draw = [np.random.SeedSequence([seed + 100, *salt]).generate_state(episodes) for seed in member_seeds]
    return np.stack(draw) % np.uint32(2**31)
