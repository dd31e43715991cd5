"""Frames of a recorded trajectory, drawn without a screen."""

import mujoco
import numpy as np

from envs.core import UsageError
from envs.mujoco import dynamics, find_robot
from envs.mujoco.locomotion import load_model
from envs.mujoco.opengl import offscreen


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
