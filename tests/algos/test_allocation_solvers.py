"""Solvers of one allocation decision: worth by hand, exact ones against each other, padding, published numbers."""

import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import UsageError
from algos.task_allocation.myopic import fitness, keep_gainful, value
from algos.task_allocation.solvers import (
    SOLVERS,
    Solver,
    annealing,
    brute_force,
    find_solver,
    genetic,
    greedy,
    hungarian,
    swarm,
)
from envs.allocation import electric, material, rbf
from envs.allocation.core import to_allocation
from envs.allocation.instances import electric_instance, material_instance, rbf_instance, read_table
from tests.algos.allocation_toy import (
    almighty_problem,
    problem,
    random_problem,
    singles_problem,
    small_almighty,
    stack,
)

KEY = jax.random.key(0)
SEVERAL = 24
SHORT: dict[str, Solver] = {
    **SOLVERS,
    "genetic": partial(genetic, population=8, generations=5),
    "annealing": partial(annealing, evaluations=50),
    "swarm": partial(swarm, particles=8, iterations=5),
}
ONE = {name: jax.jit(solver) for name, solver in SHORT.items()}
MANY = {name: jax.jit(jax.vmap(solver)) for name, solver in SHORT.items()}
VALUES = jax.jit(jax.vmap(value))


def keys(count=SEVERAL, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope="module")
def problems():
    rng = np.random.default_rng(0)
    return stack([random_problem(rng) for _ in range(SEVERAL)])


@pytest.fixture(scope="module")
def best(problems):
    return VALUES(problems, MANY["brute_force"](keys(), problems))


def pad(one, entities, slots):
    """`one` with that many more entities and slots; the added rows look attractive, but are neither free nor open."""

    def wider(array, rows, columns, filler):
        return jnp.pad(array, [(0, rows), (0, columns)][: array.ndim], constant_values=filler)

    return one._replace(
        entities=wider(one.entities, entities, 0, 9), slots=wider(one.slots, slots, 0, 9),
        free=wider(one.free, entities, 0, False), open=wider(one.open, slots, 0, False),
        cost=wider(one.cost, entities, slots, 0.125), capability=wider(one.capability, entities, 0, 9),
        demand=wider(one.demand, slots, 0, 0), reward=wider(one.reward, slots, 0, 99),
        entity_mask=wider(one.entity_mask, entities, 0, False), slot_mask=wider(one.slot_mask, slots, 0, False),
    )  # fmt: skip


def test_worth_of_assignments_by_hand():
    cost = [[1, 2], [3, 4], [5, 6]]
    one = problem(cost, [[2, 0], [0, 2], [2, 2]], reward=[10, 20], demand=[[2, 2], [1, 0]])
    for assignment, worth, score in [
        ([0, 0, -1], 6, 6),  # together they cover slot 0 for 1 + 3
        ([0, -1, 1], 14, 13),  # slot 0 is not covered: its team costs only in the eyes of a search
        ([-1, -1, -1], 0, 0),
        ([1, 1, 0], 5 + 14, 5 + 14),
    ]:
        assert (value(one, jnp.array(assignment)), fitness(one, jnp.array(assignment))) == (worth, score)
    busy = one._replace(free=jnp.array([False, True, True]))
    assert value(busy, jnp.array([0, 0, -1])) == 0  # without entity 0 nothing is covered
    closed = one._replace(open=jnp.array([True, False]))
    assert (value(closed, jnp.array([0, 0, 1])), fitness(closed, jnp.array([0, 0, 1]))) == (6, 6)
    dear = one._replace(reward=jnp.array([4.0, 6.0]))
    assert keep_gainful(dear, jnp.array([0, 0, 1])).tolist() == [-1, -1, -1]  # both at cost, no profit
    assert keep_gainful(one, jnp.array([0, -1, 1])).tolist() == [-1, -1, 1]


def test_greedy_by_hand():
    # The dearer slot 1 first: entity 1 gives 4 for 1, then 0 the missing 2 for 1. Slot 0 gets what is left.
    one = problem([1, 1, 3, 5], [[3], [4], [5], [6]], reward=[9, 10], demand=[[5], [6]])
    assert greedy(KEY, one).tolist() == [1, 1, 0, -1]
    # Slot 1 would cost more than it pays: it releases its entities, and slot 0 may have them.
    loss = one._replace(reward=jnp.array([1.5, 2.0]), demand=jnp.array([[4.0], [6.0]]))
    assert greedy(KEY, loss).tolist() == [-1, 0, -1, -1]


def test_greedy_takes_the_first_of_equals_whatever_rounding_says():
    cost, capability = np.array([0.3, 0.4], np.float32), np.array([9, 12], np.float32)
    assert capability[1] / cost[1] > capability[0] / cost[0]
    assert greedy(KEY, problem(cost, capability[:, None], [5], [[12]])).tolist() == [0, 0]


def test_random_cover_favours_nobody():
    # Any one of three entities covers either slot, but only two are free: who goes where is a matter of luck.
    one = problem([1, 1, 1], [[1], [1], [1]], reward=[2, 2], demand=[[1], [1]], free=[True, True, False])
    solver = jax.jit(jax.vmap(SOLVERS["random_cover"], (0, None)))
    answers = np.asarray(solver(keys(400), one))
    assert (answers[:, 2] == -1).all()
    assert (np.sort(answers[:, :2], axis=1) == [0, 1]).all()
    assert abs((answers[:, 0] == 0).mean() - 0.5) < 0.1
    # One entity for two slots: the slots come in random order.
    alone = one._replace(free=jnp.array([True, False, False]))
    assert abs((np.asarray(solver(keys(400), alone))[:, 0] == 0).mean() - 0.5) < 0.1


