"""Particles on a plane: agents that push themselves and each other, and landmarks that stay where they are.

All arrays have N slots, of which `Scene.mask` tells the real agents: populations are data, not shapes. Real agents
come first; what a padded slot holds changes nothing. The dynamics are those of the multi-agent particle environments
(Lowe et al., arXiv 1706.02275), whose descendants differ in the order of integration and in the sign of actions.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import UsageError

DT = 0.1  # seconds a step
DAMPING = 0.25  # share of its velocity that an agent loses each step
CONTACT_FORCE = 100.0  # per unit of overlap
CONTACT_MARGIN = 1e-3  # distance over which contact sets in
ACTIONS = 5  # none, +x, -x, +y, -y
INTEGRATORS = ("velocity_first", "position_first")


class Scene(NamedTuple):
    """What there is to see. All fields are float32."""

    position: jax.Array  # (N, 2)
    velocity: jax.Array  # (N, 2) per second
    landmark: jax.Array  # (L, 2) positions
    size: jax.Array  # (L,) radii of landmarks
    mask: jax.Array  # (N,) 1 for an agent, 0 for padding
    kind: jax.Array  # (N,) number of the agent's kind, 0..H-1


@dataclass(frozen=True)
class Dynamics:
    """How agents move. Tuples have an entry for each kind."""

    radius: tuple[float, ...] = (0.05,)
    mass: tuple[float, ...] = (1.0,)
    force: tuple[float, ...] = (5.0,)  # of an action of length 1
    max_speed: tuple[float, ...] = (float("inf"),)
    bound: float = float("inf")  # coordinates are clamped to [-bound, bound]; velocities are kept
    kinds_collide: bool = True  # whether agents of different kinds push each other
    integrator: str = "velocity_first"  # position_first, as in JaxMARL, moves by the velocity before the step
    action_sign: float = 1.0  # -1, as in JaxMARL, swaps +x with -x and +y with -y

    def __post_init__(self) -> None:
        if self.integrator not in INTEGRATORS:
            raise UsageError(f"integrator={self.integrator!r} is not known; choose one of {', '.join(INTEGRATORS)}")


def per_kind(values: tuple[float, ...], kind: jax.Array) -> jax.Array:
    """The value of each agent's kind, with the shape of `kind`."""
    start = jnp.full_like(kind, values[0])
    return functools.reduce(lambda x, h: jnp.where(kind == h, values[h], x), range(1, len(values)), start)


def clean(scene: Scene) -> Scene:
    """The scene with zeros in padded slots."""
    real = scene.mask > 0
    position, velocity = (jnp.where(real[:, None], x, 0.0) for x in (scene.position, scene.velocity))
    return scene._replace(position=position, velocity=velocity, kind=jnp.where(real, scene.kind, 0.0))


def length(vector: jax.Array) -> jax.Array:
    """Euclidean length (...) of vectors (..., 2), with gradient 0 at 0."""
    square = jnp.sum(jnp.square(vector), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Distances (N, M) of points (N, 2) from points (M, 2)."""
    return length(a[:, None] - b)


def control_force(scene: Scene, action: jax.Array, dynamics: Dynamics) -> jax.Array:
    """Forces (N, 2) of actions (N, 5), in which they are linear."""
    direction = jnp.stack([action[:, 1] - action[:, 2], action[:, 3] - action[:, 4]], axis=-1)
    return dynamics.action_sign * per_kind(dynamics.force, scene.kind)[:, None] * direction


def contact_force(scene: Scene, dynamics: Dynamics) -> jax.Array:
    """Forces (N, 2) with which agents that overlap push each other apart, equal and opposite in each pair.

    A smooth step: 100 k log(1 + exp((r_i + r_j - d) / k)) along the line between the two; 0 where they coincide.
    """
    apart = scene.position[:, None] - scene.position  # (N, N, 2)
    gap = length(apart)
    radius = per_kind(dynamics.radius, scene.kind)
    overlap = CONTACT_MARGIN * jax.nn.softplus((radius[:, None] + radius - gap) / CONTACT_MARGIN)
    meet = scene.mask[:, None] * scene.mask
    if not dynamics.kinds_collide:
        meet = meet * (scene.kind[:, None] == scene.kind)
    push = CONTACT_FORCE * meet * overlap / jnp.where(gap > 0, gap, 1.0)
    return jnp.sum(push[..., None] * apart, axis=1)


def advance(scene: Scene, action: jax.Array, dynamics: Dynamics) -> Scene:
    """The scene after a step with actions (N, 5); forces are those of the positions before it."""
    scene = clean(scene)
    action = jnp.where(scene.mask[:, None] > 0, action, 0.0)
    force = control_force(scene, action, dynamics) + contact_force(scene, dynamics)
    mass, fastest = (per_kind(x, scene.kind)[:, None] for x in (dynamics.mass, dynamics.max_speed))
    velocity = (1.0 - DAMPING) * scene.velocity + DT * force / mass
    velocity = velocity * jnp.minimum(1.0, fastest / jnp.maximum(length(velocity)[:, None], 1e-9))
    moving = velocity if dynamics.integrator == "velocity_first" else scene.velocity
    position = jnp.clip(scene.position + DT * moving, -dynamics.bound, dynamics.bound)
    return scene._replace(position=position, velocity=velocity)


def inside(scene: Scene, dynamics: Dynamics) -> jax.Array:
    """Which agents touch which landmarks (N, L) bool: their distance is below the sum of their radii."""
    reach = per_kind(dynamics.radius, scene.kind)[:, None] + scene.size
    return (distance(scene.position, scene.landmark) < reach) & (scene.mask[:, None] > 0)


def split_equally(members: jax.Array, worth: jax.Array | float) -> jax.Array:
    """What each of N gets (N,) when `worth` (M,) of each of M things is split among its members (N, M) bool."""
    share = worth / jnp.maximum(jnp.sum(members, axis=0), 1)
    return jnp.sum(jnp.where(members, share, 0.0), axis=1)


def flatten(scene: Scene, agents: int, kinds: int = 1) -> jax.Array:
    """What each of the first `agents` observes, as one vector each: (n, n * W) with W = 4 + 3 L, or 4 + 3 L + H.

    Own velocity and position; of every other agent in order of their numbers: relative position, velocity, relative
    position and size of each landmark; then own relative position and size of each landmark. Where there are several
    kinds, the landmarks are followed by the one-hot kind of the agent whose landmarks they are.
    """
    position, velocity = scene.position[:agents], scene.velocity[:agents]
    toward = scene.landmark - position[:, None]  # (n, L, 2)
    sizes = jnp.broadcast_to(scene.size[:, None], (*toward.shape[:2], 1))
    around = jnp.concatenate([toward, sizes], axis=-1).reshape(agents, -1)
    if kinds > 1:
        kind = jax.nn.one_hot(scene.kind[:agents].astype(jnp.int32), kinds, dtype=around.dtype)
        around = jnp.concatenate([around, kind], axis=-1)
    relative = position - position[:, None]  # (n, n, 2), from i to j
    told = jnp.concatenate([velocity, around], axis=-1)
    pair = jnp.concatenate([relative, jnp.broadcast_to(told, (agents, *told.shape))], axis=-1)
    number = np.arange(agents)
    others = np.stack([np.delete(number, i) for i in number])  # (n, n - 1)
    pair = pair[number[:, None], others].reshape(agents, -1)
    return jnp.concatenate([velocity, position, pair, around], axis=-1)
