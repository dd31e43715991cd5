"""Heuristics that serve one slot after the other: the greedy one and random cover."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Key
from algos.task_allocation.myopic import Problem, keep_gainful

TIE = 1e-5  # relative; scores this close are equal, else rounding would decide between 9 for 0.3 and 12 for 0.4


class Progress(NamedTuple):
    """How far the slots have been served."""

    turn: jax.Array  # () int32: how many slots have been served or given up
    assignment: jax.Array  # (N,) int32
    team: jax.Array  # (N,) bool: of the slot being served
    spent: jax.Array  # (N,) bool: of slots that were given up, where these do not release their entities
    total: jax.Array  # (m,): the team's capabilities


# (slot, progress, who is idle (N,)) -> who joins the slot's team next, () int, and whether () anybody does
Choose = Callable[[jax.Array, Progress, jax.Array], tuple[jax.Array, jax.Array]]
# (slot, what is still demanded (m,)) -> (N,)
Points = Callable[[jax.Array, jax.Array], jax.Array]


def greedy(key: Key, problem: Problem) -> jax.Array:
    """Serve slots by decreasing reward with the entities that give most of what is still demanded per cost.

    Slots that cannot be covered at a profit release their entities. Returns the assignment (N,) int32; nothing is
    drawn.
    """
    tiny = jnp.finfo(problem.cost.dtype).tiny

    def points(slot: jax.Array, demanded: jax.Array) -> jax.Array:
        useful = jnp.sum(jnp.minimum(problem.capability, demanded), axis=1)
        return useful / jnp.maximum(problem.cost[:, slot], tiny)

    order = jnp.argsort(jnp.where(problem.open, -problem.reward, jnp.inf), stable=True)
    return serve(problem, order, most(problem, points))


def random_cover(key: Key, problem: Problem) -> jax.Array:
    """Serve slots in random order, each with entities in random order until it is covered: assignment (N,) int32.

    Entities of slots that cannot be covered at a profit stay idle, as where the recorded figures come from.
    """
    count, dtype = len(problem.free), problem.cost.dtype
    order_key, entity_key = jax.random.split(key)
    place = jax.random.uniform(order_key, problem.open.shape, dtype)
    order = jnp.argsort(jnp.where(problem.open, place, jnp.inf))
    keys = jax.random.split(entity_key, len(problem.open))  # one for each slot, so that padding changes no draw
    priority = 1 - jax.vmap(lambda key: jax.random.uniform(key, (count,), dtype))(keys)  # (T, N) in (0, 1]
    return serve(problem, order, most(problem, lambda slot, demanded: priority[slot]), release=False)


def most(problem: Problem, points: Points) -> Choose:
    """The idle entity with most points joins next, the first of equals, if it has any."""

    def choose(slot: jax.Array, now: Progress, idle: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jnp.where(idle, points(slot, jnp.maximum(problem.demand[slot] - now.total, 0)), 0)
        best = jnp.argmax(scores >= jnp.max(scores) * (1 - TIE))
        return best, scores[best] > 0

    return choose


def serve(problem: Problem, order: jax.Array, choose: Choose, release: bool = True) -> jax.Array:
    """Serve slots in `order` (T,), open ones first, each until it is covered or nobody joins: assignment (N,) int32.

    Teams that do not cover their slot at a profit are given up; with `release` their entities may serve later slots.
    One loop of picks: lanes of a vmap do not wait per slot.
    """
    count = jnp.sum(problem.open, dtype=jnp.int32)
    place = jnp.arange(len(problem.free))

    def pick(now: Progress) -> Progress:
        slot = order[now.turn]
        idle = problem.free & (now.assignment < 0) & ~now.team & ~now.spent
        best, joins = choose(slot, now, idle)
        team = now.team | ((place == best) & joins)
        total = now.total + jnp.where(joins, problem.capability[best], 0)
        covered = jnp.all(total >= problem.demand[slot])
        gains = covered & (problem.reward[slot] > jnp.sum(jnp.where(team, problem.cost[:, slot], 0)))
        over = covered | ~joins
        return Progress(
            turn=now.turn + over.astype(jnp.int32),
            assignment=jnp.where(over & gains & team, slot.astype(jnp.int32), now.assignment),
            team=team & ~over,
            spent=now.spent | (over & ~gains & team & (not release)),
            total=jnp.where(over, 0, total),
        )

    nobody = jnp.zeros_like(problem.free)
    unassigned = jnp.where(nobody, 0, -1).astype(jnp.int32)
    start = Progress(jnp.int32(0), unassigned, nobody, nobody, jnp.zeros_like(problem.demand[0]))
    end = jax.lax.while_loop(lambda now: now.turn < count, pick, start)
    return keep_gainful(problem, end.assignment)
