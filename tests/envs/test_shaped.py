"""Environments with a true and an auxiliary reward, against numbers worked out by hand, gymnasium and controllers."""

from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import registry, shaped
from envs.core import Env, UsageError, autoreset, measure_names
from envs.mujoco import qpos_qvel
from envs.shaped import cartpole, features, gridworld, mountaincar

SMALL = ("gridworld-bad", "mountaincar-bang", "cartpole-good")
UP, RIGHT, DOWN = 0, 1, 2


@partial(jax.jit, static_argnums=1)
def walk(actions, variant):
    """GridWorld without slips."""
    start = gridworld.State(jnp.array(gridworld.START), jnp.int32(0))
    return jax.lax.scan(lambda state, action: gridworld.advance(state, action, variant), start, actions)


@partial(jax.jit, static_argnums=(0, 1))
def episodes(name, policy, keys):
    """Reward, auxiliary reward and length of an episode for each key; `policy`: (state, params) -> action's number."""
    env = shaped.make(name)

    def step(carry, key):
        state, running = carry
        action = jax.nn.one_hot(policy(state, env.params), env.spec.action_dim)
        state, step = env.step(key, state, action, env.params)
        sums = jnp.stack([step.reward, step.measures["auxiliary"], step.measures["length"]])
        return (state, running & ~step.terminated & ~step.truncated), jnp.where(running, sums, 0.0)

    def episode(key):
        state, _ = env.reset(key, env.params)
        return jax.lax.scan(step, (state, True), jax.random.split(key, env.horizon))[1].sum(axis=0)

    return jax.vmap(episode)(keys).T


def test_gridworld_best_return_and_stale_observation():
    final, steps = walk(jnp.array([RIGHT] * 4 + [UP] * 4), "none")
    assert float(steps.reward.sum()) == pytest.approx(99.2, abs=1e-4)
    np.testing.assert_array_equal(steps.terminated, [False] * 7 + [True])
    np.testing.assert_allclose(final.position, [0.845, 0.755], atol=1e-6)
    np.testing.assert_allclose(steps.obs[-1], [0.845, 0.71], atol=1e-6)  # one sub-move before
    assert not steps.measures["auxiliary"].any()


def test_gridworld_time_limit_and_last_step():
    final, steps = walk(jnp.array([UP, DOWN] * 25), "none")
    assert float(steps.reward.sum()) == pytest.approx(-5.0, abs=1e-5)
    assert not steps.terminated.any()
    np.testing.assert_array_equal(steps.truncated, [False] * 49 + [True])
    np.testing.assert_allclose(final.position, [0.125, 0.26], atol=1e-6)  # of the last step, one sub-move
    np.testing.assert_allclose(steps.obs[-1], [0.125, 0.305], atol=1e-6)


def test_gridworld_border_stops_a_step():
    _, steps = walk(jnp.array([DOWN, DOWN, RIGHT]), "none")
    np.testing.assert_allclose(steps.obs, [[0.125, 0.035], [0.125, 0.035], [0.305, 0.035]], atol=1e-6)


def test_gridworld_decoy_accumulates():
    _, steps = walk(jnp.array([RIGHT, RIGHT, UP, UP] + [UP, DOWN] * 23), "bad")
    auxiliary = steps.measures["auxiliary"]
    np.testing.assert_array_equal(auxiliary[:6], [0, 0, 0, 100, 100, 150])
    assert float(auxiliary.sum()) == 100 + 23 * 100 + 22 * 150  # nothing on the last step
    assert float(steps.reward.sum()) == pytest.approx(-5.0, abs=1e-5)


def test_gridworld_guides_on_the_last_step_too():
    actions = jnp.array([RIGHT] * 4 + [UP] * 4)  # ends at y = 0.71 and 0.755, with x = 0.845
    good, fixed = (walk(actions, variant)[1].measures["auxiliary"] for variant in ("good", "good-fixed"))
    assert float(good[-1]) == pytest.approx(-2 * (0.025**2 + 0.12**2), abs=1e-6)
    assert float(fixed[-1]) == pytest.approx(-(2 * 0.025**2 + 0.16**2 + 0.115**2), abs=1e-6)


