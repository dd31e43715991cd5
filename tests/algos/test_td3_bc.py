from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import bc, td3_bc
from algos.losses import smooth_action
from tests.algos import toy

STATIC, HYPER = td3_bc.Static((8, 8), 16), td3_bc.Hyper()
ALGO, NETS = td3_bc.make(STATIC, toy.SPEC), td3_bc.make_nets(STATIC, toy.SPEC)
LEARN_CRITIC = jax.jit(partial(td3_bc.learn_critic, NETS))
LEARN_ACTOR = jax.jit(partial(td3_bc.learn_actor, NETS))


@pytest.fixture(scope="module")
def state():
    return toy.scattered_targets(toy.member(ALGO, HYPER))


def q_values(critic, obs, action):
    """Q1 and Q2 as numpy."""
    params = toy.twins(critic)
    return np.stack([NETS.critic.apply(p, obs, action) for p in params])


def test_smoothing_clips_the_noise_and_the_action():
    noise = jnp.array([[0.5, -9.0], [9.0, 1.0]])
    actual = smooth_action(jnp.array([[0.0, 0.0], [1.8, -1.0]]), noise, 0.2, 0.5, 2.0)
    np.testing.assert_allclose(actual, [[0.2, -1.0], [2.0, -0.6]], rtol=1e-6)


def test_critics_step_is_that_of_the_formula(state):
    batch, noise = toy.random_batch(), td3_bc.draw(jax.random.key(1), STATIC, toy.SPEC)
    smoothing = np.clip(0.2 * np.asarray(noise), -0.5, 0.5)
    a = np.clip(np.asarray(NETS.actor.apply(state.target_actor, batch.next_obs)) + smoothing, -1.0, 1.0)
    next_q = q_values(state.target_critic, batch.next_obs, jnp.asarray(a)).min(0)
    y = np.asarray(batch.reward) + 0.99 * np.where(np.asarray(batch.terminated) > 0, 0.0, next_q)

    def formula(critic):
        each = toy.twins(critic)
        return sum(jnp.mean((NETS.critic.apply(p, batch.obs, batch.action) - y) ** 2) for p in each)

    new, metrics = LEARN_CRITIC(state, batch, noise, HYPER)
    expected = ((q_values(state.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)
    toy.assert_first_adam_step(
        new.critic, state.critic, new.optim.critic, jax.jit(jax.grad(formula))(state.critic), HYPER.critic_lr
    )
    untouched = lambda s: (s.actor, s.target_actor, s.target_critic, s.optim.actor)  # noqa: E731
    toy.assert_equal(untouched(new), untouched(state))


def test_actor_loss_equals_the_formula(state):
    batch = toy.random_batch()
    pi = np.asarray(NETS.actor.apply(state.actor, batch.obs))
    q = q_values(state.critic, batch.obs, jnp.asarray(pi))[0]
    expected = -2.5 / np.abs(q).mean() * q.mean() + ((pi - np.asarray(batch.action)) ** 2).mean()
    grad = jax.jit(jax.value_and_grad(partial(td3_bc.actor_loss, nets=NETS), has_aux=True))
    (loss, metrics), grads = grad(state.actor, critic=state.critic, batch=batch, hyper=HYPER)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["lambda"], 2.5 / np.abs(q).mean(), rtol=1e-5)

    def formula(actor):
        pi = NETS.actor.apply(actor, batch.obs)
        q1 = NETS.critic.apply(toy.twins(state.critic)[0], batch.obs, pi)
        return -2.5 / np.abs(q).mean() * q1.mean() + jnp.square(pi - batch.action).mean()  # λ is a constant

    assert q.min() < 0.0 < q.max()  # with one sign alone, λ would cancel Q
    toy.assert_close(grads, jax.jit(jax.grad(formula))(state.actor), rtol=1e-4, atol=1e-5)


def test_scale_of_q_does_not_reach_the_actor(state):
    batch = toy.random_batch()
    output = lambda path, x: 7.0 * x if "Dense_2" in jax.tree_util.keystr(path) else x  # noqa: E731
    scaled = jax.tree_util.tree_map_with_path(output, state.critic)
    np.testing.assert_allclose(
        q_values(scaled, batch.obs, batch.action), 7.0 * q_values(state.critic, batch.obs, batch.action), 1e-5
    )
    grads = [jax.grad(td3_bc.actor_loss, has_aux=True)(state.actor, NETS, c, batch, HYPER)[0]
             for c in (state.critic, scaled)]  # fmt: skip
    toy.assert_close(grads[1], grads[0], atol=1e-5)


def test_without_q_the_actor_clones(state):
    batch = toy.random_batch()
    grads = jax.grad(td3_bc.actor_loss, has_aux=True)(state.actor, NETS, state.critic, batch, td3_bc.Hyper(alpha=0.0))[
        0
    ]
    toy.assert_close(grads, jax.grad(bc.actor_loss, has_aux=True)(state.actor, NETS.actor, batch)[0])


def test_actor_step_moves_actor_and_both_targets(state):
    new, _ = LEARN_ACTOR(state, toy.random_batch(), HYPER)
    toy.assert_equal(new.critic, state.critic)
    toy.assert_equal(new.optim.critic, state.optim.critic)
    mixed = lambda now, old: jax.tree.map(lambda x, y: 0.005 * x + 0.995 * y, now, old)  # noqa: E731
    toy.assert_close(new.target_actor, mixed(new.actor, state.target_actor))
    toy.assert_close(new.target_critic, mixed(state.critic, state.target_critic))
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), new.actor, state.actor)
    assert all(jax.tree.leaves(moved))


def test_delay_is_two_critic_updates_for_one_of_the_actor():
    algo = td3_bc.make(td3_bc.Static((8,), 16, policy_delay=3), toy.SPEC)
    trained, metrics = toy.train(algo, HYPER, toy.dataset(0.5, 5), 4, seeds=1)
    assert algo.updates_per_step == 3
    assert trained.state.optim.critic[0].count == 12
    assert trained.state.optim.actor[0].count == 4
    assert np.isfinite(jax.tree.leaves(metrics)).all()


def test_successors_of_terminal_rows_do_not_matter(state):
    batch, noise = toy.random_batch(), td3_bc.draw(jax.random.key(1), STATIC, toy.SPEC)
    moved = jnp.where(batch.terminated[:, None] > 0, 5.0, batch.next_obs)
    new = [LEARN_CRITIC(state, b, noise, HYPER)[0] for b in (batch, batch._replace(next_obs=moved))]
    toy.assert_equal(new[0], new[1])


def test_learns_more_than_cloning_from_mixed_data():
    algo = td3_bc.make(td3_bc.Static((32, 32), 64), toy.SPEC)
    hyper = td3_bc.Hyper(discount=0.95, actor_lr=1e-3, critic_lr=1e-3)
    trained, metrics = toy.train(algo, hyper, toy.dataset(0.3), 1000)
    assert (toy.returns(algo, trained) > -18.0).all()  # cloning: about -29, the expert -4.2
    assert (metrics["bc_loss"] > 0.0).all()
