"""Rewards and objectives of BARFI: identities that hold on any padded trajectories."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.typing import ArrayLike

from algos.barfi import objectives, rewards
from algos.barfi.objectives import Batch, Form, inner_objective, outer_objective, softmax_policy, surrogate
from algos.barfi.rewards import Omega, reward_to_go
from algos.core import UsageError
from algos.hypergrad import Settings, implicit
from algos.losses import descend, rmsprop

B, P, F, A = 4, 6, 3, 2
FORM = Form(softmax_policy(lambda theta, features: features @ theta))
BIAS = FORM._replace(importance_clip=2.0)
VALUE = jax.jit(inner_objective, static_argnums=3)
TERMS = {"entropy": 0.3, "theta_l2": 0.1, "aux_weight": 1.5}
total = partial(inner_objective, entropy=0.3, theta_l2=0.1, aux_weight=1.5)


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw(seed: int = 0) -> tuple[jax.Array, Omega, Batch]:
    """theta, omega and a batch of trajectories of lengths 1 to P - 1."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(P) < np.array([[1], [3], [5], [4]])).astype(float)
    fields = [
        rng.normal(size=(B, P, F)), rng.integers(A, size=(B, P)), rng.uniform(0.2, 0.8, size=(B, P)),
        rng.normal(size=(B, P)), rng.normal(size=(B, P)), mask,
    ]  # fmt: skip
    phi = {"weight": jnp.asarray(rng.normal(size=(3, F))), "bias": jnp.asarray(rng.normal(size=3))}
    return jnp.asarray(rng.normal(size=(F, A))), Omega(phi, jnp.array(0.7)), Batch(*map(jnp.asarray, fields))


def changed(batch: Batch, **by: ArrayLike) -> Batch:
    """The batch with amounts added to some fields."""
    return batch._replace(**{name: getattr(batch, name) + amount for name, amount in by.items()})


def test_reward_to_go_by_hand() -> None:
    reward, mask = jnp.array([1.0, 2.0, 4.0, np.nan]), jnp.array([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(reward_to_go(reward, mask, 0.5), [3.0, 4.0, 4.0, 0.0])


def test_who_sees_what() -> None:
    theta, omega, batch = draw()
    g = jax.jit(jax.grad(outer_objective), static_argnums=2)
    other = changed(batch, auxiliary=3.0, behaviour=0.1)
    np.testing.assert_array_equal(g(theta, batch, FORM), g(theta, other, FORM))
    assert outer_objective(theta, batch, FORM) == outer_objective(theta, other, FORM)
    value = VALUE(theta, omega, batch, FORM, **TERMS)
    assert value == VALUE(theta, omega, changed(batch, behaviour=0.1), FORM, **TERMS)
    assert value != VALUE(theta, omega, changed(batch, auxiliary=3.0), FORM, **TERMS)
    weighted = VALUE(theta, omega, batch, BIAS, **TERMS)
    assert weighted != value
    assert weighted != VALUE(theta, omega, changed(batch, behaviour=0.1), BIAS, **TERMS)


def test_baseline_losses_hold_their_weights_constant() -> None:
    theta, omega, batch = draw()

    def through(omega: Omega) -> jax.Array:
        returns = objectives.learned_returns(omega, batch, FORM)
        return objectives.reinforce_loss(theta, batch, returns, FORM, entropy=0.3)

    assert all((x == 0.0).all() for x in jax.tree.leaves(jax.jit(jax.grad(through))(omega)))


def test_importance_ratios_by_hand() -> None:
    theta, _, batch = draw()
    log_prob = FORM.policy.log_prob(theta, batch.features, batch.action)
    ratio = np.where(batch.mask > 0, np.exp(log_prob) / batch.behaviour, 1.0)
    ours = objectives.importance(log_prob, batch, 2.0)
    np.testing.assert_allclose(ours, np.minimum(np.cumprod(ratio, 1), 2.0), rtol=1e-12)
    assert (ours == 2.0).any()
    assert (objectives.importance(log_prob, batch, None) == 1.0).all()


@pytest.mark.parametrize("form", [FORM, BIAS])
def test_padding_has_no_influence(form: Form) -> None:
    theta, omega, batch = draw()
    pad = 1.0 - batch.mask
    noisy = changed(batch, features=9.0 * pad[..., None], behaviour=pad, primary=-7.0 * pad, auxiliary=8.0 * pad)
    noisy = noisy._replace(action=jnp.where(pad > 0, 0, batch.action))
    slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), static_argnums=3)
    for ours, expected in zip(*[jax.tree.leaves(slopes(theta, omega, x, form)) for x in (noisy, batch)]):
        np.testing.assert_array_equal(ours, expected)
    for returns in (objectives.naive_returns, objectives.potential_returns, objectives.potential_reward):
        np.testing.assert_allclose(returns(noisy), returns(batch), atol=1e-15)


