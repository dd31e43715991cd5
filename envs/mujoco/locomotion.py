"""HalfCheetah, Hopper, Walker2d and Ant: observation, reward and termination, once for every simulator.

The rules are those of gymnasium's `-v4` environments (Ant without contact forces). They are functions of the
generalised positions `qpos` and velocities `qvel` and take the array module `xp`: numpy (float64) around C
MuJoCo, jax.numpy (float32) inside jit with MJX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco

from envs.core import Key, Spec

HORIZON = 1000  # environment steps
Array = Any  # numpy or jax


def _hopper_is_healthy(xp: ModuleType, qpos: Array, qvel: Array) -> Array:
    height, angle = qpos[..., 1], qpos[..., 2]
    bounded = xp.concatenate([qpos[..., 2:], qvel], axis=-1)
    return (height > 0.7) & (xp.abs(angle) < 0.2) & xp.all(xp.abs(bounded) < 100.0, axis=-1)


def _walker2d_is_healthy(xp: ModuleType, qpos: Array, qvel: Array) -> Array:
    height, angle = qpos[..., 1], qpos[..., 2]
    return (height > 0.8) & (height < 2.0) & (xp.abs(angle) < 1.0)


def _ant_is_healthy(xp: ModuleType, qpos: Array, qvel: Array) -> Array:
    height = qpos[..., 2]
    finite = xp.all(xp.isfinite(qpos), axis=-1) & xp.all(xp.isfinite(qvel), axis=-1)
    return finite & (height >= 0.2) & (height <= 1.0)


def _halfcheetah_is_healthy(xp: ModuleType, qpos: Array, qvel: Array) -> Array:
    return xp.ones(qpos.shape[:-1], dtype=bool)


@dataclass(frozen=True)
class Robot:
    """What distinguishes one locomotion task from another.

    The forward velocity is measured at `torso` where it names a body, else on qpos[0]. The two differ: the
    simulator leaves body positions as its last evaluation of the dynamics saw them, before the step's end.
    """

    name: str
    xml: str  # file among gymnasium's assets
    frame_skip: int  # simulator steps per environment step
    is_healthy: Callable[[ModuleType, Array, Array], Array]  # (xp, qpos, qvel) -> bool; False ends the episode
    healthy_reward: float
    control_cost: float
    reset_noise: float  # half-width of the uniform noise on qpos
    normal_velocity_noise: bool  # noise on qvel: normal with that standard deviation, else uniform like qpos
    hidden_positions: int = 1  # leading coordinates (the place in the world) that are not observed
    velocity_limit: float | None = None  # observed velocities are clipped to it
    torso: str | None = None

    def observation(self, xp: ModuleType, qpos: Array, qvel: Array) -> Array:
        """Positions without the place in the world, then velocities: (..., obs_dim)."""
        if self.velocity_limit is not None:
            qvel = xp.clip(qvel, -self.velocity_limit, self.velocity_limit)
        return xp.concatenate([qpos[..., self.hidden_positions :], qvel], axis=-1)

    def reward(self, xp: ModuleType, distance: Array, action: Array, dt: float) -> Array:
        """Forward velocity plus a bonus for every step minus the squared action; `distance` in m, `dt` in s.

        The bonus is also paid on the step that ends the episode.
        """
        cost = self.control_cost * xp.sum(xp.square(action), axis=-1)
        return distance / dt + self.healthy_reward - cost


ROBOTS = {
    robot.name: robot
    for robot in (
        Robot("halfcheetah", "half_cheetah.xml", 5, _halfcheetah_is_healthy, 0.0, 0.1, 0.1, True),
        Robot("hopper", "hopper.xml", 4, _hopper_is_healthy, 1.0, 1e-3, 5e-3, False, velocity_limit=10.0),
        Robot("walker2d", "walker2d.xml", 4, _walker2d_is_healthy, 1.0, 1e-3, 5e-3, False, velocity_limit=10.0),
        Robot("ant", "ant.xml", 5, _ant_is_healthy, 1.0, 0.5, 0.1, True, hidden_positions=2, torso="torso"),
    )
}


def load_model(robot: Robot) -> mujoco.MjModel:
    """The robot's model from gymnasium's assets. Remarks on old XML attributes are not written to the log."""
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / robot.xml
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    finally:
        mujoco.set_mju_user_warning(handler)


def spec_of(robot: Robot, model: mujoco.MjModel) -> Spec:
    """Shapes of the task; every actuator's range is [-1, 1]."""
    return Spec(model.nq - robot.hidden_positions + model.nv, model.nu)


def draw_start(robot: Robot, init_qpos: jax.Array, nv: int, key: Key) -> tuple[jax.Array, jax.Array]:
    """Noisy initial positions (nq,) and velocities (nv,), float32."""
    qpos_key, qvel_key = jax.random.split(key)
    noise = robot.reset_noise
    qpos = init_qpos + jax.random.uniform(qpos_key, init_qpos.shape, jnp.float32, -noise, noise)
    if robot.normal_velocity_noise:
        return qpos, noise * jax.random.normal(qvel_key, (nv,), jnp.float32)
    return qpos, jax.random.uniform(qvel_key, (nv,), jnp.float32, -noise, noise)
