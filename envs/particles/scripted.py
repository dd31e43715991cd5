"""Simple players to compare with: (key, Scene) -> actions (N, 5), one-hot, for games of one kind of agents."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from envs.core import Key
from envs.particles.core import ACTIONS, DAMPING, DT, Dynamics, Scene, distance, length

Controller = Callable[[Key, Scene], jax.Array]
PUSH = Dynamics().force[0] * DT  # velocity that an action adds
COAST = DT / DAMPING  # way to the stop, per unit of velocity, of an agent that does nothing more
DIRECTIONS = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))


def no_op(key: Key, scene: Scene) -> jax.Array:
    """Nobody does anything."""
    return _one_hot(jnp.zeros(len(scene.mask), jnp.int32))


def uniform(key: Key, scene: Scene) -> jax.Array:
    """Everybody does something at random."""
    return _one_hot(jax.random.randint(key, scene.mask.shape, 0, ACTIONS))


def nearest(key: Key, scene: Scene) -> jax.Array:
    """Everybody goes to the landmark whose centre is nearest."""
    return steer(scene, scene.landmark[jnp.argmin(distance(scene.position, scene.landmark), axis=1)])


def largest(key: Key, scene: Scene) -> jax.Array:
    """All go to the largest landmark."""
    return steer(scene, jnp.broadcast_to(scene.landmark[jnp.argmax(scene.size)], scene.position.shape))


def dispersed(key: Key, scene: Scene) -> jax.Array:
    """Agent i goes to landmark L - 1 - (i mod L): in resource occupation, the first one to the largest."""
    count = len(scene.landmark)
    return steer(scene, scene.landmark[count - 1 - jnp.arange(len(scene.mask)) % count])


def steer(scene: Scene, target: jax.Array) -> jax.Array:
    """The actions (N, 5) after which agents, if they did nothing more, would stop nearest to their targets (N, 2)."""
    velocity = (1.0 - DAMPING) * scene.velocity[:, None] + PUSH * jnp.asarray(DIRECTIONS)  # (N, 5, 2)
    stop = scene.position[:, None] + COAST * velocity
    return _one_hot(jnp.argmin(length(stop - target[:, None]), axis=1))


def _one_hot(index: jax.Array) -> jax.Array:
    return jax.nn.one_hot(index, ACTIONS)


CONTROLLERS: dict[str, Controller] = {
    "no-op": no_op,
    "random": uniform,
    "nearest": nearest,
    "largest": largest,
    "dispersed": dispersed,
}
