"""HalfCheetah and Walker2d with other friction, gravity and thighs."""

from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import mujoco, registry
from envs.core import UsageError
from envs.mujoco.c_physics import MACHINES, CState, Physics
from envs.mujoco.dynamics import NOMINAL, Dynamics
from envs.mujoco.locomotion import ROBOTS, load_model

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
V5 = {"halfcheetah": ("HalfCheetah-v5", "half_cheetah.xml"), "walker2d": ("Walker2d-v5", "walker2d.xml")}
# What a text editor would change for thighs twice as thick, then also twice as long.
THICK = {
    "halfcheetah": [("0.046 .145", "0.092 .145"), ("0.046 .133", "0.092 .133")],
    "walker2d": [('thigh_geom" size="0.050000000000000003', 'thigh_geom" size="0.1'),
                 ('thigh_left_geom" rgba=".7 .3 .6 1" size="0.050000000000000003',
                  'thigh_left_geom" rgba=".7 .3 .6 1" size="0.1')],
}  # fmt: skip
LONG = {
    "halfcheetah": [("0.046 .145", "0.092 .29"), ("0.046 .133", "0.092 .266")],
    "walker2d": [(old.replace("03", "03 0.22500000000000003"), new + " 0.45000000000000007")
                 for old, new in THICK["walker2d"]],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _log_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes remarks on gymnasium's models to a log there


def make_theirs(name: str, shift: str, folder: Path) -> Any:
    """Gymnasium's environment with its model changed by other means than ours."""
    env_id, file = V5[name]
    text = (ASSETS / file).read_text()
    for old, new in {"thigh2": THICK, "longthigh2": LONG}.get(shift, {name: []})[name]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / file).write_text(text)
    theirs: Any = gymnasium.make(env_id, xml_file=str(folder / file)).unwrapped
    if shift.startswith("friction"):
        theirs.model.geom_friction[:] *= float(shift.removeprefix("friction"))
    if shift.startswith("gravity"):
        theirs.model.opt.gravity[:] *= float(shift.removeprefix("gravity"))
    return theirs


def fresh(theirs) -> CState:
    qpos, qvel = theirs.data.qpos, theirs.data.qvel
    vector = np.concatenate([qpos, qvel, np.zeros(len(qvel)), qpos[:1]])
    return CState(jnp.asarray(vector.view(np.uint32)), jnp.int32(0), jnp.asarray(False))


def rollout(env, state, actions, params):
    step = lambda state, action: env.step(jax.random.key(0), state, action, params)  # noqa: E731
    return jax.lax.scan(step, state, actions)


def actions_of(steps: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (steps, 6), minval=-1.0, maxval=1.0)


@pytest.mark.parametrize("name", ["halfcheetah", "walker2d"])
def test_named_shifts_follow_gymnasium_with_that_model(name, tmp_path):
    actions, seen = actions_of(40), []
    run = jax.jit(lambda s, a, p: rollout(mujoco.make(name, "mujoco"), s, a, p)[1])
    for shift in ("friction0.25", "friction1", "gravity2", "thigh2", "longthigh2"):
        env, theirs = mujoco.make(f"{name}-{shift}", "mujoco"), make_theirs(name, shift, tmp_path)
        assert env.name == f"{name}-{shift}"
        theirs.reset(seed=1)
        steps = run(fresh(theirs), actions, env.params)
        for i, action in enumerate(np.asarray(actions, np.float64)):
            obs, _, end, _, info = theirs.step(action)
            np.testing.assert_array_equal(steps.obs[i], obs.astype(np.float32))
            cost = ROBOTS[name].control_cost * np.square(action).sum()
            reward = info["x_velocity"] + ROBOTS[name].healthy_reward - cost
            np.testing.assert_allclose(steps.reward[i], reward, rtol=1e-5, atol=1e-5)
            assert steps.terminated[i] == end
            if end:
                break
        seen.append(np.asarray(steps.obs[15]).tobytes())
    assert len(set(seen)) == len(seen)


def test_factors_of_one_change_nothing():
    for name in ("halfcheetah", "walker2d"):
        env, plain = mujoco.make(name, "mujoco"), load_model(ROBOTS[name])
        assert env.params == NOMINAL
        state, _ = env.reset(jax.random.key(0), env.params)
        with_params, without = (rollout(env, state, actions_of(30), params) for params in (env.params, ()))
        jax.tree.map(np.testing.assert_array_equal, with_params, without)
        again = load_model(ROBOTS[name], NOMINAL)
        for field in ("geom_friction", "geom_size", "body_inertia", "dof_invweight0"):
            np.testing.assert_array_equal(getattr(again, field), getattr(plain, field))
    assert mujoco.make("hopper", "mujoco").params == ()


def test_members_under_vmap_have_their_own_dynamics():
    env = mujoco.make("walker2d", "mujoco")
    shifts: Any = {"friction": [1, 0.5, 1, 1], "gravity": [1, 1, 2, 1], "thigh": [1, 1, 1, 2]}
    params = mujoco.dynamics_params("walker2d", "mujoco", **shifts)
    assert params.friction.shape == (4,)
    keys = jax.random.split(jax.random.key(0), 4)
    states, _ = jax.vmap(env.reset)(keys, params)

    def body(states, action):
        return jax.vmap(env.step, (0, 0, None, 0))(keys, states, action, params)

    last, steps = jax.jit(lambda s, a: jax.lax.scan(body, s, a))(states, actions_of(20))
    run = jax.jit(lambda s, a, p: rollout(env, s, a, p))
    for i in range(4):
        own = jax.tree.map(lambda x, i=i: x[i], (states, params))
        alone, alone_steps = run(own[0], actions_of(20), own[1])
        np.testing.assert_array_equal(last.words[i], alone.words)
        np.testing.assert_array_equal(steps.reward[:, i], alone_steps.reward)
    assert len({np.asarray(words).tobytes() for words in last.words}) == 4


