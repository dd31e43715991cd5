"""The MuJoCo robots against gymnasium, and the two simulators against each other."""

import os
import subprocess
import sys
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import mujoco
from envs.core import UsageError, autoreset
from envs.mujoco import qpos_qvel
from envs.mujoco.c_physics import CState, Physics, float64_vector, float64_words
from envs.mujoco.locomotion import ROBOTS
from envs.mujoco.mjx_physics import MjxState
from envs.mujoco.render import render

GYMNASIUM_ID = {
    "halfcheetah": "HalfCheetah-v4",
    "hopper": "Hopper-v4",
    "walker2d": "Walker2d-v4",
    "ant": "Ant-v4",
}


@pytest.fixture(autouse=True)
def _log_elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes remarks on gymnasium's models to a log in the working directory."""
    monkeypatch.chdir(tmp_path)


def make_theirs(name: str) -> Any:
    return gymnasium.make(GYMNASIUM_ID[name]).unwrapped


def fresh_vector(physics: Physics, qpos, qvel) -> np.ndarray:
    return np.concatenate([qpos, qvel, np.zeros(physics.nv), qpos[:1]])[None]


def as_state(vector: np.ndarray) -> CState:
    return CState(jnp.asarray(vector.view(np.uint32)), jnp.int32(0), jnp.asarray(False))


def random_actions(env, steps, *lead, seed=0):
    shape = (steps, *lead, env.spec.action_dim)
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1.0, maxval=1.0)


def rollout(env, state, actions):
    """Steps (T, ...) along the leading axis of `actions`; the other axes are those of the state."""
    step = lambda state, action: env.step(jax.random.key(0), state, action, ())  # noqa: E731
    for _ in range(actions.ndim - 2):
        step = jax.vmap(step)
    return jax.lax.scan(step, state, actions)


@pytest.mark.parametrize("name", ROBOTS)
def test_float64_path_equals_gymnasium(name):
    theirs = make_theirs(name)
    physics, rng = Physics(ROBOTS[name], threads=1), np.random.default_rng(0)
    assert physics.dt == theirs.dt

    def restart(seed):
        obs, _ = theirs.reset(seed=seed)
        vector = fresh_vector(physics, theirs.data.qpos, theirs.data.qvel)
        ours = physics.robot.observation(np, *physics.positions_velocities(vector))[0]
        np.testing.assert_array_equal(ours, obs)
        return vector

    vector = restart(0)
    for i in range(1, 201):
        action = rng.uniform(-1.0, 1.0, physics.model.nu)
        their_obs, their_reward, their_end, _, _ = theirs.step(action)
        vector, obs, reward, end = physics.step(vector, action[None], np.zeros(1, bool))
        np.testing.assert_allclose(obs[0], their_obs, rtol=0, atol=1e-9)
        np.testing.assert_allclose(reward[0], their_reward, rtol=0, atol=1e-9)
        assert end[0] == their_end
        if their_end:
            vector = restart(i)


@pytest.mark.parametrize("name", ROBOTS)
def test_compiled_environment_equals_gymnasium_in_float32(name):
    env, theirs = mujoco.make(name, "mujoco"), make_theirs(name)
    theirs.reset(seed=3)
    start = fresh_vector(Physics(ROBOTS[name], threads=1), theirs.data.qpos, theirs.data.qvel)[0]
    actions = random_actions(env, 200)
    _, steps = jax.jit(lambda s, a: rollout(env, s, a))(as_state(start), actions)
    assert env.spec.obs_dim == theirs.observation_space.shape[0]
    for i, action in enumerate(np.asarray(actions, np.float64)):
        obs, reward, end, _, _ = theirs.step(action)
        np.testing.assert_array_equal(steps.obs[i], obs.astype(np.float32))
        np.testing.assert_allclose(steps.reward[i], reward, rtol=1e-6, atol=1e-6)
        assert steps.terminated[i] == end
        if end:
            break
    later = slice(i + 1, None)  # a finished episode stays as it is
    assert not np.any(steps.reward[later])
    assert (np.asarray(steps.obs[later]) == np.asarray(steps.obs[i])).all()
    assert np.asarray(steps.terminated[later]).all()


