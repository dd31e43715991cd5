"""The walker against dm_control, live where it is installed and from a recording everywhere."""

import jax
import jax.numpy as jnp
import mujoco as simulator
import numpy as np
import pytest

from envs import mujoco, registry
from envs.core import Env, UsageError
from envs.mujoco import qpos_qvel
from envs.mujoco.c_physics import Physics, float64_vector
from envs.mujoco.locomotion import load_model
from envs.mujoco.render import render
from envs.mujoco.walker import WALKERS, forward_speed
from tests.golden.walker import record

NAMES = [f"walker-{task}" for task in record.TASKS]
# What only drawing and the names of things depend on, and the ground, a plane of other size and origin.
NOT_PHYSICS = ("cam_", "light_", "mat_", "tex_", "name", "geom_rgba", "geom_matid", "sensor_", "bvh_")
SIZES = ("ncam", "nmat", "nnames", "nnames_map", "nsensor", "nsensordata", "ntexdata", "nbuffer", "signature")


def dm_control():
    pytest.importorskip("dm_control")
    return record.load_walker()


@pytest.fixture(scope="module", params=["recorded", "dm_control"])
def theirs(request):
    """See `record.recording`."""
    if request.param == "recorded":
        return dict(np.load(record.PATH))
    return record.recording(dm_control(), 5)


def as_vector(qpos, qvel) -> np.ndarray:
    return np.concatenate([qpos, qvel, np.zeros(9), qpos[:1]])[None]


@pytest.mark.parametrize("task", range(3))
def test_200_random_steps_equal_dm_control(theirs, task):
    physics = Physics(WALKERS[NAMES[task]], threads=1)
    assert physics.dt == pytest.approx(0.025, abs=1e-12)
    start = theirs["episode_obs"][0]
    vector = as_vector(theirs["episode_qpos"][0], start[15:])
    ours = physics.robot.observation(np, *physics.positions_velocities(vector))
    np.testing.assert_allclose(ours[0], start, rtol=0, atol=1e-9)
    for t, action in enumerate(theirs["episode_action"]):
        vector, obs, reward, terminated = physics.step(vector, action[None], np.zeros(1, bool))
        qpos, qvel = physics.positions_velocities(vector)
        np.testing.assert_allclose(qpos[0], theirs["episode_qpos"][t + 1], rtol=0, atol=1e-9)
        np.testing.assert_allclose(qvel[0], theirs["episode_obs"][t + 1, 15:], rtol=0, atol=1e-9)
        np.testing.assert_allclose(obs[0], theirs["episode_obs"][t + 1], rtol=0, atol=1e-9)
        np.testing.assert_allclose(reward[0], theirs["episode_reward"][t, task], rtol=0, atol=1e-9)
        assert not terminated[0]
    assert t == 199


