"""Where batches come from: a fixed data set, or a ring of the latest transitions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Dataset, Key, Transition


def sample_dataset(key: Key, dataset: Dataset, batch_size: int) -> Transition:
    """`batch_size` transitions drawn uniformly with replacement."""
    index = jax.random.randint(key, (batch_size,), 0, dataset.transitions.reward.shape[0])
    return jax.tree.map(lambda x: x[index], dataset.transitions)


def shape_reward(batch: Transition, scale: jax.Array | float, shift: jax.Array | float) -> Transition:
    """r <- scale r + shift."""
    return batch._replace(reward=scale * batch.reward + shift)


class ReplayBuffer(NamedTuple):
    """A ring of transitions; when full, the oldest are overwritten."""

    transitions: Transition  # leading axis: capacity
    count: jax.Array  # type: ignore[assignment]  # () int32: transitions ever added, hiding tuple.count


def empty_buffer(capacity: int, obs_dim: int, action_dim: int) -> ReplayBuffer:
    """A buffer of zeros."""
    vector = lambda dim: jnp.zeros((capacity, dim))  # noqa: E731
    scalar = jnp.zeros(capacity)
    transitions = Transition(vector(obs_dim), vector(action_dim), scalar, vector(obs_dim), scalar, scalar)
    return ReplayBuffer(transitions, jnp.zeros((), jnp.int32))


def add(buffer: ReplayBuffer, rows: Transition) -> ReplayBuffer:
    """Append a block of n transitions (leading axis). The capacity must be a multiple of n: no block wraps."""
    capacity = buffer.transitions.reward.shape[0]
    start = buffer.count % capacity
    write = lambda ring, new: jax.lax.dynamic_update_slice_in_dim(ring, new, start, 0)  # noqa: E731
    return ReplayBuffer(jax.tree.map(write, buffer.transitions, rows), buffer.count + rows.reward.shape[0])


def sample_buffer(key: Key, buffer: ReplayBuffer, batch_size: int) -> Transition:
    """`batch_size` transitions drawn uniformly with replacement from those present."""
    size = jnp.minimum(buffer.count, buffer.transitions.reward.shape[0])
    index = jax.random.randint(key, (batch_size,), 0, jnp.maximum(size, 1))
    return jax.tree.map(lambda x: x[index], buffer.transitions)
