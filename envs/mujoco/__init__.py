"""MuJoCo locomotion (halfcheetah, hopper, walker2d, ant, walker) on two simulators behind one definition.

`locomotion.py` and `walker.py` say what the tasks are; `c_physics.py` and `mjx_physics.py` simulate them.
"""

import dataclasses
import difflib
import functools
from typing import Any

import jax
import numpy as np

from envs.core import Env, EnvParams, EnvState, UsageError
from envs.mujoco import dynamics
from envs.mujoco.locomotion import TASKS, Task

BACKENDS = ("auto", "mujoco", "mjx")


def make(name: str, backend: str = "auto") -> Env:
    """The task `name` for 1000 steps. `auto` takes C MuJoCo on CPUs and MJX on accelerators.

    `name` may end in a shift of the dynamics, e.g. `walker2d-gravity2` (see `dynamics.split`). The same arguments
    give the same object, so that programs compiled for it are found again.
    Raises UsageError for an unknown name or backend, and for a shift that cannot be.
    """
    return _make_named(name, _backend(backend))


@functools.cache
def _make_named(name: str, backend: str) -> Env:
    robot, shift = find_robot(name), dynamics.split(name)[1]
    env = _make(robot, backend)
    if name == robot.name:
        return env
    return dataclasses.replace(env, name=name, params=_params(robot, backend, dynamics.as_arrays(shift)))


def dynamics_params(
    name: str,
    backend: str = "auto",
    friction: Any = 1.0,
    gravity: Any = 1.0,
    thigh: Any = 1.0,
    thigh_scale: str = "radius",
) -> EnvParams:
    """Parameters of `make(name, backend)` under a shift of its dynamics; halfcheetah and walker2d can have one.

    Each is a factor of what it usually is, or a sequence of n of them: the parameters then have a leading axis of n
    for `jax.vmap`. `thigh` is that of the thighs' radius, with `thigh_scale="radius_and_length"` of their length, too.
    The parameters of one backend are not those of the other. To be called on the host, not inside jit.
    Raises UsageError: no such robot or backend, a robot without thighs, a factor that is not positive.
    """
    return _params(find_robot(name), _backend(backend), dynamics.factors(friction, gravity, thigh, thigh_scale))


def _params(robot: Task, backend: str, factors: dynamics.Dynamics) -> EnvParams:
    if not robot.thighs:
        able = ", ".join(name for name, task in TASKS.items() if task.thighs)
        raise UsageError(f"the dynamics of {robot.name!r} cannot be shifted; choose one of {able}")
    if backend == "mujoco":
        return factors
    from envs.mujoco import mjx_physics

    return mjx_physics.model_arrays(robot, factors)


def _backend(asked: str) -> str:
    if asked not in BACKENDS:
        raise UsageError(f"backend={asked!r} is not known; choose one of {', '.join(BACKENDS)}")
    if asked == "auto":
        return "mujoco" if jax.default_backend() == "cpu" else "mjx"
    return asked


@functools.cache
def _make(robot: Task, backend: str) -> Env:
    if backend == "mujoco":
        from envs.mujoco import c_physics

        return c_physics.make(robot)
    from envs.mujoco import mjx_physics  # imported here because it takes seconds

    return mjx_physics.make(robot)


def find_robot(name: str) -> Task:
    """The task of that name, without a shift of its dynamics; UsageError with the nearest name if there is none."""
    base = dynamics.split(name)[0]
    if base not in TASKS:
        near = difflib.get_close_matches(base.lower(), TASKS, n=1, cutoff=0.0)[0]
        raise UsageError(f"environment {name!r} is not known; did you mean {name.replace(base, near)!r}?")
    return TASKS[base]


def qpos_qvel(name: str, state: EnvState) -> tuple[np.ndarray, np.ndarray]:
    """Positions (..., nq) and velocities (..., nv) of a state of either backend; on the host.

    The state may have leading axes. The numbers are float64 for C MuJoCo and float32 for MJX.
    """
    if hasattr(state, "qpos"):
        return np.asarray(state.qpos), np.asarray(state.qvel)
    from envs.mujoco.c_physics import float64_vector
    from envs.mujoco.locomotion import load_model

    model, vector = load_model(find_robot(name)), float64_vector(np.asarray(state.words))
    return vector[..., : model.nq], vector[..., model.nq : model.nq + model.nv]
