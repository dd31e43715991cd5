"""The fraction of active units (FAU) of a network, from the hidden layers of a loss's own forward pass."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from algos.drqv2.parts import in_parts


def active_counts(hidden: Sequence[jax.Array]) -> jax.Array:
    """How many of each layer's activations after ReLU are above zero, (layers,) int32; exactly zero is not active.

    Every entry of a layer's array is a unit seen once: batch, positions and channels, or batch and neurons. A layer
    may have up to 2^31 of them.
    """
    return jnp.stack([_count(x > 0.0) for x in hidden])


def _count(active: jax.Array) -> jax.Array:
    """How many are true, () int32: first in bytes, 64 of them at most, which CPUs do ten times as fast."""
    return in_parts(active, 64).sum(1, dtype=jnp.int8).sum(dtype=jnp.int32)


def fraction_active(hidden: Sequence[jax.Array], active: jax.Array | None = None) -> jax.Array:
    """Φ (): share of activations above zero, pooled over batch and layers, so that wide layers weigh more.

    Adaptive Replay Ratio, equation (1). It has no gradient. `active`: their counts, where somebody has counted.
    """
    shares = (active_counts(hidden) if active is None else active).astype(jnp.float32) / float(
        sum(x.size for x in hidden)
    )
    return shares.sum()