def test_reset_noise_is_that_of_gymnasium():
    env = mujoco.make("halfcheetah", "mujoco")
    states, obs = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 2000), ())
    qpos, qvel = qpos_qvel("halfcheetah", states)
    assert np.abs(qpos).max() <= 0.1
    assert qpos.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.02)
    assert qvel.std() == pytest.approx(0.1, rel=0.02)
    assert np.abs(qvel).max() > 0.3  # normal, not uniform
    np.testing.assert_array_equal(np.concatenate([qpos[:, 1:], qvel], axis=1).astype(np.float32), obs)

    env = mujoco.make("hopper", "mujoco")
    states, _ = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 2000), ())
    qpos, qvel = qpos_qvel("hopper", states)
    noise = np.concatenate([qpos - [0, 1.25, 0, 0, 0, 0], qvel], axis=1)
    assert np.abs(noise).max() <= 5.001e-3
    assert noise.std() == pytest.approx(5e-3 / np.sqrt(3), rel=0.02)


def test_words_are_the_bits_of_float64():
    x = np.array([0.0, -0.0, 1.0, -1.25, 3.3e38, 1.2e-38, np.pi, -5e-3, 1 / 3], np.float32)
    words = np.asarray(float64_words(jnp.asarray(x)))
    np.testing.assert_array_equal(float64_vector(words).view(np.uint64), x.astype(np.float64).view(np.uint64))


def test_saved_state_continues_to_the_last_bit(tmp_path):
    env = mujoco.make("walker2d", "mujoco")
    state, _ = env.reset(jax.random.key(0), ())
    run = jax.jit(lambda s, a: rollout(env, s, a))
    first, second = random_actions(env, 20, seed=0), random_actions(env, 20, seed=1)
    middle, _ = run(state, first)
    np.savez(tmp_path / "state.npz", **jax.tree.map(np.asarray, middle)._asdict())
    loaded = CState(**{k: jnp.asarray(v) for k, v in np.load(tmp_path / "state.npz").items()})
    whole, _ = jax.jit(lambda s, a: rollout(env, s, a))(state, jnp.concatenate([first, second]))
    resumed, _ = run(loaded, second)
    assert not np.array_equal(middle.words, whole.words)
    for a, b in zip(whole, resumed):
        np.testing.assert_array_equal(a, b)


def test_batches_equal_single_steps_to_the_last_bit():
    env = mujoco.make("hopper", "mujoco")
    keys = jax.random.split(jax.random.key(0), 6)
    states, _ = jax.vmap(env.reset, (0, None))(keys, ())
    actions = random_actions(env, 30, 6)
    flat, flat_steps = jax.jit(lambda s, a: rollout(env, s, a))(states, actions)
    nested = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), states)
    nested, nested_steps = jax.jit(lambda s, a: rollout(env, s, a))(nested, actions.reshape(30, 2, 3, -1))
    single = jax.jit(lambda s, a: jax.lax.map(lambda x: rollout(env, *x), (s, a)))
    one_by_one, _ = single(states, actions.swapaxes(0, 1))
    assert np.asarray(flat_steps.terminated).any()  # finished episodes among running ones
    for a, b, c in zip(flat, nested, one_by_one):
        np.testing.assert_array_equal(a, np.asarray(b).reshape(a.shape))
        np.testing.assert_array_equal(a, c)
    np.testing.assert_array_equal(flat_steps.reward, np.asarray(nested_steps.reward).reshape(30, 6))


def test_one_action_for_all_episodes_is_broadcast():
    env = mujoco.make("hopper", "mujoco")
    states, _ = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 3), ())
    action = jnp.full(3, 0.5)
    shared = jax.vmap(env.step, (None, 0, None, None))(jax.random.key(0), states, action, ())
    copied = jax.vmap(env.step, (None, 0, 0, None))(jax.random.key(0), states, jnp.tile(action, (3, 1)), ())
    jax.tree.map(np.testing.assert_array_equal, shared, copied)


def test_time_limit_truncates_and_ends_the_episode():
    env = mujoco.make("halfcheetah", "mujoco")
    state, _ = env.reset(jax.random.key(0), ())
    state, steps = rollout(env, state._replace(t=jnp.int32(998)), random_actions(env, 4))
    np.testing.assert_array_equal(steps.truncated, [False, True, True, True])
    np.testing.assert_array_equal(np.asarray(steps.reward) != 0, [True, True, False, False])
    assert not np.asarray(steps.terminated).any()
    assert state.t == 1000