def test_more_shifts_than_are_kept():
    physics, n = Physics(ROBOTS["halfcheetah"], threads=2), MACHINES + 6
    factors = np.ones((n, 4), np.float32)
    factors[:, 1] = np.linspace(0.5, 2.0, n)
    vector, action = np.zeros((n, physics.size)), np.ones((n, 6))
    finished = np.arange(n) % 7 == 0
    together = physics.step(vector, action, finished, factors)[0]
    np.testing.assert_array_equal(together[finished], vector[finished])
    for i in (1, 2, n - 2):
        alone = physics.step(vector[i : i + 1], action[:1], finished[i : i + 1], factors[i : i + 1])[0]
        np.testing.assert_array_equal(together[i], alone[0])
    assert len(np.unique(together[~finished], axis=0)) == (~finished).sum()


def test_thigh_scale_chooses_what_grows():
    thick = mujoco.dynamics_params("halfcheetah", "mujoco", thigh=2)
    both = mujoco.dynamics_params("halfcheetah", "mujoco", thigh=2, thigh_scale="radius_and_length")
    assert thick == Dynamics(1.0, 1.0, 2.0, 1.0)
    named = mujoco.make("halfcheetah-longthigh2", "mujoco")
    assert both == Dynamics(1.0, 1.0, 2.0, 2.0) == named.params
    assert registry.make("halfcheetah-longthigh2", "mujoco") is named
    sizes = load_model(ROBOTS["walker2d"], Dynamics(thigh=2.0, thigh_length=3.0)).geom("thigh_left_geom").size
    np.testing.assert_allclose(sizes[:2], [0.1, 0.675])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("halfcheetah-friction0", "the factor '0' must be a number more than 0, e.g. halfcheetah-friction2"),
        ("walker2d-gravity-2", "the factor '-2' must be"),
        ("walker2d-thighbig", "the factor 'big' must be"),
        ("walker2d-gravitynan", "the factor 'nan' must be"),
        ("halfcheeta-friction2", "'halfcheeta-friction2' is not known; did you mean 'halfcheetah-friction2'"),
        ("hopper-friction2", "the dynamics of 'hopper' cannot be shifted; choose one of halfcheetah, walker2d"),
        ("halfcheetah-mass2", "'halfcheetah-mass2' is not known; did you mean"),
    ],
)
def test_wrong_names(name, words):
    with pytest.raises(UsageError) as error:
        registry.make(name)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"friction": -1.0}, "friction=-1.0 is a factor and must be more than 0"),
        ({"gravity": [1.0, float("inf")]}, "gravity=[1.0, inf]"),
        ({"gravity": [1.0, 2.0], "thigh": [1.0, 2.0, 3.0]}, "gravity (2,), thigh (3,)"),
        ({"thigh_scale": "length"}, "choose one of radius, radius_and_length"),
        ({"backend": "warp"}, "backend='warp' is not known"),
    ],
)
def test_wrong_parameters(arguments, words):
    with pytest.raises(UsageError) as error:
        mujoco.dynamics_params("halfcheetah", **({"backend": "mujoco"} | arguments))
    assert words in str(error.value)


def test_mjx_parameters_are_all_that_the_shift_changes():
    from mujoco import mjx

    from envs.mujoco.mjx_physics import model_arrays

    plain = mjx.put_model(load_model(ROBOTS["walker2d"]))
    stacked = model_arrays(ROBOTS["walker2d"], Dynamics(*np.array([[1, 0.5], [1, 2], [1, 3], [1, 4]], np.float32)))
    for i, shift in enumerate((NOMINAL, Dynamics(0.5, 2.0, 3.0, 4.0))):
        ours = plain.tree_replace({path: x[i] for path, x in stacked.items()})
        theirs = mjx.put_model(load_model(ROBOTS["walker2d"], shift))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_mjx_members_follow_c_mujoco():
    from tests.envs.test_mujoco import to_mjx

    name = "halfcheetah"
    shifts: Any = {"friction": [1, 0.25, 1, 1], "gravity": [1, 1, 2, 1], "thigh": [1, 1, 1, 2]}
    ours, theirs = mujoco.make(name, "mujoco"), mujoco.make(name, "mjx")
    params, their_params = (mujoco.dynamics_params(name, backend, **shifts) for backend in ("mujoco", "mjx"))
    keys = jax.random.split(jax.random.key(0), 4)
    states, _ = jax.vmap(ours.reset)(keys, params)
    step, their_step = (jax.jit(jax.vmap(env.step, (0, 0, None, 0))) for env in (ours, theirs))
    for action in actions_of(20):
        states, _ = step(keys, states, action, params)
    each = [to_mjx(name, jax.tree.map(lambda x, i=i: x[i], states)) for i in range(4)]
    others = jax.tree.map(lambda *x: jnp.stack(x), *each)
    for action in actions_of(4):
        states, a = step(keys, states, action, params)
        others, b = their_step(keys, others, action, their_params)
        np.testing.assert_allclose(a.obs, b.obs, rtol=0, atol=1e-3)
        np.testing.assert_allclose(a.reward, b.reward, rtol=0, atol=1e-3)

    # the robot as it is: parameters given or left out
    single = jax.tree.map(lambda x: x[0], others)
    one_step = jax.jit(theirs.step)
    with_params, without = (one_step(keys[0], single, action, p)[1] for p in (theirs.params, ()))
    np.testing.assert_allclose(with_params.obs, without.obs, rtol=0, atol=1e-5)
