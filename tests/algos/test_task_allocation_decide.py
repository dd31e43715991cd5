"""Whole decisions with the recommended switches; the official ones are compared with records in tests/parity."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.task_allocation.decide import Draws, Result, State, begin, decide, draw, init
from algos.task_allocation.nets import Hyper, Static
from envs.allocation.core import Problem
from envs.core import UsageError

HYPER = Hyper(1e-3, 1e-3)
STATIC = Static(hidden=8, buffer_size=8, start_size=2, batch_size=2)
KEYS = jax.random.split(jax.random.key(7), 32)


def problem(entities: list, slots: list, busy: tuple = (), closed: tuple = (), padding: int = 0) -> Problem:
    """Rows (cost, capabilities) and (reward, demands), with `padding` further rows of each that do not exist."""
    e, g = (np.pad(np.array(x, np.float32), ((0, padding), (0, 0))) for x in (entities, slots))
    exists = [np.arange(len(x)) < len(x) - padding for x in (e, g)]
    free, opened = exists[0].copy(), exists[1] & (g != 0).any(1)
    free[list(busy)], opened[list(closed)] = False, False
    cost = np.repeat(e[:, :1], len(g), 1)
    fields = (e, g, free, opened, cost, e[:, 1:], g[:, 1:], g[:, 0], *exists)
    return Problem(*(jnp.asarray(x) for x in fields))


CREW = [[0.5, 2, 1], [0.2, 1, 1], [0.3, 0, 3], [0.4, 3, 0], [0.1, 1, 2], [0.6, 2, 2], [0.3, 1, 1]]
TASKS = [[5, 3, 2], [4, 1, 1], [0.3, 2, 2], [6, 2, 3]]
USUAL = problem(CREW, TASKS, busy=(1,), closed=(3,))


HARD_THEN_EASY = problem(CREW, [[5, 90, 9], [4, 1, 0]])  # nobody covers the first task


@cache
def fresh(static: Static) -> Any:
    """32 of them; the networks fit any number of entities and slots."""
    return jax.jit(jax.vmap(lambda key: init(key, static, USUAL, HYPER)))(KEYS)


def many(static: Static, asked: Problem, learning: bool = False) -> tuple[Any, Any, Any]:
    """A decision each of 32 freshly drawn networks: states before and after, results, leading axis 32."""

    def one(key: jax.Array, state: State) -> tuple[State, Result]:
        return decide(static, state, asked, draw(key, static, state, asked, learning=learning), HYPER, learning)

    before = fresh(STATIC if static.variant == "two_stage" else replace(STATIC, variant="fixed_order"))
    return jax.device_get((before, *jax.jit(jax.vmap(one))(KEYS, before)))


def same(x: Any, y: Any) -> jax.Array:
    """Whether two states are equal in every number."""
    return jnp.stack([(a == b).all() for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y))]).all()


@pytest.mark.parametrize(
    "static",
    [STATIC, replace(STATIC, variant="random_order", manager_update="per_decision", decision_updates=2)],
    ids=["two_stage", "random_order"],
)
def test_teams_cover_their_tasks_at_a_profit(static: Static) -> None:
    before, after, result = many(static, USUAL, learning=True)
    teams = result.allocation
    assert teams.any(1).sum() > 32  # most decisions employ several
    assert not (teams.any(1) & ~np.asarray(USUAL.free)).any()
    assert (teams.sum(1) <= 1).all()
    assert not teams[:, 3].any()  # a team is under way
    assert not teams[:, 2].any()  # costs more than it pays
    covered = (teams @ np.asarray(USUAL.capability) >= np.asarray(USUAL.demand)).all(-1)
    assert (covered | ~teams.any(-1)).all()
    profit = np.where(teams.any(-1), np.asarray(USUAL.reward), 0) - teams @ np.asarray(USUAL.cost)[:, 0]
    np.testing.assert_allclose(result.total, profit.sum(-1), atol=1e-5)
    assert (result.picks >= teams.sum(-1)).all()
    assert (result.picks.sum(1) > teams.sum((1, 2))).any()
    if result.assignment is not None:
        chose = np.swapaxes(result.assignment[..., None] == np.arange(4), 1, 2)
        assert not (teams & ~chose).any()
        assert (result.picks <= chose.sum(-1)).all()
        assert (after.stage1.buffer.added == 1).all()
        np.testing.assert_array_equal(after.stage1.buffer.decisions.reward[:, 0], result.total)
    updates = static.decision_updates if static.manager_update == "per_decision" else result.picks.sum(-1)
    np.testing.assert_array_equal(after.manager.actor_optim[0].count - before.manager.actor_optim[0].count, updates)
    assert np.isfinite(result.metrics["manager_critic_loss"]).all()
    assert result.metrics["manager_critic_loss"].all()


def test_nothing_is_learnt_unless_asked() -> None:
    before, after, result = many(STATIC, USUAL)
    assert same(before, after)
    assert result.picks.any()
    assert result.metrics == {}


def test_most_probable_choices_need_no_chance() -> None:
    def one(key: jax.Array) -> Any:
        state = jax.tree.map(lambda x: x[0], fresh(STATIC))
        draws = draw(key, STATIC, state, USUAL, sampled=False, learning=False)
        return decide(STATIC, state, USUAL, draws, HYPER, learning=False)[1].assignment

    choices = jax.jit(jax.vmap(one))(KEYS)
    assert (choices == choices[0]).all()
    assert (choices[0] >= 0).sum() == 6


def test_refused_teams_return_to_the_pool_or_do_not() -> None:
    static = replace(STATIC, variant="fixed_order")
    returned = many(static, HARD_THEN_EASY)[2]
    assert returned.allocation[:, 1].any(-1).all()
    assert (returned.picks[:, 0] == len(CREW)).all()
    lost = many(replace(static, return_refused=False), HARD_THEN_EASY)[2]
    assert not lost.allocation.any()
    assert (lost.picks[:, 1] == 0).all()


def test_a_random_order_differs_between_decisions() -> None:
    result = many(replace(STATIC, variant="random_order", return_refused=False), HARD_THEN_EASY)[2]
    first = result.allocation[:, 1].any(-1)  # there is somebody left only if it was served first
    assert 8 <= first.sum() <= 24
    np.testing.assert_array_equal(result.picks[:, 1] > 0, first)


def test_empty_slots_take_an_entity_only_by_the_official_rules() -> None:
    asked = problem(CREW, [[0, 0, 0], [4, 1, 0]])
    static = replace(STATIC, variant="fixed_order")
    assert (many(static, asked)[2].picks[:, 0] == 0).all()
    wasted = many(replace(static, serve_empty=True), asked)[2]
    assert (wasted.picks[:, 0] == 1).all()
    assert not wasted.allocation[:, 0].any()


@pytest.mark.parametrize("bootstrap", [False, True])
def test_stage_1_learns_once_enough_decisions_are_held(bootstrap: bool) -> None:
    static = replace(STATIC, stage1_bootstrap=bootstrap)
    asked = jnp.array([True, True, False, True, True, False, True])

    def step(state: Any, turn: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple]:
        now = USUAL._replace(open=USUAL.open & turn[0])
        after: Any
        after, result = decide(static, state, now, draw(turn[1], static, state, now), HYPER)
        learnt = ~same(state.stage1.networks, after.stage1.networks)
        return after, (same(state, after), learnt, result.updated, result.metrics["preassign_critic_loss"])

    state = jax.tree.map(lambda x: x[0], fresh(STATIC))
    _, (idle, learnt, updated, loss) = jax.jit(partial(jax.lax.scan, step))(state, (asked, KEYS[: len(asked)]))
    np.testing.assert_array_equal(idle, ~asked)
    np.testing.assert_array_equal(learnt, [0, 0, 0, 1, 1, 0, 1])  # the third decision is the first beyond two
    np.testing.assert_array_equal(updated, learnt)
    np.testing.assert_array_equal(loss > 0, learnt)


def test_padding_changes_nothing() -> None:
    padded = problem(CREW, TASKS, busy=(1,), closed=(3,), padding=2)
    state = jax.tree.map(lambda x: x[0], fresh(STATIC))
    draws: Any = draw(KEYS[1], STATIC, state, USUAL)
    more = Draws(
        jnp.pad(draws.assignment, (0, 2)), jnp.pad(draws.picks, ((0, 2), (0, 2))), jnp.arange(6), draws.replay
    )  # fmt: skip
    plain, result = jax.jit(partial(decide, STATIC))(state, USUAL, draws, HYPER)
    begun = begin(STATIC, state.stage1.networks, state.manager, padded)
    wide, wider = jax.jit(partial(decide, STATIC))(begun, padded, more, HYPER)
    assert result.allocation.any()
    np.testing.assert_array_equal(wider.allocation[:4, :7], result.allocation)
    assert not wider.allocation[4:].any()
    assert not wider.allocation[:, 7:].any()
    np.testing.assert_array_equal(wider.assignment, jnp.pad(result.assignment, (0, 2), constant_values=-1))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), wide.manager.critic, plain.manager.critic)


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(UsageError, match="variant=sorted must be one of two_stage"):
        Static(variant="sorted")
