"""CartPole with the advice of a controller of the angle as auxiliary reward, for heeding it or for not heeding it.

The classic task (Barto, Sutton and Anderson, 1983, in the form of CartPole-v1), with the auxiliary rewards of Gupta et
al., "Behavior Alignment via Reward Function Optimization" (2023). The controller remembers the last angle, so the
auxiliary reward is no function of the observation.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Env, Key, Spec, TimeStep
from envs.shaped.features import fourier

HORIZON = 500
LOW, HIGH = (-2.4, -3.5, -0.2095, -3.5), (2.4, 3.5, 0.2095, 3.5)  # the box of the features; states may leave it
START = 0.05  # half-width of every coordinate's uniform start
GRAVITY = 9.8  # m/s^2
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
HALF_LENGTH = 0.5  # m, of the pole
FORCE = 10.0  # N
DT = 0.02  # s
MAX_POSITION = 2.4  # m
MAX_ANGLE = 12 * 2 * jnp.pi / 360


class State(NamedTuple):
    """What is seen, what the controller remembers, and when."""

    obs: jax.Array  # (4,): position, velocity, angle, angular velocity
    last_angle: jax.Array  # (), at the step before; 0 at the first
    t: jax.Array  # () int32, steps taken


class Params(NamedTuple):
    """The auxiliary reward: what the controller's action earns, what the other one does, and the controller."""

    match: Any = 0.0  # ()
    mismatch: Any = 0.0  # ()
    match_noise: Any = 0.0  # (): width of what is added, uniform from 0
    mismatch_noise: Any = 0.0  # ()
    proportional: Any = 0.1  # (): gains of the controller
    derivative: Any = 0.5  # ()


VARIANTS = {
    "none": Params(),
    "good": Params(5.0, -1.0),
    "good-small": Params(1.0, 0.0),
    "good-weak": Params(5.0, -1.0, derivative=0.1),  # its controller holds the pole for about 310 steps
    "bad": Params(-5.0, 1.0),
    "bad-small": Params(-1.0, 0.0),
    "bad-noise": Params(-5.0, 1.0, 5.0, 1.0),
}


def make(variant: str) -> Env:
    """CartPole with one of VARIANTS as auxiliary reward; at most 500 steps.

    Observation (4,), reward 1 a step, the last one included. Action (2,): the largest entry is executed: left, right.
    `measures["auxiliary"]`: `match` for what the controller would do in the state before the step, else `mismatch`;
    0 on the last step.
    """
    spec, view = Spec(obs_dim=4, action_dim=2), partial(fourier, low=LOW, high=HIGH)
    params = Params(*(jnp.float32(x) for x in VARIANTS[variant]))
    return Env(f"cartpole-{variant}", spec, HORIZON, params, _reset, _step, view)


def _reset(key: Key, params: Params) -> tuple[State, jax.Array]:
    obs = jax.random.uniform(key, (4,), jnp.float32, -START, START)
    return State(obs, jnp.float32(0.0), jnp.int32(0)), obs


def _step(key: Key, state: State, action: jax.Array, params: Params) -> tuple[State, TimeStep]:
    noise = jax.random.uniform(key, (), state.obs.dtype)
    return advance(state, jnp.argmax(action), noise, params)


def control(state: State, params: Params) -> tuple[jax.Array, jax.Array]:
    """The controller's signal () and its action: 1 where the signal is above 0, else 0."""
    angle = state.obs[2]
    signal = params.proportional * angle + params.derivative * (angle - state.last_angle)
    return signal, (signal > 0).astype(jnp.int32)


def advance(state: State, action: jax.Array, noise: jax.Array, params: Params) -> tuple[State, TimeStep]:
    """One step with an action in 0..1; `noise` in [0, 1) is that of the auxiliary reward."""
    obs, t = _move(state.obs, action), state.t + 1
    fallen, truncated = (jnp.abs(obs[0]) > MAX_POSITION) | (jnp.abs(obs[2]) > MAX_ANGLE), t >= HORIZON
    heeded = action == control(state, params)[1]
    auxiliary = jnp.where(
        heeded, params.match + params.match_noise * noise, params.mismatch + params.mismatch_noise * noise
    )
    auxiliary = jnp.where(fallen | truncated, 0.0, auxiliary).astype(obs.dtype)
    one = jnp.ones((), obs.dtype)
    return State(obs, state.obs[2], t), TimeStep(obs, one, fallen, truncated, {"auxiliary": auxiliary, "length": one})


def _move(obs: jax.Array, action: jax.Array) -> jax.Array:
    """Position, velocity, angle and angular velocity (4,) after an explicit Euler step."""
    _, velocity, angle, angular_velocity = obs
    sine, cosine, mass = jnp.sin(angle), jnp.cos(angle), CART_MASS + POLE_MASS
    push = jnp.where(action == 1, FORCE, -FORCE)
    push = (push + POLE_MASS * HALF_LENGTH * jnp.square(angular_velocity) * sine) / mass
    inertia = HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * jnp.square(cosine) / mass)
    angular_acceleration = (GRAVITY * sine - cosine * push) / inertia
    acceleration = push - POLE_MASS * HALF_LENGTH * angular_acceleration * cosine / mass
    return obs + DT * jnp.stack([velocity, acceleration, angular_velocity, angular_acceleration])
