"""The replay loop over SAC: updates made and told, priming, members together; and refusals."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import sac as plain_sac
from algos.adaptive_rr import drqv2, sac
from algos.core import UsageError
from algos.drqv2.fau import fraction_active
from algos.runner import make_chunk
from envs import pixels
from tests.algos import toy

pytestmark = pytest.mark.usefixtures("quick_compilation")
EPISODE, WARMUP = toy.ENV.horizon, 40
STATIC = sac.Static(hidden=(8, 8), batch_size=8, buffer_capacity=400, warmup=WARMUP, priming=5)
ALGO = sac.make(STATIC, toy.SPEC, toy.ENV)
HYPER = sac.Hyper(gap=1.0, check_interval=2.0)  # the first check switches


def play(keys, states, hypers, steps):
    """Members side by side for so many agent steps, and the metrics of each step (steps, members)."""
    member = lambda key, state, hyper, t: ALGO.step(jax.random.fold_in(key, t), state, toy.ENV.params, hyper)  # noqa: E731
    body = lambda states, t: jax.vmap(member, (0, 0, 0, None))(keys, states, hypers, t)  # noqa: E731
    return jax.jit(lambda: jax.lax.scan(body, states, jnp.arange(steps)))()


@pytest.fixture(scope="module")
def pair():
    """A member that switches and one that does not, from equal starts: states before and after, metrics."""
    hypers = [dataclasses.replace(HYPER, gap=gap) for gap in (1.0, -1.0)]
    hypers = jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *hypers)
    start = ALGO.init(jax.random.key(0), HYPER)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), start)
    keys = jax.vmap(jax.random.key)(jnp.zeros(2, int))
    after, metrics = play(keys, states, hypers, 130)
    return states, after, jax.tree.map(np.asarray, metrics)


def test_updates_are_those_of_the_ratio_and_of_priming(pair):
    _, after, metrics = pair
    steps, switch = np.arange(130), 2 * EPISODE
    low = np.where(steps < WARMUP, 0, (steps % 2 == 0) + 5 * (steps == WARMUP))
    np.testing.assert_array_equal(metrics["updates"][:, 1], low)
    np.testing.assert_array_equal(metrics["updates"][:, 0], np.where(steps < switch, low, 2))
    np.testing.assert_array_equal(after.agent.optim.critic[0].count, metrics["updates"].sum(0))
    np.testing.assert_array_equal(metrics["switched"][:, 0], steps >= switch - 1)
    assert not metrics["switched"][:, 1].any()
    for tree in (metrics["critic_loss"], metrics["fau_critic"]):
        np.testing.assert_array_equal(tree[:switch, 0], tree[:switch, 1])
    assert (metrics["critic_loss"][switch:, 0] != metrics["critic_loss"][switch:, 1]).all()


def test_chunks_tell_what_was_compared(pair):
    metrics = pair[2]
    at = np.flatnonzero(metrics["check"][:, 0])
    np.testing.assert_array_equal(at, [2 * EPISODE - 1, 4 * EPISODE - 1])
    windows = [slice(end + 1 - EPISODE, end + 1) for end in at]
    phi = [np.average(metrics["fau_critic"][w, 0], weights=metrics["updates"][w, 0]) for w in windows]
    np.testing.assert_allclose(metrics["check_phi"][at, 0], phi, rtol=1e-5)
    means = {name: metrics[name][:, 0].mean() for name in ("check", "check_phi")}
    assert means["check_phi"] / means["check"] == pytest.approx(np.mean(phi), rel=1e-5)
    assert metrics["check_phi_before"][at[1], 0] == metrics["check_phi"][at[0], 0]


def test_returns_of_training_episodes_are_told(pair):
    _, after, metrics = pair
    rewards = np.asarray(after.buffer.transitions.reward[0, : 4 * EPISODE]).reshape(4, EPISODE)
    told = metrics["episode_return"][:, 0]
    assert not told[: EPISODE - 1].any()
    np.testing.assert_allclose(told[EPISODE - 1 : 4 * EPISODE : EPISODE], rewards.sum(1), rtol=1e-5)


def test_buffer_has_every_step_but_the_latest(pair):
    _, after, _ = pair
    rows = jax.tree.map(lambda x: np.asarray(x[1, :129]), after.buffer.transitions)
    assert int(after.buffer.count[1]) == 129
    move = np.clip(rows.obs + 0.15 * rows.action, -1.0, 1.0)
    np.testing.assert_allclose(rows.next_obs, move, atol=1e-6)
    goes_on = np.flatnonzero(rows.truncated[:-1] == 0)
    np.testing.assert_array_equal(rows.obs[goes_on + 1], rows.next_obs[goes_on])
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), np.arange(EPISODE - 1, 129, EPISODE))
    np.testing.assert_array_equal(after.latest.next_obs[1], after.obs[1])


def test_active_units_are_those_of_the_critics_layers():
    nets = plain_sac.make_nets(plain_sac.Static((8, 8)), toy.SPEC)
    agent, batch = plain_sac.init_agent(tuple(jax.random.split(jax.random.key(0))), nets, HYPER), toy.random_batch()
    by_hand = []
    for params in toy.twins(agent.critic):
        x = jnp.concatenate([batch.obs, batch.action], -1)
        for i in range(2):
            layer = params["params"]["MLP_0"][f"Dense_{i}"]
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
            by_hand.append(x)
    found = sac.active_units(nets, agent, batch)
    np.testing.assert_allclose(found["fau_critic"], fraction_active(by_hand), rtol=1e-6)
    assert 0.2 < found["fau_actor"] < 0.8
    dead = jax.tree.map(lambda x: jnp.full_like(x, -1.0), agent.critic)
    positive = batch._replace(obs=jnp.abs(batch.obs), action=jnp.abs(batch.action))
    assert sac.active_units(nets, agent._replace(critic=dead), positive)["fau_critic"] == 0.0


def test_measuring_needs_no_further_products():
    learner = sac.make_learner(STATIC, toy.SPEC)
    shapes = plain_sac.Static((8, 8), 8)
    nets, batch = plain_sac.make_nets(shapes, toy.SPEC), toy.random_batch(size=8)
    agent = learner.init(jax.random.key(0), HYPER)

    def without(key, agent, batch):
        return plain_sac.learn(nets, agent, batch, plain_sac.draw(key, shapes, toy.SPEC), HYPER)

    def products(function):
        text = jax.jit(function).lower(jax.random.key(0), agent, batch).compile().as_text()
        assert text is not None
        return text.count(" dot(")

    zero = jnp.int32(0)
    assert products(lambda k, a, b: learner.update(k, a, b, zero, zero, HYPER)) == products(without) > 0


def test_the_buffer_is_never_copied():
    """Beside its state a chunk needs memory for a batch and a copy of the agent."""
    rows = 1_000_000
    algo = sac.make(dataclasses.replace(STATIC, buffer_capacity=rows), toy.SPEC, toy.ENV)
    population = jax.eval_shape(partial(toy.population, algo, HYPER, 1))
    compiled = make_chunk(algo, 10, "map").lower(population, toy.ENV.params, jnp.int32(0)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.argument_size_in_bytes > 36 * rows
    assert memory.temp_size_in_bytes < rows


@pytest.mark.parametrize("module", [sac, drqv2])
def test_settings_that_cannot_be_are_refused(module):
    with pytest.raises(UsageError, match=r"algo\.hyper\.low_ratio=0"):
        module.Hyper(low_ratio=0.0)
    with pytest.raises(UsageError, match=r"algo\.hyper\.check_interval=0"):
        module.Hyper(check_interval=0.0)
    with pytest.raises(
        UsageError, match=r"check_window=3.0 is longer than algo\.hyper\.check_interval=2.0: set it lower"
    ):
        module.Hyper(check_interval=2.0, check_window=3.0)
    with pytest.raises(UsageError, match=r"high_ratio=4.0 is more than algo\.static\.max_updates=2: set it higher"):
        module.check_settings(module.Static(), module.Hyper(high_ratio=4.0))
    with pytest.raises(UsageError, match=r"algo\.static\.priming is at least 0"):
        module.Static(priming=-1)
    with pytest.raises(UsageError, match=r"algo\.static\.measure=mean"):
        module.Static(measure="mean")


def test_environments_that_do_not_fit_are_refused():
    env = pixels.make("pixels-pendulum-swingup-36")
    with pytest.raises(UsageError, match="algo=adaptive_rr_sac learns from states, env=pixels-pendulum-swingup-36"):
        sac.make(sac.Static(), env.spec, env)
    with pytest.raises(UsageError, match=f"env={toy.ENV.name} has none: set env=pixels-"):
        drqv2.make(drqv2.Static(), toy.SPEC, toy.ENV)
    with pytest.raises(UsageError, match=r"algo\.static\.hidden=\[\]"):
        sac.Static(hidden=())
    with pytest.raises(UsageError, match="crelu=true"):
        drqv2.Static(crelu=True)
