"""What a control task is, and the physics and rewards that the tasks share.

The tasks are those of the DeepMind Control Suite (Tassa et al., arXiv 1801.00690; Tunyasuvunakool et al., 2020): the
same bodies, time steps, integrators, soft stops, starts and rewards, as functions of explicit arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Key

STEPS = 1000  # control steps of an episode
MIN_IMPEDANCE, MAX_IMPEDANCE, IMPEDANCE_DEPTH = 0.9, 0.95, 1e-3  # of soft stops: MuJoCo's defaults


class Body(NamedTuple):
    """The state of the simulation."""

    position: jax.Array  # (n,) of the joints, in metres or radians
    velocity: jax.Array  # (n,) per second
    target: jax.Array  # (2,) metres; zeros where the task has none


Painter = Callable[[Body], jax.Array]  # -> (size, size, 3) uint8
Acceleration = Callable[[jax.Array, jax.Array], jax.Array]  # position (n,), velocity (n,) -> (n,)


@dataclass(frozen=True)
class Task:
    """A task of 1000 control steps. Actions lie in [-1, 1]; rewards of a control step lie in [0, 1]."""

    action_dim: int
    params: Any  # a tuple of numbers: the physics
    start: Callable[[Key], Body]
    advance: Callable[[Body, jax.Array, Any], Body]  # one control step with an action (action_dim,)
    reward: Callable[[Body, jax.Array], jax.Array]  # () of the state after a control step and its action
    observe: Callable[[Body], jax.Array]  # what the state version of the task observes
    painter: Callable[[int], Painter]  # of pictures of a size


def tolerance(
    x: jax.Array, low: float = 0.0, high: float = 0.0, margin: float = 0.0, at_margin: float = 0.1, shape: str = "gauss"
) -> jax.Array:
    """1 where low <= x <= high, falling to `at_margin` at a distance of `margin`; 0 elsewhere if there is no margin.

    `shape` is that of the fall: gauss (at_margin > 0) or quadratic, which reaches 0 and stays there. Any shape of x.
    """
    inside = (low <= x) & (x <= high)
    if margin == 0:
        return inside.astype(jnp.float32)
    square = jnp.square(jnp.maximum(jnp.maximum(low - x, x - high), 0.0) / margin)
    if shape == "quadratic":
        return jnp.maximum(1.0 - (1.0 - at_margin) * square, 0.0)
    return jnp.float32(at_margin) ** square


def small_action(action: jax.Array) -> jax.Array:
    """The factor () by which an action (A,) lowers rewards: 1 for none, 0.8 for the strongest."""
    return (4.0 + tolerance(action, margin=1.0, at_margin=0.0, shape="quadratic").mean()) / 5.0


def runge_kutta(
    acceleration: Acceleration, position: jax.Array, velocity: jax.Array, dt: float
) -> tuple[jax.Array, jax.Array]:
    """Position and velocity (n,) after a step of the classic method of order four."""
    velocities, accelerations = [velocity], [acceleration(position, velocity)]
    for part in (0.5, 0.5, 1.0):
        moved = position + part * dt * velocities[-1]
        velocities.append(velocity + part * dt * accelerations[-1])
        accelerations.append(acceleration(moved, velocities[-1]))
    weigh = lambda x: dt / 6.0 * (x[0] + 2.0 * x[1] + 2.0 * x[2] + x[3])  # noqa: E731
    return position + weigh(velocities), velocity + weigh(accelerations)


def stop_force(
    acceleration: jax.Array,
    position: jax.Array,
    velocity: jax.Array,
    mobility: jax.Array | float,
    rest_mobility: jax.Array | float,
    bounds: tuple[float, float],
    time_constant: float,
) -> jax.Array:
    """Force (...) of the soft stops at `bounds` on joints (...): MuJoCo's joint limits, critically damped.

    acceleration: without the stops. mobility: acceleration by a unit force; rest_mobility: that at position zero.
    time_constant: seconds; MuJoCo takes two time steps where that is more.
    """
    low, high = bounds
    upper = position > (low + high) / 2
    side = jnp.where(upper, -1.0, 1.0)  # into which the stop pushes
    gap = jnp.where(upper, high - position, position - low)
    depth = jnp.clip(-gap / IMPEDANCE_DEPTH, 0.0, 1.0)
    rise = jnp.where(depth < 0.5, 2.0 * jnp.square(depth), 1.0 - 2.0 * jnp.square(1.0 - depth))
    impedance = MIN_IMPEDANCE + (MAX_IMPEDANCE - MIN_IMPEDANCE) * rise
    width = MAX_IMPEDANCE * time_constant
    wanted = -2.0 / width * side * velocity - impedance / width**2 * gap
    softness = (1.0 - impedance) / impedance * rest_mobility
    push = jnp.maximum(wanted - side * acceleration, 0.0) / (mobility + softness)
    return jnp.where(gap < 0, side * push, 0.0)
