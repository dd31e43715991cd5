"""The DeepMind Control Suite's planar walker: stand, walk and run.

A biped in the x-z plane starts in a random posture and is paid for standing upright and, where the task names a
speed, for moving forward at it. It observes the orientations of its bodies, the height of its torso and its
velocities. All of it is a closed form of the generalised positions `qpos` and velocities `qvel`, so it belongs to
the state at the end of a step, whereas a simulator keeps the bodies where its last evaluation of the dynamics saw
them. As in `locomotion.py`, `xp` is numpy (float64) around C MuJoCo, jax.numpy (float32) inside jit with MJX.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.core import Key

Array = Any  # numpy or jax
PATH = Path(__file__).with_name("walker.xml")
HEIGHT, PLACE, PITCH = 0, 1, 2  # of the torso, among the generalised coordinates
STANDING_HEIGHT = 1.2  # m, of the torso
STANDING_MARGIN = 0.6  # m below it, where a tenth of the reward for the height is left


class Kinematics(NamedTuple):
    """What the bodies' orientations and the speed of the centre of mass follow from, for 7 bodies."""

    torso_height: float  # m, at qpos = 0
    turns: np.ndarray  # (7, nq); a body's angle about y is the sum of turns * qpos
    arms: np.ndarray  # (7, 2) m; centre of mass = torso + every body's arm (x, z), turned as the body is


@functools.cache
def _model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(PATH))


@functools.cache
def kinematics() -> Kinematics:
    """The walker's, read from its model."""
    model = _model()
    turns, arms = np.zeros((model.nbody, model.nq)), np.zeros((model.nbody, 3))
    hinges = model.body_jntadr + model.body_jntnum - 1  # a body's last joint
    for body in range(1, model.nbody):
        parent, hinge = model.body_parentid[body], hinges[body]
        turns[body] = turns[parent]
        turns[body, hinge] += model.jnt_axis[hinge, 1]
        pivot = model.jnt_pos[hinge]
        arms[body] += model.body_mass[body] * (model.body_ipos[body] - pivot)
        if parent > 0:  # all that hangs on this body moves with its pivot, which the parent carries
            reach = model.body_pos[body] + pivot - model.jnt_pos[hinges[parent]]
            arms[parent] += model.body_subtreemass[body] * reach
    arms /= model.body_subtreemass[1]
    return Kinematics(float(model.body_pos[1, 2]), turns[1:], arms[1:, [0, 2]])


@dataclass(frozen=True)
class Walker:
    """One of the tasks. They differ in the speed that is asked for."""

    name: str
    speed: float  # m/s forward; 0: standing is all
    frame_skip: int = 10  # simulator steps per environment step
    path: Path = PATH
    # What Robot has, and this task does without: a place to be kept, a speed in the plane, dynamics to be shifted.
    torso: str | None = None
    planar: bool = False
    thighs: tuple[str, ...] = ()

    def observation(self, xp: ModuleType, qpos: Array, qvel: Array) -> Array:
        """Of every body the xx and xz entries of its rotation matrix, the torso's height (m), qvel: (..., 24)."""
        turns = xp.asarray(kinematics().turns, qpos.dtype)
        angles = xp.sum(turns * qpos[..., None, :], axis=-1)  # no matrix product, which accelerators may round
        orientations = xp.stack([xp.cos(angles), xp.sin(angles)], axis=-1).reshape(*qpos.shape[:-1], -1)
        height = kinematics().torso_height + qpos[..., HEIGHT : HEIGHT + 1]
        return xp.concatenate([orientations, height, qvel], axis=-1)

    def reward(self, xp: ModuleType, qpos: Array, qvel: Array, distance: Array, action: Array, dt: float) -> Array:
        """In [0, 1]: standing upright, times the share of the speed that is reached, of which 1/6 is free.

        The state's alone: `distance`, `action` and `dt` do not matter.
        """
        height, upright = kinematics().torso_height + qpos[..., HEIGHT], xp.cos(qpos[..., PITCH])
        standing = 0.1 ** xp.square(xp.maximum(STANDING_HEIGHT - height, 0.0) / STANDING_MARGIN)
        stand = (3.0 * standing + 0.5 * (1.0 + upright)) / 4.0
        if self.speed == 0.0:
            return stand
        moving = xp.clip(forward_speed(xp, qpos, qvel) / self.speed, 0.0, 1.0)
        return stand * (5.0 * moving + 1.0) / 6.0

    def measures(self, xp: ModuleType, moved: Array, dt: float) -> dict[str, Array]:
        """None: there are no costs."""
        return {}

    def is_healthy(self, xp: ModuleType, qpos: Array, qvel: Array) -> Array:
        """Always: lying on the ground does not end an episode."""
        return xp.ones(qpos.shape[:-1], dtype=bool)

    def draw_start(self, init_qpos: jax.Array, nv: int, key: Key) -> tuple[jax.Array, jax.Array]:
        """A posture at rest, float32: joints uniform in their ranges, any pitch, the torso at its usual place."""
        model = _model()
        ranges = np.where(model.jnt_limited[:, None], model.jnt_range, [-np.pi, np.pi])
        ranges[model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE] = 0.0
        low, high = jnp.asarray(ranges.T, jnp.float32)
        return init_qpos + jax.random.uniform(key, init_qpos.shape, jnp.float32, low, high), jnp.zeros(nv)


def forward_speed(xp: ModuleType, qpos: Array, qvel: Array) -> Array:
    """Of the centre of mass along x, in m/s: (...)."""
    _, turns, arms = (xp.asarray(x, qpos.dtype) for x in kinematics())
    angles, spins = xp.sum(turns * qpos[..., None, :], axis=-1), xp.sum(turns * qvel[..., None, :], axis=-1)
    swings = spins * (arms[:, 1] * xp.cos(angles) - arms[:, 0] * xp.sin(angles))
    return qvel[..., PLACE] + xp.sum(swings, axis=-1)


WALKERS = {
    walker.name: walker
    for walker in (Walker("walker-stand", 0.0), Walker("walker-walk", 1.0), Walker("walker-run", 8.0))
}