def test_autoreset_starts_new_episodes():
    env = mujoco.make("hopper", "mujoco")

    def step(state, key):
        action = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
        state, obs, step = autoreset(env, key, state, action, ())
        return state, (state.t, obs, step)

    state, _ = env.reset(jax.random.key(0), ())
    _, (t, obs, steps) = jax.jit(lambda s, k: jax.lax.scan(step, s, k))(state, jax.random.split(jax.random.key(1), 150))
    ends = np.asarray(steps.terminated)
    assert ends.sum() >= 2
    np.testing.assert_array_equal(np.asarray(t) == 0, ends)
    assert (np.abs(np.asarray(obs)[ends] - [1.25, *np.zeros(10)]) < 6e-3).all()


@pytest.mark.parametrize("harm", ["speed", "action"])
def test_simulation_that_blows_up_ends_the_episode(harm, tmp_path):
    physics, rng = Physics(ROBOTS["halfcheetah"]), np.random.default_rng(0)
    healthy = fresh_vector(physics, np.zeros(9), np.zeros(9))
    vector = np.repeat(healthy, 3, axis=0)
    action = rng.uniform(-1, 1, (3, 6))
    if harm == "speed":
        vector[1, physics.nq : physics.nq + physics.nv] = 1e12
    else:
        action[1, 0] = np.nan
    after, obs, reward, end = physics.step(vector, action, np.zeros(3, bool))
    np.testing.assert_array_equal(end, [False, True, False])
    np.testing.assert_array_equal(after[1], vector[1])
    assert np.isfinite(obs).all()
    assert np.isfinite(reward[1]) == (harm == "speed")  # an action that is no number is not hidden
    alone, _, _, _ = physics.step(healthy, action[2:], np.zeros(1, bool))
    np.testing.assert_array_equal(after[2], alone[0])
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be tied to a core here")
def test_large_batches_do_not_deadlock_on_one_core():
    program = """if True:
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import jax, jax.numpy as jnp
        from envs.mujoco import make
        env = make("hopper", "mujoco")
        states, _ = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 900), ())
        step = jax.vmap(env.step, (None, 0, 0, None))
        scan = jax.jit(lambda s, a: jax.lax.scan(lambda s, a: step(jax.random.key(0), s, a, ()), s, a))
        actions = jnp.zeros((20, 900, 3))
        for _ in range(5):
            states, _ = scan(states, actions)
        other = jnp.ones((800, 800)) @ jnp.ones((800, 800)) @ jnp.ones((800, 800))
        _, steps = scan(states, actions)  # waits for JAX's only thread, and would then block it
        print(jax.block_until_ready((steps, other))[0].reward.shape)
    """
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=120, capture_output=True, text=True)
    assert done.stdout.strip() == "(20, 900)", done.stderr


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="'hoper' is not known; did you mean 'hopper'"):
        mujoco.make("hoper")
    with pytest.raises(UsageError, match="backend='warp' is not known; choose one of auto, mujoco, mjx"):
        mujoco.make("hopper", "warp")
    assert mujoco.make("hopper", "mujoco") is mujoco.make("hopper", "mujoco")


def to_mjx(name: str, state: CState) -> MjxState:
    physics, vector = Physics(ROBOTS[name], threads=1), float64_vector(np.asarray(state.words))
    qpos, qvel = physics.positions_velocities(vector)
    warmstart, x = vector[-1 - physics.nv : -1], vector[-1]
    single = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
    return MjxState(single(qpos), single(qvel), single(warmstart), single(x), state.t, state.terminated)


