"""A point mass on a table, to be brought to its middle."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Key
from envs.pixels import render
from envs.pixels.core import Body, Painter, Task, small_action, stop_force, tolerance

DT = 0.02  # s
WALLS = (-0.29, 0.29)  # m
STOP_TIME = 2 * DT  # s, time constant of the walls
CAMERA = render.Camera((0.0, 0.0, 0.75), 0.0)
RADIUS, TARGET_RADIUS, HEIGHT = 0.01, 0.015, 0.01  # m


class Params(NamedTuple):
    """The physics."""

    mass: float = 0.3  # kg
    damping: float = 1.0  # N s/m
    force: float = 0.1  # N, of the strongest action along an axis


def _advance(body: Body, action: jax.Array, params: Params) -> Body:
    """A semi-implicit Euler step, implicit in the damping."""
    force = params.force * action - params.damping * body.velocity
    mobility = 1.0 / params.mass
    force = force + stop_force(
        force * mobility, body.position, body.velocity, mobility, mobility, WALLS, STOP_TIME
    )  # fmt: skip
    velocity = body.velocity + DT * force / (params.mass + DT * params.damping)
    return body._replace(position=body.position + DT * velocity, velocity=velocity)


def _start(key: Key) -> Body:
    """At rest anywhere on the table."""
    return Body(jax.random.uniform(key, (2,), minval=WALLS[0], maxval=WALLS[1]), jnp.zeros(2), jnp.zeros(2))


def _reward(body: Body, action: jax.Array) -> jax.Array:
    distance = jnp.linalg.norm(body.position - body.target)
    return tolerance(distance, 0.0, TARGET_RADIUS, TARGET_RADIUS) * small_action(action)


def _observe(body: Body) -> jax.Array:
    """(4,): position and velocity."""
    return jnp.concatenate([body.position, body.velocity])


def painter(size: int) -> Painter:
    """From above."""
    rays = render.rays(CAMERA, size)
    backdrop: render.Image = render.with_table(CAMERA, size)
    backdrop = render.paint(backdrop, *render.ball(rays, (0.0, 0.0, HEIGHT), TARGET_RADIUS), render.TARGET)

    def paint(body: Body) -> jax.Array:
        coverage = render.ball(rays, jnp.append(body.position, HEIGHT), RADIUS)
        return render.to_bytes(render.paint(backdrop, *coverage, render.BODY))

    return paint


TASKS = {"pointmass-easy": Task(2, Params(), _start, _advance, _reward, _observe, painter)}
