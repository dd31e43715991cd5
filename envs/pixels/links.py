"""Two joints: their algebra, and two links joined in a row that move in a plane."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Links(NamedTuple):
    """The physics. Centres are distances from the joint before; inertias are about the centres."""

    gravity: float  # m/s^2, in the plane, against the direction of angle 0
    length: float  # m, of the first link
    first_mass: float  # kg
    first_centre: float  # m
    first_inertia: float  # kg m^2
    second_mass: float
    second_centre: float
    second_inertia: float
    damping: float  # N m s, of both joints
    torque: float  # N m, of the strongest action


def inverse_inertia(position: jax.Array, links: Links, added: float = 0.0) -> jax.Array:
    """(2, 2): accelerations by unit torques on the joints; `added` is an inertia added to both."""
    lever = links.length * links.second_mass * links.second_centre * jnp.cos(position[1])
    second = links.second_inertia + links.second_mass * links.second_centre**2
    first = links.first_inertia + links.first_mass * links.first_centre**2 + links.second_mass * links.length**2
    return symmetric_inverse(first + second + 2.0 * lever + added, second + lever, second + added)


def passive_torque(position: jax.Array, velocity: jax.Array, links: Links) -> jax.Array:
    """(2,) of gravity, damping and inertial forces; the second angle is relative to the first link."""
    pull = links.second_mass * links.second_centre
    turning = links.length * pull * jnp.sin(position[1])
    inertial = turning * jnp.stack([velocity[1] * (2.0 * velocity[0] + velocity[1]), -jnp.square(velocity[0])])
    second = links.gravity * pull * jnp.sin(position.sum())
    first = links.gravity * (links.first_mass * links.first_centre + links.second_mass * links.length)
    weight = jnp.stack([first * jnp.sin(position[0]) + second, second])
    return inertial + weight - links.damping * velocity


def symmetric_inverse(a: jax.Array | float, b: jax.Array, c: jax.Array | float) -> jax.Array:
    """The inverse (2, 2) of ((a, b), (b, c))."""
    return jnp.array([[c, -b], [-b, a]]) / (a * c - jnp.square(b))


def times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """(2, 2), (2,) -> (2,) in full precision: accelerators may round the factors of `@` to fewer bits."""
    return (matrix * vector).sum(axis=-1)