def test_gridworld_slips():
    env = shaped.make("gridworld-none")
    state, _ = env.reset(jax.random.key(0), env.params)
    action = jax.nn.one_hot(UP, 4) * 2 - 1
    _, steps = jax.jit(jax.vmap(env.step, (0, None, None, None)))(
        jax.random.split(jax.random.key(1), 20_000), state, action, env.params
    )
    ends = np.array([[0.125, 0.305], [0.305, 0.125], [0.125, 0.035], [0.035, 0.125]])
    shares = [np.isclose(steps.obs, end, atol=1e-6).all(axis=-1).mean() for end in ends]
    np.testing.assert_allclose(shares, [0.925, 0.025, 0.025, 0.025], atol=0.01)


def pump(state, params):
    """Push the way the car goes."""
    return jnp.where(state.obs[1] >= 0, 2, 0)


def idle(state, params):
    return 1


def test_mountaincar_is_solved_by_pumping_alone():
    keys = jax.random.split(jax.random.key(0), 64)
    reward, auxiliary, length = episodes("mountaincar-bang", pump, keys)
    np.testing.assert_array_equal(reward, np.ones(64))
    assert 85 <= length.min() <= length.max() <= 170
    assert (auxiliary > 0.9 * (length - 1)).all()
    assert (auxiliary <= length - 1).all()
    reward, auxiliary, length = episodes("mountaincar-bang", idle, keys[:2])
    np.testing.assert_array_equal((reward, auxiliary, length), [[0, 0], [-1999, -1999], [2000, 2000]])


@pytest.mark.parametrize(
    ("variant", "expected"),  # in units of k: going left pushing left and right, going right pushing left and right
    [
        ("none", [0, 0, 0, 0]),
        ("bang", [1, -1, -1, 1]),
        ("bang-zero", [1, 0, 0, 1]),
        ("bang-left", [1, -1, -1, -1]),
        ("bang-right", [-1, -1, -1, 1]),
        ("bang-speed", [1, -1, -1, 1]),
        ("velocity", [0, 0, 0, 0]),
    ],
)
def test_mountaincar_heuristics(variant, expected):
    params = mountaincar.Params(jnp.float32(3.0))
    for i, (velocity, action) in enumerate([(-0.03, 0), (-0.03, 2), (0.03, 0), (0.03, 2)]):
        state = mountaincar.State(jnp.array([-0.5, velocity]), jnp.int32(0))
        _, step = mountaincar.advance(state, jnp.int32(action), params, variant)
        speed = abs(float(step.obs[1])) if variant in ("velocity", "bang-speed") else 0.0
        assert float(step.measures["auxiliary"]) == pytest.approx(3.0 * (expected[i] + speed), abs=1e-6)


def test_mountaincar_borders():
    params = shaped.make("mountaincar-velocity").params
    assert float(params.scale) == 10.0
    wall = mountaincar.State(jnp.array([-1.19, -0.07]), jnp.int32(0))
    _, step = mountaincar.advance(wall, jnp.int32(0), params, "velocity")
    np.testing.assert_array_equal(step.obs, np.array([-1.2, 0.0], np.float32))
    goal = mountaincar.State(jnp.array([0.45, 0.07]), jnp.int32(1999))
    _, step = mountaincar.advance(goal, jnp.int32(2), params, "velocity")
    assert (float(step.reward), bool(step.terminated), bool(step.truncated)) == (1.0, True, True)
    assert float(step.measures["auxiliary"]) == 0.0


def heed(state, params):
    return cartpole.control(state, params)[1]


def test_cartpole_controllers():
    keys = jax.random.split(jax.random.key(0), 256)
    reward, auxiliary, length = episodes("cartpole-good", heed, keys)
    np.testing.assert_array_equal(reward, np.full(256, 500))
    np.testing.assert_array_equal(auxiliary, np.full(256, 5 * 499))  # nothing on the last step
    np.testing.assert_array_equal(length, np.full(256, 500))
    reward, auxiliary, length = episodes("cartpole-good-weak", heed, keys)
    assert 270 < reward.mean() < 360
    np.testing.assert_array_equal(auxiliary, 5 * (length - 1))


