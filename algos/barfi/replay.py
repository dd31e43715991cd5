"""A ring of the latest episodes, and what is read from it. Shapes are fixed: rows too many have mask and share 0."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.barfi.rollout import Trajectory
from algos.core import Key


class Ring(NamedTuple):
    """The latest episodes; when full, the oldest are overwritten. Rows never written are padding, mask 0."""

    trajectories: Trajectory  # leading axis: capacity
    episodes: jax.Array  # () int32: ever added

    @property
    def capacity(self) -> int:
        """Episodes that it can hold."""
        return self.trajectories.mask.shape[0]


class Rows(NamedTuple):
    """Episodes drawn, and what each counts in a mean."""

    trajectories: Trajectory  # leading axis: rows
    share: jax.Array  # (rows,), adds up to 1


def empty_ring(capacity: int, block: Trajectory) -> Ring:
    """A ring without episodes; of the block (leading axis: episodes) that it is for only shapes and types matter."""
    zeros = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), block)
    return Ring(zeros, jnp.zeros((), jnp.int32))


def push(ring: Ring, block: Trajectory) -> Ring:
    """Append episodes (leading axis), no more than the ring holds; they may wrap."""
    size = block.mask.shape[0]
    index = (ring.episodes + jnp.arange(size)) % ring.capacity
    return Ring(jax.tree.map(lambda x, new: x.at[index].set(new), ring.trajectories, block), ring.episodes + size)


def newest(ring: Ring, size: int) -> Rows:
    """The latest `size` episodes, oldest first. Where there are fewer, padding dilutes the mean, as in the paper."""
    index = (ring.episodes - size + jnp.arange(size)) % ring.capacity
    return Rows(jax.tree.map(lambda x: x[index], ring.trajectories), jnp.full(size, 1.0 / size))


def draw(key: Key, ring: Ring, size: int) -> Rows:
    """min(size, present) episodes drawn with replacement from all, in an array of `size` rows."""
    present = jnp.minimum(ring.episodes, ring.capacity)
    return _draw(key, ring, size, jnp.minimum(size, present), present, 0)


def draw_older(key: Key, ring: Ring, batch_size: int, times: int, spared: int) -> Rows:
    """min(times min(batch_size, present), older) draws with replacement from all but the latest `spared` episodes."""
    present = jnp.minimum(ring.episodes, ring.capacity)
    older = present - spared
    counting = jnp.minimum(times * jnp.minimum(batch_size, present), older)
    return _draw(key, ring, times * batch_size, counting, older, spared)


def _draw(key: Key, ring: Ring, size: int, counting: jax.Array, among: jax.Array, spared: int) -> Rows:
    """`size` draws from the `among` episodes that lie before the latest `spared`; the first `counting` have a share."""
    drawn = jax.random.randint(key, (size,), 0, jnp.maximum(among, 1))
    rows = jax.tree.map(lambda x: x[(ring.episodes - spared - among + drawn) % ring.capacity], ring.trajectories)
    counting = jnp.maximum(counting, 1)
    counts = (jnp.arange(size) < counting).astype(rows.mask.dtype)
    return Rows(rows._replace(mask=rows.mask * counts[:, None]), counts / counting)
