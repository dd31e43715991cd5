"""Rewards from which costs are taken off."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import penalty, registry
from envs.core import Env, UsageError


def steps(name: str):
    env = registry.make(name)
    assert isinstance(env, Env)
    state, _ = env.reset(jax.random.key(0), env.params)
    action = jnp.zeros(env.spec.action_dim)
    return env, env.step(jax.random.key(1), state, action, env.params)[1]


def test_reward_is_less_by_the_weighted_cost():
    env, plain = steps("safe-hopper")
    penalised, step = steps("safe-hopper-penalty2.5")
    assert penalised.name == "safe-hopper-penalty2.5"
    assert penalised.spec == env.spec
    np.testing.assert_array_equal(step.measures["cost"], plain.measures["cost"])
    np.testing.assert_allclose(step.reward, plain.reward - 2.5 * plain.measures["cost"], rtol=1e-6)


def test_weights_are_parameters_to_vmap_over():
    from envs import mujoco

    env = penalty.penalised(mujoco.make("safe-hopper", "mujoco"), 0.0)
    state, _ = env.reset(jax.random.key(0), env.params)
    words = np.asarray(state.words).view(np.float64).copy()
    words[6] = 2.0  # m/s forward, above the limit
    state = state._replace(words=jnp.asarray(words.view(np.uint32)))
    params = penalty.Penalised((), jnp.array([0.0, 1.0, 3.0]))
    axes: Any = penalty.Penalised(None, 0)  # type: ignore[arg-type]
    rewards = jax.vmap(env.step, (None, None, None, axes))(jax.random.key(0), state, jnp.zeros(3), params)[1].reward
    np.testing.assert_allclose(rewards[0] - rewards, [0.0, 1.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("safe-hopper-penalty-1", "the penalty '-1' must be a number, 0 or more, e.g. safe-hopper-penalty1"),
        ("safe-hopper-penaltyhigh", "the penalty 'high'"),
        ("hopper-penalty1", "environment 'hopper' has no costs to penalise"),
        ("gymnasium:Ant-v5-penalty1", "gymnasium:Ant-v5 lives on the host"),
        ("safe-hoper-penalty1", "'safe-hoper' is not known"),
    ],
)
def test_wrong_names(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        registry.make(name)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
