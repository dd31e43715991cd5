"""dm_control's tasks in pictures: against dm_control where it is installed, and with a stand-in for it everywhere."""

import importlib.metadata
import os
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs import registry
from envs.core import autoreset
from envs.mujoco.opengl import offscreen
from envs.pixels import dmc, dmc_host
from envs.pixels.dmc_host import Simulator
from experiments.cli import guarded

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
SIZE = 36


class Counter:
    """Stands in for a simulator: adds actions up, shows the sum in grey, ends where it exceeds 10."""

    size, action_dim = 2, 1

    def __init__(self, task: Any, pixels: int, fast: bool):
        self.pixels, self.value = pixels, 0.0

    def start(self, seed: int) -> np.ndarray:
        self.value = float(seed % 7)
        return np.array([self.value, 1.0 / 3.0])

    def advance(self, state: np.ndarray, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, float]:
        self.value = state[0] + repeat * action[0]
        return np.array([self.value, state[1]]), self.value, float(self.value <= 10.0)

    def picture(self) -> np.ndarray:
        return np.full((self.pixels, self.pixels, 3), int(self.value), np.uint8)


class WithoutOpenGL(Counter):
    """One that draws as the true one does."""

    def picture(self) -> np.ndarray:
        offscreen(mujoco.MjModel.from_xml_string("<mujoco/>"), self.pixels, self.pixels)
        raise AssertionError("it can draw")


@pytest.fixture
def counter(monkeypatch):
    monkeypatch.setattr(dmc_host, "Simulator", Counter)
    return dmc.pixel_env("counter", dmc.TASKS["walker-run"], SIZE)


@pytest.fixture(scope="module")
def suite():
    pytest.importorskip("dm_control")
    return dmc_host.load_suite()


@pytest.fixture
def stand_in(monkeypatch):
    """Positions stand in for pictures: OpenGL is left to a process of its own."""
    monkeypatch.setattr(Simulator, "picture", _positions)


def _positions(simulator: Any) -> np.ndarray:
    number = np.frombuffer(simulator._data.qpos.tobytes(), np.uint8)
    return np.resize(number, (simulator._pixels, simulator._pixels, 3))


def simulator(name: str) -> Simulator:
    return Simulator(dmc.TASKS[name], SIZE, True)


def flat(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()])


def equal(first: Any, second: Any) -> bool:
    return all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)))


def test_contract_with_a_stand_in(counter):
    env = counter
    assert (env.horizon, env.spec.obs_dim, env.spec.action_dim) == (500, SIZE * SIZE * 9, 1)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, obs = reset(KEY, ())
    start = int(obs[0])
    assert obs.dtype == jnp.uint8
    assert (obs == start).all()
    assert equal(reset(KEY, ()), (state, obs))
    assert len({int(reset(jax.random.key(seed), ())[1][0]) for seed in range(8)}) > 2
    for expected in range(start + 2, start + 14, 2):
        before, (state, out) = obs, step(KEY, state, jnp.array([7.0]), ())  # an action beyond the bounds
        obs = out.obs
        np.testing.assert_array_equal(env.view(obs)[..., :6], env.view(before)[..., 3:])
        assert (env.view(obs)[..., 6:] == expected).all()
        assert float(out.reward) == expected
        assert bool(out.terminated) == (expected > 10)
        assert not out.truncated
    assert np.asarray(state.words).view(np.float64)[1] == 1.0 / 3.0  # not rounded to float32
    ended = step(KEY, state._replace(t=jnp.int32(499)), jnp.array([1.0]), ())[1]
    assert bool(ended.truncated)


