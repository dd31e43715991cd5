"""The myopic problem of one decision: what an assignment is worth. Shared by all solvers.

Free entities may join one open slot each. A slot pays its reward if the summed capabilities of its team reach every
demand, and its team then costs what its members cost there; the other teams are worth nothing. A problem is anything
with the fields of `envs.allocation.core.Problem`, an assignment each entity's slot, (N,) int32, -1 for none.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Problem = Any  # fields free (N,), open (T,), cost (N, T), capability (N, m), demand (T, m), reward (T,)


class Teams(NamedTuple):
    """What the teams of an assignment achieve."""

    covered: jax.Array  # (T,) bool: the slot is open and its team reaches every demand
    cost: jax.Array  # (T,) summed costs of the team


def teams_of(assignment: jax.Array, slots: int) -> jax.Array:
    """Who is assigned to each slot, (slots, N) bool, of an assignment (N,) int."""
    return assignment == jnp.arange(slots)[:, None]


def appraise(problem: Problem, assignment: jax.Array) -> Teams:
    """Coverage and cost of each slot's team. Entities that are not free and slots that are not open do not count."""
    team = teams_of(assignment, len(problem.open)) & problem.open[:, None] & problem.free  # (T, N)
    weight = team.astype(problem.capability.dtype)
    total = jnp.matmul(weight, problem.capability, precision="highest")  # (T, m)
    covered = jnp.any(team, axis=1) & jnp.all(total >= problem.demand, axis=1)
    return Teams(covered, jnp.sum(jnp.where(team, problem.cost.T, 0), axis=1))


def value(problem: Problem, assignment: jax.Array) -> jax.Array:
    """Rewards of the covered slots minus the costs of their teams, (). Assignment: (N,) int, -1 for none."""
    covered, cost = appraise(problem, assignment)
    return jnp.sum(jnp.where(covered, problem.reward - cost, 0))


def fitness(problem: Problem, assignment: jax.Array) -> jax.Array:
    """Rewards of the covered slots minus the costs of all teams, (): a search sees that idle teams are wasteful."""
    covered, cost = appraise(problem, assignment)
    return jnp.sum(jnp.where(covered, problem.reward, 0) - cost)


def keep_gainful(problem: Problem, assignment: jax.Array) -> jax.Array:
    """The assignment (N,) int32 without the teams that do not cover their slot or cost as much as it pays."""
    covered, cost = appraise(problem, assignment)
    gainful = covered & (problem.reward > cost)
    kept = (assignment >= 0) & gainful[jnp.maximum(assignment, 0)] & problem.free
    return jnp.where(kept, assignment, -1).astype(jnp.int32)


def to_slots(problem: Problem, genes: jax.Array) -> jax.Array:
    """Genes (N,), -1 for none or the rank of a slot among the open ones, to an assignment (N,) int32.

    Searching over ranks keeps closed and padded slots out of the search.
    """
    order = jnp.argsort(~problem.open, stable=True).astype(jnp.int32)  # open slots first
    last = jnp.sum(problem.open, dtype=jnp.int32) - 1
    rank = jnp.minimum(jnp.asarray(genes, jnp.int32), last)
    return jnp.where(problem.free & (rank >= 0), order[jnp.maximum(rank, 0)], -1)
