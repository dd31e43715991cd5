"""HalfCheetah, Hopper, Walker2d and Ant: observation, reward and termination, once for every simulator.

The rules are those of gymnasium's `-v4` environments (Ant without contact forces). They are functions of the
generalised positions `qpos` and velocities `qvel` and take the array module `xp`: numpy (float64) around C
MuJoCo, jax.numpy (float32) inside jit with MJX.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.core import Key, Spec
from envs.mujoco.dynamics import NOMINAL, Dynamics, compile_model
from envs.mujoco.walker import WALKERS, Walker

HORIZON = 1000  # environment steps
_LOADING = threading.Lock()  # the handler of warnings is the whole process's
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
    speed_limit: float | None = None  # m/s; a step that is faster costs 1. None: there are no costs
    planar: bool = False  # the speed is that of x and y together, else the forward velocity
    thighs: tuple[str, ...] = ()  # their geoms; robots that name them can have their dynamics shifted

    @property
    def path(self) -> Path:
        """Where the model is."""
        return Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / self.xml

    def observation(self, xp: ModuleType, qpos: Array, qvel: Array) -> Array:
        """Positions without the place in the world, then velocities: (..., obs_dim)."""
        if self.velocity_limit is not None:
            qvel = xp.clip(qvel, -self.velocity_limit, self.velocity_limit)
        return xp.concatenate([qpos[..., self.hidden_positions :], qvel], axis=-1)

    def reward(self, xp: ModuleType, qpos: Array, qvel: Array, distance: Array, action: Array, dt: float) -> Array:
        """Forward velocity plus a bonus for every step minus the squared action; `distance` in m, `dt` in s.

        The bonus is also paid on the step that ends the episode.
        """
        cost = self.control_cost * xp.sum(xp.square(action), axis=-1)
        return distance / dt + self.healthy_reward - cost

    def measures(self, xp: ModuleType, moved: Array, dt: float) -> dict[str, Array]:
        """{"cost": 1 or 0} where there is a limit of speed; `moved` (..., 1 or 2) in m is what x (and y) changed by."""
        if self.speed_limit is None:
            return {}
        velocity = moved / dt
        speed = xp.sqrt(xp.sum(xp.square(velocity), axis=-1)) if self.planar else velocity[..., 0]
        return {"cost": (speed > self.speed_limit).astype(xp.float32)}

    def draw_start(self, init_qpos: jax.Array, nv: int, key: Key) -> tuple[jax.Array, jax.Array]:
        """Noisy initial positions (nq,) and velocities (nv,), float32."""
        qpos_key, qvel_key = jax.random.split(key)
        noise = self.reset_noise
        qpos = init_qpos + jax.random.uniform(qpos_key, init_qpos.shape, jnp.float32, -noise, noise)
        if self.normal_velocity_noise:
            return qpos, noise * jax.random.normal(qvel_key, (nv,), jnp.float32)
        return qpos, jax.random.uniform(qvel_key, (nv,), jnp.float32, -noise, noise)


ROBOTS = {
    robot.name: robot
    for robot in (
        Robot(
            "halfcheetah",
            "half_cheetah.xml",
            5,
            _halfcheetah_is_healthy,
            0.0,
            0.1,
            0.1,
            True,
            thighs=("bthigh", "fthigh"),
        ),  # fmt: skip
        Robot("hopper", "hopper.xml", 4, _hopper_is_healthy, 1.0, 1e-3, 5e-3, False, velocity_limit=10.0),
        Robot(
            "walker2d",
            "walker2d.xml",
            4,
            _walker2d_is_healthy,
            1.0,
            1e-3,
            5e-3,
            False,
            velocity_limit=10.0,
            thighs=("thigh_geom", "thigh_left_geom"),
        ),  # fmt: skip
        Robot("ant", "ant.xml", 5, _ant_is_healthy, 1.0, 0.5, 0.1, True, hidden_positions=2, torso="torso"),
    )
}

# The velocity tasks of Safety-Gymnasium (`-v1`, which DSRL's data are of): their robots are gymnasium's `-v4` too.
SPEED_LIMITS = {"halfcheetah": 3.2096, "hopper": 0.7402, "walker2d": 2.3415, "ant": 2.6222}  # m/s
SAFE = {
    f"safe-{name}": replace(ROBOTS[name], name=f"safe-{name}", speed_limit=limit, planar=name == "ant")
    for name, limit in SPEED_LIMITS.items()
}

Task = Robot | Walker
TASKS: dict[str, Task] = {**ROBOTS, **SAFE, **WALKERS}


def load_model(task: Task, dynamics: Dynamics = NOMINAL) -> mujoco.MjModel:
    """The task's model. Remarks on old XML attributes in gymnasium's assets are not written to the log."""
    with _LOADING:
        handler = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            return compile_model(task.path, task.thighs, dynamics)
        finally:
            mujoco.set_mju_user_warning(handler)


def spec_of(task: Task, model: mujoco.MjModel) -> Spec:
    """Shapes of the task; every actuator's range is [-1, 1]."""
    return Spec(task.observation(np, model.qpos0, np.zeros(model.nv)).size, model.nu)
