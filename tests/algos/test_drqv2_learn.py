"""One update of DrQ-v2: shifts, noise, who learns from what, and in which order."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.buffers import NStepBatch
from algos.drqv2 import learn, nets
from algos.drqv2.learn import Agent, Draws
from algos.drqv2.settings import PAD, Hyper, Static
from tests.algos import toy

pytestmark = pytest.mark.usefixtures("quick_compilation")
STATIC = Static(batch_size=5, feature_dim=10, hidden_dim=32)
IMAGE, ACTIONS, STEP = (17, 17, 6), 3, 100_000
# Rates so large that a network before its step cannot be mistaken for the same after it.
HYPER = Hyper(lr=3e-3, stddev_clip=0.2)


class Start(NamedTuple):
    """What an update begins from."""

    agent: Agent
    batch: NStepBatch
    draws: Draws


@pytest.fixture(scope="module")
def start() -> Start:
    @jax.jit
    def make() -> Start:
        keys = jax.random.split(jax.random.key(0), 7)
        agent = learn.init_agent(keys[0], STATIC, IMAGE, ACTIONS)
        agent = toy.scattered_targets(agent)
        images = [jax.random.randint(k, (5, *IMAGE), 0, 256).astype(jnp.uint8) for k in keys[1:3]]
        action = jax.random.uniform(keys[3], (5, ACTIONS), minval=-1.0)
        reward, discount = jax.random.normal(keys[4], (5,)), jnp.array([0.97, 0.0, 0.97, 0.5, 0.97])
        draws = learn.draw(keys[5], 5, ACTIONS)
        return Start(agent, NStepBatch(images[0], action, reward, discount, images[1]), draws)

    return make()


LEARN = jax.jit(learn.learn)


@pytest.fixture(scope="module")
def updated(start):
    return LEARN(*start, STEP, HYPER)


def test_all_shifts_are_crops_of_the_padded_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (81, 6, 5, 2), dtype=np.uint8)
    shift = np.stack(np.meshgrid(np.arange(9), np.arange(9)), -1).reshape(-1, 2)
    ours = jax.jit(learn.random_shift)(images, shift)
    assert ours.dtype == np.uint8
    for image, (x, y), out in zip(images, shift, np.asarray(ours), strict=True):
        rows, columns = np.clip(np.arange(6) + y - 4, 0, 5), np.clip(np.arange(5) + x - 4, 0, 4)
        np.testing.assert_array_equal(out, image[rows][:, columns])
        if (x, y) == (4, 4):
            np.testing.assert_array_equal(out, image)


def test_draws_cover_all_shifts_unless_images_are_left_alone():
    draws = learn.draw(jax.random.key(0), 2000, ACTIONS)
    for shift in (draws.shift, draws.next_shift):
        assert set(np.asarray(shift)[:, 0]) == set(np.asarray(shift)[:, 1]) == set(range(9))
        assert (shift[:, 0] != shift[:, 1]).mean() > 0.8
    assert (draws.shift != draws.next_shift).mean() > 0.8
    off = learn.draw(jax.random.key(0), 2000, ACTIONS, augment=0.0)
    assert (off.shift == PAD).all()
    assert (off.next_shift == PAD).all()
    np.testing.assert_array_equal(off.action, draws.action)


def test_clamp_does_not_touch_the_gradient():
    mean, noise = jnp.linspace(-1.0, 1.0, 400), jax.random.normal(jax.random.key(0), (400,))
    for clip in (jnp.inf, 0.3):
        action, pull = jax.vjp(partial(learn.sample_action, noise=noise, stddev=1.0, clip=clip), mean)
        assert jnp.abs(action).max() == jnp.float32(1.0 - 1e-6)
        assert (pull(jnp.ones(400))[0] == 1.0).all()
        assert jnp.abs(action - mean).max() <= min(clip, 2.0) + 1e-6


def test_schedule_of_the_standard_deviation():
    steps = jnp.array([0, 125_000, 250_000, 500_000, 3_000_000])
    np.testing.assert_allclose(learn.stddev_at(steps, Hyper()), [1.0, 0.775, 0.55, 0.1, 0.1], rtol=1e-6)


def min_q(critic, features, action):
    return nets.critic(critic, features, action)[0].min(0)


def test_update_is_that_of_the_formulas(start, updated):
    agent, batch, draws = start
    new, metrics = updated
    stddev = 1.0 - 0.9 * STEP / 500_000

    def sample(actor, features, noise):
        mean = nets.actor(actor, features)[0]
        return jnp.clip(mean + jnp.clip(stddev * noise, -0.2, 0.2), -1 + 1e-6, 1 - 1e-6)

    obs, next_obs = learn.random_shift(batch.obs, draws.shift), learn.random_shift(batch.next_obs, draws.next_shift)

    @jax.jit
    def by_hand():
        features, next_features = (nets.encoder(agent.encoder, x)[0] for x in (obs, next_obs))
        next_action = sample(agent.actor, next_features, draws.next_action)
        y = batch.reward + batch.discount * min_q(agent.target_critic, next_features, next_action)

        def critic_loss(encoder, critic):
            q = nets.critic(critic, nets.encoder(encoder, obs)[0], batch.action)[0]
            return jnp.mean((q[0] - y) ** 2) + jnp.mean((q[1] - y) ** 2)

        grads = jax.grad(critic_loss, (0, 1))(agent.encoder, agent.critic)
        moved = nets.encoder(new.encoder, obs)[0]
        losses = [
            -min_q(critic, x, sample(agent.actor, x, draws.action)).mean()
            for critic, x in ((new.critic, features), (agent.critic, features), (new.critic, moved))
        ]
        return critic_loss(agent.encoder, agent.critic), grads, losses

    c_loss, (encoder_grad, critic_grad), (a_loss, *wrong) = by_hand()
    np.testing.assert_allclose(metrics["critic_loss"], c_loss, rtol=1e-5)
    toy.assert_first_adam_step(new.encoder, agent.encoder, new.optim.encoder, encoder_grad, HYPER.lr)
    toy.assert_first_adam_step(new.critic, agent.critic, new.optim.critic, critic_grad, HYPER.lr)
    # Features are of the encoder before its step, values of the critics after theirs.
    np.testing.assert_allclose(metrics["actor_loss"], a_loss, rtol=1e-5)
    assert min(abs(float(a_loss - x)) for x in wrong) > 1e-3
    mixed = jax.tree.map(lambda x, y: 0.01 * x + 0.99 * y, new.critic, agent.target_critic)
    toy.assert_close(new.target_critic, mixed)


def test_actor_moves_down_its_own_loss(start, updated):
    agent, batch, draws = start
    new, _ = updated

    @jax.jit
    def loss(actor):
        features = nets.encoder(agent.encoder, learn.random_shift(batch.obs, draws.shift))[0]
        stddev = learn.stddev_at(STEP, HYPER)
        return learn.actor_loss(actor, new.critic, features, draws.action, stddev, HYPER.stddev_clip)[0]

    toy.assert_first_adam_step(new.actor, agent.actor, new.optim.actor, jax.jit(jax.grad(loss))(agent.actor), HYPER.lr)


def test_nothing_but_the_actor_learns_from_the_actors_loss(start, updated):
    other, _ = LEARN(start.agent, start.batch, start.draws._replace(action=-start.draws.action), STEP, HYPER)
    for part in ("encoder", "critic", "target_critic"):
        toy.assert_equal(getattr(other, part), getattr(updated[0], part))
    assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(other.actor), jax.tree.leaves(updated[0].actor)))


def test_target_has_no_gradient_but_matters(start, updated):
    scaled = start.agent._replace(target_critic=jax.tree.map(lambda x: 1.1 * x, start.agent.target_critic))
    assert LEARN(scaled, start.batch, start.draws, STEP, HYPER)[1]["target_q"] != updated[1]["target_q"]

    @jax.jit
    def slope(target_critic, encoder, actor):
        def total(target_critic, encoder, actor):
            agent = start.agent._replace(target_critic=target_critic, encoder=encoder, actor=actor)
            return learn.critic_target(agent, start.batch, start.draws, 0.5, HYPER).value.sum()

        return jax.grad(total, (0, 1, 2))(target_critic, encoder, actor)

    grads = slope(start.agent.target_critic, start.agent.encoder, start.agent.actor)
    assert not any(np.any(x) for x in jax.tree.leaves(grads))


def test_target_takes_all_of_the_new_critic_at_rate_one(start):
    new, _ = LEARN(start.agent, start.batch, start.draws, STEP, Hyper(tau=1.0))
    toy.assert_close(new.target_critic, new.critic, rtol=0.0, atol=0.0)


def test_activity_is_measured_before_the_step_on_shifted_images(start, updated):
    agent, batch, draws = start
    features, encoder_hidden, _ = nets.encoder(agent.encoder, learn.random_shift(batch.obs, draws.shift))
    hidden = {
        "encoder": encoder_hidden,
        "critic": nets.critic(agent.critic, features, batch.action)[1],
        "actor": nets.actor(agent.actor, features)[1],
    }
    for name, layers in hidden.items():
        share = sum(int((x > 0).sum()) for x in layers) / sum(x.size for x in layers)
        np.testing.assert_allclose(updated[1][f"fau_{name}"], share, rtol=1e-6)


def test_members_side_by_side_learn_as_alone(start, updated):
    stack = lambda x: jnp.stack([x, x])  # noqa: E731
    agents, batches, draws = jax.tree.map(stack, start)
    hypers = jax.tree.map(lambda x: jnp.array([x, x]), HYPER)
    hypers.tau = jnp.array([0.01, 1.0])
    agents, metrics = jax.jit(jax.vmap(learn.learn, (0, 0, 0, None, 0)))(agents, batches, draws, STEP, hypers)
    first = jax.tree.map(lambda x: x[0], metrics)
    toy.assert_close(first, updated[1], rtol=1e-4, atol=1e-5)
    second = jax.tree.map(lambda x: x[1], agents)
    toy.assert_close(second.target_critic, second.critic, rtol=0.0, atol=0.0)
