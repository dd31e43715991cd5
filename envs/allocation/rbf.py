"""RBF: entities gather resources on a small grid (section 5 of arXiv 2407.00496; numbers from its public code).

Rows are (cost, three capabilities) and (reward, three demands); positions and cells stay outside the rows. Whoever
works on a cell adds to every task there, and a completed task pays its reward minus the costs of all who worked.
Demands and reward of a slot that completed nothing for ten steps shrink by 1 % a step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.allocation import board as boards
from envs.allocation.board import Board
from envs.allocation.core import OFFICIAL, Outcome, Problem, Rules, Tables
from envs.allocation.grid import Motion, approach, meet, move
from envs.core import Key

HORIZON = 100
DECAY = 0.99
PATIENCE = 10
DEMANDS = 3


class Instance(NamedTuple):
    """Parameters: a pytree of arrays."""

    tables: Tables
    cells: jax.Array  # (Q, 2) row and column of each task of the queue
    side: jax.Array  # () int32, side of the grid; everybody starts in its middle


class State(NamedTuple):
    """Where the slots and the entities are."""

    board: Board
    position: jax.Array  # (2, N) row and column, in the dtype of the tables
    cells: jax.Array  # (2, T); negated once the task is completed


def reset(key: Key, params: Instance) -> tuple[State, Problem]:
    """The first tasks in the slots, all entities in the middle. Nothing is drawn."""
    board, turn = boards.start(params.tables)
    cells = jnp.where(turn.refilled, params.cells[turn.task].T, 0).astype(board.slots.dtype)
    middle = ((params.side - 1) // 2).astype(board.slots.dtype)
    state = State(board, jnp.full((2, len(board.free)), middle), cells)
    return state, problem(state, params)


def step(
    key: Key, state: State, allocation: jax.Array, params: Instance, rules: Rules = OFFICIAL
) -> tuple[State, Outcome]:
    """One step with teams (T, N) nonzero where the entity joins; see `AllocationEnv`."""
    team = boards.teams(state.board, allocation, params.tables)
    motion = approach(team, state.position, state.cells, diagonal=False)
    return advance(state, team, motion, params, rules)


def advance(
    state: State, team: jax.Array, motion: Motion, params: Instance, rules: Rules = OFFICIAL
) -> tuple[State, Outcome]:
    """One step with any motion; `team` (T, N) only decides which slots are open afterwards."""
    tables = params.tables
    working = meet(state.position, state.cells) & (motion.working & tables.entity_mask)
    totals = jnp.matmul(working.astype(tables.entities.dtype), tables.entities, precision="highest")
    done = boards.settle(state.board.slots, totals)
    board, turn = boards.turn(
        state.board, team, motion.idle & tables.entity_mask, done.completed, tables.queue, tables,
        patience=PATIENCE, decaying=1 + DEMANDS, blocked_from=None, reopen_on_decay=rules.reopen_on_decay,
    )  # fmt: skip
    cells = jnp.where(done.completed, -state.cells, state.cells)
    cells = jnp.where(turn.refilled, params.cells[turn.task].T.astype(cells.dtype), cells)
    after = State(board, move(state.position, motion, params.side), cells)
    outcome = Outcome(problem(after, params), done.profit, done.gross, turn.terminated, turn.truncated)
    return after, outcome


def problem(state: State, params: Instance) -> Problem:
    """The decision that `state` asks for."""
    entities = params.tables.entities
    cost = jnp.broadcast_to(entities[:, :1], (len(entities), len(state.board.slots)))
    return boards.pose(state.board, entities, cost, DEMANDS, params.tables)
