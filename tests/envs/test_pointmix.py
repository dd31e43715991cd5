import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import pointmix
from envs.core import UsageError


def test_step_by_hand():
    env = pointmix.make()
    state = pointmix.State(jnp.array([0.9, 0.0]), jnp.int32(28))
    state, step = env.step(jax.random.key(0), state, jnp.array([1.0, -2.0]), ())
    np.testing.assert_allclose(step.obs, [1.0, -0.15], rtol=1e-6)  # clipped by the wall, and by the action's bound
    np.testing.assert_allclose(step.reward, -np.hypot(0.3, 0.85), rtol=1e-6)
    assert (bool(step.terminated), bool(step.truncated)) == (False, False)
    _, step = env.step(jax.random.key(0), state, jnp.zeros(2), ())
    assert (bool(step.terminated), bool(step.truncated)) == (False, True)


def test_data_are_episodes_of_the_environment():
    env, data = pointmix.make(), pointmix.make_dataset(seed=0, rho=0.5, episodes=40)
    assert all(x.dtype == jnp.float32 for x in data if x is not None)
    state = pointmix.State(data.obs, jnp.zeros(1200, jnp.int32))
    _, step = jax.vmap(env.step, (None, 0, 0, None))(jax.random.key(0), state, data.action, ())
    np.testing.assert_allclose(step.obs, data.next_obs, atol=1e-6)
    np.testing.assert_allclose(step.reward, data.reward, atol=1e-6)
    episodes = jax.tree.map(lambda x: np.asarray(x).reshape(40, 30, *x.shape[1:]), data)
    np.testing.assert_array_equal(episodes.obs[:, 1:], episodes.next_obs[:, :-1])
    np.testing.assert_array_equal(episodes.truncated, np.tile(np.arange(30) == 29, (40, 1)))
    assert not episodes.terminated.any()


def test_share_of_expert_episodes():
    returns = {}
    for rho in (0.0, 0.5, 1.0):
        data = pointmix.make_dataset(seed=1, rho=rho)
        assert data.reward.shape == (21000,)
        returns[rho] = np.asarray(data.reward).reshape(700, 30).sum(axis=1)
    assert returns[1.0].mean() == pytest.approx(-4.5, abs=0.5)
    assert returns[0.0].mean() < -25
    assert (returns[0.5] > -11).mean() == pytest.approx(0.5, abs=0.1)  # no episode of the expert is worse
    other = pointmix.make_dataset(seed=2, rho=1.0)
    assert not np.array_equal(other.obs, pointmix.make_dataset(seed=1, rho=1.0).obs)


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="rho=1.5"):
        pointmix.make_dataset(0, 1.5)
    with pytest.raises(UsageError, match="episodes=0"):
        pointmix.make_dataset(0, 0.5, episodes=0)
