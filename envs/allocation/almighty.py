"""Almighty: who spends the entity of all skills on what? One decision (arXiv 2407.00496, from its public code).

Rows are (cost, eight skills) and (reward, skills asked for). The published instance has 24 entities of one skill and
one of all; eight tasks ask for one skill and pay 3, a ninth asks for all and pays 20. The optimum is 35; whoever
spends the entity of all skills on a small task earns at most 28.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.allocation import board as boards
from envs.allocation.board import Board
from envs.allocation.core import OFFICIAL, Outcome, Problem, Rules, Tables
from envs.core import Key

HORIZON = 1


class Instance(NamedTuple):
    """Parameters: a pytree of arrays. The queue holds the tasks, one for each slot."""

    tables: Tables


class State(NamedTuple):
    """Before or after the decision."""

    board: Board


def reset(key: Key, params: Instance) -> tuple[State, Problem]:
    """All tasks in their slots, everybody free. Nothing is drawn."""
    state = State(boards.start(params.tables)[0])
    return state, problem(state, params)


def step(
    key: Key, state: State, allocation: jax.Array, params: Instance, rules: Rules = OFFICIAL
) -> tuple[State, Outcome]:
    """The decision, teams (T, N) nonzero where the entity joins. An entity may serve in several teams.

    Covered tasks pay and their teams are busy afterwards; teams that do not cover their task cost nothing.
    """
    tables, board = params.tables, state.board
    team = boards.teams(board, allocation, tables)
    totals = jnp.matmul(team.astype(tables.entities.dtype), tables.entities, precision="highest")
    done = boards.settle(board.slots, totals)
    busy = jnp.any(team & done.completed[:, None], axis=0)
    slots = jnp.where(done.completed[:, None], 0, board.slots)
    t = board.t + 1
    after = State(board._replace(slots=slots, free=board.free & ~busy, team=team, t=t))
    end = t >= tables.horizon
    return after, Outcome(problem(after, params), done.profit, done.gross, end, jnp.asarray(False))


def problem(state: State, params: Instance) -> Problem:
    """The decision that `state` asks for."""
    entities = params.tables.entities
    cost = jnp.broadcast_to(entities[:, :1], (len(entities), len(state.board.slots)))
    return boards.pose(state.board, entities, cost, entities.shape[1] - 1, params.tables)
