"""Exact answers of OR-Tools' CP-SAT, on the host: the best assignment of one decision, the cheapest team of a task.

Both are integer programs: costs and rewards in thousandths, capabilities and demands in millionths, rounded such that
a team which is short of a demand never counts as one that covers it.

`answer` asks CP-SAT from inside a compiled program; what that calls on the host must not compute with JAX, which can
wait for the very program that called.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from algos.core import UsageError
from algos.task_allocation.solvers import Problem, keep_gainful, value

MONEY = 1000  # integers per unit of cost and reward
WORK = 1_000_000  # integers per unit of capability and demand
ROUNDING = 1e-6  # relative: what single precision may have added to a number or taken from it


class Exact(NamedTuple):
    """The best assignment found."""

    assignment: np.ndarray  # (N,) int32, -1 for none
    value: float  # rewards of covered slots minus costs of their teams
    proven: bool  # nothing is better, to the rounding of costs to thousandths


class Cover(NamedTuple):
    """The cheapest team found for one task."""

    team: np.ndarray  # (N,) bool
    cost: float  # of the team; infinite if none was found
    bound: float  # no team costs less; infinite if no team covers the task
    proven: bool


class Bound(NamedTuple):
    """Between what and what the clairvoyant profit lies: every task served by its cheapest team, or left alone."""

    low: float
    high: float
    proven: int  # tasks whose cheapest team is proven


def check(seconds: float) -> None:
    """Raise UsageError without OR-Tools, and for a time limit that is not positive."""
    _solver(seconds, seed=0)


def cp_sat(problem: Problem, seconds: float = 2.0, seed: int = 0) -> Exact:
    """The best assignment of one decision's problem; without proof if `seconds` are not enough.

    One thread and a fixed seed: an answer that is proven is always the same.
    Raises UsageError without OR-Tools and for a time limit that is not positive.
    """
    assignment, proven = _search(problem, seconds, seed)
    kept, worth = _settle(problem, jnp.asarray(assignment))
    return Exact(np.asarray(kept), float(worth), bool(proven))


def answer(problem: Problem, seconds: float = 2.0, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """`cp_sat` for compiled programs: the assignment (N,) int32 and whether () bool it is proven.

    The host solves one problem after another, under vmap, too. What it raises, it raises from within the program, as
    another error: call `check` before.
    """
    shapes = jax.ShapeDtypeStruct(problem.free.shape, jnp.int32), jax.ShapeDtypeStruct((), bool)
    search = functools.partial(_search, seconds=seconds, seed=seed)
    assignment, proven = jax.pure_callback(search, shapes, problem, vmap_method="sequential")
    return keep_gainful(problem, assignment), proven


def _search(problem: Problem, seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The best assignment found, (N,) int32, in rounded numbers, and whether () bool it is proven; without JAX."""
    problem = jax.tree.map(np.asarray, problem)
    cp_model, solver = _solver(seconds, seed)
    model = cp_model.CpModel()
    free, open_slots = np.flatnonzero(problem.free), np.flatnonzero(problem.open)
    reward, cost = _money(problem.reward), _money(problem.cost)
    capability, demand = _supply(problem.capability), _need(problem.demand)
    joins = {(i, j): model.new_bool_var(f"joins{i}_{j}") for i in free for j in open_slots}
    covers = {j: model.new_bool_var(f"covers{j}") for j in open_slots}
    for i in free:
        model.add_at_most_one(joins[i, j] for j in open_slots)
    for j in open_slots:
        model.add_bool_or(~covers[j], *(joins[i, j] for i in free))  # nobody covers nothing, as for `value`
        for k in np.flatnonzero(demand[j] > 0):
            model.add(sum(int(capability[i, k]) * joins[i, j] for i in free) >= int(demand[j, k]) * covers[j])
    paid = sum(int(reward[j]) * covers[j] for j in open_slots)
    model.maximize(paid - sum(int(cost[i, j]) * joins[i, j] for i, j in joins))
    status = solver.solve(model)
    assignment = np.full(len(problem.free), -1, np.int32)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        for (i, j), joined in joins.items():
            if solver.value(joined):
                assignment[i] = j
    return assignment, np.asarray(status == cp_model.OPTIMAL)