def test_episodes_side_by_side_are_those_alone(counter):
    env, keys, actions = counter, jax.random.split(KEY, 5), jnp.linspace(-1.0, 1.0, 5)[:, None]
    states, _ = jax.vmap(env.reset, (0, None))(keys, ())
    many = jax.jit(jax.vmap(partial(autoreset, env), (0, 0, 0, None)))(keys, states, actions, ())
    alone = jax.jit(partial(autoreset, env))
    for i in range(5):
        assert equal(jax.tree.map(lambda x: x[i], many), alone(keys[i], env.reset(keys[i], ())[0], actions[i], ()))  # noqa: B023


def test_callbacks_are_given_little_at_a_time():
    rows = []

    def on_host(words: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray]:
        rows.append(len(words))
        return (words.sum(axis=1) * factor,)

    like = dmc._like
    total = dmc._batched(on_host, [like(jnp.float32, 4096), like(jnp.float32)], [like(jnp.float32)])
    words = jnp.arange(10.0).reshape(5, 2, 1) * jnp.ones(4096)
    (answer,) = jax.jit(jax.vmap(jax.vmap(total, (0, None))))(words, jnp.arange(5.0))
    np.testing.assert_array_equal(answer, 4096 * np.arange(10.0).reshape(5, 2) * np.arange(5.0)[:, None])
    assert sorted(rows) == [2, 4, 4]  # 16 KB each


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmc-walker-rum", "dm_control task 'dmc-walker-rum' is not known; did you mean 'dmc-walker-run'?"),
        ("dmc-walker-run-fast-64", "did you mean 'dmc-walker-run-fast'?"),
        ("dmc-walker-run-20", "dmc-walker-run-20: pictures of 20 pixels are too small; ask for at least 36"),
        ("dmc-reacher-easy", "backend='mjx' does not apply"),
    ],
)
def test_wrong_names_are_answered_in_one_line(name, message, capsys):
    backend = "mjx" if "backend" in message else "auto"
    assert_refused(lambda: registry.make(name, backend), message, capsys)


def assert_refused(make: Any, message: str, capsys: Any) -> None:
    """Exit status 2 and one line."""
    assert guarded(make) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_missing_is_named_with_its_mend(monkeypatch, capsys):
    load = dmc_host.load_suite.__wrapped__
    monkeypatch.setattr(dmc_host, "load_suite", load)
    make = partial(dmc.make.__wrapped__, "dmc-walker-run")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "dm_control", None)
        patch.setenv("MUJOCO_GL", "osmesa")
        assert_refused(make, "dm_control's tasks need: pip install 'adaptax[dm-control]'", capsys)
        assert os.environ["MUJOCO_GL"] == "osmesa"
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda package: "4.0.1")
        assert_refused(make, "dm_control breaks with mujoco 4.0.1: pip install 'mujoco>=3.17,<4'", capsys)
    with monkeypatch.context() as patch:
        patch.setattr(dmc_host, "Simulator", WithoutOpenGL)
        patch.setattr(mujoco, "Renderer", lambda *size: 1 / 0)
        patch.setenv("MUJOCO_GL", "egl")
        mend = "(Debian: libegl1 or libosmesa6) and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
        assert_refused(make, f"no OpenGL for drawing (division by zero); install EGL or OSMesa {mend}", capsys)


@pytest.mark.parametrize("name", ["walker-run", "quadruped-run", "finger-turn-hard", "cartpole-swingup"])
def test_50_steps_equal_dm_control(suite, name):
    task = dmc.TASKS[name]
    theirs, ours = suite.load(task.domain, task.name, task_kwargs={"random": 7}), [simulator(name), simulator(name)]
    bounds, rng = theirs.action_spec(), np.random.default_rng(1)
    first, state = flat(theirs.reset().observation), ours[0].start(7)
    np.testing.assert_array_equal(ours[0].observation(), first)
    for t in range(50):
        action = rng.uniform(-1.0, 1.0, bounds.shape)
        scaled = bounds.minimum + (bounds.maximum - bounds.minimum) * (action + 1.0) / 2.0
        steps = [theirs.step(scaled) for _ in range(2)]
        state, reward, discount = ours[t % 2].advance(state, action, 2)  # nothing is kept outside the state
        np.testing.assert_allclose(ours[t % 2].observation(), flat(steps[-1].observation), rtol=1e-6, atol=1e-9)
        assert reward == pytest.approx(sum(step.reward for step in steps), abs=1e-9)
        assert discount == 1.0


