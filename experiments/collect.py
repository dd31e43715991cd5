"""Rows for data sets: a policy acting in many copies of an environment, or the rows of a replay buffer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from algos.core import Env, Key, Transition
from envs.core import autoreset
from envs.datasets.episodes import bounds, numbers, sums
from envs.datasets.hdf5 import Raw

Rows = dict[str, np.ndarray]  # in D4RL's names, each with leading axis N
Policy = Callable[[Key, jax.Array], jax.Array]  # (key, obs (n, obs_dim)) -> actions (n, action_dim)


def rollouts(policy: Policy, env: Env, seed: int, transitions: int) -> Rows:
    """At least `transitions` rows of whole and cut episodes: copies of the environment run one horizon each."""
    count = -(-transitions // env.horizon)

    @jax.jit
    def run(key: Key) -> Transition:
        reset_key, run_key = jax.random.split(key)
        env_state, obs = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, count), env.params)

        def body(carry: tuple, t: jax.Array) -> tuple[tuple, Transition]:
            env_state, obs = carry
            policy_key, step_key = jax.random.split(jax.random.fold_in(run_key, t))
            action = policy(policy_key, obs)
            keys = jax.random.split(step_key, count)
            env_state, next_obs, step = jax.vmap(lambda k, s, a: autoreset(env, k, s, a, env.params))(
                keys, env_state, action
            )
            cost = step.measures.get("cost")
            row = Transition(obs, action, step.reward, step.obs, step.terminated, step.truncated, cost)
            return (env_state, next_obs), row

        return jax.lax.scan(body, (env_state, obs), jnp.arange(env.horizon))[1]

    return in_episodes(jax.device_get(run(jax.random.key(seed))))


def in_episodes(steps: Transition) -> Rows:
    """Rows (time, copy, ...) put copy after copy, so that each episode's rows follow one another.

    The last row of each copy is marked as a time-out, as its successor belongs to another episode. There are `costs`
    where the steps have them.
    """
    timeouts = np.array(steps.truncated, bool)
    timeouts[-1] |= ~np.array(steps.terminated[-1], bool)

    def flat(x: ArrayLike) -> np.ndarray:
        by_copy = np.swapaxes(np.asarray(x), 0, 1)
        return by_copy.reshape(-1, *by_copy.shape[2:])

    rows = {
        "observations": flat(steps.obs).astype(np.float32),
        "actions": flat(steps.action).astype(np.float32),
        "rewards": flat(steps.reward).astype(np.float32),
        "next_observations": flat(steps.next_obs).astype(np.float32),
        "terminals": flat(np.array(steps.terminated, bool)),
        "timeouts": flat(timeouts),
    }
    return rows if steps.cost is None else rows | {"costs": flat(steps.cost).astype(np.float32)}


def replay(buffer: Transition, count: int, num_envs: int) -> Rows:
    """The first `count` rows of a replay buffer that never overflowed, episode by episode."""
    steps = jax.tree.map(lambda x: np.asarray(x[:count]).reshape(count // num_envs, num_envs, *x.shape[1:]), buffer)
    return in_episodes(steps)


def subset(rows: Rows, transitions: int) -> Rows:
    """About `transitions` rows: whole episodes, evenly spaced over the recording."""
    ends = np.flatnonzero(rows["terminals"] | rows["timeouts"]) + 1
    share = min(1.0, transitions / ends[-1])
    kept: list[np.ndarray] = []
    taken = 0
    for start, end in zip(np.concatenate([[0], ends[:-1]]), ends):
        if taken + (end - start) / 2 <= share * end:
            kept.append(np.arange(start, end))
            taken += end - start
    index = np.concatenate(kept)
    return {key: value[index] for key, value in rows.items()}


def whole(rows: Rows, horizon: int) -> Rows:
    """The episodes that terminated or lasted `horizon` steps, without those that the recording's end cut."""
    episodes = bounds(Raw(**rows))
    uncut = (sums(rows["terminals"], episodes) > 0) | (episodes.length == horizon)
    kept = uncut[numbers(episodes)]
    return {key: value[kept] for key, value in rows.items()}


def join(*parts: Rows) -> Rows:
    """One recording after another."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
