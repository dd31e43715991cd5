"""BARFI over PPO: its critic, its advantages, its curvature, and that it gets past the decoy's pull."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from algos.barfi import ppo, ppo_learn
from algos.barfi.objectives import Form, inner_objective, outer_objective
from algos.barfi.policy import make_actor
from algos.barfi.ppo_learn import advantages, block_batch, fit_critic, halves, normalised, outer_direction, values
from algos.core import UsageError
from envs import pointmix, shaped
from tests.algos.test_barfi import ENV, population
from tests.algos.toy import assert_close

pytestmark = pytest.mark.usefixtures("quick_compilation")

STATIC = ppo.Static(episodes=8, epochs=2, minibatches=2, loops=20, phi2_mode="one")
HYPER = ppo.Hyper()
ACTOR = make_actor(ENV)


@pytest.fixture(scope="module")
def played():
    """A state after some blocks of the corridor, and a block of its policy."""
    state = jax.tree.map(lambda x: x[0], population(ppo, STATIC, HYPER)[0].state)
    block = ppo.play_block(jax.random.key(1), jnp.uint32(0), ENV, {}, ACTOR, state.policy, 8, False)
    return state, block


def test_reward_moves_only_where_it_is_learnt(played):
    state, _ = played
    members, metrics = population(ppo, dataclasses.replace(STATIC, reward="naive"), HYPER)
    naive = jax.tree.map(lambda x: x[0], members.state)
    assert float(naive.omega.psi) == pytest.approx(HYPER.psi0)
    assert float(state.omega.psi) != pytest.approx(HYPER.psi0, abs=1e-4)
    assert not np.allclose(naive.omega.phi["weight"], state.omega.phi["weight"], atol=1e-3)
    assert "hypergradient" not in metrics
    assert 4 * 8 <= float(naive.steps) <= 4 * 8 * ENV.horizon


def test_advantages():
    reward, value = jnp.array([[1.0, 2.0, 3.0, 9.0]]), jnp.array([[0.5, 0.4, 0.3, 0.0]])
    mask = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    whole = advantages(reward, value, mask, 0.9, 1.0)
    np.testing.assert_allclose(whole[0], [1 + 0.9 * 2 + 0.81 * 3 - 0.5, 2 + 2.7 - 0.4, 2.7, 0.0], rtol=1e-6)
    one_step = advantages(reward, value, mask, 0.9, 0.0)
    np.testing.assert_allclose(one_step[0], [1 + 0.36 - 0.5, 2 + 0.27 - 0.4, 2.7, 0.0], rtol=1e-6)
    scaled = normalised(whole, mask)[0, :3]
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0.0, 1.0], atol=1e-5)


def test_critic_finds_linear_returns(played):
    batch = block_batch(played[1], ACTOR, {})
    truth = jax.random.normal(jax.random.key(0), (batch.features.shape[-1], 2))
    found = fit_critic(batch, jnp.where(batch.mask[..., None] > 0.0, batch.features @ truth, jnp.nan))
    seen = (batch.features * batch.mask[..., None]).sum((0, 1)) > 0.0
    np.testing.assert_allclose(found[seen], truth[seen], rtol=0.05, atol=0.02)


def test_padding_has_no_influence(played):
    state, block = played
    spoilt = block._replace(
        obs=jnp.where(block.mask[..., None] > 0, block.obs, 3.0),
        reward=jnp.where(block.mask > 0, block.reward, 1e3),
        auxiliary=jnp.where(block.mask > 0, block.auxiliary, -1e3),
    )
    for one, other in zip(*(after(state, b) for b in (block, spoilt))):
        assert_close(one, other, 1e-6)


@jax.jit
def after(state, block):
    batch = block_batch(block, ACTOR, {})
    moved, _ = ppo_learn.improve_reward(state, batch, ACTOR, STATIC, HYPER)
    return moved.omega, ppo_learn.improve_policy(jax.random.key(2), state, block, ACTOR, STATIC, HYPER).policy


def test_hypergradient_is_the_natural_gradients_response(played):
    """-g' (-F - d I)^-1 A with Fisher's matrix F written out, of the halves that they are taken of."""
    state, block = played
    batch = block_batch(block, ACTOR, {})
    direction, metrics = outer_direction(state, batch, ACTOR, STATIC, HYPER)
    assert float(metrics["indefinite"]) == 0.0
    assert float(metrics["residual"]) < 1e-3
    theta, unravel = ravel_pytree(state.policy["head"])
    (on, on_value), (off, off_value) = halves(batch, values(state.critic, batch))
    form = Form(ACTOR.policy, "one")
    g = ravel_pytree(jax.grad(outer_objective)(unravel(theta), on, form, baseline=on_value[..., 1]))[0]

    def slope(weight):
        omega = state.omega._replace(phi=state.omega.phi | {"weight": weight})
        inner = lambda t: inner_objective(unravel(t), omega, off, form, baseline=off_value[..., 0])  # noqa: E731
        return jax.grad(inner)(theta)

    scores = jax.jacobian(lambda t: ACTOR.policy.log_prob(unravel(t), off.features, off.action))(theta)
    scores = scores[off.mask > 0.0]
    fisher = scores.T @ scores / len(scores)
    p = jnp.linalg.solve(fisher + metrics["damping"] * jnp.eye(len(theta)), g)
    mixed = jax.jacobian(slope)(state.omega.phi["weight"])
    np.testing.assert_allclose(direction.phi["weight"], jnp.tensordot(p, mixed, 1), rtol=2e-2, atol=1e-4)


def test_a_policy_that_is_certain_leaves_the_reward_finite(played):
    state, block = played
    certain = state._replace(policy=jax.tree.map(lambda x: 1e4 * x, state.policy))
    omega, policy = after(certain, block)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((omega, policy)))


def test_decoy():
    """GridWorld with the decoy: added naively it wins, the learnt reward gets past it in most seeds."""
    env, ends = shaped.make("gridworld-bad", "auto"), {}
    actor = make_actor(env)

    def play(policy):
        return ppo.play_block(jax.random.key(1), jnp.uint32(0), env, env.params, actor, policy, 32, False)

    for reward in ("naive", "learnt"):
        members, _ = population(ppo, ppo.Static(reward=reward), HYPER, range(6), env, 16, "vmap")
        ends[reward] = jax.vmap(play)(members.state.policy).reward.sum(-1).mean(-1)
    assert (ends["naive"] < 20.0).all()
    assert (ends["learnt"] > 80.0).sum() >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "best"}, "algo.static.reward=best must be one of learnt, naive, potential, primary"),
        ({"hypergrad": "unrolled"}, "algo.static.hypergrad=unrolled must be one of neumann, identity, cg, exact"),
        ({"curvature": "none"}, "algo.static.curvature=none must be one of fisher, surrogate"),
        ({"episodes": 6, "minibatches": 4}, "algo.static.episodes=6 must be a multiple of algo.static.minibatches=4"),
        ({"episodes": 0}, "algo.static.episodes is at least 2, not 0"),
        ({"epochs": 0}, "algo.static.epochs is at least 1, not 0"),
        ({"clip_norm": 0.0}, "algo.static.clip_norm=0.0 must be positive"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(STATIC, **change)


def test_environments_it_cannot_learn_in():
    other, blind = pointmix.make(), dataclasses.replace(ENV, view=None)
    with pytest.raises(UsageError, match="algo=barfi_ppo needs an auxiliary reward, env=pointmix has none"):
        ppo.make(STATIC, other.spec, other)
    with pytest.raises(UsageError, match="algo=barfi_ppo: env=corridor has no features"):
        ppo.make(STATIC, blind.spec, blind)
