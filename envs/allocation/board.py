"""What RBF, Material and Electric share: slots filled from a queue, teams under way, tasks that lose value."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.allocation.core import REFILL_PERIOD, Problem, Tables


class Board(NamedTuple):
    """The slots and who is where, between two steps."""

    slots: jax.Array  # (T, d)
    age: jax.Array  # (T,) int32; -1 at the start and after a completion, then one less each step
    head: jax.Array  # () int32, tasks taken from the queue so far
    free: jax.Array  # (N,) bool
    open: jax.Array  # (T,) bool; no team is under way, whether or not the slot holds a task
    team: jax.Array  # (T, N) bool, as of the last step
    t: jax.Array  # () int32, steps taken


class Settlement(NamedTuple):
    """What the work of one step came to."""

    completed: jax.Array  # (T,) bool
    profit: jax.Array  # ()
    gross: jax.Array  # ()


class Turn(NamedTuple):
    """What `turn` did besides the new board."""

    task: jax.Array  # (T,) int32, number of the task of the queue that came into the slot
    refilled: jax.Array  # (T,) bool; where `task` means anything
    terminated: jax.Array  # () bool
    truncated: jax.Array  # () bool


def filled(slots: jax.Array) -> jax.Array:
    """Slots that hold a task: (..., T, d) -> (..., T) bool."""
    return jnp.any(slots != 0, axis=-1)


def deal(vacant: jax.Array, head: jax.Array, tables: Tables) -> tuple[jax.Array, jax.Array]:
    """Vacant slots (T,) in ascending order get the queue's next tasks: their index (T,) and who got one (T,)."""
    index = head + jnp.cumsum(vacant, dtype=jnp.int32) - 1
    dealt = vacant & (index < tables.queue_length)
    return jnp.clip(index, 0, tables.queue.shape[0] - 1), dealt


def start(tables: Tables) -> tuple[Board, Turn]:
    """The first tasks of the queue in the slots, everybody free."""
    none = jnp.int32(0)
    index, dealt = deal(tables.slot_mask, none, tables)
    slots = jnp.where(dealt[:, None], tables.queue[index], 0)
    entities, count = len(tables.entity_mask), len(dealt)
    board = Board(
        slots, jnp.full(count, -1, jnp.int32), jnp.sum(dealt, dtype=jnp.int32), tables.entity_mask,
        tables.slot_mask, jnp.zeros((count, entities), bool), none,
    )  # fmt: skip
    return board, Turn(index, dealt, jnp.asarray(False), jnp.asarray(False))


def teams(board: Board, allocation: jax.Array, tables: Tables) -> jax.Array:
    """Teams (T, N) of this step: those under way stay, `allocation` decides about open slots."""
    real = tables.slot_mask[:, None] & tables.entity_mask
    return jnp.where(board.open[:, None], allocation != 0, board.team) & real


def settle(slots: jax.Array, totals: jax.Array) -> Settlement:
    """Pay for tasks (T, d) that the work done there, totals (T, 1 + m) of costs and capabilities, completes."""
    demand = slots[:, 1 : totals.shape[1]]
    completed = filled(slots) & jnp.all(totals[:, 1:] >= demand, axis=1)
    gain = jnp.where(completed, slots[:, 0] - totals[:, 0], 0)
    return Settlement(completed, jnp.sum(gain), jnp.sum(jnp.where(completed, slots[:, 0], 0)))


def turn(
    board: Board, team: jax.Array, free: jax.Array, completed: jax.Array, incoming: jax.Array, tables: Tables,
    *, patience: int, decaying: int, blocked_from: int | None, reopen_on_decay: bool,
) -> tuple[Board, Turn]:  # fmt: skip
    """Clear completed tasks (T,), let old ones decay, refill from `incoming` (Q, d) and see which slots are open.

    patience: steps since a slot's last completion, from which the first `decaying` columns of its task decay.
    blocked_from: a slot that, once empty, keeps itself and all behind it from being refilled; None for none.
    """
    t = board.t + 1
    age = jnp.where(completed, 1, board.age)
    cleared = jnp.where(completed[:, None], 0, board.slots)
    columns = jnp.arange(cleared.shape[1]) < decaying
    old = (age <= -patience)[:, None] & columns
    kept = jnp.where(old, cleared * tables.decay, cleared)
    holds = filled(kept)
    terminated = (board.head >= tables.queue_length) & ~jnp.any(holds)
    vacant = ~holds & tables.slot_mask & (t % REFILL_PERIOD == 0)
    if blocked_from is not None:
        place = jnp.arange(len(vacant))
        # An integer, since LLVM's x86 backend fails on the same in booleans for some batch sizes.
        stop = jnp.min(jnp.where(~holds & (place == blocked_from), blocked_from, len(vacant)))
        vacant &= place < stop
    index, dealt = deal(vacant, board.head, tables)
    slots = jnp.where(dealt[:, None], incoming[index], kept)
    changed = jnp.any(slots != board.slots, axis=1) if reopen_on_decay else completed | dealt
    idle = board.open & ~jnp.any(team, axis=1)
    head = board.head + jnp.sum(dealt, dtype=jnp.int32)
    after = Board(slots, age - 1, head, free, (idle | changed) & tables.slot_mask, team, t)
    return after, Turn(index, dealt, terminated, t >= tables.horizon)


def pose(board: Board, entities: jax.Array, cost: jax.Array, demands: int, tables: Tables) -> Problem:
    """The decision's problem from entity rows (N, d) and pair costs (N, T); demands are columns 1 to `demands`."""
    return Problem(
        entities=entities,
        slots=board.slots,
        free=board.free & tables.entity_mask,
        open=board.open & filled(board.slots),
        cost=cost,
        capability=entities[:, 1 : 1 + demands],
        demand=board.slots[:, 1 : 1 + demands],
        reward=board.slots[:, 0],
        entity_mask=tables.entity_mask,
        slot_mask=tables.slot_mask,
    )
