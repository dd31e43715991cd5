"""Pieces of losses and updates that several algorithms share."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from algos.core import Params


def td_target(reward: jax.Array, terminated: jax.Array, next_value: jax.Array, discount: ArrayLike) -> jax.Array:
    """y = r + discount (1 - terminated) V(s'), without gradient. All arrays are (batch,)."""
    return jax.lax.stop_gradient(reward + discount * (1.0 - terminated) * next_value)


def min_td_target(reward: jax.Array, terminated: jax.Array, next_q: jax.Array, discount: ArrayLike) -> jax.Array:
    """y = r + discount (1 - terminated) min_i Q_i(s', a'), no gradient. `next_q` is (ensemble, batch)."""
    return td_target(reward, terminated, next_q.min(0), discount)


def smooth_action(
    action: jax.Array, noise: jax.Array, policy_noise: ArrayLike, noise_clip: ArrayLike, max_action: float
) -> jax.Array:
    """TD3's target policy smoothing: clip(a + clip(p M noise, +-q M), +-M), `noise` standard normal."""
    clip = noise_clip * max_action
    noise = jnp.clip(policy_noise * max_action * noise, -clip, clip)
    return jnp.clip(action + noise, -max_action, max_action)


def ensemble_mse(q: jax.Array, target: jax.Array) -> jax.Array:
    """Sum over the ensemble of the mean squared error. `q` is (ensemble, batch)."""
    return jnp.square(q - target).mean(-1).sum()


def expectile_loss(difference: jax.Array, expectile: ArrayLike) -> jax.Array:
    """L2^τ(u) = |τ - 1(u <= 0)| u² elementwise (IQL, equation 5)."""
    weight = jnp.where(difference > 0.0, expectile, 1.0 - expectile)
    return weight * jnp.square(difference)


def polyak(params: Params, target: Params, tau: ArrayLike) -> Params:
    """target <- tau params + (1 - tau) target."""
    return jax.tree.map(lambda x, y: tau * x + (1.0 - tau) * y, params, target)


def adam(learning_rate: ArrayLike | optax.Schedule) -> optax.GradientTransformation:
    """Adam with the defaults common to PyTorch and optax; the rate may be traced, or a function of the count."""
    return optax.chain(scale_by_adam(), optax.scale_by_learning_rate(learning_rate))


def adamw(learning_rate: ArrayLike | optax.Schedule, weight_decay: ArrayLike) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on every parameter; both numbers may be traced."""
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(scale_by_adam(), decay, optax.scale_by_learning_rate(learning_rate))


def rmsprop(learning_rate: ArrayLike | optax.Schedule) -> optax.GradientTransformation:
    """PyTorch's RMSProp with its defaults: decay 0.99, and 1e-8 added outside the root; the rate may be traced.

    optax's own defaults differ in both. A moment that starts at 0 makes the first step 10 times the rate.
    """
    return optax.rmsprop(learning_rate, decay=0.99, eps=1e-8, eps_in_sqrt=False, initial_scale=0.0)


def cosine(learning_rate: ArrayLike, steps: ArrayLike) -> optax.Schedule:
    """A learning rate that falls to zero along a cosine in `steps` updates; inf keeps it constant."""
    return lambda count: learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(count / steps, 1.0)))


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with exact bias corrections; the state is the same.

    In float32 `1 - b2**count` is off by 1e-5 at first, which makes all early steps wrong in the same direction.
    """

    def init(params: Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads: Params, state: optax.OptState, params: Params = None) -> tuple[Params, optax.OptState]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda n, g: b2 * n + (1.0 - b2) * jnp.square(g), state.nu, grads)
        mu_weight, nu_weight = -jnp.expm1(count * math.log(b1)), -jnp.expm1(count * math.log(b2))
        step = jax.tree.map(lambda m, n: (m / mu_weight) / (jnp.sqrt(n / nu_weight) + eps), mu, nu)
        return step, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def descend(
    optimiser: optax.GradientTransformation, grads: Params, optim: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    """One optimiser step."""
    updates, optim = optimiser.update(grads, optim, params)
    return optax.apply_updates(params, updates), optim