def test_more_padding_scales_the_surrogate_alone() -> None:
    theta, omega, batch = draw()
    longer = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 3)] + [(0, 0)] * (x.ndim - 2)), batch)
    for form, ratio in ((FORM, P / (P + 3)), (FORM._replace(time_reduction="sum"), 1.0)):
        np.testing.assert_allclose(VALUE(theta, omega, longer, form), ratio * VALUE(theta, omega, batch, form))
    entropies = [objectives.mean_entropy(theta, x, FORM.policy) for x in (batch, longer)]
    np.testing.assert_allclose(entropies[0], entropies[1])
    np.testing.assert_allclose(VALUE(theta, omega, batch, FORM._replace(time_reduction="sum")),
                               P * VALUE(theta, omega, batch, FORM))  # fmt: skip


def test_shares_replace_rows() -> None:
    theta, omega, batch = draw()
    two = jax.tree.map(lambda x: x[:2], batch)
    filled = batch._replace(mask=batch.mask.at[2:].set(0.0), share=jnp.array([0.5, 0.5, 0.0, 0.0]))
    np.testing.assert_allclose(VALUE(theta, omega, filled, FORM, **TERMS), VALUE(theta, omega, two, FORM, **TERMS))


def test_the_scale_of_the_learned_reward_does_not_move_the_maximum() -> None:
    theta, omega, batch = draw()
    slope = jax.jit(jax.grad(inner_objective), static_argnums=3)
    scaled = omega._replace(phi=jax.tree.map(lambda x: 3.0 * x, omega.phi))
    np.testing.assert_allclose(slope(theta, scaled, batch, FORM), 3.0 * slope(theta, omega, batch, FORM), rtol=1e-12)


def test_potential_shaping_telescopes() -> None:
    _, _, batch = draw()
    shaped = reward_to_go(objectives.potential_reward(batch, 0.9, 2.0), batch.mask, 0.9)
    plain = reward_to_go(batch.primary, batch.mask, 0.9) - 2.0 * batch.mask * batch.auxiliary
    np.testing.assert_allclose(shaped, plain, atol=1e-13)
    np.testing.assert_allclose(objectives.potential_returns(batch, 0.9, 2.0), plain, atol=1e-13)


def test_traces_give_the_mixed_product() -> None:
    """d(p . dJ/dtheta)/d r_t = m_t e_t with the forward trace e_t = q_t + gamma e_(t-1); likewise for psi."""
    theta, omega, batch = draw()
    p = jnp.asarray(np.random.default_rng(1).normal(size=theta.shape))

    def log_prob(theta: jax.Array) -> jax.Array:
        return FORM.policy.log_prob(theta, batch.features, batch.action)

    gamma = rewards.discount_of(omega)
    reward = rewards.learned_reward(omega.phi, batch.features, batch.primary, batch.auxiliary, aux_weight=1.5)

    def product(reward: jax.Array, gamma: jax.Array) -> jax.Array:
        returns = reward_to_go(reward, batch.mask, gamma)
        return jax.jvp(lambda t: surrogate(log_prob(t), returns, batch), (theta,), (p,))[1]

    q = np.asarray(batch.mask * jax.jvp(log_prob, (theta,), (p,))[1] / (B * P))
    trace, derivative = np.zeros((B, P)), np.zeros((B, P + 1))
    returns = np.pad(reward_to_go(reward, batch.mask, gamma), [(0, 0), (0, 1)])
    for t in range(P):
        trace[:, t] = q[:, t] + (gamma * trace[:, t - 1] if t else 0.0)
    for t in reversed(range(P)):
        derivative[:, t] = returns[:, t + 1] + gamma * derivative[:, t + 1]
    to_reward, to_gamma = jax.jit(jax.grad(product, argnums=(0, 1)))(reward, gamma)
    np.testing.assert_allclose(to_reward, batch.mask * trace, atol=1e-12)
    np.testing.assert_allclose(to_gamma, (q * derivative[:, :P]).sum(), atol=1e-12)

    def inner(theta: jax.Array, omega: Omega) -> jax.Array:
        return inner_objective(theta, omega, batch, FORM, aux_weight=1.5)

    first_order = Settings("identity", lanczos=0)
    found = jax.jit(implicit, static_argnums=0)(inner, theta, omega, p, first_order)[0]
    masked = batch.mask * trace
    rows = [masked, masked * batch.primary, masked * 1.5 * batch.auxiliary]
    np.testing.assert_allclose(
        found.phi["weight"], [jnp.einsum("bt,btf->f", x, batch.features) for x in rows], atol=1e-12
    )
    np.testing.assert_allclose(found.phi["bias"], [x.sum() for x in rows], atol=1e-12)
    np.testing.assert_allclose(found.psi, gamma * (1 - gamma) * (q * derivative[:, :P]).sum(), atol=1e-12)


