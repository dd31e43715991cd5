"""Denoising diffusion over actions: noise schedules, the forward process, and the clipped reverse chain.

Times are t = 0 ... T-1; t = T-1 is the noisiest. Actions lie in [-1, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from algos.core import Key, UsageError

SCHEDULES = ("vp", "linear", "cosine")


class Schedule(NamedTuple):
    """Constants of the diffusion, (T,) each."""

    beta: np.ndarray
    alpha: np.ndarray  # 1 - beta
    alpha_bar: np.ndarray  # running product of alpha


class Noise(NamedTuple):
    """The random numbers of reverse chains."""

    start: jax.Array  # (..., action_dim): x_T
    steps: jax.Array  # (T, ..., action_dim): the last one is never used, as the last step adds no noise


def make_schedule(name: str, steps: int) -> Schedule:
    """The schedule of that name: vp (beta from 0.1 to 10), linear (1e-4 to 0.02) or cosine.

    Raises:
        UsageError: an unknown name, or no step.
    """
    if steps < 1:
        raise UsageError(f"diffusion_steps={steps} must be at least 1")
    n = np.arange(1, steps + 1)
    if name == "vp":
        low, high = 0.1, 10.0
        beta = 1.0 - np.exp(-low / steps - 0.5 * (high - low) * (2 * n - 1) / steps**2)
    elif name == "linear":
        beta = np.linspace(1e-4, 2e-2, steps)
    elif name == "cosine":
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.clip(1.0 - f[1:] / f[:-1], 0.0, 0.999)
    else:
        raise UsageError(f"schedule={name} must be one of {', '.join(SCHEDULES)}")
    alpha = 1.0 - beta
    return Schedule(*(x.astype(np.float32) for x in (beta, alpha, np.cumprod(alpha))))


def add_noise(schedule: Schedule, action: jax.Array, time: jax.Array, noise: jax.Array) -> jax.Array:
    """x_t = sqrt(abar_t) a + sqrt(1 - abar_t) n, for actions and noise (..., action_dim) and times (...)."""
    alpha_bar = jnp.asarray(schedule.alpha_bar)[time][..., None]
    return jnp.sqrt(alpha_bar) * action + jnp.sqrt(1.0 - alpha_bar) * noise


def draw_noise(key: Key, schedule: Schedule, shape: tuple[int, ...]) -> Noise:
    """Standard normal numbers for chains of actions of that shape."""
    start_key, steps_key = jax.random.split(key)
    return Noise(
        jax.random.normal(start_key, shape),
        jax.random.normal(steps_key, (len(schedule.beta), *shape)),
    )


def reverse_chain(
    schedule: Schedule, predict: Callable[[jax.Array, jax.Array], jax.Array], noise: Noise, temperature: ArrayLike = 1.0
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Sample actions by the reverse chain, clipped to [-1, 1] after every step.

    predict: (x (..., action_dim), t ()) -> predicted noise of the same shape as x.
    Returns the actions, and of each step the predicted noise and x after it, (T, ..., action_dim) both.
    """
    last = len(schedule.beta) - 1

    def step(x: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        t, z, beta, alpha, alpha_bar = inputs
        predicted = predict(x, t)
        x = (x - (1.0 - alpha) / jnp.sqrt(1.0 - alpha_bar) * predicted) / jnp.sqrt(alpha)
        x = x + jnp.where(t > 0, temperature * jnp.sqrt(beta), 0.0) * z
        x = jnp.clip(x, -1.0, 1.0)
        return x, (predicted, x)

    constants = tuple(jnp.asarray(x[::-1]) for x in schedule)
    return jax.lax.scan(step, noise.start, (last - jnp.arange(last + 1), noise.steps, *constants))