@pytest.mark.parametrize("task", range(3))
def test_upright_and_fast_states_are_valued_as_by_dm_control(theirs, task):
    walker, nothing = WALKERS[NAMES[task]], np.zeros(1)
    qpos, qvel = theirs["postures_qpos"], theirs["postures_qvel"]
    obs, reward = walker.observation(np, qpos, qvel), walker.reward(np, qpos, qvel, nothing, nothing, 0.025)
    np.testing.assert_allclose(obs, theirs["postures_obs"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(reward, theirs["postures_reward"][:, task], rtol=0, atol=1e-9)
    qpos, qvel = jnp.asarray(qpos, jnp.float32), jnp.asarray(qvel, jnp.float32)
    obs, reward = walker.observation(jnp, qpos, qvel), walker.reward(jnp, qpos, qvel, nothing, nothing, 0.025)
    assert obs.dtype == reward.dtype == jnp.float32
    np.testing.assert_allclose(obs, theirs["postures_obs"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(reward, theirs["postures_reward"][:, task], rtol=0, atol=1e-5)


def test_model_equals_that_of_dm_control():
    walker = dm_control()
    theirs = walker.Physics.from_xml_string(*walker.get_model_and_assets()).model.ptr
    ours = load_model(WALKERS["walker-walk"])
    compared = 0
    for name in dir(theirs):
        a = getattr(theirs, name)
        if name.startswith(("_", *NOT_PHYSICS)) or name in SIZES or not isinstance(a, int | np.ndarray):
            continue
        b, skip = getattr(ours, name), 0
        if name in ("geom_pos", "geom_size", "geom_sameframe"):
            skip = 1  # the ground
        if name == "jnt_solimp":
            skip = 3  # of the torso's joints, which have no limits
        np.testing.assert_array_equal(np.atleast_1d(a)[skip:], np.atleast_1d(b)[skip:], err_msg=name)
        compared += 1
    assert compared > 250
    for name in dir(theirs.opt):
        if not name.startswith("_"):
            np.testing.assert_array_equal(getattr(theirs.opt, name), getattr(ours.opt, name), err_msg=name)
    assert not ours.geom_pos[0].any()
    assert ours.stat.meaninertia == theirs.stat.meaninertia  # the solver's scale


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize(
    ("name", "height", "pitch", "speed", "reward"),
    [
        ("walker-stand", 1.2, 0.0, 0.0, 1.0),
        ("walker-stand", 1.5, np.pi, 0.0, 0.75),  # upside down
        ("walker-stand", 0.6, 0.0, 5.0, (3 * 0.1 + 1) / 4),
        ("walker-stand", 0.9, np.pi / 2, 0.0, (3 * 0.1**0.25 + 0.5) / 4),
        ("walker-walk", 1.3, 0.0, 1.0, 1.0),
        ("walker-walk", 1.3, 0.0, 2.0, 1.0),
        ("walker-walk", 1.3, 0.0, 0.5, (5 * 0.5 + 1) / 6),
        ("walker-walk", 1.3, 0.0, -1.0, 1 / 6),
        ("walker-run", 1.3, 0.0, 6.0, (5 * 0.75 + 1) / 6),
        ("walker-run", 0.6, 0.0, 8.0, (3 * 0.1 + 1) / 4),
    ],
)
def test_rewards_in_closed_form(xp, name, height, pitch, speed, reward):
    qpos, qvel = np.zeros((2, 9), np.float32), np.zeros((2, 9), np.float32)
    qpos[:, 0], qpos[:, 2], qvel[:, 1] = height - 1.3, pitch, speed
    ours = WALKERS[name].reward(xp, xp.asarray(qpos), xp.asarray(qvel), xp.zeros(2), xp.zeros((2, 6)), 0.025)
    np.testing.assert_allclose(ours, reward, rtol=0, atol=1e-6)


def test_forward_speed_is_that_of_the_centre_of_mass():
    model, rng = load_model(WALKERS["walker-run"]), np.random.default_rng(0)
    data = simulator.MjData(model)
    for _ in range(20):
        data.qpos[:], data.qvel[:] = rng.uniform(-3, 3, 9), rng.uniform(-9, 9, 9)
        simulator.mj_forward(model, data)
        simulator.mj_subtreeVel(model, data)
        assert forward_speed(np, data.qpos, data.qvel) == pytest.approx(data.subtree_linvel[1, 0], abs=1e-12)


def test_starts_are_random_postures_at_rest():
    env = mujoco.make("walker-walk", "mujoco")
    states, obs = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 4000), ())
    qpos, qvel = qpos_qvel("walker-walk", states)
    leg = [(-20, 100), (-150, 0), (-45, 45)]
    low, high = np.radians([(-180, 180), *leg, *leg]).T
    assert not qvel.any()
    assert not qpos[:, :2].any()
    assert (qpos[:, 2:] >= low - 1e-6).all()
    assert (qpos[:, 2:] <= high + 1e-6).all()
    np.testing.assert_allclose(qpos[:, 2:].mean(0), (low + high) / 2, rtol=0, atol=0.03 * 2 * np.pi)
    np.testing.assert_allclose(qpos[:, 2:].std(0), (high - low) / np.sqrt(12), rtol=0.03)
    assert np.abs(np.corrcoef(qpos[:, 2:].T) - np.eye(7)).max() < 0.08
    np.testing.assert_allclose(obs, WALKERS["walker-walk"].observation(np, qpos, qvel), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_episode_lasts_1000_steps(name):
    env = registry.make(name, "mujoco")
    assert isinstance(env, Env)
    assert (env.name, env.spec.obs_dim, env.spec.action_dim, env.horizon) == (name, 24, 6, 1000)

    @jax.jit
    def episode(key):
        def step(state, action):
            return env.step(key, state, action, ())

        state, _ = env.reset(key, ())
        return jax.lax.scan(step, state, jax.random.uniform(key, (1001, 6), minval=-1.0, maxval=1.0))

    state, steps = episode(jax.random.key(1))
    assert state.t == 1000
    assert not np.asarray(steps.terminated).any()
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated), [999, 1000])
    assert steps.reward[1000] == 0
    reward = np.asarray(steps.reward[:1000])
    assert (reward > 0).all()
    assert (reward <= 1).all()
    qpos, qvel = (x[None] for x in qpos_qvel(name, state))
    np.testing.assert_allclose(steps.obs[-1], WALKERS[name].observation(np, qpos, qvel)[0], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_mjx_follows_c_mujoco():
    ours, theirs = mujoco.make("walker-run", "mujoco"), mujoco.make("walker-run", "mjx")
    assert ours.spec == theirs.spec
    state, obs = ours.reset(jax.random.key(0), ())
    start, same = theirs.reset(jax.random.key(0), ())
    np.testing.assert_array_equal(obs, same)
    key, step, c_step = jax.random.key(0), jax.jit(theirs.step), jax.jit(ours.step)
    actions = jax.random.uniform(jax.random.key(1), (100, 6), minval=-1.0, maxval=1.0)
    for t, action in enumerate(actions):
        if t % 5 == 0:  # from where C MuJoCo is, in the air and on the ground
            vector = float64_vector(np.asarray(state.words)).astype(np.float32)
            other = start._replace(qpos=vector[:9], qvel=vector[9:18], warmstart=vector[18:27], t=state.t)
        state, a = c_step(key, state, action, ())
        other, b = step(key, other, action, ())
        np.testing.assert_allclose(b.obs, a.obs, rtol=0, atol=2e-3)
        np.testing.assert_allclose(b.reward, a.reward, rtol=0, atol=1e-4)
        assert not b.terminated


def test_walker_is_drawn():
    try:
        frames = render("walker-walk", np.linspace(0.0, 0.3, 2)[:, None] * np.ones(9), width=64, height=48)
    except UsageError as error:
        if "set MUJOCO_GL=egl" not in str(error):
            raise
        pytest.skip(str(error))
    assert frames.shape == (2, 48, 64, 3)
    assert (frames[0] != frames[1]).any()


def test_near_names_are_offered():
    with pytest.raises(UsageError, match="'walker-jump' is not known; did you mean 'walker-run'"):
        registry.make("walker-jump")