def test_cartpole_controller_remembers():
    env, obs = shaped.make("cartpole-good"), jnp.array([0.0, 0.0, 0.01, 0.0])
    outcomes = []
    for last_angle in (0.0, 0.1):
        state = cartpole.State(obs, jnp.float32(last_angle), jnp.int32(3))
        outcomes.append(env.step(jax.random.key(0), state, jnp.array([-1.0, 1.0]), env.params))
    (after, heeded), (_, ignored) = outcomes
    assert (float(heeded.measures["auxiliary"]), float(ignored.measures["auxiliary"])) == (5.0, -1.0)
    np.testing.assert_array_equal(heeded.obs, ignored.obs)
    assert float(after.last_angle) == np.float32(0.01)


@pytest.mark.parametrize(
    ("variant", "match", "mismatch"),
    [("none", 0, 0), ("good-small", 1, 0), ("bad", -5, 1), ("bad-small", -1, 0), ("bad-noise", -3.75, 1.25)],
)
def test_cartpole_advice(variant, match, mismatch):
    state = cartpole.State(jnp.array([0.0, 0.0, 0.01, 0.0]), jnp.float32(0.0), jnp.int32(0))
    params = shaped.make(f"cartpole-{variant}").params
    earned = [
        float(cartpole.advance(state, jnp.int32(action), jnp.float32(0.25), params)[1].measures["auxiliary"])
        for action in (1, 0)
    ]
    assert earned == [match, mismatch]


def test_cartpole_falls():
    params = shaped.make("cartpole-good").params
    for obs in ([0.0, 0.0, 0.2093, 0.5], [-2.39, -1.0, 0.0, 0.0]):
        state = cartpole.State(jnp.array(obs), jnp.float32(0.0), jnp.int32(0))
        _, step = cartpole.advance(state, jnp.int32(1), jnp.float32(0.0), params)
        assert (bool(step.terminated), float(step.reward), float(step.measures["auxiliary"])) == (True, 1.0, 0.0)


@pytest.mark.parametrize("name", SMALL)
def test_contract(name):
    env = registry.make(name)
    assert isinstance(env, Env)
    assert env is registry.make(name)
    assert measure_names(env) == ["auxiliary", "length"]
    states, obs = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 8), env.params)
    actions = jax.random.normal(jax.random.key(1), (8, env.spec.action_dim))
    late = states._replace(t=jnp.full(8, env.horizon - 1))
    step = jax.jit(jax.vmap(partial(autoreset, env), (0, 0, 0, None)))
    after, obs, outcome = step(jax.random.split(jax.random.key(2), 8), late, actions, env.params)
    assert {x.dtype for x in (obs, outcome.reward, *outcome.measures.values())} == {jnp.dtype("float32")}
    assert outcome.truncated.all()
    assert not after.t.any()
    assert obs.shape == (8, env.spec.obs_dim)
    assert env.view is not None
    assert env.view(obs).shape == (8, {"gridworld-bad": 16, "mountaincar-bang": 80, "cartpole-good": 256}[name])
    _, _, early = step(jax.random.split(jax.random.key(2), 8), states, actions, env.params)
    assert not early.truncated.any()


def test_features_by_hand():
    x = features.fourier(jnp.array([0.5, 0.25]), gridworld.LOW, gridworld.HIGH)
    expected = np.cos(np.pi * np.array([0.0, 0.25, 0.5, 0.75, 0.5, 0.75, 1.0, 1.25]))
    np.testing.assert_allclose(x[:8], expected, atol=1e-6)
    points = jnp.array([[0.28, 0.62], [0.28 + 1.0, 0.62], [0.99, 0.99]])
    # 0.28 is in tile 1 of 4 whatever the shift, 0.62 in tile 2 until the shift is 0.15; beyond the box tiles return
    np.testing.assert_array_equal(features.tile_indices(points)[0], [9, 25, 41, 61, 77])
    np.testing.assert_array_equal(features.tile_indices(points)[1], [13, 29, 45, 49, 65])
    np.testing.assert_array_equal(features.tile_indices(points)[2], [15, 20, 36, 52, 68])