def test_brute_force_is_the_best_of_a_plain_enumeration():
    rng = np.random.default_rng(1)
    some = [random_problem(rng, entities=4, slots=2) for _ in range(SEVERAL)]
    every = jnp.array(list(itertools.product([-1, 0, 1], repeat=4)))
    table = jax.jit(jax.vmap(jax.vmap(value, (None, 0)), (0, None)))(stack(some), every)
    found = VALUES(stack(some), MANY["brute_force"](keys(), stack(some)))
    np.testing.assert_array_equal(found, table.max(axis=1))
    assert (found > 0).sum() > SEVERAL / 2


@pytest.mark.parametrize("name", SOLVERS)
def test_answers_are_legal_gainful_and_at_most_optimal(name, problems, best):
    answers = MANY[name](keys(), problems)
    assert answers.dtype == jnp.int32
    taken = answers >= 0
    assert not np.any(taken & ~problems.free)
    assert np.all(np.take_along_axis(np.asarray(problems.open), np.maximum(answers, 0), axis=1) | ~taken)
    np.testing.assert_array_equal(jax.vmap(keep_gainful)(problems, answers), answers)
    values = VALUES(problems, answers)
    assert np.all(values <= best)
    assert values.sum() > 0


@pytest.mark.parametrize("name", SOLVERS)
def test_padding_and_vmap_change_no_answer(name, problems):
    answers = np.asarray(MANY[name](keys(), problems))
    each = [jax.tree.map(lambda leaf: leaf[k], problems) for k in range(SEVERAL)]  # noqa: B023
    padded = MANY[name](keys(), stack([pad(one, 2, 1) for one in each]))
    np.testing.assert_array_equal(padded, np.pad(answers, [(0, 0), (0, 2)], constant_values=-1))
    np.testing.assert_array_equal(ONE[name](keys()[3], each[3]), answers[3])


@pytest.mark.parametrize("name", SOLVERS)
def test_nobody_free_or_nothing_open(name):
    one = random_problem(np.random.default_rng(2))
    for idle in (one._replace(free=jnp.zeros(6, bool)), one._replace(open=jnp.zeros(3, bool))):
        assert ONE[name](KEY, idle).tolist() == [-1] * 6


@pytest.mark.parametrize(("name", "least"), [("genetic", 0.9), ("annealing", 0.9), ("swarm", 0.6)])
def test_searches_find_most_optima_of_small_problems(name, least, problems, best):
    found = VALUES(problems, jax.jit(jax.vmap(SOLVERS[name]))(keys(), problems))
    assert np.mean(found == best) >= least


def test_hungarian_is_optimal_where_teams_of_one_suffice():
    rng = np.random.default_rng(3)
    singles = stack([singles_problem(rng) for _ in range(SEVERAL)])
    best = VALUES(singles, MANY["brute_force"](keys(), singles))
    np.testing.assert_array_equal(VALUES(singles, MANY["hungarian"](keys(), singles)), best)
    assert len(np.unique(best)) > 5


def test_almighty():
    """35 is the optimum; 28 is what is left to those who spend the entity of all skills on a small task."""
    one, small = almighty_problem(), small_almighty()
    assert value(small, brute_force(KEY, small)) == value(small, hungarian(KEY, small)) == 25
    worth = {name: value(one, jax.jit(SOLVERS[name])(KEY, one)) for name in SOLVERS if name != "brute_force"}
    assert worth["greedy"] == worth["hungarian"] == worth["annealing"] == 35
    assert 28 < worth["genetic"] <= 35
    assert worth["random_cover"] < worth["swarm"] <= 35
    anything = jax.random.randint(KEY, (5000, 25), -1, 9)
    assert 0 < jax.jit(jax.vmap(value, (None, 0)))(one, anything).max() <= 35


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_follow_the_precision_of_the_problem(name):
    with jax.enable_x64(True):
        double = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf,
            random_problem(np.random.default_rng(4)),
        )
        assert jax.eval_shape(SHORT[name], KEY, double).dtype == jnp.int32


def rbf_b():
    return rbf, rbf_instance(read_table("rbf_entities_60"), read_table("rbf_queue"))


def electric_a():
    return electric, electric_instance(read_table("electric_nodes_a"), read_table("electric_queue")[:, 0])


def trucks():
    return material, material_instance(read_table("material_entities"), read_table("material_queue"))


@pytest.mark.parametrize(("make", "profit"), [(rbf_b, 52.33), (electric_a, 135.20), (trucks, 170.0)])
def test_greedy_earns_in_whole_episodes_what_it_earned_in_the_published_environments(make, profit):
    module, instance = make()

    def step(carry, _):
        state, now, over = carry
        state, outcome = module.step(KEY, state, to_allocation(greedy(KEY, now), len(now.open)), instance)
        reward = jnp.where(over, 0, outcome.reward)
        return (state, outcome.problem, over | outcome.terminated | outcome.truncated), reward

    start = (*module.reset(KEY, instance), jnp.asarray(False))
    rewards = jax.jit(lambda start: jax.lax.scan(step, start, None, module.HORIZON)[1])(start)
    assert float(rewards.sum()) == pytest.approx(profit, abs=0.01)


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="brute force over 25 entities and 9 slots would try 1.0e\\+25"):
        brute_force(KEY, almighty_problem())
    one = small_almighty()
    settings: list[tuple[Callable, str]] = [(genetic, "population"), (annealing, "evaluations"), (swarm, "particles")]
    for solver, setting in settings:
        with pytest.raises(UsageError, match=f"{setting}=1: a search needs at least 2"):
            solver(KEY, one, **{setting: 1})
    assert find_solver("greedy") is greedy
    with pytest.raises(UsageError, match="solver='best' is none of greedy, random_cover"):
        find_solver("best")
