"""CP-SAT against brute force and published numbers; what it says without OR-Tools."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import UsageError
from algos.task_allocation.exact import answer, cheapest_cover, clairvoyant_bound, cp_sat
from algos.task_allocation.solvers import brute_force, keep_gainful, value
from envs.allocation import electric
from envs.allocation.instances import electric_instance, read_table
from tests.algos.allocation_toy import almighty_problem, problem, random_problem, singles_problem, small_almighty, stack

KEY = jax.random.key(0)
SECONDS = 60.0  # never needed: every problem here is proven in less than one


@pytest.fixture
def ortools():
    return pytest.importorskip("ortools")


def test_equals_brute_force_on_random_problems(ortools):
    rng = np.random.default_rng(0)
    problems = [random_problem(rng) for _ in range(80)] + [singles_problem(rng, dims=2) for _ in range(20)]
    answers = [cp_sat(one, SECONDS) for one in problems]
    assert all(answer.proven for answer in answers)
    stacked = stack(problems)
    brute = jax.jit(jax.vmap(brute_force))(jax.random.split(KEY, len(problems)), stacked)
    best = np.asarray(jax.vmap(value)(stacked, brute))
    np.testing.assert_array_equal([answer.value for answer in answers], best)
    assignments = jnp.stack([answer.assignment for answer in answers])
    np.testing.assert_array_equal(jax.vmap(value)(stacked, assignments), best)
    np.testing.assert_array_equal(jax.vmap(keep_gainful)(stacked, assignments), assignments)
    assert len(np.unique(best)) > 20


def test_almighty(ortools):
    found = cp_sat(almighty_problem(), SECONDS)
    assert (found.value, found.proven) == (35.0, True)
    small = small_almighty()
    assert cp_sat(small, SECONDS).value == value(small, jax.jit(brute_force)(KEY, small)) == 25


def test_electric_with_costs_by_pair(ortools):
    """Costs are irrational there; CP-SAT rounds them to thousandths."""
    instance = electric_instance(read_table("electric_nodes_a"), read_table("electric_queue")[:, 0])
    one = electric.reset(KEY, instance)[1]
    few = one._replace(
        free=one.free[:10], open=one.open[:3], cost=one.cost[:10, :3], capability=one.capability[:10],
        demand=one.demand[:3], reward=one.reward[:3],
    )  # fmt: skip
    assert int(few.free.sum()) <= 8
    found = cp_sat(few, SECONDS)
    assert found.proven
    best = value(few, jax.jit(brute_force)(KEY, few))
    assert found.value == pytest.approx(float(best), abs=0.01)
    assert found.value > 0


def test_what_covers_a_demand_is_what_covers_it_in_single_precision(ortools):
    # 0.1 + 0.2 in float32 is 0.3 in float32; a millionth less than a demand does not cover it.
    one = problem([0.1, 0.1], [[0.1], [0.2]], [5], [[0.3]])
    assert cp_sat(one, SECONDS).assignment.tolist() == [0, 0]
    short = one._replace(demand=jnp.array([[0.30001]]))
    assert cp_sat(short, SECONDS).value == 0


def test_nobody_free_or_nothing_open(ortools):
    one = small_almighty()
    for idle in (one._replace(free=jnp.zeros(7, bool)), one._replace(open=jnp.zeros(4, bool))):
        answer = cp_sat(idle, SECONDS)
        assert (answer.assignment.tolist(), answer.value, answer.proven) == ([-1] * 7, 0.0, True)


def test_cheapest_cover_by_hand(ortools):
    capability, cost = [[2, 0], [0, 2], [2, 2], [9, 0]], [1.0, 1.5, 2.25, 0.5]
    both = cheapest_cover(capability, [2, 2], cost, SECONDS)
    assert (both.team.tolist(), both.cost, both.bound, both.proven) == ([False, True, False, True], 2.0, 2.0, True)
    none = cheapest_cover(capability, [0, 5], cost, SECONDS)
    assert (none.cost, none.bound, none.proven, none.team.any()) == (np.inf, np.inf, True, False)
    # Tasks of 3, 1.75 and 9: worth 3 - 2, not worth its cheapest team of 2.0, and beyond everybody together.
    bound = clairvoyant_bound(capability, [[2, 2], [2, 2], [0, 5]], [3, 1.75, 9], np.repeat(np.c_[cost], 3, 1), SECONDS)
    assert bound == (1.0, 1.0, 3)


def test_clairvoyant_bound_of_the_published_instance(ortools):
    entities, queue = read_table("rbf_entities_60"), read_table("rbf_queue")
    cost = np.repeat(entities[:, :1], len(queue), axis=1)
    bound = clairvoyant_bound(entities[:, 1:4], queue[:, 1:4], queue[:, 0], cost, SECONDS)
    assert bound.low == pytest.approx(83.70, abs=1e-9)
    assert bound.high == pytest.approx(83.70, abs=1e-9)
    assert bound.proven == 30


def test_answers_inside_a_compiled_program(ortools):
    rng = np.random.default_rng(1)
    problems = [random_problem(rng) for _ in range(8)]
    assignments, proven = jax.jit(jax.vmap(lambda one: answer(one, SECONDS)))(stack(problems))
    found = [cp_sat(one, SECONDS) for one in problems]
    np.testing.assert_array_equal(assignments, [one.assignment for one in found])
    assert proven.all()
    assert len({one.value for one in found}) > 3
    assignment, proven = jax.jit(lambda one: answer(one, seconds=1e-6))(almighty_problem())
    assert not proven
    assert 0 <= value(almighty_problem(), assignment) < 35


def test_no_time_no_proof(ortools):
    entities, queue = read_table("material_entities"), read_table("material_queue")
    cover = cheapest_cover(entities[:, 1:4], queue[12, 1:4], entities[:, 0], seconds=1e-6)
    assert not cover.proven
    assert 0 <= cover.bound < cover.cost
    answer = cp_sat(almighty_problem(), seconds=1e-6)
    assert not answer.proven
    assert 0 <= answer.value < 35


def test_without_ortools_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools", None)
    monkeypatch.delitem(sys.modules, "ortools.sat.python", raising=False)
    with pytest.raises(UsageError, match=r"CP-SAT needs OR-Tools: pip install 'adaptax\[exact\]'"):
        cp_sat(small_almighty())


def test_bad_input_is_refused():
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="needs a time limit above 0"):
            cp_sat(small_almighty(), seconds)
    with pytest.raises(UsageError, match=r"capability, demand, cost have shapes \(2, 1\), \(2,\), \(2,\)"):
        cheapest_cover([[1], [1]], [1, 1], [1, 1])
    with pytest.raises(UsageError, match=r"need \(Q, m\), \(Q,\) and \(N, Q\)"):
        clairvoyant_bound([[1], [1]], [[1]], [1, 2], [[1], [1]])
