"""An arm of two links on a table, whose finger is to touch a target."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from envs.core import Key
from envs.pixels import render
from envs.pixels.core import Body, Painter, Task, stop_force, tolerance
from envs.pixels.links import Links, inverse_inertia, passive_torque, times

DT = 0.02  # s
WRIST = (-math.radians(160.0), math.radians(160.0))
STOP_TIME = 2 * DT  # s, time constant of the wrist's stops
CAMERA = render.Camera((0.0, 0.0, 0.75), 0.0)
LENGTH, HAND_LENGTH, RADIUS, HEIGHT = 0.12, 0.12, 0.01, 0.01  # m
HAND_DRAWN = 0.1  # m; the finger is a ball at the end of what remains
TARGET_RADII = {"easy": 0.05, "hard": 0.015}  # m
TARGET_RANGE = (0.05, 0.2)  # m, distance of targets from the shoulder

HAND_MASS, HAND_CENTRE, HAND_INERTIA = 0.03560471674, 0.05, 3.917566039e-5  # kg, m, kg m^2
FINGER_MASS, FINGER_INERTIA = 0.0041887902, 1.675516082e-7
_MASS = HAND_MASS + FINGER_MASS
_CENTRE = (HAND_MASS * HAND_CENTRE + FINGER_MASS * HAND_LENGTH) / _MASS
_INERTIA = (
    HAND_INERTIA + HAND_MASS * HAND_CENTRE**2 + FINGER_INERTIA + FINGER_MASS * HAND_LENGTH**2 - _MASS * _CENTRE**2
)
LINKS = Links(
    0.0, LENGTH, 0.04188790205, 0.06, 6.331356395e-5, _MASS, _CENTRE, _INERTIA, damping=0.01, torque=0.05
)  # fmt: skip


def _advance(body: Body, action: jax.Array, links: Links) -> Body:
    """A semi-implicit Euler step, implicit in the damping."""
    position, velocity = body.position, body.velocity
    torque = passive_torque(position, velocity, links) + links.torque * action
    inverse, rest = inverse_inertia(position, links), inverse_inertia(jnp.zeros(2), links)
    free = times(inverse, torque)
    stop = stop_force(free[1], position[1], velocity[1], inverse[1, 1], rest[1, 1], WRIST, STOP_TIME)
    damped = inverse_inertia(position, links, added=DT * links.damping)
    velocity = velocity + DT * times(damped, torque.at[1].add(stop))
    return body._replace(position=position + DT * velocity, velocity=velocity)


def _start(key: Key) -> Body:
    """At rest at any angles, the target in a ring around the shoulder."""
    arm_key, angle_key, distance_key = jax.random.split(key, 3)
    limit = jnp.array([jnp.pi, WRIST[1]])
    position = limit * jax.random.uniform(arm_key, (2,), minval=-1.0, maxval=1.0)
    angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
    distance = jax.random.uniform(distance_key, minval=TARGET_RANGE[0], maxval=TARGET_RANGE[1])
    return Body(position, jnp.zeros(2), distance * _direction(angle))


def _direction(angle: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def finger(body: Body) -> jax.Array:
    """Where the finger is (2,), in metres from the shoulder."""
    return LENGTH * _direction(body.position[0]) + HAND_LENGTH * _direction(body.position.sum())


def _reward(radius: float, body: Body, action: jax.Array) -> jax.Array:
    return tolerance(jnp.linalg.norm(body.target - finger(body)), 0.0, radius + RADIUS)


def _observe(body: Body) -> jax.Array:
    """(6,): angles, vector from the finger to the target, angular velocities."""
    return jnp.concatenate([body.position, body.target - finger(body), body.velocity])


def painter(radius: float, size: int) -> Painter:
    """From above."""
    rays, backdrop = render.rays(CAMERA, size), render.with_table(CAMERA, size)

    def paint(body: Body) -> jax.Array:
        lift = lambda point: jnp.append(point, HEIGHT)  # noqa: E731
        wrist = LENGTH * _direction(body.position[0])
        hand = wrist + HAND_DRAWN * _direction(body.position.sum())
        image = render.paint(backdrop, *render.ball(rays, jnp.zeros(3), RADIUS), render.DECORATION)
        image = render.paint(image, *render.capsule(rays, lift(jnp.zeros(2)), lift(wrist), RADIUS), render.BODY)
        image = render.paint(image, *render.capsule(rays, lift(wrist), lift(hand), RADIUS), render.BODY)
        image = render.paint(image, *render.ball(rays, lift(finger(body)), RADIUS), render.EFFECTOR)
        return render.to_bytes(render.paint(image, *render.ball(rays, lift(body.target), radius), render.TARGET))

    return paint


TASKS = {
    f"reacher-{name}": Task(2, LINKS, _start, _advance, partial(_reward, radius), _observe, partial(painter, radius))
    for name, radius in TARGET_RADII.items()
}
