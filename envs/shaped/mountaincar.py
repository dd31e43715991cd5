"""MountainCar with a reward for arriving only, and heuristics: pumping energy, or moving fast.

The classic car of three actions (Moore, 1990; Sutton and Barto, 1998), with the auxiliary rewards of Gupta et al.,
"Behavior Alignment via Reward Function Optimization" (2023).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Env, Key, Spec, TimeStep
from envs.shaped.features import tiles

VARIANTS = ("none", "bang", "bang-zero", "bang-left", "bang-right", "bang-speed", "velocity")
HORIZON = 2000
LOW, HIGH = (-1.2, -0.07), (0.5, 0.07)  # position, velocity
START = (-0.6, -0.4)  # position; the car stands still
THRUST, GRAVITY = 0.001, 0.0025
TOP_SPEED = 0.069999999  # where velocities of 0.07 and more end; downwards it is 0.07


class State(NamedTuple):
    """What is seen, and when."""

    obs: jax.Array  # (2,): position, velocity
    t: jax.Array  # () int32, steps taken


class Params(NamedTuple):
    """How much the auxiliary reward is."""

    scale: jax.Array  # () the k of the heuristics


def default_scale(variant: str) -> float:
    """10 for `velocity`, else 1."""
    return 10.0 if variant == "velocity" else 1.0


def make(variant: str, tile_scaling: str = "unit") -> Env:
    """MountainCar with one of VARIANTS as auxiliary reward; at most 2000 steps.

    Observation (2,): position and velocity. Action (3,): the largest entry is executed: left, nothing, right.
    Reward: 1 on arrival. `measures["auxiliary"]`, from the velocity v after the step, 0 on the last step:
    `bang`: k where the car pushes left as it goes left or right as it goes right, else -k; `bang-zero`: else 0;
    `bang-left`, `bang-right`: k for one of the two directions only; `bang-speed`: with k|v| added; `velocity`: k|v|.
    `tile_scaling` (unit, raw) is that of the features in `view`, see `features.tiles`.
    """
    name = f"mountaincar-{variant}" + ("-rawtiles" if tile_scaling == "raw" else "")
    view = partial(tiles, low=LOW, high=HIGH, scaling=tile_scaling)
    params = Params(jnp.float32(default_scale(variant)))
    return Env(name, Spec(obs_dim=2, action_dim=3), HORIZON, params, _reset, partial(_step, variant), view)


def _reset(key: Key, params: Params) -> tuple[State, jax.Array]:
    position = jax.random.uniform(key, (), jnp.float32, *START)
    obs = jnp.stack([position, jnp.zeros_like(position)])
    return State(obs, jnp.int32(0)), obs


def _step(variant: str, key: Key, state: State, action: jax.Array, params: Params) -> tuple[State, TimeStep]:
    return advance(state, jnp.argmax(action), params, variant)


def advance(state: State, action: jax.Array, params: Params, variant: str) -> tuple[State, TimeStep]:
    """One step with an action in 0..2."""
    position, velocity = state.obs
    dtype, t = state.obs.dtype, state.t + 1
    velocity += THRUST * (action - 1).astype(dtype) - GRAVITY * jnp.cos(3.0 * position)
    velocity = jnp.where(velocity >= HIGH[1], TOP_SPEED, jnp.maximum(velocity, LOW[1]))
    position += velocity
    at_wall = position < LOW[0]
    obs = jnp.stack([jnp.where(at_wall, LOW[0], position), jnp.where(at_wall, 0.0, velocity)])
    arrived, truncated = obs[0] >= HIGH[0], t >= HORIZON
    auxiliary = params.scale * _heuristic(variant, obs[1], action)
    auxiliary = jnp.where(arrived | truncated, 0.0, auxiliary)
    measures = {"auxiliary": auxiliary, "length": jnp.ones((), dtype)}
    return State(obs, t), TimeStep(obs, arrived.astype(dtype), arrived, truncated, measures)


def _heuristic(variant: str, velocity: jax.Array, action: jax.Array) -> jax.Array:
    """The auxiliary reward in units of k."""
    if variant == "none":
        return jnp.zeros_like(velocity)
    if variant == "velocity":
        return jnp.abs(velocity)
    left, right = (velocity < 0) & (action == 0), (velocity > 0) & (action == 2)
    pumping = {"bang-left": left, "bang-right": right}.get(variant, left | right)
    reward = jnp.where(pumping, 1.0, 0.0 if variant == "bang-zero" else -1.0).astype(velocity.dtype)
    return reward + jnp.abs(velocity) if variant == "bang-speed" else reward
