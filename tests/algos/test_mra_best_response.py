"""Best responses: what is learnt, and that it earns more where there is more to earn and nothing where there is not."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.mra import best_response, initial, joint, maddpg, play
from algos.mra.best_response import DECAY
from algos.mra.joint import OWN_ACTORS, RELATIONAL, Form, Seats
from algos.mra.learn import init_params
from algos.mra.nets import policy_logits, relation_graph
from envs import particles
from tests.algos.mra_games import STATIC, draw_obs, filled, width

pytestmark = pytest.mark.usefixtures("quick_compilation")

UPDATES, GAMES = 12, 128
PAIRS = particles.make("resource-2")
# What acts is a table of logits, the same in every state.
TABLE = Form(lambda key, table, obs: jnp.zeros((*obs.mask.shape, 1)), lambda table, obs, skill: jnp.broadcast_to(
    table, (*obs.mask.shape, 5)
))  # fmt: skip


class Networks(NamedTuple):
    policy: Any
    relation_net: Any
    log_probs: jax.Array


def paid_for(action: int) -> Any:
    """Pairs in which an agent earns 1 with each step to one side, whatever the other one does."""

    def step(key: jax.Array, state: Any, given: jax.Array, params: Any) -> Any:
        state, outcome = PAIRS.step(key, state, given, params)
        rewards = given.reshape(2, 5)[:, action]
        return state, outcome._replace(reward=rewards.sum(), rewards=rewards)

    return replace(PAIRS, step=step)


@pytest.fixture(scope="module")
def learnt() -> dict[str, tuple[np.ndarray, jax.Array]]:
    """Returns while learning, and the table learnt: from indifference, and from the best response itself."""
    env = paid_for(3)
    step = jax.jit(best_response.make(env, (TABLE, TABLE), GAMES))
    found = {}
    for name, start in {"indifferent": jnp.zeros(5), "best": 20.0 * jax.nn.one_hot(3, 5)}.items():
        response = best_response.init(jax.random.key(0), start, play.world_of("mra", env))
        earned = []
        for t in range(UPDATES):
            rate = jnp.float32(30.0 * best_response.LEARNING_RATE)  # a table is not as touchy as a network
            response, metrics = step(jax.random.key(t), response, jnp.zeros(5), jnp.int32(1), rate)
            earned.append(float(metrics["return"]))
        found[name] = np.array(earned), response.networks
    return found


def test_a_response_comes_to_earn_all_there_is(learnt: dict) -> None:
    earned, table = learnt["indifferent"]
    assert earned[0] == pytest.approx(20.0 / 5.0, abs=1.0)  # steps, actions
    assert earned[-1] > 15.0
    assert int(table.argmax()) == 3


def test_a_best_response_gains_nothing(learnt: dict) -> None:
    earned, _ = learnt["best"]
    np.testing.assert_allclose(earned, 20.0, atol=0.01)


def test_advantages_of_whole_episodes() -> None:
    reward, value = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[5.0], [3.0], [1.0]])
    last, middle, first = 4.0 - 1.0, 2.0 + 1.0 - 3.0, 1.0 + 3.0 - 5.0
    expected = [first + DECAY * (middle + DECAY * last), middle + DECAY * last, last]
    np.testing.assert_allclose(best_response.advantages(reward, value)[:, 0], expected, rtol=1e-6)


def networks(seed: int) -> Networks:
    """MRA's, drawn without a program to compile."""
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), STATIC, width(1), 1, 3))
    found = filled(shapes, seed)
    return Networks(found["policy"], found["relation_net"], jnp.zeros(STATIC.skills))


def test_everybody_follows_its_side() -> None:
    obs = draw_obs(0, 3, 4)
    sides = networks(0), networks(1)
    forms = (RELATIONAL, RELATIONAL)
    who = jnp.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    skills = joint.begin(jax.random.key(0), forms, Seats(sides, who), obs)
    found = joint.logits(forms, Seats(sides, who), obs, skills)
    alone = [policy_logits(x.policy, obs, relation_graph(x.relation_net, obs, skills[i])) for i, x in enumerate(sides)]
    np.testing.assert_allclose(found[:, [0, 2]], alone[0][:, [0, 2]], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], alone[1][:, 1], rtol=1e-6)
    assert np.abs(found[:, 1] - alone[0][:, 1]).max() > 1e-3
    same = joint.begin(jax.random.key(0), forms, Seats((sides[0], sides[0]), who), obs)
    assert (same[0] == same[1]).all()


@pytest.mark.parametrize("owners", [1, 3])
def test_maddpg_in_a_seat_acts_as_it_does(owners: int) -> None:
    obs = draw_obs(0, 3, 3)
    shapes = jax.eval_shape(
        jax.vmap(lambda key: initial.draw(key, initial.attentive_policy(STATIC, width(1), 1))),
        jax.random.split(jax.random.key(0), owners),
    )
    actors = filled(shapes, 0)
    seats = Seats((actors,), jnp.ones((1, 3)))
    skills = joint.begin(jax.random.key(0), (OWN_ACTORS,), seats, obs)
    expected = maddpg.all_logits(actors, obs, jnp.ones((1, 3)) if owners == 1 else jnp.eye(3))
    np.testing.assert_allclose(joint.logits((OWN_ACTORS,), seats, obs, skills), expected, rtol=1e-6)
