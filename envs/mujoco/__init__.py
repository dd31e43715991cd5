"""MuJoCo locomotion (halfcheetah, hopper, walker2d, ant) on two simulators behind one definition.

`locomotion.py` says what the tasks are; `c_physics.py` and `mjx_physics.py` simulate them.
"""

import difflib
import functools

import jax
import numpy as np

from envs.core import Env, EnvState, UsageError
from envs.mujoco.locomotion import ROBOTS, Robot

BACKENDS = ("auto", "mujoco", "mjx")


def make(name: str, backend: str = "auto") -> Env:
    """The task `name` for 1000 steps. `auto` takes C MuJoCo on CPUs and MJX on accelerators.

    The same arguments give the same object, so that programs compiled for it are found again.
    Raises UsageError for an unknown name or backend.
    """
    robot = find_robot(name)
    if backend not in BACKENDS:
        raise UsageError(f"backend={backend!r} is not known; choose one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = "mujoco" if jax.default_backend() == "cpu" else "mjx"
    return _make(robot, backend)


@functools.cache
def _make(robot: Robot, backend: str) -> Env:
    if backend == "mujoco":
        from envs.mujoco import c_physics

        return c_physics.make(robot)
    from envs.mujoco import mjx_physics  # imported here because it takes seconds

    return mjx_physics.make(robot)


def find_robot(name: str) -> Robot:
    """The task of that name; UsageError with the nearest name if there is none."""
    if name not in ROBOTS:
        near = difflib.get_close_matches(name.lower(), ROBOTS, n=1, cutoff=0.0)[0]
        raise UsageError(f"environment {name!r} is not known; did you mean {near!r}?")
    return ROBOTS[name]


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