def test_cutting_weights_at_zero_makes_the_curvature_safe() -> None:
    theta, omega, batch = draw()
    g = jax.grad(outer_objective)(theta, batch, FORM)

    def indefinite(positive: bool) -> jax.Array:
        def curvature(theta: jax.Array) -> jax.Array:
            return inner_objective(theta, omega, batch, FORM, positive_only=positive)

        def inner(theta: jax.Array, omega: Omega) -> jax.Array:
            return inner_objective(theta, omega, batch, FORM)

        return implicit(inner, theta, omega, g, Settings("identity"), curvature)[1]["indefinite"]

    assert [float(jax.jit(indefinite, static_argnums=0)(positive)) for positive in (False, True)] == [1.0, 0.0]


def test_penalties() -> None:
    _, omega, _ = draw()
    slope = jax.jit(jax.grad(rewards.penalty))
    found, gamma = slope(omega, 0.5, 2.0), rewards.discount_of(omega)
    for x in found.phi.values():  # whatever the size of the parameters
        np.testing.assert_allclose(jnp.linalg.norm(x), 0.5, rtol=1e-12)
    np.testing.assert_allclose(found.psi, 2.0 * gamma * (1.0 - gamma), rtol=1e-12)
    zero = slope(jax.tree.map(jnp.zeros_like, omega), 0.5, 2.0)
    assert all((x == 0.0).all() for x in zero.phi.values())
    scalars = Omega(rewards.init_phi(jax.random.key(0), 8, state_dependent=False), omega.psi)
    np.testing.assert_allclose(rewards.penalty(scalars, 0.7, 0.0), 0.7 * 3**0.5, rtol=1e-6)


def test_forms_of_the_learned_reward() -> None:
    _, omega, batch = draw()
    mixed = partial(rewards.learned_reward, features=batch.features, primary=batch.primary, auxiliary=batch.auxiliary)
    scalars = rewards.init_phi(jax.random.key(0), F, state_dependent=False)
    for mode in rewards.PHI2_MODES:
        ours = mixed(scalars, phi2_mode=mode, aux_weight=4.0)
        np.testing.assert_allclose(ours, batch.primary + 4.0 * batch.auxiliary, rtol=1e-6)
    first, second, third = (batch.features @ w + b for w, b in zip(omega.phi["weight"], omega.phi["bias"]))
    free = first + second * batch.primary + third * 0.5 * batch.auxiliary
    np.testing.assert_allclose(mixed(omega.phi, aux_weight=0.5), free, rtol=1e-12)
    fixed = free + (1.0 - second) * batch.primary
    np.testing.assert_allclose(mixed(omega.phi, phi2_mode="one", aux_weight=0.5), fixed, rtol=1e-10)
    drawn = rewards.init_phi(jax.random.key(0), 16)
    assert drawn["weight"].shape == (3, 16)
    assert 0.2 < jnp.abs(drawn["weight"]).max() <= 0.25


def test_actor_critic_by_hand() -> None:
    theta, _, batch = draw()
    reward, value, mask = jnp.array([1.0, 2.0, 5.0]), jnp.array([10.0, 20.0, 30.0]), jnp.array([1.0, 1.0, 0.0])
    errors = objectives.td_errors(reward, value, mask, 0.5)
    np.testing.assert_allclose(errors, [1.0, -18.0, 0.0])
    np.testing.assert_allclose(objectives.critic_loss(errors, mask), (1.0 + 18.0**2) / 2.0)
    slope = jax.grad(lambda v: objectives.critic_loss(objectives.td_errors(reward, v, mask, 0.5), mask))(value)
    np.testing.assert_allclose(slope, [-1.0, 18.0, 0.0])  # none through the target
    errors = jnp.ones((B, P))
    log_prob = FORM.policy.log_prob(theta, batch.features, batch.action)
    np.testing.assert_allclose(objectives.actor_loss(theta, batch, errors, FORM), -(batch.mask * log_prob).mean())


def test_rmsprop_is_torchs_and_not_optaxs() -> None:
    params, grads = jnp.array([1.0, -2.0]), [jnp.array([0.3, -1e-7]), jnp.array([-0.1, 2e-7])]
    moment, expected = np.zeros(2), np.asarray(params)
    for g in grads:
        moment = 0.99 * moment + 0.01 * np.asarray(g) ** 2
        expected = expected - 0.005 * np.asarray(g) / (np.sqrt(moment) + 1e-8)
    for optimiser, same in ((rmsprop(0.005), True), (optax.rmsprop(0.005), False)):
        ours, optim = params, optimiser.init(params)
        for g in grads:
            ours, optim = descend(optimiser, g, optim, ours)
        assert np.allclose(ours, expected, rtol=1e-14, atol=0.0) == same


def test_unknown_switches_are_refused() -> None:
    theta, omega, batch = draw()
    with pytest.raises(UsageError, match="phi2_mode=two"):
        inner_objective(theta, omega, batch, FORM._replace(phi2_mode="two"))
    with pytest.raises(UsageError, match="time_reduction=max"):
        inner_objective(theta, omega, batch, FORM._replace(time_reduction="max"))
