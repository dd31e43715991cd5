"""Densities of stochastic policies, written in terms of the standard normal draw, which keeps them stable."""

import math

import jax
import jax.numpy as jnp


def gaussian_log_prob(z: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log density (...) of a diagonal Gaussian at mean + exp(log_std) z. `z` and `log_std` are (..., dim)."""
    return (-0.5 * jnp.square(z) - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def tanh_gaussian(
    mean: jax.Array, log_std: jax.Array, noise: jax.Array, max_action: float
) -> tuple[jax.Array, jax.Array]:
    """Reparametrised action max_action tanh(u), u = mean + exp(log_std) noise, and its log density.

    All inputs are (..., action_dim), `noise` standard normal; returns (..., action_dim) and (...). The change
    of variables uses log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which is exact where tanh saturates
    (Haarnoja et al. 2018, arXiv 1812.05905, appendix C).
    """
    u = mean + jnp.exp(log_std) * noise
    log_slope = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u)) + math.log(max_action)
    return max_action * jnp.tanh(u), gaussian_log_prob(noise, log_std) - log_slope.sum(-1)
