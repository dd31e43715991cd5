from typing import Any

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import registry
from envs.adapters import GymnasiumPool, from_gymnax
from envs.core import Env, Spec, UsageError
from envs.pixels import dmc


def test_gymnax_pendulum_equals_gymnax():
    env = from_gymnax("Pendulum-v1")
    assert env.spec == Spec(obs_dim=3, action_dim=1, max_action=2.0)
    assert env.horizon == 200
    theirs, params = gymnax.make("Pendulum-v1")
    key, actions = jax.random.key(0), jax.random.uniform(jax.random.key(1), (200, 1), minval=-2.0, maxval=2.0)
    state, first = env.reset(key, env.params)
    their_first, their_state = theirs.reset_env(key, params)
    np.testing.assert_array_equal(first, their_first)

    def their_step(state, action):
        _, state, reward, terminated, truncated, info = theirs.step(key, state, action, params)
        return state, (info["final_observation"], reward, terminated, truncated)

    _, (obs, reward, terminated, truncated) = jax.lax.scan(their_step, their_state, actions)
    _, steps = jax.lax.scan(lambda s, a: env.step(key, s, a, env.params), state, actions)
    np.testing.assert_allclose(steps.obs, obs, atol=1e-5)
    np.testing.assert_allclose(steps.reward.sum(), reward.sum(), rtol=1e-5)
    np.testing.assert_array_equal(steps.terminated, terminated)
    np.testing.assert_array_equal(steps.truncated, truncated)
    np.testing.assert_array_equal(steps.truncated, np.arange(200) == 199)


def test_gymnax_goal_terminates_and_time_limit_truncates():
    env = from_gymnax("MountainCarContinuous-v0")
    state, _ = env.reset(jax.random.key(0), env.params)
    near = state.replace(position=jnp.float32(0.44), velocity=jnp.float32(0.06))
    _, step = env.step(jax.random.key(0), near, jnp.ones(1), env.params)
    assert (bool(step.terminated), bool(step.truncated)) == (True, False)
    late = state.replace(time=jnp.int32(env.horizon - 1))
    _, step = env.step(jax.random.key(0), late, jnp.ones(1), env.params)
    assert (bool(step.terminated), bool(step.truncated)) == (False, True)


class Recorder(gymnasium.Env[Any, Any]):
    """Earns the first coordinate of the action it is given, and ends after three steps of seeds above nine."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(np.array([0.0, -1.0], np.float32), np.array([4.0, 1.0], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        return np.array([seed, 0.0], float), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return np.array([self.seed, self.t], float), float(action[0]), self.seed > 9 and self.t == 3, False, {}


class Image(Recorder):
    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Unbounded(Recorder):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))


@pytest.fixture(autouse=True)
def _toy_environments():
    for cls in (Recorder, Image, Unbounded):
        entry = f"{__name__}:{cls.__name__}"
        gymnasium.register(f"Toy{cls.__name__}-v0", entry, max_episode_steps=5)
    gymnasium.register("ToyEndless-v0", f"{__name__}:Recorder")
    yield
    for name in ("Recorder", "Image", "Unbounded", "Endless"):
        del gymnasium.registry[f"Toy{name}-v0"]


def test_pool_fills_the_action_box_and_stops_finished_episodes():
    pool = GymnasiumPool("ToyRecorder-v0", 2)
    assert pool.spec == Spec(obs_dim=2, action_dim=2, max_action=1.0)
    assert pool.horizon == 5
    np.testing.assert_array_equal(pool.reset([3, 10]), [[3, 0], [10, 0]])
    rewards: list[np.ndarray] = []
    terminated: list[np.ndarray] = []
    truncated: list[np.ndarray] = []
    for a in (-1.0, 0.0, 1.0, 0.5, 0.5, 0.5):
        obs, *rest = pool.step(np.full((2, 2), a))
        for log, x in zip((rewards, terminated, truncated), rest):
            assert x.dtype == np.float32
            log.append(x)
    np.testing.assert_array_equal(rewards, [[0, 0], [2, 2], [4, 4], [3, 0], [3, 0], [0, 0]])
    np.testing.assert_array_equal(np.array(terminated).T, [[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(np.array(truncated).T, [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(obs, [[3, 5], [10, 3]])
    pool.close()


def test_pool_equals_gymnasium():
    pool, theirs = GymnasiumPool("Hopper-v5", 3), [gymnasium.make("Hopper-v5") for _ in range(3)]
    assert pool.spec.max_action == 1.0
    obs = pool.reset([5, 6, 7])
    for row, env, seed in zip(obs, theirs, (5, 6, 7)):
        np.testing.assert_array_equal(row, env.reset(seed=seed)[0].astype(np.float32))
    rng, ended = np.random.default_rng(0), np.zeros(3, bool)
    while not ended.all():
        actions = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        obs, reward, terminated, truncated = pool.step(actions)
        for i in np.flatnonzero(~ended):
            expected = theirs[i].step(actions[i])
            np.testing.assert_array_equal(obs[i], expected[0].astype(np.float32))
            assert reward[i] == np.float32(expected[1])
            assert (terminated[i], truncated[i]) == expected[2:4]
        assert not reward[ended].any()
        ended = (terminated + truncated) > 0
    pool.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_gymnax("Pendulm-v1"), "no environment 'Pendulm-v1'; did you mean 'Pendulum-v1'"),
        (lambda: from_gymnax("CartPole-v1"), "CartPole-v1 has actions .*continuous actions"),
        (lambda: GymnasiumPool("Pendulm-v1", 1), "no environment 'Pendulm-v1'; did you mean 'Pendulum-v1'"),
        (lambda: GymnasiumPool("CartPole-v1", 1), "CartPole-v1 has actions .*continuous actions"),
        (lambda: GymnasiumPool("Hopper-v2", 1), "cannot make 'Hopper-v2'"),
        (lambda: GymnasiumPool("ToyImage-v0", 1), "ToyImage-v0 has observations .*flat vector"),
        (lambda: GymnasiumPool("ToyUnbounded-v0", 1), "ToyUnbounded-v0 has unbounded actions"),
        (lambda: GymnasiumPool("ToyEndless-v0", 1), "ToyEndless-v0 has no time limit"),
        (lambda: GymnasiumPool("Pendulum-v1", 0), "count=0"),
        (lambda: GymnasiumPool("Pendulum-v1", 2).reset([1]), "1 seeds for 2 episodes"),
        (lambda: registry.make("pointmax"), "'pointmax' is not known; did you mean 'pointmix'"),
        (lambda: registry.make("pointmix", "mjx"), "backend='mjx' does not apply to 'pointmix'"),
        (lambda: registry.make("gymnasium:Nt-v5"), "no environment 'Nt-v5'; did you mean 'Ant-v5'"),
    ],
)
def test_mistakes_are_named_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_registry_finds_every_kind():
    for name in (*registry.NAMES, "gymnax:Pendulum-v1"):
        if name in dmc.NAMES:  # they need an extra and OpenGL, see test_dmc.py
            continue
        env = registry.make(name)
        assert isinstance(env, Env)
        _, obs = env.reset(jax.random.key(0), env.params)
        assert obs.shape == (env.spec.obs_dim,)
    make_pool = registry.make("gymnasium:Pendulum-v1")
    assert not isinstance(make_pool, Env)
    pool = make_pool(2)
    assert isinstance(pool, GymnasiumPool)
    assert pool.reset([0, 1]).shape == (2, 3)
