"""Contact frames of capsules on the ground as C MuJoCo has them.

The friction pyramid of a contact is turned with the capsule's axis. MJX does so only while the axis is within 60
degrees of the ground and takes a world axis for steeper ones; C MuJoCo always follows the axis (mujoco issue 2774).
Ant's feet are such capsules. The planar robots do not care: their two choices differ by a right angle.
"""

from typing import Any

import jax.numpy as jnp
from mujoco.mjx._src import collision_driver, collision_primitive
from mujoco.mjx._src.types import GeomType

_PAIR = (GeomType.PLANE, GeomType.CAPSULE)


@collision_primitive.collider(ncon=2)
def plane_capsule(plane: Any, capsule: Any) -> Any:
    """Two contacts: distances (2,), positions (2, 3), frames (2, 3, 3) with rows normal, tangent, tangent."""
    normal, axis = plane.mat[:, 2], capsule.mat[:, 2]
    along = axis - normal * jnp.dot(normal, axis)
    length = jnp.linalg.norm(along)
    upright = length < 1e-6  # no direction to follow
    along = jnp.where(upright, plane.mat[:, 1], along / jnp.where(upright, 1.0, length))
    frame = jnp.stack([normal, along, jnp.cross(normal, along)])
    ends = capsule.pos + jnp.outer(jnp.array([1.0, -1.0]), axis * capsule.size[1])  # (2, 3)
    radius = capsule.size[0]
    height = (ends - plane.pos) @ normal
    position = ends - jnp.outer(radius + 0.5 * (height - radius), normal)
    return height - radius, position, jnp.broadcast_to(frame, (2, 3, 3))


def follow_axes() -> None:
    """Make MJX use it. To be called before a program is traced; calling it again changes nothing."""
    collision_driver._COLLISION_FUNC[_PAIR] = plane_capsule
