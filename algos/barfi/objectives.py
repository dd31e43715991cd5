"""Inner and outer objectives of BARFI, and the losses of its baselines, on padded trajectories.

All of them are score-function surrogates: averages of log pi(a|s) times a weight that does not depend on theta, so
that only their derivatives mean something. Objectives are to be maximised, losses minimised. In `inner_objective`
the reward and the discount are live: a training step differentiates with respect to theta alone, the hypergradient
with respect to both. The data may come from older policies and enter without importance ratios, unless asked for.

The average over time divides by the padded length P, short episodes thus have small gradients;
`time_reduction="sum"` does not divide.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from algos.barfi.rewards import Omega, discount_of, learned_reward, next_step, reward_to_go, shaped_reward
from algos.core import Params, UsageError

TIME_REDUCTIONS = ("mean_padded", "sum")


class Batch(NamedTuple):
    """B padded trajectories of length P. Nothing in a slot with mask 0 has an influence."""

    features: jax.Array  # (B, P, F)
    action: jax.Array  # (B, P) indices, or (B, P, A)
    behaviour: jax.Array  # (B, P), probability of the action under the policy that acted; for importance ratios only
    primary: jax.Array  # (B, P)
    auxiliary: jax.Array  # (B, P)
    mask: jax.Array  # (B, P), 1 on valid steps
    share: jax.Array | None = None  # (B,), weight in the mean (of rows that only fill up 0, like their mask); None: 1/B


class Policy(NamedTuple):
    """A stochastic policy as two functions of its parameters theta."""

    log_prob: Callable[[Params, jax.Array, jax.Array], jax.Array]  # (theta, features, action) -> (B, P)
    entropy: Callable[[Params, jax.Array], jax.Array]  # (theta, features) -> (B, P)


class Form(NamedTuple):
    """What is fixed in the objectives (static)."""

    policy: Policy
    phi2_mode: str = "linear"
    time_reduction: str = "mean_padded"
    importance_clip: float | None = None  # largest product of ratios; None: no importance weighting


def softmax_policy(logits: Callable[[Params, jax.Array], jax.Array]) -> Policy:
    """The policy softmax(logits(theta, features)) over the last axis; its entropy is Shannon's, in nats."""

    def log_prob(theta: Params, features: jax.Array, action: jax.Array) -> jax.Array:
        every = jax.nn.log_softmax(logits(theta, features))
        return jnp.take_along_axis(every, action[..., None], -1).squeeze(-1)

    def entropy(theta: Params, features: jax.Array) -> jax.Array:
        every = jax.nn.log_softmax(logits(theta, features))
        return -(jnp.exp(every) * every).sum(-1)

    return Policy(log_prob, entropy)


def surrogate(log_prob: jax.Array, weight: jax.Array, batch: Batch, time_reduction: str = "mean_padded") -> jax.Array:
    """mean_b [ (1/P) sum_t m_t log pi(a_t|s_t) weight_t ]; raises UsageError for an unknown reduction."""
    if time_reduction not in TIME_REDUCTIONS:
        raise UsageError(f"time_reduction={time_reduction}: choose one of {', '.join(TIME_REDUCTIONS)}")
    total = jnp.where(batch.mask > 0.0, log_prob * weight, 0.0).sum(-1)
    if time_reduction == "mean_padded":
        total = total / batch.mask.shape[-1]
    return total.mean() if batch.share is None else (batch.share * total).sum()


def mean_entropy(theta: Params, batch: Batch, policy: Policy) -> jax.Array:
    """Mean entropy of the policy over the valid steps of the batch."""
    entropy = jnp.where(batch.mask > 0.0, policy.entropy(theta, batch.features), 0.0)
    return entropy.sum() / jnp.maximum(batch.mask.sum(), 1.0)


def importance(log_prob: jax.Array, batch: Batch, clip: float | None) -> jax.Array:
    """min(prod_(j<=t) pi(a_j|s_j) / beta_j, clip), a constant (B, P); ones where `clip` is None."""
    if clip is None:
        return jnp.ones_like(log_prob)
    valid = batch.mask > 0.0
    ratios = jnp.where(valid, log_prob - jnp.log(jnp.where(valid, batch.behaviour, 1.0)), 0.0)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(jnp.cumsum(ratios, -1)), clip))


def learned_returns(omega: Omega, batch: Batch, form: Form, aux_weight: ArrayLike = 1.0) -> jax.Array:
    """Reward-to-go (B, P) of the learned reward with the learned discount."""
    reward = learned_reward(omega.phi, batch.features, batch.primary, batch.auxiliary, form.phi2_mode, aux_weight)
    return reward_to_go(reward, batch.mask, discount_of(omega))