def cheapest_cover(
    capability: npt.ArrayLike, demand: npt.ArrayLike, cost: npt.ArrayLike, seconds: float = 2.0, seed: int = 0
) -> Cover:
    """The cheapest team for one task (m,) from entities of capabilities (N, m) and costs (N,).

    Raises UsageError without OR-Tools, for a time limit that is not positive and for shapes that do not match.
    """
    capability, demand, cost = np.asarray(capability), np.asarray(demand), np.asarray(cost)
    if cost.ndim != 1 or demand.ndim != 1 or capability.shape != cost.shape + demand.shape:
        shapes = f"{capability.shape}, {demand.shape}, {cost.shape}"
        raise UsageError(f"capability, demand, cost have shapes {shapes}; need (N, m), (m,) and (N,)")
    cp_model, solver = _solver(seconds, seed)
    model = cp_model.CpModel()
    joins = [model.new_bool_var(f"joins{i}") for i in range(len(cost))]
    supply, needed, price = _supply(capability), _need(demand), _money(cost)
    for k in np.flatnonzero(needed > 0):
        model.add(sum(int(a) * join for a, join in zip(supply[:, k], joins)) >= int(needed[k]))
    model.minimize(sum(int(c) * join for c, join in zip(price, joins)))
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Cover(np.zeros(len(cost), bool), math.inf, math.inf, True)
    bound = solver.best_objective_bound / MONEY
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Cover(np.zeros(len(cost), bool), math.inf, max(bound, 0.0), False)
    team = np.array([bool(solver.value(join)) for join in joins])
    return Cover(team, float(cost[team].sum()), bound, status == cp_model.OPTIMAL)


def clairvoyant_bound(
    capability: npt.ArrayLike, demand: npt.ArrayLike, reward: npt.ArrayLike, cost: npt.ArrayLike,
    seconds: float = 2.0, seed: int = 0,
) -> Bound:  # fmt: skip
    """What tasks of demands (Q, m) and rewards (Q,) would yield, had all of the N entities only one task to serve.

    capability (N, m); cost (N, Q) of entity i in task q. No policy earns more while tasks do not decay. `seconds` are
    for each task. Raises UsageError as `cheapest_cover` does.
    """
    tasks, rewards, costs = np.asarray(demand), np.asarray(reward), np.asarray(cost)
    if rewards.ndim != 1 or costs.ndim != 2 or not len(tasks) == len(rewards) == costs.shape[1]:
        shapes = f"{tasks.shape}, {rewards.shape}, {costs.shape}"
        raise UsageError(f"demand, reward, cost have shapes {shapes}; need (Q, m), (Q,) and (N, Q)")
    covers = [cheapest_cover(capability, task, costs[:, q], seconds, seed) for q, task in enumerate(tasks)]
    low = sum(max(0.0, pays - cover.cost) for pays, cover in zip(rewards, covers))
    high = sum(max(0.0, pays - cover.bound) for pays, cover in zip(rewards, covers))
    return Bound(float(low), float(high), sum(cover.proven for cover in covers))


def _solver(seconds: float, seed: int) -> tuple[Any, Any]:
    """OR-Tools' module and a solver of one thread."""
    if not seconds > 0:
        raise UsageError(f"seconds={seconds:g}: CP-SAT needs a time limit above 0")
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise UsageError("CP-SAT needs OR-Tools: pip install 'adaptax[exact]'") from error
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_time_in_seconds = seconds
    return cp_model, solver


@jax.jit
def _settle(problem: Problem, assignment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounding may have made a team of no profit look gainful: the assignment (N,) without such, and its value."""
    kept = keep_gainful(problem, assignment)
    return kept, value(problem, kept)


def _money(numbers: npt.ArrayLike) -> np.ndarray:
    return np.rint(np.asarray(numbers, np.float64) * MONEY).astype(np.int64)


def _supply(capability: npt.ArrayLike) -> np.ndarray:
    scaled = np.asarray(capability, np.float64) * WORK
    return np.floor(scaled + ROUNDING * np.abs(scaled)).astype(np.int64)


def _need(demand: npt.ArrayLike) -> np.ndarray:
    scaled = np.asarray(demand, np.float64) * WORK
    return np.ceil(scaled - ROUNDING * np.abs(scaled)).astype(np.int64)
