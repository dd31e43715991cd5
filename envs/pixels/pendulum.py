"""A pendulum whose motor is too weak to lift it at once."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Key
from envs.pixels import render
from envs.pixels.core import Body, Painter, Task, tolerance

DT = 0.02  # s
UPRIGHT = math.cos(math.radians(8.0))  # cosine of the angle from which on there is reward
CAMERA = render.Camera((0.0, -1.5, 2.0), math.pi / 4)
HINGE = (0.0, 0.0, 0.6)  # m
LENGTH, ROD_RADIUS, BALL_RADIUS, HINGE_RADIUS = 0.5, 0.02, 0.05, 0.025  # m


class Params(NamedTuple):
    """The physics."""

    gravity: float = 9.81  # m/s^2
    mass: float = 1.0  # kg, of the ball
    length: float = LENGTH  # m
    ball_inertia: float = 0.001  # kg m^2, of the ball about its centre
    torque: float = 1.0  # N m, of the strongest action
    damping: float = 0.1  # N m s


def _advance(body: Body, action: jax.Array, params: Params) -> Body:
    """A semi-implicit Euler step, implicit in the damping; the angle is 0 upright."""
    inertia = params.mass * params.length**2 + params.ball_inertia
    weight = params.mass * params.gravity * params.length * jnp.sin(body.position)
    torque = params.torque * action + weight - params.damping * body.velocity
    velocity = body.velocity + DT * torque / (inertia + DT * params.damping)
    return body._replace(position=body.position + DT * velocity, velocity=velocity)


def _start(key: Key) -> Body:
    """At rest at any angle."""
    return Body(jax.random.uniform(key, (1,), minval=-jnp.pi, maxval=jnp.pi), jnp.zeros(1), jnp.zeros(2))


def _reward(body: Body, action: jax.Array) -> jax.Array:
    return tolerance(jnp.cos(body.position[0]), UPRIGHT, 1.0)


def _observe(body: Body) -> jax.Array:
    """(3,): cosine and sine of the angle, angular velocity."""
    return jnp.concatenate([jnp.cos(body.position), jnp.sin(body.position), body.velocity])


def painter(size: int) -> Painter:
    """From above at 45 degrees, against the floor."""
    rays, backdrop = render.rays(CAMERA, size), render.with_floor(CAMERA, size, height=0.0, extent=2.0)

    def paint(body: Body) -> jax.Array:
        angle, hinge = body.position[0], jnp.array(HINGE)
        ball = hinge + LENGTH * jnp.stack([jnp.sin(angle), 0.0, jnp.cos(angle)])
        image = render.paint(backdrop, *render.capsule(rays, hinge, ball, ROD_RADIUS), render.BODY)
        image = render.paint(image, *render.ball(rays, hinge, HINGE_RADIUS), render.DECORATION)
        return render.to_bytes(render.paint(image, *render.ball(rays, ball, BALL_RADIUS), render.EFFECTOR))

    return paint


TASKS = {"pendulum-swingup": Task(1, Params(), _start, _advance, _reward, _observe, painter)}
