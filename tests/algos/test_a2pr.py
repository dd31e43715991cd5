"""A2PR's update, piece by piece. That whole updates give the recorded numbers is in tests/test_parity.py."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import a2pr
from algos.a2pr import Draws, Hyper, State, Static
from algos.buffers import sample_dataset, shape_reward
from algos.core import Dataset, Spec, Transition, UsageError

SPEC = Spec(obs_dim=5, action_dim=3, max_action=2.0)
STATIC = Static(actor_hidden=(16,), critic_hidden=(16,), vae_hidden=24, batch_size=64, policy_delay=2)
NETS = a2pr.make_nets(STATIC, SPEC)
OPEN = -1e9  # an advantage threshold below every advantage


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def state() -> State:
    """Online networks and other ones as their targets."""
    init = jax.jit(a2pr.make(STATIC, SPEC).init)
    online, other = init(jax.random.key(0), Hyper()), init(jax.random.key(1), Hyper())
    return online._replace(target_actor=other.actor, target_critic=other.critic)


@pytest.fixture(scope="module")
def batch() -> Transition:
    action = SPEC.max_action * jnp.tanh(normal(2, 64, 3))
    terminated = (jnp.arange(64) % 4 == 0).astype(jnp.float32)
    return Transition(normal(3, 64, 5), action, normal(4, 64), normal(5, 64, 5), terminated, jnp.zeros(64))


@pytest.fixture(scope="module")
def draws() -> Draws:
    return a2pr.draw(jax.random.key(6), STATIC, SPEC)


@jax.jit
def learn(state: State, batch: Transition, draws: Draws, hyper: Hyper) -> tuple[State, State, Any, Any]:
    """State after the critics' part, state after the actor's part, and metrics of both."""
    critics, metrics, q_data, v = a2pr.learn_critics(NETS, STATIC, state, batch, draws, hyper)
    actor, actor_metrics = a2pr.learn_actor(NETS, STATIC, critics, batch, q_data, v, draws, hyper)
    return critics, actor, metrics, actor_metrics


@partial(jax.jit, static_argnums=0)
def policy_grad(
    static: Static, state: State, batch: Transition, q_data: jax.Array, v: jax.Array, noise: jax.Array, hyper: Hyper
) -> tuple[Any, Any]:
    """Gradient of the actor's loss with respect to its parameters, and its metrics."""
    grad = jax.grad(a2pr.actor_loss, has_aux=True)
    return grad(state.actor, NETS, static, state, batch, q_data, v, noise, hyper)


def values(state: State, batch: Transition) -> tuple[jax.Array, jax.Array]:
    """Q1(s, a) and V(s)."""
    return a2pr.first_critic(NETS, state.critic)(batch.obs, batch.action), NETS.value.apply(state.value, batch.obs)


def equal(x: Any, y: Any) -> bool:
    """Same bits."""
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), x, y)))


def difference(x: Any, y: Any) -> float:
    """Largest difference over two trees."""
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), x, y)))


def largest(tree: Any) -> float:
    return difference(tree, jax.tree.map(jnp.zeros_like, tree))


def scaled_q(state: State, factor: float, shift: float = 0.0) -> State:
    """Both critics' outputs times `factor`, plus `shift`."""
    params = jax.tree.map(lambda x: x, state.critic)  # a copy of the dictionaries
    last = params["params"]["MLP_0"]["Dense_1"]
    params["params"]["MLP_0"]["Dense_1"] = {"kernel": factor * last["kernel"], "bias": factor * last["bias"] + shift}
    return state._replace(critic=params)


