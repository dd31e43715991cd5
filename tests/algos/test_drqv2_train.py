"""DrQ-v2 in an environment: what is collected, when updates are made, and refusals."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from algos.adaptive_rr import loop
from algos.buffers import FrameLayout, read_windows, whole_windows
from algos.core import UsageError
from algos.drqv2 import train
from algos.drqv2.learner import make_learner
from algos.drqv2.train import Hyper, Static
from envs import pointmix
from envs.core import Env, Spec, TimeStep
from tests.algos import toy

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIDE, HORIZON, BOUND = 15, 5, 2.0
STATIC = Static(4, 5, 8, nstep=2, stack=2, warmup=8, buffer_capacity=40)
LAYOUT = FrameLayout((SIDE, SIDE, 1), 2, 2)


class Strip(NamedTuple):
    """A number that counts all steps ever made, painted as the brightness of the last two frames."""

    ticks: jax.Array  # float32
    t: jax.Array
    obs: jax.Array


def paint(count: jax.Array) -> jax.Array:
    return jnp.full((SIDE, SIDE, 1), count, jnp.uint8)


def reset(key: jax.Array, params: object) -> tuple[Strip, jax.Array]:
    count = jax.random.randint(key, (), 100, 200).astype(jnp.float32)
    obs = jnp.tile(paint(count), 2).reshape(-1)
    return Strip(count, jnp.int32(0), obs), obs


def step(key: jax.Array, state: Strip, action: jax.Array, params: object) -> tuple[Strip, TimeStep]:
    count = state.ticks + 1.0
    obs = jnp.concatenate([state.obs.reshape(SIDE, SIDE, 2)[..., 1:], paint(count)], -1).reshape(-1)
    t = state.t + 1
    # the reward tells the action, so that rows can be matched
    return Strip(count, t, obs), TimeStep(obs, action.sum(), jnp.zeros((), bool), t >= HORIZON)


ENV = Env(
    "strip", Spec(SIDE * SIDE * 2, 2, BOUND), HORIZON, (), reset, step, lambda x: x.reshape(*x.shape[:-1], 15, 15, 2)
)
ALGO, HYPER = train.make(STATIC, ENV.spec, ENV), Hyper()
LOOP = loop.Loop(make_learner(STATIC, ENV), ENV, loop.LoopStatic(warmup=STATIC.warmup), train.constant)
STEP = jax.jit(lambda key, state: ALGO.step(key, state, ENV.params, HYPER))


@pytest.fixture(scope="module")
def run():
    """States after 0, 1, ... agent steps, and the metrics of each."""
    states, metrics = [jax.jit(ALGO.init)(jax.random.key(0), HYPER)], []
    for t in range(25):
        state, seen = STEP(jax.random.key(t), states[-1])
        states.append(state)
        metrics.append(seen)
    return states, metrics


def test_updates_begin_after_the_warm_up_one_every_other_step(run):
    states, metrics = run
    counts = [int(s.agent.optim.critic[0].count) for s in states]
    assert counts == [0] * 9 + [1 + i // 2 for i in range(17)]
    assert ALGO.updates_per_step == 1
    assert [int(s.ratio.steps) for s in states] == list(range(26))
    assert [float(m["updates"]) for m in metrics] == list(np.diff(counts))
    toy.assert_equal(states[8].agent, states[0].agent)
    toy.assert_equal(states[10].agent, states[9].agent)
    assert metrics[7]["critic_loss"] == 0.0 < metrics[8]["critic_loss"]
    assert metrics[7]["fau_critic"] == 0.0 < metrics[8]["fau_critic"] < 1.0
    assert metrics[9]["critic_loss"] == metrics[8]["critic_loss"]  # of the latest update, so that means are not diluted
    assert not any(m["switched"] for m in metrics)


def test_buffer_has_whole_episodes_with_their_first_frames(run):
    buffer = run[0][-1].buffer  # 24 steps, as the 25th waits: four episodes and the first frames of five
    assert int(buffer.count) == 24 + 5
    ages = np.asarray(buffer.age[:29])
    np.testing.assert_array_equal(ages, np.resize(np.arange(HORIZON + 1), 29))
    begin, end = whole_windows(buffer, LAYOUT)
    assert int(end - begin) == 4 * (HORIZON - STATIC.nstep + 1)
    batch = read_windows(buffer, jnp.arange(int(begin), int(end)), LAYOUT, 0.9)
    brightness = np.asarray(batch.obs[:, 0, 0]).astype(int)
    starts = np.resize(np.arange(4), 16) == 0
    np.testing.assert_array_equal(brightness[:, 1] - brightness[:, 0], np.where(starts, 0, 1))
    np.testing.assert_array_equal(batch.next_obs[:, 7, 7].astype(int) - brightness[:, 1:], np.resize([1, 2], (16, 2)))
    # the environment saw actions of its own range
    rewards, actions = np.asarray(buffer.reward[:29]), np.asarray(buffer.action[:29])
    np.testing.assert_allclose(rewards, BOUND * actions.sum(-1) * (ages > 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.discount, 0.81, rtol=1e-6)


def with_policy(state):
    """The state with a policy whose mean is 0.9 and -0.9."""
    actor = jax.tree.map(jnp.zeros_like, state.agent.actor)
    actor["policy"]["dense2"]["bias"] = jnp.arctanh(jnp.array([0.9, -0.9]))
    return state._replace(agent=state.agent._replace(actor=actor))


def test_actions_are_uniform_first_then_noisy(run):
    choose = jax.jit(
        lambda key, state: jax.vmap(lambda k: loop.choose(LOOP, k, state, Hyper(stddev_steps=16.0)))(
            jax.random.split(key, 2000)
        )
    )
    early, late = (np.asarray(choose(jax.random.key(1), with_policy(run[0][i]))) for i in (7, 8))
    assert stats.kstest(early.ravel(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert (np.abs(late) < 1.0).all()
    np.testing.assert_allclose(np.median(late, 0), [0.9, -0.9], atol=0.05)
    spread = (0.9 - late[:, 0])[late[:, 0] < 0.9]  # a half normal with σ = 0.55, which is not clipped
    np.testing.assert_allclose(np.median(spread), 0.6745 * 0.55, rtol=0.1)


def test_evaluation_takes_the_mean_whatever_the_batch(run):
    state = with_policy(run[0][-1])
    obs = jnp.tile(state.obs, (2, 3, 1))
    action = ALGO.act(jax.random.key(0), state, obs, HYPER)
    np.testing.assert_allclose(action, np.broadcast_to([1.8, -1.8], (2, 3, 2)), rtol=1e-5)
    alone = ALGO.act(jax.random.key(0), state, obs[0, 0].astype(jnp.float32), HYPER)
    np.testing.assert_allclose(alone, [1.8, -1.8], rtol=1e-5)


def test_batched_members_equal_members_in_turn(run):
    states = run[0]
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    pair = (states[4], states[18])  # one waits, the other learns
    batched, metrics = jax.jit(jax.vmap(STEP))(keys, stack(*pair))
    lone = stack(*(STEP(k, s)[0] for k, s in zip(keys, pair, strict=True)))
    toy.assert_close(batched.agent, lone.agent, rtol=1e-3, atol=1e-4)
    toy.assert_equal(batched.buffer.frames, lone.buffer.frames)
    assert metrics["critic_loss"][0] == 0.0 < metrics["critic_loss"][1]


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(UsageError, match=r"algo\.hyper\.replay_ratio"):
        Hyper(replay_ratio=ratio)


def test_a_ratio_beyond_the_slots_is_refused():
    train.check_settings(STATIC, Hyper(replay_ratio=2.0))
    with pytest.raises(UsageError, match=r"replay_ratio=2.5 is more than algo\.static\.max_updates=2: set it higher"):
        train.check_settings(STATIC, Hyper(replay_ratio=2.5))


def test_pixels_are_needed_unless_states_are_asked_for():
    plain, identity = pointmix.make(), dataclasses.replace(STATIC, encoder="identity", buffer_capacity=100)
    with pytest.raises(UsageError, match=f"env={plain.name} has none: set env=pixels-.*encoder=identity"):
        train.make(STATIC, plain.spec, plain)
    with pytest.raises(UsageError, match="encoder=identity is for states, env=strip shows pixels"):
        train.make(identity, ENV.spec, ENV)
    with pytest.raises(UsageError, match="stack=3 does not divide the 2 channels of env=strip"):
        train.make(dataclasses.replace(STATIC, stack=3), ENV.spec, ENV)
    with pytest.raises(UsageError, match=r"algo\.static\.redo recycles units of an encoder"):
        dataclasses.replace(identity, redo=True)


@pytest.mark.parametrize(
    ("wrong", "says"), [({"buffer_capacity": 11}, "buffer_capacity=11 .* 12"), ({"nstep": 6}, "nstep=6")]
)
def test_buffers_without_a_whole_window_are_refused(wrong, says):
    with pytest.raises(UsageError, match=says):
        train.make(dataclasses.replace(STATIC, **wrong), ENV.spec, ENV)


def test_states_are_learnt_from_as_they_are():
    """Without an encoder the update is that of formulas on the environment's own numbers."""
    env = pointmix.make()
    static = dataclasses.replace(
        STATIC, encoder="identity", nstep=1, buffer_capacity=100, warmup=30, running_episode=True
    )
    algo = train.make(static, env.spec, env)
    run = jax.jit(
        lambda key, state: jax.lax.scan(
            lambda state, t: algo.step(jax.random.fold_in(key, t), state, env.params, HYPER), state, jnp.arange(70)
        )
    )
    state, metrics = run(jax.random.key(1), jax.jit(algo.init)(jax.random.key(0), HYPER))
    layout = FrameLayout((1, 1, 2), 1, 1, True, "float32")
    begin, end = whole_windows(state.buffer, layout)
    batch = jax.tree.map(np.asarray, read_windows(state.buffer, jnp.arange(int(begin), int(end)), layout, 0.9))
    assert len(batch.obs) == 69
    move = np.clip(batch.obs[:, 0, 0] + 0.15 * batch.action, -1.0, 1.0)
    np.testing.assert_allclose(batch.next_obs[:, 0, 0], move, atol=1e-6)
    assert int(state.agent.optim.critic[0].count) == 20 == metrics["updates"].sum()
    assert state.agent.encoder == {}
    assert "fau_encoder" not in metrics
    assert 0.0 < metrics["fau_actor"][-1] < 1.0
