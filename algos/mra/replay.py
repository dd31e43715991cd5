"""One ring of transitions for each game, stacked: leading axes T games and C rows.

A row is a whole scene, flat, before and after a step: what the networks see of it is made anew when it is drawn, which
takes a fraction of the memory that pairwise observations would.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Key
from algos.mra.objectives import Batch
from algos.mra.observe import Scene, observe
from algos.mra.settings import Hyper, Static


class World(NamedTuple):
    """What shapes the networks and the replay."""

    view: Callable[[jax.Array], Scene]  # of flat scenes (..., D)
    agents: int  # N, of the largest population
    kinds: int  # H
    games: int  # T
    width: int  # of an agent's vector


class Rows(NamedTuple):
    """Transitions; leading axes (T, C) in a ring, (E,) when they are added."""

    obs: jax.Array  # (..., D), a flat scene
    action: jax.Array  # (..., N) int8
    reward: jax.Array  # (..., N), as the environment gave it
    next_obs: jax.Array  # (..., D)
    graph: jax.Array | None  # (..., N, N), acted with; None where graphs are computed again
    skill: jax.Array  # (..., N) int8, acted with


class Replay(NamedTuple):
    """The rings; the oldest rows are overwritten."""

    rows: Rows
    added: jax.Array  # (T,) int32: rows ever added

    def size(self, game: jax.Array) -> jax.Array:
        """Rows that the ring of a game holds, () int32."""
        return jnp.minimum(self.added[game], self.rows.reward.shape[1])


def empty(static: Static, world: World, scene_size: int) -> Replay:
    """Rings without rows, for flat scenes of `scene_size` numbers."""
    lead, agents = (world.games, static.buffer_size), world.agents
    rows = Rows(
        obs=jnp.zeros((*lead, scene_size)),
        action=jnp.zeros((*lead, agents), jnp.int8),
        reward=jnp.zeros((*lead, agents)),
        next_obs=jnp.zeros((*lead, scene_size)),
        graph=jnp.zeros((*lead, agents, agents)) if static.graphs == "stored" else None,
        skill=jnp.zeros((*lead, agents), jnp.int8),
    )
    return Replay(rows, jnp.zeros(world.games, jnp.int32))


def add(replay: Replay, game: jax.Array, rows: Rows) -> Replay:
    """Append E rows to the ring of a game."""
    size = rows.reward.shape[0]
    index = (replay.added[game] + jnp.arange(size)) % replay.rows.reward.shape[1]
    stored = jax.tree.map(lambda ring, new: ring.at[game, index].set(new.astype(ring.dtype)), replay.rows, rows)
    return Replay(stored, replay.added.at[game].add(size))


class Statistics(NamedTuple):
    """Of each agent's rewards in a game, (N,)."""

    mean: jax.Array
    std: jax.Array


def statistics(replay: Replay, game: jax.Array, world: World, static: Static, hyper: Hyper) -> Statistics:
    """Over all rows of the ring, for each slot by itself or for all agents of a kind together."""
    reward, obs = replay.rows.reward[game], replay.rows.obs[game, 0]
    filled = (jnp.arange(reward.shape[0]) < replay.size(game))[:, None]
    scene = world.view(obs)
    alike = jnp.eye(reward.shape[1])
    if static.reward_statistics == "per_kind":
        alike = (scene.kind[:, None] == scene.kind) * scene.mask[:, None] * scene.mask
    count = jnp.maximum(alike.sum(-1) * replay.size(game), 1.0)
    mean = alike @ jnp.where(filled, reward, 0.0).sum(0) / count
    variance = alike @ jnp.where(filled, jnp.square(reward - mean), 0.0).sum(0) / count
    std = jnp.sqrt(variance) + hyper.reward_epsilon
    return Statistics(mean, jnp.where(variance > 0.0, std, 1.0))


def sample(
    key: Key, replay: Replay, game: jax.Array, size: int, of_rewards: Statistics, world: World, static: Static
) -> Batch:
    """`size` rows of a game, drawn with replacement, rewards normalised. Games do not terminate."""
    index = jax.random.randint(key, (size,), 0, jnp.maximum(replay.size(game), 1))
    rows = jax.tree.map(lambda ring: ring[game, index], replay.rows)
    return Batch(
        obs=observe(world.view(rows.obs), world.kinds),
        action=rows.action.astype(jnp.int32),
        reward=(rows.reward - of_rewards.mean) / of_rewards.std,
        next_obs=observe(world.view(rows.next_obs), world.kinds),
        terminated=jnp.zeros(size),
        game=game,
        graph=rows.graph,
        skill=rows.skill.astype(jnp.int32),
    )
