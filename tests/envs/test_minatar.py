"""MinAtar's games as environments, against gymnax itself."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import minatar, registry
from envs.core import Env, UsageError

CHANNELS = {"asterix": 4, "breakout": 4, "freeway": 7, "seaquest": 10, "spaceinvaders": 6}


def test_every_game_has_its_board():
    assert set(minatar.NAMES) == {f"minatar-{game}" for game in CHANNELS}
    for game, channels in CHANNELS.items():
        env = minatar.make(f"minatar-{game}")
        state, obs = jax.eval_shape(env.reset, jax.random.key(0), env.params)
        assert obs.shape == (env.spec.obs_dim,) == (100 * channels,)
        assert obs.dtype == jnp.float32
        assert env.view is not None
        assert env.view(jnp.zeros((5, env.spec.obs_dim))).shape == (5, 10, 10, channels)
        after, step = jax.eval_shape(env.step, jax.random.key(0), state, jnp.zeros(env.spec.action_dim), env.params)
        assert [x.shape for x in jax.tree.leaves(after)] == [x.shape for x in jax.tree.leaves(state)]
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == ()
        assert step.reward.dtype == jnp.float32
        assert step.terminated.dtype == step.truncated.dtype == bool


def test_breakout_equals_gymnax(quick_compilation):
    env = registry.make("minatar-breakout")
    assert isinstance(env, Env)
    assert env.view is not None
    assert env.horizon == 1000
    assert env.spec.action_dim == 3
    theirs, params = gymnax.make("Breakout-MinAtar")
    keys = jax.random.split(jax.random.key(1), 60)
    actions = jax.random.randint(jax.random.key(2), (60,), 0, 3)

    def step(state, each):
        key, action = each
        return env.step(key, state, 0.1 * jax.nn.one_hot(action, 3) - 1.0, env.params)

    def their_step(state, each):
        key, action = each
        obs, state, reward, terminated, _ = theirs.step_env(key, state, action, params)
        return state, (obs, reward, terminated)

    state, obs = env.reset(keys[0], env.params)
    their_obs, their_state = theirs.reset_env(keys[0], params)
    np.testing.assert_array_equal(env.view(obs), their_obs)
    state, steps = jax.jit(lambda s: jax.lax.scan(step, s, (keys, actions)))(state)
    _, (obs, reward, terminated) = jax.jit(lambda s: jax.lax.scan(their_step, s, (keys, actions)))(their_state)
    np.testing.assert_array_equal(env.view(steps.obs), obs)
    np.testing.assert_array_equal(steps.reward, reward)
    np.testing.assert_array_equal(steps.terminated, terminated)
    assert set(np.unique(steps.obs)) == {0.0, 1.0}
    assert terminated.any()
    assert not steps.truncated.any()
    late = state.replace(time=jnp.int32(999), terminal=jnp.asarray(False))
    assert env.step(keys[0], late, jnp.zeros(3), env.params)[1].truncated


def test_unknown_games_are_refused():
    with pytest.raises(UsageError, match="'minatar-brekout' is not known; did you mean 'minatar-breakout'") as caught:
        registry.make("minatar-brekout")
    assert "\n" not in str(caught.value)
