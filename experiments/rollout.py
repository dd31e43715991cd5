"""Evaluation: every member of a population acts in many episodes at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from algos.core import Algorithm, Dataset, Env, Metrics, Spec
from algos.runner import Population, over_members
from envs.adapters import GymnasiumPool
from envs.core import measure_names

RETURN = "return"
Normalizer = tuple[jax.Array, jax.Array]  # mean and std of observations, (obs_dim,) each
Sums = dict[str, np.ndarray]  # RETURN and the environment's measures, each (members, episodes), over whole episodes
Evaluator = Callable[[Population, Normalizer, np.ndarray], Sums]
Validator = Callable[[Population], dict[str, np.ndarray]]
PoolMaker = Callable[[int], GymnasiumPool]  # number of environments -> pool

BEGIN = 2**31 - 1  # in place of a time: what is drawn once, as an episode begins
_ACTING = 0x5AC7  # sets the keys of a stochastic policy apart from those of the environment


class _Carry(NamedTuple):
    t: jax.Array
    env_state: Any  # leading axis: members x episodes
    obs: jax.Array
    done: jax.Array  # (members x episodes,)
    sums: dict[str, jax.Array]


def spec_of(env: Env | PoolMaker) -> Spec:
    """The shapes of an environment; of one on the host, a pool is made and asked."""
    return env.spec if isinstance(env, Env) else env(1).spec


def make_evaluator(algo: Algorithm, env: Env | PoolMaker, episodes: int, how: str) -> Evaluator:
    """Undiscounted sums over episodes: (population, normaliser, seeds (members, episodes)) -> reward and measures.

    Actions of one member are computed for all its episodes together, members by `how` (see the runner), so that
    a member's returns do not depend on who else is in the population when `how` is "map". Environments step all
    at once; an episode's sums stop growing when it ends, and the rollout stops when all have ended. A stochastic
    policy draws from keys of its own, which follow from the seed of the member's first episode and the time.
    """
    act = over_members(how, lambda key, state, hyper, obs, *memory: algo.act(key, state, obs, hyper, *memory))
    begin = over_members(how, lambda key, state, hyper, obs: begin_episodes(algo, key, state, obs, hyper))

    def by_member(normalizer: Normalizer, obs: jax.Array) -> jax.Array:
        mean, std = normalizer
        return ((obs - mean) / std).reshape(-1, episodes, obs.shape[-1])

    def memory_of(population: Population, normalizer: Normalizer, obs: jax.Array, seeds: jax.Array) -> tuple:
        keys = jax.vmap(lambda seed: acting_key(seed, BEGIN))(seeds[:, 0])
        return begin(keys, population.state, population.hyper, by_member(normalizer, obs))

    def policy(
        population: Population, normalizer: Normalizer, obs: jax.Array, seeds: jax.Array, t: jax.Array, memory: tuple
    ) -> jax.Array:
        keys = jax.vmap(lambda seed: acting_key(seed, t))(seeds[:, 0])
        action = act(keys, population.state, population.hyper, by_member(normalizer, obs), *memory)
        return action.reshape(-1, action.shape[-1])

    if not isinstance(env, Env):
        return _on_host(env, jax.jit(memory_of), jax.jit(policy))

    @jax.jit
    def evaluate(population: Population, normalizer: Normalizer, seeds: jax.Array) -> dict[str, jax.Array]:
        keys = jax.vmap(jax.random.key)(seeds.reshape(-1))
        env_state, obs = jax.vmap(env.reset, (0, None))(keys, env.params)
        memory = memory_of(population, normalizer, obs, seeds)

        def unfinished(carry: _Carry) -> jax.Array:
            return (carry.t < env.horizon) & ~carry.done.all()

        def advance(carry: _Carry) -> _Carry:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, carry.t)
            action = policy(population, normalizer, carry.obs, seeds, carry.t, memory)
            env_state, step = jax.vmap(env.step, (0, 0, 0, None))(step_keys, carry.env_state, action, env.params)
            gained = {RETURN: step.reward} | step.measures
            sums = {name: carry.sums[name] + jnp.where(carry.done, 0.0, x) for name, x in gained.items()}
            return _Carry(carry.t + 1, env_state, step.obs, carry.done | step.terminated | step.truncated, sums)

        none = dict.fromkeys((RETURN, *measure_names(env)), jnp.zeros(seeds.size))
        start = _Carry(jnp.int32(0), env_state, obs, jnp.zeros(seeds.size, bool), none)
        sums = jax.lax.while_loop(unfinished, advance, start).sums
        return {name: x.reshape(seeds.shape) for name, x in sums.items()}

    return lambda population, normalizer, seeds: jax.device_get(evaluate(population, normalizer, jnp.asarray(seeds)))


def begin_episodes(algo: Algorithm, key: jax.Array, state: Any, obs: jax.Array, hyper: Any) -> tuple:
    """What `Algorithm.act` takes besides the observation, throughout episodes that begin with obs (E, obs_dim)."""
    return () if algo.begin is None else (algo.begin(key, state, obs, hyper),)


def acting_key(seed: ArrayLike, t: ArrayLike) -> jax.Array:
    """What the policy draws from at step `t` of the episodes that begin with the episode of `seed`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _ACTING), t)


def _on_host(make_pool: PoolMaker, memory_of: Callable, policy: Callable) -> Evaluator:
    """The same for environments that are Python objects: stepped by the host, actions of all in one call."""
    make_pool = functools.cache(make_pool)

    def evaluate(population: Population, normalizer: Normalizer, seeds: np.ndarray) -> Sums:
        pool = make_pool(seeds.size)
        obs = pool.reset([int(seed) for seed in seeds.reshape(-1)])
        memory = memory_of(population, normalizer, jnp.asarray(obs), jnp.asarray(seeds))
        returns, done, t = np.zeros(seeds.size), np.zeros(seeds.size, bool), 0
        while not done.all():
            action = policy(population, normalizer, jnp.asarray(obs), jnp.asarray(seeds), jnp.int32(t), memory)
            obs, reward, terminated, truncated = pool.step(np.asarray(action))
            returns += np.where(done, 0.0, reward)
            done |= np.maximum(terminated, truncated) > 0
            t += 1
        return {RETURN: returns.reshape(seeds.shape)}

    return evaluate


def make_validator(algo: Algorithm, held_out: Dataset | None, how: str) -> Validator:
    """What the algorithm measures on held-out data, each (members,): the same draws whenever it is asked."""
    if algo.validate is None or held_out is None:
        return lambda population: {}
    validate = algo.validate

    @jax.jit
    def measure(population: Population, data: Dataset) -> Metrics:
        def one(state: Any, hyper: Any) -> Metrics:
            return validate(jax.random.key(0), state, data, hyper)

        return over_members(how, one)(population.state, population.hyper)

    return lambda population: jax.device_get(measure(population, held_out))


def episode_seeds(member_seeds: list[int], episodes: int, update: int, mode: str) -> np.ndarray:
    """Seeds of the initial states, (members, episodes): the same at each evaluation, or fresh ones."""
    salt = [] if mode == "fixed" else [update]
    draw = [np.random.SeedSequence([seed + 100, *salt]).generate_state(episodes) for seed in member_seeds]
    return np.stack(draw) % np.uint32(2**31)
