"""Two links that hang on a hinge and are swung up by a motor between them."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from envs.core import Key
from envs.pixels import render
from envs.pixels.core import Body, Painter, Task, runge_kutta, tolerance
from envs.pixels.links import Links, inverse_inertia, passive_torque, times

DT = 0.01  # s
CAMERA = render.Camera((0.0, -6.0, 2.0), math.pi / 2)
HINGE = (0.0, 0.0, 2.0)  # m
LENGTH, RADIUS, HINGE_RADIUS = 1.0, 0.05, 0.06  # m, of both links
TARGET = (0.0, 4.0)  # m, x and height, where the tip is wanted
TARGET_RADIUS = 0.2  # m
LINKS = Links(9.81, LENGTH, 1.0, 0.5, 0.0955703125, 1.0, 0.5, 0.09530365719649561, damping=0.05, torque=2.0)


def _advance(body: Body, action: jax.Array, links: Links) -> Body:
    def acceleration(position: jax.Array, velocity: jax.Array) -> jax.Array:
        torque = passive_torque(position, velocity, links).at[1].add(links.torque * action[0])
        return times(inverse_inertia(position, links), torque)

    position, velocity = runge_kutta(acceleration, body.position, body.velocity, DT)
    return body._replace(position=position, velocity=velocity)


def _start(key: Key) -> Body:
    """At rest at any angles."""
    return Body(jax.random.uniform(key, (2,), minval=-jnp.pi, maxval=jnp.pi), jnp.zeros(2), jnp.zeros(2))


def _joints(body: Body) -> jax.Array:
    """Elbow and tip (2, 2), each as x and height; angles are 0 upright and grow to the right."""
    angle = jnp.cumsum(body.position)
    ends = LENGTH * jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return jnp.array([HINGE[0], HINGE[2]]) + jnp.cumsum(ends, axis=0)


def _reward(margin: float, body: Body, action: jax.Array) -> jax.Array:
    distance = jnp.linalg.norm(_joints(body)[1] - jnp.array(TARGET))
    return tolerance(distance, 0.0, TARGET_RADIUS, margin)


def _observe(body: Body) -> jax.Array:
    """(6,): sines of both links' angles to the vertical, their cosines, angular velocities of the joints."""
    angle = jnp.cumsum(body.position)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle), body.velocity])


def painter(size: int) -> Painter:
    """From the side."""
    rays, backdrop = render.rays(CAMERA, size), render.with_floor(CAMERA, size, height=0.0, extent=3.0, light=0.75)

    def paint(body: Body) -> jax.Array:
        hinge = jnp.array(HINGE)
        elbow, tip = (jnp.stack([x, 0.0, height]) for x, height in _joints(body))
        image = render.paint(backdrop, *render.capsule(rays, hinge, elbow, RADIUS), render.BODY)
        image = render.paint(image, *render.capsule(rays, elbow, tip, RADIUS), render.BODY)
        return render.to_bytes(render.paint(image, *render.ball(rays, hinge, HINGE_RADIUS), render.DECORATION))

    return paint


TASKS = {
    name: Task(1, LINKS, _start, _advance, partial(_reward, margin), _observe, painter)
    for name, margin in (("acrobot-swingup", 1.0), ("acrobot-swingup-sparse", 0.0))
}
