"""The chain's exact numbers against what its episodes do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import registry
from envs.core import Env
from envs.shaped import chain

pytestmark = pytest.mark.usefixtures("quick_compilation")
RIGHT = jnp.tile(jnp.array([0.0, 1.0]), (chain.STATES, 1))


def test_steps_follow_the_table():
    env = registry.make("chain")
    assert isinstance(env, Env)
    table, keys = chain.transitions(), jax.random.split(jax.random.key(0), 4000)
    np.testing.assert_allclose(table.sum(-1), 1.0)
    places, actions = (x.reshape(-1) for x in jnp.indices((chain.STATES - 1, 2)))

    def ends(key, place, action):
        state, step = env.step(key, chain.State(place, jnp.int32(0)), jax.nn.one_hot(action, 2), env.params)
        return state.place, step

    found, step = jax.jit(jax.vmap(jax.vmap(ends, (None, 0, 0)), (0, None, None)))(keys, places, actions)
    shares = (found[..., None] == jnp.arange(chain.STATES)).mean(0).reshape(table.shape)
    np.testing.assert_allclose(shares, table, atol=0.02)
    arrived = found == chain.STATES - 1
    np.testing.assert_array_equal(step.reward, arrived)
    np.testing.assert_array_equal(step.terminated, arrived)
    np.testing.assert_array_equal(step.obs.argmax(-1), found)
    assert not step.measures["auxiliary"].any()


def test_an_episode_starts_at_the_left_and_is_cut_in_time():
    env = chain.make()
    state, obs = env.reset(jax.random.key(0), env.params)
    assert (int(state.place), int(obs.argmax())) == (0, 0)
    for t, truncated in ((chain.HORIZON - 2, False), (chain.HORIZON - 1, True)):
        _, step = env.step(jax.random.key(0), state._replace(t=jnp.int32(t)), jnp.array([1.0, -1.0]), env.params)
        assert (bool(step.terminated), bool(step.truncated)) == (False, truncated)


def test_expected_return_is_the_fixed_point_of_bellmans_equation():
    policy = np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(1), (chain.STATES, 2))), np.float64)
    table, value = chain.transitions(), np.zeros(chain.STATES)
    for _ in range(3000):
        ahead = np.append(value[:-1] * 0.9, 1.0)  # what each next state is worth
        value[:-1] = np.einsum("sa,sat,t->s", policy[:-1], table, ahead)
    assert float(chain.expected_return(jnp.asarray(policy), 0.9)) == pytest.approx(value[0], rel=1e-5)


def test_expected_return_has_a_gradient_and_is_best_to_the_right():
    best = float(chain.expected_return(RIGHT, 0.99))
    slope = jax.grad(lambda theta: chain.expected_return(jax.nn.softmax(theta), 0.99))(jnp.zeros((chain.STATES, 2)))
    assert (slope[:-1, 1] > 0.0).all()
    np.testing.assert_array_equal(slope[-1], 0.0)  # at the right end nothing is decided
    assert float(chain.expected_return(RIGHT.at[2].set(jnp.array([0.1, 0.9])), 0.99)) < best
