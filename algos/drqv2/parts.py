"""Batches in parts."""

import math

import jax


def in_parts(x: jax.Array, size: int) -> jax.Array:
    """A batch (B, ...) as (B / n, n, ...), n the largest divisor that it shares with `size`."""
    n = math.gcd(len(x), size)
    return x.reshape(len(x) // n, n, *x.shape[1:])
