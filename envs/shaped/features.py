"""Fixed features of a state: the Fourier basis and tile coding. Both follow the type of what they are given."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

TILINGS = 5
TILES = 4  # per dimension
OFFSET = 0.05  # between one tiling and the next, in both dimensions
TILE_LENGTH = 0.25 + 1e-16
TILE_FEATURES = TILINGS * TILES**2
TILE_SCALINGS = ("unit", "raw")


def unit_box(state: jax.Array, low: Sequence[float], high: Sequence[float]) -> jax.Array:
    """States (..., D) in coordinates in which the box from `low` to `high` is [0, 1]^D; nothing is clipped."""
    lower, upper = np.asarray(low, state.dtype), np.asarray(high, state.dtype)
    return (state - lower) / (upper - lower)


def fourier(state: jax.Array, low: Sequence[float], high: Sequence[float], order: int = 3) -> jax.Array:
    """cos(pi c.x) of states (..., D) -> (..., (order + 1)^D), the first of them 1.

    x is the state in the unit box; c runs over {0..order}^D in lexicographic order, the last coordinate fastest.
    """
    coefficients = np.array(list(itertools.product(range(order + 1), repeat=len(low))), state.dtype)
    # Accelerators would round x to 8 or 11 bits for the product, which is visible three half-waves later.
    return jnp.cos(jnp.pi * jnp.matmul(unit_box(state, low, high), coefficients.T, precision="highest"))


def tile_indices(z: jax.Array) -> jax.Array:
    """Points (..., 2) -> the active feature of each tiling (..., 5), integers in [0, 80).

    Coordinate 0 counts tiles, coordinate 1 rows of 4 of them. Cells are counted modulo 16, so a point whose shifted
    coordinate leaves [0, 1) shares a tile with one inside.
    """
    shifts = np.arange(TILINGS)[:, None] * OFFSET
    tile = jnp.floor((z[..., None, :] + shifts.astype(z.dtype)) / TILE_LENGTH).astype(jnp.int32)
    cell = jnp.mod(tile[..., 0] + TILES * tile[..., 1], TILES**2)
    return cell + np.arange(TILINGS, dtype=np.int32) * TILES**2


def tiles(state: jax.Array, low: Sequence[float], high: Sequence[float], scaling: str = "unit") -> jax.Array:
    """Tile coding of states (..., 2) -> (..., 80): 1/5 at the active tile of each tiling, else 0.

    `raw` codes the state as it is, as the published code of BARFI does, whose tile coder forgets the box; with
    `unit` the box is covered.
    """
    z = unit_box(state, low, high) if scaling == "unit" else state
    active = jax.nn.one_hot(tile_indices(z), TILE_FEATURES, dtype=state.dtype)
    return jnp.sum(active, axis=-2) / TILINGS
