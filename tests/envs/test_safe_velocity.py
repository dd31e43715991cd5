"""The safe velocity tasks: gymnasium's robots, and a cost for every step above the limit of speed."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import mujoco, registry
from envs.core import autoreset
from envs.mujoco.c_physics import CState, Physics, float64_vector
from envs.mujoco.locomotion import SAFE

# Limits of Safety-Gymnasium's `-v1` tasks, in m/s, and gymnasium's environment that each is built on.
TASKS = {
    "safe-halfcheetah": (3.2096, "HalfCheetah-v4"),
    "safe-hopper": (0.7402, "Hopper-v4"),
    "safe-walker2d": (2.3415, "Walker2d-v4"),
    "safe-ant": (2.6222, "Ant-v4"),
}
STEPS = 25


@pytest.fixture(autouse=True)
def _log_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes remarks on gymnasium's models to a log there


def start(theirs: Any, x_velocity: float, y_velocity: float, coordinates: int) -> np.ndarray:
    """The state vector of an episode that begins at that velocity."""
    theirs.reset(seed=0)
    qpos, qvel = theirs.data.qpos.copy(), theirs.data.qvel.copy()
    qvel[0] = x_velocity
    if coordinates == 2:
        qvel[1] = y_velocity
    theirs.set_state(qpos, qvel)
    return np.concatenate([qpos, qvel, np.zeros(len(qvel)), qpos[:coordinates]])


def as_state(vector: np.ndarray) -> CState:
    return CState(jnp.asarray(vector.view(np.uint32)), jnp.int32(0), jnp.asarray(False))


def rollout(env, vector: np.ndarray, actions: jax.Array):
    step = lambda state, action: env.step(jax.random.key(0), state, action, env.params)  # noqa: E731
    return jax.jit(lambda s, a: jax.lax.scan(step, s, a))(as_state(vector), actions)


@pytest.mark.parametrize("name", TASKS)
def test_cost_is_one_above_the_limit_of_gymnasiums_velocity(name):
    limit, env_id = TASKS[name]
    env, theirs = mujoco.make(name, "mujoco"), gymnasium.make(env_id).unwrapped
    assert registry.make(name, "mujoco") is env
    planar = name == "safe-ant"
    actions = jax.random.uniform(jax.random.key(0), (STEPS, env.spec.action_dim), minval=-1.0, maxval=1.0)
    seen = set()
    for x, y in ((1.15 * limit, 0.0), (-1.5 * limit, 0.0), (0.85 * limit, 0.85 * limit), (0.0, -1.3 * limit)):
        vector = start(theirs, x, y, 1 + planar)
        _, steps = rollout(env, vector, actions)
        for i, action in enumerate(np.asarray(actions, np.float64)):
            obs, reward, end, _, info = theirs.step(action)
            speed = np.hypot(info["x_velocity"], info["y_velocity"]) if planar else info["x_velocity"]
            assert steps.measures["cost"][i] == float(speed > limit)
            np.testing.assert_array_equal(steps.obs[i], obs.astype(np.float32))
            np.testing.assert_allclose(steps.reward[i], float(reward), rtol=1e-6, atol=1e-6)
            assert steps.terminated[i] == end
            seen.add((bool(speed > limit), bool(info["x_velocity"] > limit)))
            if end:
                break
        assert not np.any(steps.measures["cost"][i + 1 :])  # a finished episode costs nothing
    assert {(True, True), (False, False)} <= seen
    assert ((True, False) in seen) == planar  # backwards or sideways counts for the ant alone


def test_the_robot_is_the_plain_one():
    safe, plain = mujoco.make("safe-ant", "mujoco"), mujoco.make("ant", "mujoco")
    assert safe.spec == plain.spec
    key = jax.random.key(3)
    (state, obs), (other, other_obs) = safe.reset(key, ()), plain.reset(key, ())
    np.testing.assert_array_equal(obs, other_obs)
    actions = jax.random.uniform(key, (STEPS, 8), minval=-1.0, maxval=1.0)
    state, steps = rollout(safe, float64_vector(np.asarray(state.words)), actions)
    other, others = rollout(plain, float64_vector(np.asarray(other.words)), actions)
    np.testing.assert_array_equal(state.words[:-2], other.words)  # and y at the end
    np.testing.assert_array_equal(steps.reward, others.reward)
    np.testing.assert_array_equal(steps.obs, others.obs)
    assert list(steps.measures) == ["cost"]
    assert others.measures == {}
    for a, b in zip(mujoco.qpos_qvel("safe-ant", state), mujoco.qpos_qvel("ant", other)):
        np.testing.assert_array_equal(a, b)


def test_a_simulation_that_blows_up_costs_nothing():
    physics = Physics(SAFE["safe-halfcheetah"], threads=1)
    vector = np.zeros((1, physics.size))
    vector[0, 9:18] = 1e12
    after, _, _, end = physics.step(vector, np.zeros((1, 6)), np.zeros(1, bool))
    assert end[0]
    assert physics.robot.measures(np, physics.moved(vector, after), physics.dt)["cost"][0] == 0.0


def test_costs_come_through_batches_and_resets():
    env = mujoco.make("safe-hopper", "mujoco")
    keys = jax.random.split(jax.random.key(0), 4)
    states, _ = jax.vmap(env.reset, (0, None))(keys, env.params)

    def body(states, t):
        step = lambda k, s, a: autoreset(env, k, s, a, env.params)  # noqa: E731
        actions = jax.random.uniform(jax.random.fold_in(keys[0], t), (4, 3), minval=-1.0, maxval=1.0)
        states, _, steps = jax.vmap(step)(keys, states, actions)
        return states, (steps.measures["cost"], steps.terminated)

    cost, terminated = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(200)))(states)[1]
    assert cost.shape == (200, 4)
    assert cost.dtype == jnp.float32
    assert set(np.unique(cost)) == {0.0, 1.0}
    assert terminated.sum() > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["safe-ant", "safe-halfcheetah"])
def test_mjx_costs_are_those_of_c_mujoco(name):
    from tests.envs.test_mujoco import to_mjx

    ours, theirs = mujoco.make(name, "mujoco"), mujoco.make(name, "mjx")
    step, planar = jax.jit(theirs.step), name == "safe-ant"
    limit, env_id = TASKS[name]
    key, costs = jax.random.key(0), []
    for x, y in ((1.3 * limit, 0.0), (0.5 * limit, 0.5 * limit), (0.85 * limit, 0.85 * limit)):
        state = as_state(start(gymnasium.make(env_id).unwrapped, x, y, 1 + planar))
        other = _planar_to_mjx(state) if planar else to_mjx(name.removeprefix("safe-"), state)
        for action in jax.random.uniform(key, (3, ours.spec.action_dim), minval=-1.0, maxval=1.0):
            state, a = ours.step(key, state, action, ours.params)
            other, b = step(key, other, action, theirs.params)
            np.testing.assert_allclose(a.obs, b.obs, rtol=0, atol=1e-3)
            assert a.measures["cost"] == b.measures["cost"]
            costs.append(float(b.measures["cost"]))
    assert set(costs) == {0.0, 1.0}


def _planar_to_mjx(state: CState) -> Any:
    from envs.mujoco.mjx_physics import MjxState

    vector = float64_vector(np.asarray(state.words))
    qpos, qvel, warmstart, place = (jnp.asarray(x, jnp.float32) for x in np.split(vector, [15, 29, 43]))
    return MjxState(qpos, qvel, warmstart, place, state.t, state.terminated)