def regularise(adv_guide: Any, adv_data: Any, static: Static = STATIC, **hyper: float) -> tuple[Any, ...]:
    pi, guide, action = normal(7, 200, 3), normal(8, 200, 3), normal(9, 200, 3)
    return pi, guide, action, *a2pr.regulariser(pi, guide, action, adv_guide, adv_data, static, Hyper(**hyper))


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_gate_is_open_where_the_chosen_action_is_advantageous(threshold: float) -> None:
    # Multiples of 0.5, so that ties and advantages equal to the threshold occur.
    adv_guide, adv_data = jnp.round(2 * normal(10, 200)) / 2, jnp.round(2 * normal(11, 200)) / 2
    pi, guide, action, loss, choose, gate = regularise(adv_guide, adv_data, adv_threshold=threshold, mask=0.7)
    assert bool(((adv_guide == adv_data) & choose).any())
    np.testing.assert_array_equal(choose, adv_guide >= adv_data)
    chosen = np.where(choose, adv_guide >= threshold, adv_data > threshold)
    np.testing.assert_array_equal(gate, chosen)
    assert 0.2 < chosen.mean() < 0.9
    target = np.where(np.asarray(choose)[:, None], guide, action)
    expected = (0.7 * chosen[:, None] * (np.asarray(pi) - target) ** 2).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_ablations_of_candidate_and_gate() -> None:
    adv_guide, adv_data = normal(10, 200), normal(11, 200)
    alone = replace(STATIC, use_candidate=False)
    pi, _, action, loss, choose, gate = regularise(adv_guide, adv_data, alone)
    assert not bool(choose.any())
    np.testing.assert_array_equal(gate, adv_data > 0)
    expected = ((adv_data > 0)[:, None] * jnp.square(pi - action)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    everywhere = replace(alone, use_gate=False)
    loss, _, gate = regularise(adv_guide, adv_data, everywhere)[3:]
    assert bool(gate.all())
    np.testing.assert_allclose(loss, jnp.square(pi - action).mean(), rtol=1e-5)


def test_value_offset_leaves_the_choice_and_moves_gate_and_indicator(state: State, batch: Transition) -> None:
    q_data, v = values(state, batch)
    q_guide = q_data + 0.01 * jnp.sign(normal(12, 64))
    shares = {}
    for offset in (-1.0, 0.0, 1.0):
        below = v - v + q_data.mean() + offset
        args = batch.action, batch.action, batch.action, q_guide - below, q_data - below, STATIC, Hyper()
        _, choose, gate = a2pr.regulariser(*args)
        metrics = a2pr.vae_loss(state.vae, NETS, batch, q_data - below, normal(13, 64, 6), Hyper())[1]
        shares[offset] = (choose, float(gate.mean()), float(metrics["advantageous"]))
    assert equal(shares[-1.0][0], shares[0.0][0])
    assert equal(shares[-1.0][0], shares[1.0][0])
    assert 0 < int(shares[0.0][0].sum()) < 64
    for share in (1, 2):
        assert shares[-1.0][share] == 1.0 > shares[0.0][share] > shares[1.0][share] == 0.0


def test_each_part_moves_its_own_networks(state: State, batch: Transition, draws: Draws) -> None:
    critics, actor, _, _ = learn(state, batch, draws, Hyper())
    for name in ("critic", "value", "vae"):
        assert not equal(getattr(critics, name), getattr(state, name))
        assert equal(getattr(actor, name), getattr(critics, name))
        assert equal(getattr(actor.optim, name), getattr(critics.optim, name))
    for name in ("actor", "target_actor", "target_critic"):
        assert equal(getattr(critics, name), getattr(state, name))
        assert not equal(getattr(actor, name), getattr(state, name))


def test_targets_advantages_and_values_pass_no_gradient(state: State, batch: Transition, draws: Draws) -> None:
    def losses(target_actor: Any, critic: Any, q_data: jax.Array, v: jax.Array, advantage: jax.Array) -> jax.Array:
        action = a2pr.target_action(NETS, target_actor, batch.next_obs, draws.target, Hyper())
        y = a2pr.value_target(NETS, STATIC, critic, batch, action, jnp.zeros(64), Hyper())
        vae = a2pr.vae_loss(state.vae, NETS, batch, advantage, draws.vae, Hyper())[0]
        pi = NETS.actor.apply(state.actor, batch.obs)
        policy = a2pr.policy_loss(pi, NETS, STATIC, state, batch, q_data, v, draws.guide, Hyper())[0]
        return y.sum() + vae + policy

    q_data, v = values(state, batch)
    grads = jax.jit(jax.grad(losses, range(5)))(state.target_actor, state.critic, q_data, v, q_data - v)
    assert largest(grads) == 0.0


def test_gradient_flows_through_the_guide_unless_detached(state: State, batch: Transition, draws: Draws) -> None:
    v = jnp.full(64, -1e3)  # opens every gate
    detached = replace(STATIC, detach_guide=True)
    for q_data, chosen in ((-1e4, 1.0), (1e4, 0.0)):
        args = state, batch, jnp.full(64, q_data), v, draws.guide, Hyper(alpha=0.0)
        through, metrics = policy_grad(STATIC, *args)
        held, _ = policy_grad(detached, *args)
        assert metrics["choose_vae"] == chosen
        assert metrics["gate"] == 1.0
        assert largest(held) > 1e-3
        moved = difference(through, held)
        assert moved > 1e-4 if chosen else moved == 0.0


def test_actor_loss_does_not_depend_on_the_scale_of_q(state: State, batch: Transition, draws: Draws) -> None:
    q_data, v = values(state, batch)
    no_regulariser = Hyper(alpha=3.0, mask=0.0)
    once, metrics = policy_grad(STATIC, state, batch, q_data, v, draws.guide, no_regulariser)
    sevenfold, scaled = policy_grad(STATIC, scaled_q(state, 7.0), batch, q_data, v, draws.guide, no_regulariser)
    assert largest(once) > 1e-3
    assert difference(once, sevenfold) < 1e-5 * largest(once)
    np.testing.assert_allclose(metrics["actor_loss"], scaled["actor_loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["lambda"], 7.0 * scaled["lambda"], rtol=1e-5)
    for sign in (1.0, -1.0):
        one_sign = scaled_q(state, 1.0, 100.0 * sign)
        _, metrics = policy_grad(STATIC, one_sign, batch, q_data, v, draws.guide, no_regulariser)
        np.testing.assert_allclose(metrics["actor_loss"], -3.0 * sign, rtol=1e-5)


def test_lambda_eps_is_added_to_the_mean_absolute_q(state: State, batch: Transition, draws: Draws) -> None:
    mean_q = jnp.abs(a2pr.first_critic(NETS, state.critic)(batch.obs, NETS.actor.apply(state.actor, batch.obs))).mean()
    for eps in (0.0, 0.5):
        hyper = Hyper(alpha=3.0, lambda_eps=eps)
        _, metrics = policy_grad(STATIC, state, batch, *values(state, batch), draws.guide, hyper)
        np.testing.assert_allclose(metrics["lambda"], 3.0 / (mean_q + eps), rtol=1e-5)


def test_without_mask_the_vae_does_not_matter_to_the_actor(state: State, batch: Transition, draws: Draws) -> None:
    other = state._replace(vae=jax.tree.map(lambda x: 1.5 * x, state.vae))
    q_data, v = values(state, batch)
    grads = {}
    for mask in (0.0, 1.0):
        hyper = Hyper(mask=mask)
        args = batch, q_data, v, draws.guide, hyper
        grads[mask] = [policy_grad(STATIC, given, *args)[0] for given in (state, other)]

    def td3(actor: Any) -> jax.Array:
        q = a2pr.first_critic(NETS, state.critic)(batch.obs, NETS.actor.apply(actor, batch.obs))
        return -2.5 * q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean())

    assert equal(*grads[0.0])
    assert difference(*grads[1.0]) > 1e-3
    assert difference(grads[0.0][0], jax.grad(td3)(state.actor)) < 1e-5


def test_open_indicator_gives_a_plain_vae(state: State, batch: Transition, draws: Draws) -> None:
    mean, log_std = NETS.vae.apply(state.vae, batch.obs, batch.action, method="encode")
    recon = NETS.vae.apply(state.vae, batch.obs, mean + jnp.exp(log_std) * draws.vae, method="decode")
    kl = 0.5 * (jnp.exp(2 * log_std) + mean**2 - 1 - 2 * log_std)  # of a normal from the standard normal
    for hyper in (Hyper(adv_threshold=OPEN), Hyper(adv_threshold=OPEN, vae_weight=1.5, kl_weight=0.1)):
        loss, metrics = a2pr.vae_loss(state.vae, NETS, batch, normal(14, 64), draws.vae, hyper)
        expected = hyper.vae_weight * jnp.square(recon - batch.action).mean() + hyper.kl_weight * kl.mean()
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        assert metrics["advantageous"] == 1.0
    half = jnp.where(jnp.arange(64) < 32, 1.0, 0.0)  # zero does not exceed the threshold
    _, metrics = a2pr.vae_loss(state.vae, NETS, batch, half, draws.vae, Hyper())
    np.testing.assert_allclose(
        metrics["vae_recon_loss"], jnp.square(recon - batch.action)[:32].sum() / (64 * 3), rtol=1e-5
    )


def test_values_are_pessimistic_unless_told_otherwise(state: State, batch: Transition) -> None:
    next_action, y = batch.action[::-1], normal(15, 64)
    hyper, optimistic = Hyper(discount=0.9), replace(STATIC, pessimistic_value=False)
    twins = [jax.tree.map(partial(jnp.take, indices=i, axis=0), state.critic) for i in (0, 1)]
    q = [NETS.critic.apply(twin, batch.next_obs, next_action) for twin in twins]
    online = batch.reward + 0.9 * (1 - batch.terminated) * jnp.minimum(*q)
    ours = a2pr.value_target(NETS, optimistic, state.critic, batch, next_action, y, hyper)
    np.testing.assert_allclose(ours, online, rtol=1e-5, atol=1e-6)
    ours = a2pr.value_target(NETS, STATIC, state.critic, batch, next_action, y, hyper)
    np.testing.assert_allclose(ours, np.minimum(online, y), rtol=1e-5, atol=1e-6)
    assert 0 < int((online < y).sum()) < 64


def test_next_observation_of_terminal_rows_is_irrelevant(state: State, batch: Transition, draws: Draws) -> None:
    bogus = jnp.where(batch.terminated[:, None] > 0, 1e3 * normal(16, 64, 5), batch.next_obs)
    ours, theirs = (learn(state, given, draws, Hyper()) for given in (batch, batch._replace(next_obs=bogus)))
    assert equal(ours, theirs)
    everywhere = learn(state, batch._replace(next_obs=bogus + 1.0), draws, Hyper())
    assert not equal(ours[0].critic, everywhere[0].critic)


def test_target_noise_is_scaled_and_clipped_by_the_action_range(state: State, batch: Transition) -> None:
    policy = NETS.actor.apply(state.target_actor, batch.next_obs)
    noise = jnp.tile(jnp.array([1.0, -10.0, 10.0]), (64, 1))
    ours = a2pr.target_action(
        NETS, state.target_actor, batch.next_obs, noise, Hyper(policy_noise=0.25, noise_clip=0.75)
    )
    np.testing.assert_allclose(ours, jnp.clip(policy + jnp.array([0.5, -1.5, 1.5]), -2.0, 2.0), rtol=1e-6)
    assert float(jnp.abs(ours).max()) == 2.0


def test_candidates(state: State, batch: Transition, draws: Draws) -> None:
    prior = replace(STATIC, candidate="prior_sample")
    ours = a2pr.guide_action(NETS, prior, state.vae, batch.obs, batch.action, draws.guide)
    decoded = NETS.vae.apply(state.vae, batch.obs, jnp.clip(draws.guide, -0.5, 0.5), method="decode")
    np.testing.assert_array_equal(ours, decoded)
    assert equal(ours, a2pr.guide_action(NETS, prior, state.vae, batch.obs, -batch.action, draws.guide))
    reconstructed = a2pr.guide_action(NETS, STATIC, state.vae, batch.obs, batch.action, draws.guide)
    np.testing.assert_array_equal(reconstructed, NETS.vae.apply(state.vae, batch.obs, batch.action, draws.guide)[0])
    with pytest.raises(UsageError, match="candidate is recon_policy or prior_sample, not 'prior'"):
        Static(candidate="prior")


def test_log_std_of_the_latent_is_clipped(state: State, batch: Transition) -> None:
    def pushed(bias: float) -> jax.Array:
        vae = jax.tree.map(lambda x: x, state.vae)
        vae["params"]["log_std"]["bias"] = jnp.full(6, bias)
        return NETS.vae.apply(vae, batch.obs, batch.action, method="encode")[1]

    np.testing.assert_array_equal(pushed(-50.0), np.full((64, 6), -4.0))
    np.testing.assert_array_equal(pushed(50.0), np.full((64, 6), 15.0))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rows = Transition(
        normal(20, 500, 5), jnp.tanh(normal(21, 500, 3)), normal(22, 500), normal(23, 500, 5),
        jnp.zeros(500), jnp.zeros(500),
    )  # fmt: skip
    return Dataset(rows, jnp.zeros(5), jnp.ones(5))


def test_actor_learns_once_a_step_from_the_last_batch(dataset: Dataset) -> None:
    algo = a2pr.make(STATIC, SPEC)
    hyper = Hyper(reward_scale=2.0, reward_shift=-1.0, tau=0.1)
    start = jax.jit(algo.init)(jax.random.key(0), Hyper())
    assert equal((start.target_actor, start.target_critic), (start.actor, start.critic))
    end, metrics = jax.jit(algo.step)(jax.random.key(1), start, dataset, hyper)

    state = start
    for key in jax.random.split(jax.random.key(1), 2):
        batch_key, draw_key = jax.random.split(key)
        batch = shape_reward(sample_dataset(batch_key, dataset, STATIC.batch_size), 2.0, -1.0)
        critics, both, _, actor_metrics = learn(state, batch, a2pr.draw(draw_key, STATIC, SPEC), hyper)
        assert equal((critics.actor, critics.target_critic), (start.actor, start.target_critic))
        state = critics
    assert difference(end, both) < 1e-5
    np.testing.assert_allclose(metrics["actor_loss"], actor_metrics["actor_loss"], rtol=1e-5)
    blended = jax.tree.map(lambda new, old: 0.1 * new + 0.9 * old, end.critic, start.critic)
    assert difference(end.target_critic, blended) < 1e-6
    counts = {name: int(getattr(end.optim, name)[0].count) for name in ("actor", "critic", "value", "vae")}
    assert counts == {"actor": 1, "critic": 2, "value": 2, "vae": 2}
    assert algo.updates_per_step == 2


def test_parameter_counts_at_the_paper_size() -> None:
    """The published numbers for 17 observations and 6 actions."""
    state = jax.eval_shape(a2pr.make(Static(), Spec(17, 6)).init, jax.random.key(0), Hyper())
    count = lambda *trees: sum(x.size for x in jax.tree.leaves(trees))  # noqa: E731
    assert count(state.actor) == 137_734
    assert count(state.critic) == 407_554
    assert count(state.value) == 202_241
    assert count(state.vae) == 1_189_530
    assert count(state.target_actor, state.target_critic) == 545_288
