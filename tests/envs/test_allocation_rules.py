"""Task allocation: rules, masks, moves, refusals."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import allocation
from envs.allocation import almighty, electric, instances, material, rbf
from envs.allocation.core import OFFICIAL, RECOMMENDED, Rules, legal, to_allocation, to_assignment
from envs.allocation.grid import approach, encode, from_codes
from envs.allocation.instances import Sizes, read_table
from envs.core import UsageError
from tests.envs.allocation_play import KEY, play

ENTITIES = [[0.2, 4, 5, 3], [0.3, 7, 8, 4], [0.6, 15, 10, 7]]
QUEUE = [[3, 4, 5, 3, 1, 2], [5, 9, 9, 9, 5, 6], [2, 1, 1, 1, 3, 4]]


def test_electric_by_recommended_rules() -> None:
    with jax.enable_x64(True):
        instance = allocation.PUBLISHED["electric-a"]()
        env = allocation.make_fixed("electric", instance, RECOMMENDED)
        states = play(env)[2]
        nodes = np.asarray(instance.tables.entities)
        np.testing.assert_array_equal(states[0].board.slots, nodes[:5] * [2, 2, 1, 1])
        at = np.asarray(electric.pair_cost(states[0], instance, RECOMMENDED))
        np.testing.assert_array_equal(np.diag(at[:, :5]), 0)  # a task lies at the node that raised it
        assert any(state.board.slots[2].any() for state in states[6:])
        idle = play(env, lambda problem: np.zeros((5, 20), bool))[2]
    for state in states:
        holds = np.asarray(state.board.slots).any(axis=1)
        assert set(np.flatnonzero(~np.asarray(state.board.free))) == set(np.asarray(state.source)[holds])
    np.testing.assert_array_equal(idle[30].board.slots[:, 2:], idle[0].board.slots[:, 2:])
    np.testing.assert_allclose(idle[12].board.slots[:, :2], 0.9**3 * idle[0].board.slots[:, :2], rtol=1e-13)


@pytest.mark.parametrize(("rules", "dropped"), [(OFFICIAL, True), (Rules(reopen_on_decay=False), False)])
def test_decay_drops_travelling_teams_by_published_rules_alone(rules: Rules, dropped: bool) -> None:
    env = allocation.make_fixed("rbf", instances.rbf_instance(ENTITIES, [[3, 90, 90, 90, 0, 1], QUEUE[1]], 2), rules)
    once = iter([to_allocation(jnp.array([0, -1, -1]), 2)])
    nobody = np.zeros((2, 3), bool)
    states = play(env, lambda problem: next(once, nobody))[2]
    assert not states[9].board.open[0]
    assert bool(states[11].board.open[0]) == dropped
    assert bool(states[11].board.team[0, 0]) != dropped


def test_material_decays_only_where_asked_and_not_its_places() -> None:
    trucks, queue = read_table("material_entities"), read_table("material_queue")
    nobody = np.zeros((5, 100), bool)
    for decay, share in ((1.0, 1.0), (0.95, 0.95**2)):
        env = allocation.make_fixed("material", instances.material_instance(trucks, queue, decay=decay, horizon=16))
        last = np.asarray(play(env, lambda problem: nobody)[2][16].board.slots)
        np.testing.assert_allclose(last, queue[:5] * ([share] * 4 + [1, 1]), rtol=1e-6)


@pytest.mark.parametrize(("diagonal", "codes"), [(False, [4, 0, 1, 5, 0]), (True, [8, 0, 1, 9, 0])])
def test_teams_become_moves(diagonal: bool, codes: list[int]) -> None:
    """Columns first, or diagonal; negated and (0, 0) cells are skipped; the last of two teams counts."""
    position = jnp.array([[2, 2, 5, 6, 3], [2, 2, 1, 1, 3]])
    cells = jnp.array([[4, -1, 6, 0], [3, -6, 1, 1]])
    teams = np.zeros((4, 5), bool)
    teams[0, [0, 2]], teams[1, 1], teams[2, 3], teams[3, 2] = True, True, True, True
    motion = approach(jnp.asarray(teams), position, cells, diagonal)
    np.testing.assert_array_equal(encode(motion, diagonal), codes)
    back = from_codes(encode(motion, diagonal), diagonal)
    for ours, again in zip(motion, back):
        np.testing.assert_array_equal(ours, again)


def wide(name: str) -> tuple[Any, Any, Any]:
    """Module, instance and the same instance with room for more of everything."""
    make: functools.partial[Any]
    if name == "rbf":
        rows, queue = read_table("rbf_entities_60")[:20], read_table("rbf_queue")[:7]
        make = functools.partial(instances.rbf_instance, rows, queue, 3)
        return rbf, make(), make(Sizes(23, 5, 9))
    if name == "material":
        rows, queue = read_table("material_entities")[:20], read_table("material_queue")[:7]
        make = functools.partial(instances.material_instance, rows, queue, 3, side=100)
        return material, make(), make(Sizes(23, 5, 9))
    if name == "electric":
        make = functools.partial(instances.electric_instance, read_table("electric_nodes_a"), [3, 1, 2, 0, 5, 6, 7], 3)
        return electric, make(), make(Sizes(23, 5, 9))
    make = functools.partial(instances.almighty_instance, read_table("almighty_entities"), read_table("almighty_tasks"))
    return almighty, make(), make(Sizes(27, 11, 12))


@pytest.mark.parametrize("name", allocation.PROBLEMS)
def test_padding_changes_nothing_and_instances_batch(name: str) -> None:
    """Everybody into every team, padding too: the padded episode is the narrow one, alone and in a batch."""
    module, narrow, padded = wide(name)
    stack = jax.tree.map(lambda x: jnp.stack([x, x]), padded)

    def episode(instance: Any) -> tuple[Any, jax.Array, Any]:
        state, _ = module.reset(KEY, instance)
        slots, entities = len(instance.tables.slot_mask), len(instance.tables.entity_mask)

        def step(state: Any, _: None) -> tuple[Any, Any]:
            after, outcome = module.step(KEY, state, jnp.ones((slots, entities)), instance)
            return after, (outcome.reward, outcome.problem)

        state, (reward, problem) = jax.lax.scan(step, state, length=1 if name == "almighty" else 40)
        return state, reward, problem

    _, reward, problem = jax.jit(episode)(narrow)
    _, reward_wide, wide_problem = jax.jit(episode)(padded)
    _, reward_stack, _ = jax.jit(jax.vmap(episode))(stack)
    np.testing.assert_allclose(reward_wide, reward, rtol=1e-6)
    np.testing.assert_allclose(reward_stack[1], reward, rtol=1e-6)
    n, t = len(narrow.tables.entity_mask), len(narrow.tables.slot_mask)
    for field in ("entities", "free", "capability"):
        np.testing.assert_allclose(getattr(wide_problem, field)[:, :n], getattr(problem, field), rtol=1e-6)
    for field in ("slots", "open", "demand", "reward"):
        np.testing.assert_allclose(getattr(wide_problem, field)[:, :t], getattr(problem, field), rtol=1e-6)
    np.testing.assert_allclose(wide_problem.cost[:, :n, :t], problem.cost, rtol=1e-6)
    assert not wide_problem.free[:, n:].any()
    assert not wide_problem.open[:, t:].any()
    assert reward.any()


def test_assignments_and_teams_are_the_same_thing() -> None:
    assignment = jnp.array([[2, -1, 0, 2], [-1, -1, 1, 0]])
    teams = to_allocation(assignment, 3)
    assert teams.shape == (2, 3, 4)
    np.testing.assert_array_equal(to_assignment(teams), assignment)


def test_legal_leaves_out_busy_entities_closed_slots_and_second_jobs() -> None:
    problem = allocation.make("almighty").reset(KEY, allocation.make("almighty").params)[1]
    problem = problem._replace(free=problem.free.at[0].set(False), open=problem.open.at[8].set(False))
    teams = legal(problem, jnp.ones((9, 25)))
    assert not teams[:, 0].any()
    assert not teams[8].any()
    np.testing.assert_array_equal(teams[:, 1:].sum(axis=0), 1)


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda e, q: instances.rbf_instance(e, q, 2, Sizes(2, 2, 3)), "3 entities do not fit into"),
        (lambda e, q: instances.rbf_instance(e, q, 2, Sizes(3, 2, 2)), "3 tasks do not fit into"),
        (lambda e, q: instances.rbf_instance(e, q, 4, Sizes(3, 3, 3)), "4 slots do not fit into"),
        (lambda e, q: instances.rbf_instance(e, q, 0), "0 slots hold no task"),
        (lambda e, q: instances.rbf_instance([], q), "entities: a table with at least one row"),
        (lambda e, q: instances.rbf_instance(e, np.zeros((0, 6))), "queue: a table with at least one row"),
        (lambda e, q: instances.rbf_instance(e, [[3, 4, -5, 3, 1, 2]]), "queue: row 0 holds -5 in column 2"),
        (lambda e, q: instances.rbf_instance([[0.1, 1, 1, -1]], q), "entities: row 0 holds -1 in column 3"),
        (lambda e, q: instances.rbf_instance([[0.1, 1, np.nan, 1]], q), "entities: row 0 holds nan in column 2"),
        (lambda e, q: instances.rbf_instance(e, [[3, 0, 0, 0, 1, 2]]), "task 0 asks for nothing"),
        (lambda e, q: instances.rbf_instance(e, [[3, 1, 1, 1, 0, 0]]), "task 0 lies at (0, 0)"),
        (lambda e, q: instances.rbf_instance(e, [[3, 1, 1, 1, 0, 7]]), "task 0 lies at (0, 7)"),
        (lambda e, q: instances.rbf_instance(e, q, decay=0.0), "decay=0.0"),
        (lambda e, q: instances.rbf_instance(e, q, horizon=0), "horizon=0"),
        (lambda e, q: instances.material_instance(e, q), "entities: 6 columns are needed, not 4"),
        (lambda e, q: instances.material_instance([[1, 1, 1, 3, 0, 100]], q), "outside the grid of 100"),
        (lambda e, q: instances.electric_instance(np.ones((3, 5)), [0, 3], 2), "node 3 of 0..3 is not one of 3"),
        (lambda e, q: instances.electric_instance(np.ones((3, 5)), [], 2), "queue: needs the numbers"),
        (lambda e, q: instances.electric_instance(np.ones((3, 5)), [0, 1], 4), "4 slots for 3 nodes"),
        (lambda e, q: instances.almighty_instance(np.ones((3, 5)), np.ones((2, 4))), "tasks: 5 columns"),
        (lambda e, q: allocation.make("rbf-c"), "did you mean 'rbf-"),
        (lambda e, q: allocation.make("rbf-train-0x3"), "0 entities, 3 slots"),
    ],
)
def test_refusals_name_the_culprit_in_one_line(make: Any, culprit: str) -> None:
    with pytest.raises(UsageError) as refusal:
        make(ENTITIES, QUEUE)
    assert culprit in str(refusal.value)
    assert "\n" not in str(refusal.value)
