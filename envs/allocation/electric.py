"""Electric: power nodes serve the demand of nodes in need (arXiv 2407.00496; numbers from its public code).

A node's row is (value, power, x, y). A node in need puts a task (reward, demand, x, y) of twice its value and power
into a slot. As an entity a node's row is (cost of its last transmission, power, x, y); supplying takes no time and
leaves it free. `Rules.electric_quirks` keeps the published code's surprises.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.allocation import board as boards
from envs.allocation.board import Board
from envs.allocation.core import OFFICIAL, Outcome, Problem, Rules, Tables
from envs.core import Key

HORIZON = 100
DECAY = 0.9
PATIENCE = 10
DEMANDS = 1
NEVER_REFILLED = 2  # the slot at which the published refill stops


class Instance(NamedTuple):
    """Parameters: a pytree of arrays. Rows of the queue are rows of nodes."""

    tables: Tables
    source: jax.Array  # (Q,) int32, the node that raises the task
    kappa: jax.Array  # (N,) cost of transmission, per half unit of distance


class State(NamedTuple):
    """The slots, who raised their tasks, and what each node's last transmission cost."""

    board: Board
    source: jax.Array  # (T,) int32, the node that raised the slot's last task
    last_cost: jax.Array  # (N,)


def reset(key: Key, params: Instance, rules: Rules = OFFICIAL) -> tuple[State, Problem]:
    """The first tasks in the slots; the nodes that raised them do not supply. Nothing is drawn."""
    raised = params.tables._replace(queue=_tasks(params.tables, rules))
    board, turn = boards.start(raised)
    source = jnp.where(turn.refilled, params.source[turn.task], 0)
    board = board._replace(free=board.free & ~_named(source, turn.refilled, len(board.free)))
    state = State(board, source, jnp.zeros(len(board.free), board.slots.dtype))
    return state, problem(state, params, rules)


def step(
    key: Key, state: State, allocation: jax.Array, params: Instance, rules: Rules = OFFICIAL
) -> tuple[State, Outcome]:
    """One step with teams (T, N) nonzero where the entity joins; see `AllocationEnv`."""
    tables = params.tables
    team = boards.teams(state.board, allocation, tables)
    cost = pair_cost(state, params, rules)  # (T, N)
    weight = team.astype(cost.dtype)
    power = jnp.matmul(weight, tables.entities[:, 1], precision="highest")
    totals = jnp.stack([jnp.sum(weight * cost, axis=1), power], axis=1)
    done = boards.settle(state.board.slots, totals)
    board, turn = boards.turn(
        state.board, team, state.board.free, done.completed, _tasks(tables, rules), tables,
        patience=PATIENCE, decaying=4 if rules.electric_quirks else 1 + DEMANDS,
        blocked_from=NEVER_REFILLED if rules.electric_quirks else None, reopen_on_decay=rules.reopen_on_decay,
    )  # fmt: skip
    source = jnp.where(turn.refilled, params.source[turn.task], state.source)
    if rules.electric_quirks:
        released = _released(state.board.slots, done.completed, tables)
        free = (board.free | released) & ~_named(source, turn.refilled, len(board.free))
    else:
        free = tables.entity_mask & ~_named(source, boards.filled(board.slots), len(board.free))
    after = State(board._replace(free=free), source, _last_cost(team, cost, state.last_cost))
    outcome = Outcome(problem(after, params, rules), done.profit, done.gross, turn.terminated, turn.truncated)
    return after, outcome


def problem(state: State, params: Instance, rules: Rules = OFFICIAL) -> Problem:
    """The decision that `state` asks for."""
    entities = jnp.concatenate([state.last_cost[:, None], params.tables.entities[:, 1:]], axis=1)
    return boards.pose(state.board, entities, pair_cost(state, params, rules).T, DEMANDS, params.tables)


def pair_cost(state: State, params: Instance, rules: Rules = OFFICIAL) -> jax.Array:
    """What supplying slot j costs node i (T, N): distance times the mean of two coefficients.

    The slot's coefficient is that of the node which raised the task; by the published code, of node number j.
    """
    entities, slots = params.tables.entities, state.board.slots
    at_slot = params.kappa[: len(slots)] if rules.electric_quirks else params.kappa[state.source]
    distance = jnp.sqrt(sum(jnp.square(slots[:, k, None] - entities[:, k]) for k in (2, 3)))
    return 0.5 * (params.kappa + at_slot[:, None]) * distance


def _tasks(tables: Tables, rules: Rules) -> jax.Array:
    """The queue's tasks (Q, 4): doubled rows of the nodes, by the published code doubled coordinates, too."""
    doubled = 4 if rules.electric_quirks else 1 + DEMANDS
    return tables.queue * jnp.where(jnp.arange(4) < doubled, 2, 1).astype(tables.queue.dtype)


def _named(nodes: jax.Array, mask: jax.Array, count: int) -> jax.Array:
    """Nodes that occur in `nodes` (T,) where `mask` (T,): (count,) bool."""
    return jnp.any((nodes[:, None] == jnp.arange(count)) & mask[:, None], axis=0)


def _released(slots: jax.Array, completed: jax.Array, tables: Tables) -> jax.Array:
    """Nodes (N,) bool set free by the published code: the first to share most coordinates with a completed slot.

    That is usually node 0, because a doubled place shares none with any node.
    """
    count = len(tables.entities)
    shared = sum((slots[:, k, None] == tables.entities[:, k]).astype(jnp.int32) for k in (2, 3))
    rank = jnp.where(tables.entity_mask, shared * count + count - 1 - jnp.arange(count), -1)
    return jnp.any((rank == jnp.max(rank, axis=1, keepdims=True)) & completed[:, None], axis=0)


def _last_cost(team: jax.Array, cost: jax.Array, before: jax.Array) -> jax.Array:
    """The entity table's cost column (N,): each node's cost for the last slot it joined, else as before."""
    for member, price in zip(team, cost):
        before = jnp.where(member, price, before)
    return before
