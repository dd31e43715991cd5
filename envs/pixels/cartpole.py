"""A pole on a cart on a rail, balanced or swung up; dense rewards or sparse ones."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Key
from envs.pixels import render
from envs.pixels.core import Body, Painter, Task, runge_kutta, small_action, stop_force, tolerance
from envs.pixels.links import symmetric_inverse, times

DT = 0.01  # s
ENDS = (-1.8, 1.8)  # m, of the rail
STOP_TIME = 0.08  # s, time constant of the rail's ends
NEAR, UPRIGHT = 0.25, 0.995  # m, cosine: what the sparse reward asks for
CAMERA = render.Camera((0.0, -4.0, 1.0), math.pi / 2)
CART = (0.2, 0.15, 0.1)  # m, half-sizes
SIDE_SHADE = 0.4  # brightness of its sides
POLE_LENGTH, POLE_RADIUS = 1.0, 0.045  # m
RAIL_HEIGHT, RAIL_RADIUS, RAIL_DEPTH, RAIL_LENGTH = 1.0, 0.02, 0.07, 4.0  # m, of two rails side by side


class Params(NamedTuple):
    """The physics."""

    gravity: float = 9.81  # m/s^2
    cart_mass: float = 1.0  # kg
    pole_mass: float = 0.1
    pole_centre: float = 0.5  # m, from the hinge
    pole_inertia: float = 0.009424592767  # kg m^2, about its centre: a capsule
    force: float = 10.0  # N, of the strongest action
    cart_damping: float = 5e-4  # N s/m
    pole_damping: float = 2e-6  # N m s


def acceleration(position: jax.Array, velocity: jax.Array, force: jax.Array, params: Params) -> jax.Array:
    """Of position and angle (2,), by a force () on the cart; the angle is 0 upright and grows to the right."""
    angle, spin = position[1], velocity[1]
    lever = params.pole_mass * params.pole_centre
    hinge_inertia = params.pole_inertia + lever * params.pole_centre
    mass = params.cart_mass + params.pole_mass
    inverse = symmetric_inverse(mass, lever * jnp.cos(angle), hinge_inertia)
    push = force - params.cart_damping * velocity[0] + lever * jnp.square(spin) * jnp.sin(angle)
    turn = lever * params.gravity * jnp.sin(angle) - params.pole_damping * spin
    free = times(inverse, jnp.stack([push, turn]))
    rest = hinge_inertia / (mass * hinge_inertia - lever**2)
    stop = stop_force(free[0], position[0], velocity[0], inverse[0, 0], rest, ENDS, STOP_TIME)
    return free + inverse[:, 0] * stop


def _advance(body: Body, action: jax.Array, params: Params) -> Body:
    moving = partial(acceleration, force=params.force * action[0], params=params)
    position, velocity = runge_kutta(moving, body.position, body.velocity, DT)
    return body._replace(position=position, velocity=velocity)


def _start(swingup: bool, key: Key) -> Body:
    """Hanging in the middle of the rail, or upright somewhere near it; almost at rest."""
    position_key, velocity_key = jax.random.split(key)
    if swingup:
        position = jnp.array([0.0, jnp.pi]) + 0.01 * jax.random.normal(position_key, (2,))
    else:
        position = jnp.array([0.1, 0.034]) * jax.random.uniform(position_key, (2,), minval=-1.0, maxval=1.0)
    return Body(position, 0.01 * jax.random.normal(velocity_key, (2,)), jnp.zeros(2))


def _dense(body: Body, action: jax.Array) -> jax.Array:
    upright = (1.0 + jnp.cos(body.position[1])) / 2.0
    centred = (1.0 + tolerance(body.position[0], margin=2.0)) / 2.0
    slow = (1.0 + tolerance(body.velocity[1], margin=5.0)) / 2.0
    return upright * centred * small_action(action) * slow


def _sparse(body: Body, action: jax.Array) -> jax.Array:
    return tolerance(body.position[0], -NEAR, NEAR) * tolerance(jnp.cos(body.position[1]), UPRIGHT, 1.0)


def _observe(body: Body) -> jax.Array:
    """(5,): position, cosine and sine of the angle, velocity, angular velocity."""
    angle = body.position[1]
    return jnp.concatenate([jnp.stack([body.position[0], jnp.cos(angle), jnp.sin(angle)]), body.velocity])


def painter(size: int) -> Painter:
    """The cart from the side; beyond 1.6 m it is out of the picture."""
    rays = render.rays(CAMERA, size)
    backdrop: render.Image = render.with_floor(CAMERA, size, height=-0.05, extent=4.0, light=0.7)
    for depth in (RAIL_DEPTH, -RAIL_DEPTH):
        left, right = (-RAIL_LENGTH / 2, depth, RAIL_HEIGHT), (RAIL_LENGTH / 2, depth, RAIL_HEIGHT)
        backdrop = render.paint(backdrop, *render.capsule(rays, left, right, RAIL_RADIUS), render.DECORATION)

    def paint(body: Body) -> jax.Array:
        x, angle = body.position
        hinge = jnp.stack([x, 0.0, RAIL_HEIGHT])
        tip = hinge + POLE_LENGTH * jnp.stack([jnp.sin(angle), 0.0, jnp.cos(angle)])
        image = render.paint(backdrop, *render.capsule(rays, hinge, tip, POLE_RADIUS), render.BODY)
        # The cart is seen from the front; away from the middle, its far corners show beside its near ones.
        near, far = -CAMERA.position[1] - CART[1], -CAMERA.position[1] + CART[1]
        left, right = x - CART[0], x + CART[0]
        seen = jnp.minimum(left, near / far * left), jnp.maximum(right, near / far * right)
        height = RAIL_HEIGHT - CART[2], RAIL_HEIGHT + CART[2]
        image = render.paint(image, render.box(rays, -CART[1], seen, height), SIDE_SHADE, render.BODY)
        image = render.paint(image, render.box(rays, -CART[1], (left, right), height), 1.0, render.BODY)
        return render.to_bytes(image)

    return paint


TASKS = {
    f"cartpole-{name}": Task(1, Params(), partial(_start, swingup), _advance, reward, _observe, painter)
    for name, swingup, reward in (
        ("balance", False, _dense),
        ("balance-sparse", False, _sparse),
        ("swingup", True, _dense),
        ("swingup-sparse", True, _sparse),
    )
}
