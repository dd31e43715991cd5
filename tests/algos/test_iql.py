from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from algos import iql, losses
from envs.core import Spec
from tests.algos import toy

STATIC, HYPER = iql.Static((8, 8), 16), iql.Hyper(expectile=0.8)
ALGO, NETS = iql.make(STATIC, toy.SPEC), iql.make_nets(STATIC, toy.SPEC)
LEARN = jax.jit(partial(iql.learn, NETS))


@pytest.fixture(scope="module")
def state():
    return toy.scattered_targets(toy.member(ALGO, HYPER))


def target_q(state, batch):
    """min_i of the target critics at the data's actions, as numpy."""
    params = toy.twins(state.target_critic)
    return np.stack([NETS.critic.apply(p, batch.obs, batch.action) for p in params]).min(0)


def test_expectile_loss_equals_the_formula():
    u = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    expected = np.abs(0.7 - (u < 0)) * u**2
    np.testing.assert_allclose(losses.expectile_loss(jnp.asarray(u), 0.7), expected, rtol=1e-5)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_expectile_of_zero_and_one_is_the_expectile_itself(expectile):
    slope = jax.grad(lambda v: losses.expectile_loss(jnp.array([0.0, 1.0]) - v, expectile).sum())
    assert abs(slope(expectile)) < 1e-6
    assert slope(expectile - 0.1) < -1e-2
    assert slope(expectile + 0.1) > 1e-2


def test_actor_loss_is_weighted_likelihood(state):
    batch = toy.random_batch()
    advantage = np.linspace(-2.0, 2.0, 16)  # exp(3 * 2) = 403 is clipped
    mean, log_std = (np.asarray(x) for x in NETS.actor.apply(state.actor, batch.obs))
    log_prob = stats.norm.logpdf(np.asarray(batch.action), mean, np.exp(log_std)).sum(-1)
    weight = np.minimum(np.exp(3.0 * advantage), 100.0)
    loss, metrics = iql.actor_loss(state.actor, NETS, batch, jnp.asarray(advantage, jnp.float32), HYPER)
    np.testing.assert_allclose(loss, -(weight * log_prob).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["weight"], weight.mean(), rtol=1e-4)


def test_huge_advantages_stay_finite(state):
    grad = jax.jit(jax.grad(partial(iql.actor_loss, nets=NETS), has_aux=True))
    grads, _ = grad(state.actor, batch=toy.random_batch(), advantage=jnp.full(16, 1e6), hyper=HYPER)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


def test_max_action_shifts_the_log_density_by_a_constant():
    batch, wide = toy.random_batch(), Spec(2, 2, 4.0)
    nets = iql.make_nets(STATIC, wide)
    actor = toy.member(ALGO, HYPER).actor
    level = jnp.zeros(16)
    narrow_loss = iql.actor_loss(actor, NETS, batch, level, HYPER)[0]
    wide_loss = iql.actor_loss(actor, nets, batch._replace(action=4.0 * batch.action), level, HYPER)[0]
    np.testing.assert_allclose(wide_loss - narrow_loss, 2.0 * np.log(4.0), rtol=1e-4)


def test_update_is_that_of_the_formulas(state):
    batch = toy.random_batch()
    q = target_q(state, batch)
    # Rates so large that a network before its step cannot be mistaken for the same after it.
    hyper = iql.Hyper(expectile=0.8, value_lr=0.01, critic_lr=0.02, actor_lr=0.03)

    def value_loss(value):
        u = q - NETS.value.apply(value, batch.obs)
        return jnp.mean(jnp.where(u < 0, 0.2, 0.8) * u**2)

    new, metrics = LEARN(state, batch, hyper)
    toy.assert_first_adam_step(
        new.value, state.value, new.optim.value, jax.jit(jax.grad(value_loss))(state.value), 0.01
    )

    weight = np.minimum(np.exp(3.0 * (q - np.asarray(NETS.value.apply(new.value, batch.obs)))), 100.0)

    def actor_loss(actor):
        mean, log_std = NETS.actor.apply(actor, batch.obs)
        z = (batch.action - mean) / jnp.exp(log_std)
        return jnp.mean(weight * jnp.sum(0.5 * z**2 + log_std + 0.5 * jnp.log(2 * jnp.pi), -1))

    toy.assert_first_adam_step(
        new.actor, state.actor, new.optim.actor, jax.jit(jax.grad(actor_loss))(state.actor), 0.03
    )

    next_v = np.asarray(NETS.value.apply(new.value, batch.next_obs))
    y = np.asarray(batch.reward) + 0.99 * (1.0 - np.asarray(batch.terminated)) * next_v

    def critic_loss(critic):
        each = toy.twins(critic)
        return sum(jnp.mean((NETS.critic.apply(p, batch.obs, batch.action) - y) ** 2) for p in each)

    np.testing.assert_allclose(metrics["critic_loss"], critic_loss(state.critic), rtol=1e-5)
    toy.assert_first_adam_step(
        new.critic, state.critic, new.optim.critic, jax.jit(jax.grad(critic_loss))(state.critic), 0.02
    )
    mixed = jax.tree.map(lambda x, y: 0.005 * x + 0.995 * y, new.critic, state.target_critic)
    toy.assert_close(new.target_critic, mixed)


def test_successors_of_terminal_rows_do_not_matter(state):
    batch = toy.random_batch()
    moved = jnp.where(batch.terminated[:, None] > 0, 5.0, batch.next_obs)
    new = [LEARN(state, b, HYPER)[0] for b in (batch, batch._replace(next_obs=moved))]
    toy.assert_equal(new[0], new[1])


def test_actors_rate_follows_a_cosine(state):
    rate = losses.cosine(2.0, 100.0)
    np.testing.assert_allclose([rate(t) for t in (0, 25, 50, 100, 500)], [2, 1 + 0.5**0.5, 1, 0, 0], atol=1e-6)
    assert losses.cosine(2.0, float("inf"))(10**6) == 2.0
    hyper = iql.Hyper(actor_lr_steps=1.0)
    once = LEARN(state, toy.random_batch(), hyper)[0]
    twice = LEARN(once, toy.random_batch(1), hyper)[0]
    assert not bool((once.actor["params"]["log_std"] == state.actor["params"]["log_std"]).any())
    toy.assert_close(twice.actor, once.actor, rtol=0.0, atol=1e-8)  # the rate has reached zero
    assert not bool((twice.value["params"]["MLP_0"]["Dense_0"]["bias"]
                     == once.value["params"]["MLP_0"]["Dense_0"]["bias"]).all())  # fmt: skip


def test_learns_more_than_cloning_from_mixed_data():
    algo = iql.make(iql.Static((32, 32), 64), toy.SPEC)
    hyper = iql.Hyper(discount=0.95, actor_lr=1e-3, actor_lr_steps=2000.0, critic_lr=1e-3, value_lr=1e-3)
    trained, _ = toy.train(algo, hyper, toy.dataset(0.3), 2000)
    assert (toy.returns(algo, trained) > -12.0).all()  # cloning: about -29, the expert -4.2