def inner_objective(
    theta: Params,
    omega: Omega,
    batch: Batch,
    form: Form,
    *,
    entropy: ArrayLike = 0.0,
    theta_l2: ArrayLike = 0.0,
    aux_weight: ArrayLike = 1.0,
    baseline: ArrayLike = 0.0,
    positive_only: bool = False,
) -> jax.Array:
    """J_phi(theta; omega, D), what the policy learner maximises.

    `entropy` multiplies the mean entropy of the policy, `baseline` is taken off the returns, and theta_l2/2 times the
    squared norm of theta is subtracted. `positive_only` cuts the weights at 0: for a softmax that is linear in theta
    the Hessian of that surrogate has no positive eigenvalue, which makes it a safe substitute where the true one is
    indefinite (give it to `algos.hypergrad.implicit` as `curvature`, without entropy).
    """
    log_prob = form.policy.log_prob(theta, batch.features, batch.action)
    weight = learned_returns(omega, batch, form, aux_weight) - baseline
    weight = jnp.maximum(weight, 0.0) if positive_only else weight
    value = surrogate(log_prob, weight * importance(log_prob, batch, form.importance_clip), batch, form.time_reduction)
    squares = sum(jnp.square(x).sum() for x in jax.tree.leaves(theta))
    return value + entropy * mean_entropy(theta, batch, form.policy) - 0.5 * theta_l2 * squares


def outer_objective(
    theta: Params,
    batch: Batch,
    form: Form,
    *,
    discount: ArrayLike = 0.99,
    baseline: ArrayLike = 0.0,
) -> jax.Array:
    """J_p(theta; D): the surrogate of the primary reward alone. Neither the auxiliary reward nor omega is in it."""
    weight = reward_to_go(batch.primary, batch.mask, discount) - baseline
    return surrogate(form.policy.log_prob(theta, batch.features, batch.action), weight, batch, form.time_reduction)


def naive_returns(batch: Batch, discount: ArrayLike = 0.99, aux_weight: ArrayLike = 1.0) -> jax.Array:
    """Reward-to-go (B, P) of r_p + w r_aux; of the primary reward alone where the weight is 0."""
    return reward_to_go(batch.primary + aux_weight * batch.auxiliary, batch.mask, discount)


def potential_returns(batch: Batch, discount: ArrayLike = 0.99, aux_weight: ArrayLike = 1.0) -> jax.Array:
    """Reward-to-go (B, P) of the primary reward shaped by w r_aux as a potential: the sum telescopes to G^p - Phi."""
    returns = reward_to_go(batch.primary, batch.mask, discount) - aux_weight * batch.auxiliary
    return jnp.where(batch.mask > 0.0, returns, 0.0)


def reinforce_loss(
    theta: Params, batch: Batch, returns: jax.Array, form: Form, *, entropy: ArrayLike = 0.0
) -> jax.Array:
    """-(surrogate + entropy Ent). `returns` (B, P) are constants, with a baseline taken off where there is one."""
    log_prob = form.policy.log_prob(theta, batch.features, batch.action)
    value = surrogate(log_prob, jax.lax.stop_gradient(returns), batch, form.time_reduction)
    return -(value + entropy * mean_entropy(theta, batch, form.policy))


def naive_reward(batch: Batch, aux_weight: ArrayLike = 1.0) -> jax.Array:
    """r_p + w r_aux (B, P), for an actor-critic."""
    return jnp.where(batch.mask > 0.0, batch.primary + aux_weight * batch.auxiliary, 0.0)


def potential_reward(batch: Batch, discount: ArrayLike = 0.99, aux_weight: ArrayLike = 1.0) -> jax.Array:
    """r_p + discount Phi' - Phi (B, P) with Phi = w r_aux, for an actor-critic."""
    potential = jnp.asarray(aux_weight * batch.auxiliary)
    return shaped_reward(batch.primary, potential, batch.mask, discount)


def td_errors(reward: jax.Array, value: jax.Array, mask: jax.Array, discount: ArrayLike = 0.99) -> jax.Array:
    """m_t (r_t + discount m_(t+1) V(s_(t+1)) - V(s_t)); no gradient through the target. All are (B, P)."""
    target = jax.lax.stop_gradient(reward + discount * next_step(value, mask))
    return jnp.where(mask > 0.0, target - value, 0.0)


def critic_loss(errors: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean square of the temporal-difference errors (B, P) over valid steps."""
    return jnp.square(errors).sum() / jnp.maximum(mask.sum(), 1.0)


def actor_loss(theta: Params, batch: Batch, errors: jax.Array, form: Form) -> jax.Array:
    """The surrogate with temporal-difference errors (B, P) for weights, to be minimised."""
    return reinforce_loss(theta, batch, errors, form)