@pytest.mark.parametrize("name", ["reacher-easy", "finger-turn-easy", "quadruped-walk", "hopper-hop", "finger-spin"])
def test_resets_draw_what_the_state_holds_and_steps_draw_nothing(suite, name):
    def arrays(model: Any) -> dict[str, np.ndarray]:
        named = {key: getattr(model, key) for key in dir(model) if not key.startswith("_")}
        return {key: x.copy() for key, x in named.items() if isinstance(x, np.ndarray)}

    ours, task = simulator(name), dmc.TASKS[name]
    models, states = [], []
    for seed in (0, 1):
        states.append(ours.start(seed))
        generator = ours._task.random.get_state()[1].copy()
        ours.advance(states[-1], np.zeros(ours.action_dim), 1)
        np.testing.assert_array_equal(ours._task.random.get_state()[1], generator)
        models.append(arrays(ours._model))
    assert len(models[0]) > 100
    changed = [key for key, x in models[0].items() if not np.array_equal(x, models[1][key])]
    assert changed == ([task.drawn] if task.drawn else [])
    assert not np.array_equal(states[0], states[1])


def test_rewards_stop_where_the_task_ends(suite, monkeypatch):
    ours = simulator("cartpole-balance")
    state, action = ours.start(0), np.array([0.3])
    _, once, discount = ours.advance(state, action, 1)
    assert discount == 1.0
    assert ours.advance(state, action, 2)[1] > once > 0.5
    monkeypatch.setattr(ours._task, "get_termination", lambda physics: 0.0)
    assert ours.advance(state, action, 2)[1:] == (once, 0.0)


def test_a_simulation_that_blows_up_ends_where_it_was(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log
    ours = simulator("cheetah-run")
    state, action = ours.start(0), np.full(6, 0.5)
    sound = ours.advance(state, action, 2)
    after, reward, discount = ours.advance(state, np.full(6, np.nan), 2)
    np.testing.assert_array_equal(after, state)
    assert (reward, discount) == (0.0, 0.0)
    again = ours.advance(state, action, 2)
    np.testing.assert_array_equal(again[0], sound[0])
    assert again[1:] == sound[1:]


def test_a_saved_state_goes_on_to_the_same_bytes(suite, stand_in):
    make = dmc.make.__wrapped__  # a new simulator each time, as in a new process
    env = make("dmc-reacher-hard-36-fast")
    actions = jax.random.uniform(KEY, (8, 2), minval=-1.0, maxval=1.0)
    states, outs = [env.reset(KEY, ())[0]], []
    step = jax.jit(env.step)
    for action in actions:
        state, out = step(KEY, states[-1], action, ())
        states.append(state)
        outs.append(out)
    assert not equal(outs[3].obs, outs[4].obs)
    saved = jax.tree.map(np.asarray, states[4])
    restarted = make("dmc-reacher-hard-36-fast")
    restarted.reset(jax.random.key(5), ())  # another target
    state, on = jax.jit(partial(jax.lax.scan, lambda s, a: restarted.step(KEY, s, a, ())))(saved, actions[4:])
    assert equal(state, states[8])
    assert equal(on, jax.tree.map(lambda *x: np.stack(x), *outs[4:]))


def test_pictures_are_those_of_dm_control(suite, command):
    done = command("tests.envs.dmc_pictures", "walker-run", "quadruped-run")
    if done.returncode and any(sign in done.stderr for sign in ("no OpenGL", "EGL", "GLContext")):
        pytest.skip("no OpenGL on this machine")
    assert done.stdout.split() == ["0", "0"], done.stderr
