"""Frames of a recorded trajectory, drawn without a screen."""

import importlib
import os
import sys

import mujoco
import numpy as np

from envs.core import UsageError
from envs.mujoco import dynamics, find_robot
from envs.mujoco.locomotion import load_model

NO_GRAPHICS = (
    "no OpenGL for drawing ({reason}); install EGL or OSMesa (Debian: libegl1 or libosmesa6) "
    "and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
)
SWITCHED_OFF = ("disable", "disabled", "off", "false", "0")  # what MuJoCo understands of MUJOCO_GL


def render(
    name: str,
    qpos: np.ndarray,
    width: int = 480,
    height: int = 360,
    camera: str | int = "track",
) -> np.ndarray:
    """Draw the robot `name` at positions (T, nq): uint8 frames (T, height, width, 3).

    Raises UsageError for positions of the wrong shape, an unknown camera, or a machine without OpenGL.
    """
    model = load_model(find_robot(name), dynamics.split(name)[1])
    qpos = np.asarray(qpos, np.float64)
    if qpos.ndim != 2 or qpos.shape[1] != model.nq:
        raise UsageError(f"{name} is drawn from positions of shape (T, {model.nq}), not {qpos.shape}")
    if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, str(camera)) < 0 and camera != -1:
        cameras = ", ".join(model.camera(i).name for i in range(model.ncam))
        raise UsageError(f"{name} has no camera {camera!r}; choose one of {cameras}, or -1 for the free camera")
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    with offscreen(model, width, height) as renderer:
        data = mujoco.MjData(model)
        return np.stack([_frame(renderer, model, data, positions, camera) for positions in qpos])


def _frame(renderer, model, data, positions, camera) -> np.ndarray:
    data.qpos[:] = positions
    mujoco.mj_forward(model, data)
    renderer.update_scene(data, camera=camera)
    return renderer.render()


def offscreen(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    """What draws pictures (height, width, 3) on the thread that calls this. Raises UsageError without OpenGL."""
    try:
        _choose_headless_context()
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # each OpenGL library fails in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(NO_GRAPHICS.format(reason=reason)) from error


def _choose_headless_context() -> None:
    """MuJoCo picks its OpenGL library on import and assumes a screen; without one, have it pick EGL.

    Raises RuntimeError where drawing is switched off: without a context MuJoCo may end the process.
    """
    if os.environ.get("MUJOCO_GL", "").lower().strip() in SWITCHED_OFF:
        raise RuntimeError(f"MUJOCO_GL is {os.environ['MUJOCO_GL']}")
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"
        importlib.reload(sys.modules[mujoco.Renderer.__module__].gl_context)
