"""Exact solvers on the device: every assignment of a small problem, and the best teams of one."""

import jax
import jax.numpy as jnp
import optax

from algos.core import Key, UsageError
from algos.task_allocation.myopic import Problem, keep_gainful, to_slots, value

MOST_ASSIGNMENTS = 2**20  # that brute force goes through
BLOCK = 2048  # assignments valued at once


def brute_force(key: Key, problem: Problem) -> jax.Array:
    """An optimal assignment (N,) int32, by trying all (w + 1)^f for f free entities and w open slots.

    Of equally good ones it is the first, counted with the first free entity's slot running fastest. Nothing is drawn.
    Raises UsageError if (T + 1)^N exceeds 2^20: shapes, not masks, because compiled code cannot.
    """
    entities, slots = problem.cost.shape
    if (slots + 1) ** entities > MOST_ASSIGNMENTS:
        raise UsageError(
            f"brute force over {entities} entities and {slots} slots would try {(slots + 1.0) ** entities:.1e} "
            f"assignments, more than {MOST_ASSIGNMENTS}; use fewer, or another solver"
        )
    options = jnp.sum(problem.open, dtype=jnp.int32) + 1
    rank = jnp.cumsum(problem.free, dtype=jnp.int32) - 1  # of a free entity among the free ones
    weight = jnp.where(problem.free, options ** jnp.maximum(rank, 0), 1)
    count = options ** jnp.sum(problem.free, dtype=jnp.int32)

    def decode(number: jax.Array) -> jax.Array:
        return to_slots(problem, number // weight % options - 1)

    def block(best: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        start, number, highest = best
        numbers = start + jnp.arange(BLOCK, dtype=jnp.int32)
        values = jax.vmap(lambda number: value(problem, decode(number)))(numbers)
        values = jnp.where(numbers < count, values, -jnp.inf)
        top = jnp.argmax(values)
        better = values[top] > highest
        return start + BLOCK, jnp.where(better, numbers[top], number), jnp.maximum(values[top], highest)

    none = (jnp.int32(0), jnp.int32(0), jnp.zeros((), problem.cost.dtype))
    _, number, _ = jax.lax.while_loop(lambda best: best[0] < count, block, none)
    return keep_gainful(problem, decode(number))


def hungarian(key: Key, problem: Problem) -> jax.Array:
    """The best assignment (N,) int32 among those with teams of one. Nothing is drawn.

    Optimal wherever larger teams do not pay, as in Almighty.
    """
    alone = jnp.all(problem.capability[:, None] >= problem.demand, axis=2)  # (N, T): covers the slot by itself
    allowed = alone & problem.free[:, None] & problem.open
    gain = jnp.where(allowed, jnp.maximum(problem.reward - problem.cost, 0), 0)
    entity, slot = optax.assignment.hungarian_algorithm(-gain)
    assignment = jnp.full(len(problem.free), -1, jnp.int32).at[entity].set(slot.astype(jnp.int32))
    return keep_gainful(problem, assignment)
