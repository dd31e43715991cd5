"""Material: trucks drive to loads on a 100 x 100 grid (arXiv 2407.00496; numbers from its public code).

Rows are (cost, three capabilities, x, y) and (reward, three demands, x, y). A truck works for the first slot on its
cell; one that works where no task is counts for slot 0, as published. The published code means to let tasks decay
(5 % a step after fifteen steps) but does so to a copy: `Tables.decay` is 1, and an instance with 0.95 decays.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.allocation import board as boards
from envs.allocation.board import Board
from envs.allocation.core import OFFICIAL, Outcome, Problem, Rules, Tables
from envs.allocation.grid import Motion, approach, first_or_zero, meet, move
from envs.core import Key

HORIZON = 150
PATIENCE = 15
DEMANDS = 3


class Instance(NamedTuple):
    """Parameters: a pytree of arrays."""

    tables: Tables
    side: jax.Array  # () int32, side of the grid


class State(NamedTuple):
    """Where the slots and the trucks are."""

    board: Board
    position: jax.Array  # (2, N) x and y, in the dtype of the tables


def reset(key: Key, params: Instance) -> tuple[State, Problem]:
    """The first tasks in the slots, trucks where the tables say. Nothing is drawn."""
    board, _ = boards.start(params.tables)
    state = State(board, params.tables.entities[:, 1 + DEMANDS :].T)
    return state, problem(state, params)


def step(
    key: Key, state: State, allocation: jax.Array, params: Instance, rules: Rules = OFFICIAL
) -> tuple[State, Outcome]:
    """One step with teams (T, N) nonzero where the entity joins; see `AllocationEnv`."""
    team = boards.teams(state.board, allocation, params.tables)
    motion = approach(team, state.position, cells(state.board), diagonal=True)
    return advance(state, team, motion, params, rules)


def advance(
    state: State, team: jax.Array, motion: Motion, params: Instance, rules: Rules = OFFICIAL
) -> tuple[State, Outcome]:
    """One step with any motion; `team` (T, N) only decides which slots are open afterwards."""
    tables = params.tables
    here = meet(state.position, cells(state.board)) & tables.slot_mask[:, None]
    credited = first_or_zero(here) & (motion.working & tables.entity_mask)
    rows = tables.entities[:, : 1 + DEMANDS]
    totals = jnp.matmul(credited.astype(rows.dtype), rows, precision="highest")
    done = boards.settle(state.board.slots, totals)
    board, turn = boards.turn(
        state.board, team, motion.idle & tables.entity_mask, done.completed, tables.queue, tables,
        patience=PATIENCE, decaying=1 + DEMANDS, blocked_from=None, reopen_on_decay=rules.reopen_on_decay,
    )  # fmt: skip
    after = State(board, move(state.position, motion, params.side))
    outcome = Outcome(problem(after, params), done.profit, done.gross, turn.terminated, turn.truncated)
    return after, outcome


def cells(board: Board) -> jax.Array:
    """Where the slots' tasks are (2, T)."""
    return board.slots[:, 1 + DEMANDS :].T


def problem(state: State, params: Instance) -> Problem:
    """The decision that `state` asks for."""
    still = params.tables.entities[:, : 1 + DEMANDS]
    entities = jnp.concatenate([still, state.position.T], axis=1)
    cost = jnp.broadcast_to(still[:, :1], (len(still), len(state.board.slots)))
    return boards.pose(state.board, entities, cost, DEMANDS, params.tables)
