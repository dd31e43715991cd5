"""Moves on a square grid, in RBF and Material: a team's members go to its task's cell and work there.

Codes: 0 idle, 1 row-1, 2 row+1, 3 column-1, 4 column+1; RBF: 5 work; Material: 5 (-,-), 6 (-,+), 7 (+,-), 8 (+,+),
9 work. Positions and cells have the coordinate first, (2, N) and (2, T), in the dtype of the tables.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

STRAIGHT_WORK = 5
DIAGONAL_WORK = 9


class Motion(NamedTuple):
    """What each entity does in a step."""

    step: jax.Array  # (2, N) -1, 0 or 1; zero for those who work
    working: jax.Array  # (N,) bool
    idle: jax.Array  # (N,) bool


def approach(team: jax.Array, position: jax.Array, cells: jax.Array, diagonal: bool) -> Motion:
    """Members of teams (T, N) go to their slot's cell, columns first unless `diagonal`. The last of several counts.

    Slots with no positive coordinate are skipped: that is how empty ones look, but (0, 0) can hold no task either.
    """
    reachable = jnp.any(cells > 0, axis=0)
    number = jnp.arange(1, len(team) + 1, dtype=jnp.int32)
    last = jnp.max(jnp.where(team & reachable[:, None], number[:, None], 0), axis=0)  # 0: in no team
    target = position
    for slot in range(len(team)):  # few; spelt out, compilers vectorise it over entities
        target = jnp.where(last == slot + 1, cells[:, slot, None], target)
    step = jnp.sign(target - position)
    there = jnp.all(step == 0, axis=0)
    if not diagonal:
        step = jnp.where((step[1] != 0) & (jnp.arange(2)[:, None] == 0), 0, step)
    return Motion(step, (last > 0) & there, last == 0)


def encode(motion: Motion, diagonal: bool) -> jax.Array:
    """The move codes (N,) int32 of a motion."""
    row, column = motion.step
    code = jnp.where(column != 0, 3 + (column > 0), 1 + (row > 0))
    if diagonal:
        code = jnp.where((row != 0) & (column != 0), 5 + 2 * (row > 0) + (column > 0), code)
    code = jnp.where(motion.working, DIAGONAL_WORK if diagonal else STRAIGHT_WORK, code)
    return jnp.where(motion.idle, 0, code).astype(jnp.int32)


def from_codes(codes: jax.Array, diagonal: bool) -> Motion:
    """The motion of any move codes (N,)."""
    up, down, left, right = codes == 1, codes == 2, codes == 3, codes == 4
    if diagonal:
        up, down = up | (codes == 5) | (codes == 6), down | (codes == 7) | (codes == 8)
        left, right = left | (codes == 5) | (codes == 7), right | (codes == 6) | (codes == 8)
    step = jnp.stack([down.astype(jnp.int32) - up, right.astype(jnp.int32) - left])
    return Motion(step, codes == (DIAGONAL_WORK if diagonal else STRAIGHT_WORK), codes == 0)


def move(position: jax.Array, motion: Motion, side: jax.Array) -> jax.Array:
    """Positions (2, N) afterwards, each coordinate held inside 0..side-1."""
    return jnp.clip(position + motion.step.astype(position.dtype), 0, (side - 1).astype(position.dtype))


def meet(position: jax.Array, cells: jax.Array) -> jax.Array:
    """Who stands on which slot's cell: (2, N), (2, T) -> (T, N) bool."""
    return jnp.all(cells[:, :, None] == position[:, None, :], axis=0)


def first_or_zero(mask: jax.Array) -> jax.Array:
    """Of each entity's slots in (T, N) only the first, and slot 0 where it has none: (T, N) bool."""
    first, taken = [], jnp.zeros_like(mask[0])
    for here in mask:
        first.append(here & ~taken)
        taken |= here
    first[0] |= ~taken
    return jnp.stack(first)