def test_raw_tiles_confuse_states():
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.uniform(mountaincar.LOW, mountaincar.HIGH, (2000, 2)), jnp.float32)
    seen = []
    for name in ("mountaincar-none-rawtiles", "mountaincar-none"):
        view = shaped.make(name).view
        assert view is not None
        x = np.asarray(view(states))
        np.testing.assert_allclose(x.sum(axis=1), 1.0, rtol=1e-6)
        seen.append(len(np.unique(x, axis=0)))
    assert seen[0] < 200 < 350 < seen[1]


@pytest.fixture
def _log_elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes remarks on gymnasium's models to a log in the working directory."""
    monkeypatch.chdir(tmp_path)


def cheetah(backend: str) -> Env:
    return shaped.make("shaped-halfcheetah", backend)


@pytest.mark.usefixtures("_log_elsewhere")
def test_halfcheetah_equals_gymnasium():
    env = cheetah("mujoco")
    theirs: Any = gymnasium.make("HalfCheetah-v4", ctrl_cost_weight=1.0).unwrapped
    state, obs = env.reset(jax.random.key(0), env.params)
    np.testing.assert_array_equal(obs, env.reset(jax.random.key(0), env.params)[1])
    theirs.reset(seed=0)
    theirs.set_state(*qpos_qvel("halfcheetah", state))
    step = jax.jit(env.step)
    for action in np.random.default_rng(0).normal(0.0, 1.0, (20, 6)).astype(np.float32):  # some beyond [-1, 1]
        state, outcome = step(jax.random.key(0), state, action, env.params)
        info = theirs.step(action)[4]
        np.testing.assert_allclose(outcome.reward, info["reward_run"], atol=2e-6)
        np.testing.assert_allclose(outcome.measures["auxiliary"], info["reward_ctrl"], rtol=1e-6)


@pytest.mark.usefixtures("_log_elsewhere")
def test_halfcheetah_pays_for_control_on_the_last_step_and_not_after():
    env = cheetah("mujoco")
    state, _ = env.reset(jax.random.key(0), env.params)
    step = jax.jit(env.step)
    state, last = step(jax.random.key(0), state._replace(t=jnp.int32(999)), jnp.full(6, 0.5), env.params)
    assert (bool(last.truncated), float(last.measures["auxiliary"]), float(last.measures["length"])) == (True, -1.5, 1)
    _, after = step(jax.random.key(0), state, jnp.full(6, 0.5), env.params)
    assert (float(after.reward), float(after.measures["auxiliary"]), float(after.measures["length"])) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("_log_elsewhere")
def test_halfcheetah_is_the_same_on_both_simulators():
    outcomes = []
    for backend in ("mujoco", "mjx"):
        env = cheetah(backend)
        state, _ = env.reset(jax.random.key(0), env.params)
        outcomes.append(jax.jit(env.step)(jax.random.key(0), state, jnp.full(6, 1.5), env.params)[1])
    ours, theirs = outcomes
    np.testing.assert_allclose(ours.reward, theirs.reward, atol=1e-3)
    assert float(ours.measures["auxiliary"]) == float(theirs.measures["auxiliary"]) == -13.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: registry.make("gridworld-god"), "'gridworld-god' is not known; did you mean 'gridworld-good'"),
        (lambda: shaped.make("cartpole-badd"), "'cartpole-badd' is not known; did you mean 'cartpole-bad'"),
        (lambda: registry.make("mountaincar-bang-rawtile"), "did you mean 'mountaincar-bang-rawtiles'"),
        (lambda: registry.make("cartpole-bad", "mjx"), "backend='mjx' does not apply to 'cartpole-bad'"),
        (lambda: registry.make("shaped-halfcheetah", "brax"), "backend='brax' is not known"),
    ],
)
def test_mistakes_are_named_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
