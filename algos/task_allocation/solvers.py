"""Solvers of the myopic problem of one decision: the baselines that a learned policy has to beat.

Each is a pure function `solver(key, problem) -> assignment` of one problem (fields of `envs.allocation.core.Problem`):
each entity's slot, (N,) int32, -1 for none. Answers hold only teams that cover their slot at a profit. Jit and vmap
them as you like; padding changes no answer. Settings beyond `key` and `problem` are keywords, static under jit.
"""

from collections.abc import Callable

import jax

from algos.core import Key, UsageError
from algos.task_allocation.greedy import greedy, random_cover
from algos.task_allocation.matching import brute_force, hungarian
from algos.task_allocation.myopic import Problem, fitness, keep_gainful, value
from algos.task_allocation.population_search import annealing, genetic, swarm

__all__ = [
    "SOLVERS", "Solver", "annealing", "brute_force", "fitness", "find_solver", "genetic", "greedy", "hungarian",
    "keep_gainful", "random_cover", "swarm", "value",
]  # fmt: skip

Solver = Callable[[Key, Problem], jax.Array]

SOLVERS: dict[str, Solver] = {
    "greedy": greedy,
    "random_cover": random_cover,
    "genetic": genetic,
    "annealing": annealing,
    "swarm": swarm,
    "brute_force": brute_force,  # exact; small problems only
    "hungarian": hungarian,  # exact among teams of one
}


def find_solver(name: str) -> Solver:
    """The solver of that name. Raises UsageError for others."""
    if name not in SOLVERS:
        raise UsageError(f"solver={name!r} is none of {', '.join(SOLVERS)}; choose one of them")
    return SOLVERS[name]
