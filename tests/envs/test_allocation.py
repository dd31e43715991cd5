"""Task allocation: the published instances under the published rules."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import LinearConstraint, milp

from envs import allocation
from envs.allocation import electric, instances, rbf
from envs.allocation.core import to_allocation
from envs.allocation.grid import from_codes
from envs.allocation.instances import read_table
from tests.envs.allocation_play import KEY, play


def random_teams(key: jax.Array, entities: int, slots: int) -> jax.Array:
    return to_allocation(jax.random.randint(key, (entities,), -1, slots), slots)


@functools.cache
def published(name: str) -> Any:
    """The instance in float64."""
    with jax.enable_x64(True):
        return allocation.PUBLISHED[name]()


@pytest.mark.parametrize(
    ("name", "profit"),
    [
        ("rbf-a", 74.5),
        ("rbf-b", 52.3),
        ("electric-a", 135.2),
        ("electric-b", 176.0),
        ("material", 170.0),
        ("almighty", 35.0),
    ],
)
def test_greedy_earns_what_it_earned_on_the_published_code(name: str, profit: float) -> None:
    """Measured there to one decimal with the same heuristic."""
    with jax.enable_x64(True):
        ours, gross, _ = play(allocation.make(name))
    assert ours == pytest.approx(profit, abs=0.051)
    assert gross > ours


def test_almighty_optimum_and_local_optimum() -> None:
    env = allocation.make("almighty")
    state, problem = env.reset(KEY, env.params)
    best = np.zeros((9, 25), bool)
    best[np.arange(8), 3 * np.arange(8)], best[8, 24] = True, True
    spent = best.copy()  # the entity of all skills on a small task, a specialist of each skill on the large one
    spent[0], spent[8] = np.arange(25) == 24, False
    spent[8, 1:24:3] = True
    assert float(env.step(KEY, state, jnp.asarray(best), env.params)[1].reward) == 35
    assert float(env.step(KEY, state, jnp.asarray(spent), env.params)[1].reward) == 28
    draws = jax.vmap(functools.partial(random_teams, entities=25, slots=9))(jax.random.split(KEY, 3000))
    rewards = jax.vmap(lambda team: env.step(KEY, state, team, env.params)[1].reward)(draws)
    assert rewards.max() <= 35
    assert len(np.unique(rewards)) > 5
    assert problem.open.all()


def test_almighty_of_three_skills_by_brute_force_and_by_integer_programming() -> None:
    entities = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], float)
    tasks = np.array([[3, 1, 0, 0], [3, 0, 1, 0], [3, 0, 0, 1], [8, 1, 1, 1]], float)
    env = allocation.make_fixed("almighty", instances.almighty_instance(entities, tasks))
    state, _ = env.reset(KEY, env.params)
    every = np.stack(np.meshgrid(*[np.arange(-1, 4)] * 5), axis=-1).reshape(-1, 5)
    rewards = jax.vmap(lambda x: env.step(KEY, state, to_allocation(x, 4), env.params)[1].reward)(jnp.asarray(every))
    # x_ij (20), then y_j (4): at most one slot each; capabilities reach demands of chosen slots.
    once = np.hstack([np.kron(np.eye(5), np.ones(4)), np.zeros((5, 4))])
    reach = np.zeros((12, 24))
    for j in range(4):
        for k in range(3):
            reach[3 * j + k, j:20:4], reach[3 * j + k, 20 + j] = entities[:, 1 + k], -tasks[j, 1 + k]
    worth = np.concatenate([-np.repeat(entities[:, 0], 4), tasks[:, 0]])
    limits = [LinearConstraint(once, ub=1.0), LinearConstraint(reach, lb=0.0)]
    exact = milp(-worth, constraints=limits, integrality=np.ones(24), bounds=(0, 1))
    assert float(rewards.max()) == pytest.approx(-exact.fun)


def test_rbf_random_moves_stay_on_the_grid_and_gross_is_bounded() -> None:
    queue = read_table("rbf_queue") / ([1] + 3 * [30] + 2 * [1])  # for the few who meet by chance
    instance = instances.rbf_instance(read_table("rbf_entities_60"), queue)
    state, _ = rbf.reset(KEY, instance)
    nobody = jnp.zeros((5, 60), bool)

    def step(state: rbf.State, codes: jax.Array) -> tuple[rbf.State, Any]:
        after, outcome = rbf.advance(state, nobody, from_codes(codes, diagonal=False), instance)
        return after, (after.position, outcome.gross)

    codes = jax.random.randint(KEY, (100, 60), 0, 6)
    _, (position, gross) = jax.jit(lambda s: jax.lax.scan(step, s, codes))(state)
    assert position.min() == 0
    assert position.max() == 6
    assert 0 < gross.sum() <= 160


@pytest.mark.parametrize("k", [1, 40])
def test_rbf_idle_tasks_decay_after_ten_steps(k: int) -> None:
    with jax.enable_x64(True):
        env = allocation.make_fixed("rbf", published("rbf-a"))
        nobody = np.zeros((5, 100), bool)
        profit, gross, states = play(env, lambda problem: nobody)
    first = np.asarray(states[0].board.slots)
    np.testing.assert_array_equal(states[9].board.slots, first)
    np.testing.assert_allclose(states[9 + k].board.slots, first * 0.99**k, rtol=1e-13)
    assert (profit, gross, len(states)) == (0.0, 0.0, 101)


def test_electric_surprises_of_the_published_code() -> None:
    with jax.enable_x64(True):
        _, _, states = play(allocation.make_fixed("electric", published("electric-a")))
    slots = np.stack([state.board.slots for state in states])
    emptied = int(np.argmin(slots[:, 2].any(axis=1)))
    assert 0 < emptied < 20
    assert not slots[emptied:, 2:].any()  # slot 2 is never refilled, nor those behind it from then on
    assert slots[emptied + 20 :, 0].any()
    supplied = np.stack([state.board.team.any(axis=0) for state in states[1:]])
    busy_after = ~np.stack([state.board.free for state in states[1:]]) & supplied
    raised = np.stack([state.source for state in states[1:]])
    for step, node in zip(*np.nonzero(busy_after)):
        assert node in raised[step]  # only a node that raises a task is busy


def test_electric_cost_scales_with_kappa_and_places_decay() -> None:
    with jax.enable_x64(True):
        instance = published("electric-b")
        doubled = instance._replace(kappa=2 * instance.kappa)
        nobody = np.zeros((5, 20), bool)
        states = play(allocation.make_fixed("electric", instance), lambda problem: nobody)[2]
        cost = np.asarray(electric.pair_cost(states[0], instance))
        np.testing.assert_allclose(electric.pair_cost(states[0], doubled), 2 * cost, rtol=1e-15)
        team = to_allocation(jnp.array([-1] * 8 + [4] * 12), 5)  # enough power for slot 4
        step = jax.jit(electric.step)
        rewards = [float(step(KEY, states[0], team, x)[1].reward) for x in (instance, doubled)]
    price = float(cost[4, 8:].sum())
    assert rewards[0] == pytest.approx(8 - price)
    assert rewards[1] == pytest.approx(8 - 2 * price)
    np.testing.assert_allclose(states[10].board.slots[:, 2:], 0.9 * states[9].board.slots[:, 2:], rtol=1e-13)