def compare_simulators(name: str, before: int, steps: int):
    """`before` steps in C, then `steps` from there in both; returns MJX's compiled step and its last state."""
    ours, theirs = mujoco.make(name, "mujoco"), mujoco.make(name, "mjx")
    assert ours.spec == theirs.spec
    state, obs = ours.reset(jax.random.key(0), ())
    np.testing.assert_array_equal(obs, theirs.reset(jax.random.key(0), ())[1])
    step = jax.jit(theirs.step)
    actions = random_actions(ours, before + steps)
    state, _ = rollout(ours, state, actions[:before])
    other = to_mjx(name, state)
    for action in actions[before:]:
        state, a = ours.step(jax.random.key(0), state, action, ())
        other, b = step(jax.random.key(0), other, action, ())
        np.testing.assert_allclose(a.obs, b.obs, rtol=0, atol=1e-3)
        np.testing.assert_allclose(a.reward, b.reward, rtol=0, atol=1e-3)
        assert a.terminated == b.terminated
        for x, y in zip(qpos_qvel(name, state), qpos_qvel(name, other)):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-3)
    return step, other


def test_mjx_follows_c_mujoco_on_halfcheetah():
    step, state = compare_simulators("halfcheetah", before=20, steps=5)
    key, action = jax.random.key(0), jnp.full(6, 0.5, jnp.float32)

    last, timestep = step(key, state._replace(t=jnp.int32(999)), action, ())
    assert timestep.truncated
    assert timestep.reward != 0
    again, timestep = step(key, last, action, ())
    assert timestep.truncated
    assert timestep.reward == 0
    jax.tree.map(np.testing.assert_array_equal, last, again)

    broken, timestep = step(key, state._replace(qvel=jnp.full(9, 1e30, jnp.float32)), action, ())
    assert timestep.terminated
    assert np.isfinite(np.asarray(timestep.obs)).all()
    np.testing.assert_array_equal(broken.qpos, state.qpos)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "before", "steps"), [("hopper", 15, 5), ("walker2d", 10, 5), ("ant", 10, 5)])
def test_mjx_follows_c_mujoco(name, before, steps):
    compare_simulators(name, before, steps)  # from where the robot touches the ground


@pytest.mark.slow
def test_backends_agree_on_the_return_of_a_fixed_policy():
    returns = {}
    for backend in ("mujoco", "mjx"):
        env = mujoco.make("hopper", backend)
        weights = 0.5 * jax.random.normal(jax.random.key(5), (11, 3))  # hops forward before it falls

        def episode(key, env=env, weights=weights):
            def step(carry, _):
                state, obs = carry
                state, step = env.step(key, state, jnp.tanh(obs @ weights), ())
                return (state, step.obs), step.reward

            return jax.lax.scan(step, env.reset(key, ()), length=300)[1].sum()

        returns[backend] = float(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(1), 100)).mean())
    assert returns["mujoco"] > 300
    assert returns["mjx"] == pytest.approx(returns["mujoco"], rel=0.02)


def test_frames_are_drawn_without_a_screen():
    qpos = np.zeros((3, 6))
    qpos[:, 1], qpos[:, 0] = 1.25, [0.0, 0.5, 1.0]
    try:
        frames = render("hopper", qpos, width=64, height=48)
    except UsageError as error:
        if "set MUJOCO_GL=egl" not in str(error):
            raise
        pytest.skip(str(error))
    assert frames.shape == (3, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert (frames[0] != frames[2]).any()


def test_drawing_mistakes_are_named(monkeypatch):
    with pytest.raises(UsageError, match=r"hopper is drawn from positions of shape \(T, 6\), not \(3, 5\)"):
        render("hopper", np.zeros((3, 5)))
    with pytest.raises(UsageError, match="no camera 'moon'; choose one of track"):
        render("hopper", np.zeros((3, 6)), camera="moon")
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(UsageError, match="no OpenGL for drawing \\(MUJOCO_GL is disable\\); .* set MUJOCO_GL=egl or"):
        render("hopper", np.zeros((3, 6)))


def test_a_missing_opengl_library_stops_drawing_and_nothing_else():
    """MuJoCo alone cannot even be imported with what MUJOCO_GL says here."""
    program = (
        "from envs import mujoco\n"
        "from envs.mujoco import render\n"
        "env = mujoco.make('hopper')\n"
        "try: render.render('hopper', [[0.0] * 6])\n"
        "except mujoco.UsageError as error: print(env.name, error)"
    )
    environment = {**os.environ, "MUJOCO_GL": "moon"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ran.stderr == ""
    reason = "invalid value for environment variable MUJOCO_GL: moon"
    assert ran.stdout.startswith(f"hopper no OpenGL for drawing ({reason}); install EGL or OSMesa")
