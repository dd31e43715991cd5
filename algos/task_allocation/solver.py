"""Solvers as an online algorithm that learns nothing: the yardsticks of the learnt methods, on the same evaluation.

One training iteration is one decision by the solver and one step of the environment, so that a run tells what the
solver earns in an episode, what its answers are worth and, for CP-SAT, how many of them are proven.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.tree_util import register_dataclass

from algos.checks import check_choices
from algos.core import Algorithm, Env, Key, Metrics, Source, Spec, UsageError
from algos.task_allocation import exact, play
from algos.task_allocation.myopic import teams_of
from algos.task_allocation.solvers import SOLVERS, value

__all__ = ["NAMES", "Hyper", "State", "Static", "make"]

CP_SAT = "cp_sat"
NAMES = (*SOLVERS, CP_SAT)
CROWD = 60  # genomes or particles that are valued at once

# (key, problem, hyper) -> the assignment (N,) int32 and, where the solver can tell, whether () bool it is proven
Solve = Callable[[Key, Any, "Hyper"], tuple[jax.Array, jax.Array | None]]


@register_dataclass
@dataclass
class Hyper:
    """Settings of the searches; the other solvers have none. The defaults suit rewards around ten."""

    crossover: float = 0.8  # genetic: probability that a child mixes two parents
    mutation: float = 0.05  # genetic: probability that a gene is drawn anew
    hottest: float = 5.0  # annealing: temperature at first, in units of reward
    coldest: float = 0.05  # annealing: temperature at last
    inertia: float = 0.7  # swarm: share of the velocity that is kept
    own: float = 1.5  # swarm: pull of a particle's best position
    shared: float = 1.5  # swarm: pull of the swarm's best position


@dataclass(unsafe_hash=True)
class Static:
    """Which solver, and how much it may do for a decision."""

    # greedy | random_cover | genetic | annealing | swarm | brute_force (small problems) | hungarian (teams of one) |
    # cp_sat (exact, on the host; needs OR-Tools)
    solver: str = "greedy"
    evaluations: int = 6000  # genetic, annealing, swarm: assignments that are valued
    seconds: float = 2.0  # cp_sat: time limit; without proof, an answer depends on the machine

    def __post_init__(self) -> None:
        """Raises UsageError for a solver that does not exist, and for limits that leave it nothing to do."""
        check_choices(self, {"solver": NAMES})
        if self.evaluations < CROWD:
            raise UsageError(f"algo.static.evaluations={self.evaluations} must be at least {CROWD}")
        if not self.seconds > 0:
            raise UsageError(f"algo.static.seconds={self.seconds:g} must be more than 0")


class State(NamedTuple):
    """Where the environment is; a solver remembers nothing."""

    episode: play.Episode


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build the method for an allocation environment; the `source` of `step` is `env.params`.

    Metrics: `value` of the answer, `decisions` (1 where a slot is open) and, for CP-SAT, `proven` (0 where a better
    answer is not ruled out, 1 otherwise, also where nothing is open).
    Raises UsageError for other environments, for cp_sat without OR-Tools and for brute_force on too large problems.
    """
    play.check_env("allocation_solver", env)
    if static.solver == CP_SAT:
        exact.check(static.seconds)
    solve = solver_of(static)
    jax.eval_shape(solve, jax.random.key(0), play.example(env), Hyper())  # refuses sizes

    def init(key: Key, hyper: Hyper) -> State:
        return State(play.begin(key, env, env.params))

    def step(key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
        solve_key, env_key = jax.random.split(key)
        problem = play.problem_of(env, state.episode.obs)
        assignment, proven = solve(solve_key, problem, hyper)
        episode, _ = play.advance(env_key, env, source, state.episode, teams_of(assignment, len(problem.open)))
        metrics = {"value": value(problem, assignment), "decisions": problem.open.any().astype(float)}
        if proven is not None:
            metrics["proven"] = proven.astype(float)
        return State(episode), play.returns(episode) | metrics

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        def teams_for(key: Key, problem: Any) -> jax.Array:
            return teams_of(solve(key, problem, hyper)[0], len(problem.open))

        return play.for_each(key, env, obs, teams_for)

    return Algorithm(init, step, act)


def solver_of(static: Static) -> Solve:
    """The solver with the settings that it has."""
    if static.solver == CP_SAT:
        return lambda key, problem, hyper: exact.answer(problem, static.seconds)
    rounds = static.evaluations // CROWD

    def settings(hyper: Hyper) -> dict[str, Any]:
        if static.solver == "genetic":
            sizes = {"population": CROWD, "generations": rounds}
            return sizes | {"crossover": hyper.crossover, "mutation": hyper.mutation}
        if static.solver == "annealing":
            return {"evaluations": static.evaluations, "hottest": hyper.hottest, "coldest": hyper.coldest}
        if static.solver == "swarm":
            sizes = {"particles": CROWD, "iterations": rounds}
            return sizes | {"inertia": hyper.inertia, "own": hyper.own, "shared": hyper.shared}
        return {}

    solver: Callable[..., jax.Array] = SOLVERS[static.solver]
    return lambda key, problem, hyper: (solver(key, problem, **settings(hyper)), None)
