"""dm_control's tasks on the host: stepping and drawing batches of explicit states, on one thread per core.

Physics, starts and rewards are dm_control's own code (Tassa et al., arXiv 1801.00690; Tunyasuvunakool et al., 2020);
MuJoCo draws. A thread has a copy of the task and an OpenGL context of its own, since a context belongs to the thread
that made it. Processes share nothing, so seeds can run in processes side by side; each makes its contexts when it
first draws, with EGL on the GPU that the variable MUJOCO_EGL_DEVICE_ID names.
"""

import functools
import importlib.metadata
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from envs.core import UsageError
from envs.mujoco.opengl import keep, mujoco, offscreen, without_opengl

# MuJoCo's state and the solver's warm start: what a control step depends on, besides the action and the model.
STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART


@dataclass(frozen=True)
class Task:
    """A task of the suite. Its episodes have 1000 control steps."""

    domain: str
    name: str
    camera: int = 0
    drawn: str | None = None  # the array of the model that a reset draws; others are the same in all episodes


@functools.cache
def load_suite() -> ModuleType:
    """The module dm_control.suite. Raises UsageError where it is missing, and for a MuJoCo that it breaks with."""
    version = importlib.metadata.version("mujoco")
    if int(version.split(".")[0]) >= 4:
        raise UsageError(f"dm_control breaks with mujoco {version}: pip install 'mujoco>=3.17,<4'")
    try:
        with without_opengl():  # dm_control would open a library of its own; MuJoCo draws
            from dm_control import suite
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"dm_control's tasks need: pip install 'adaptax[dm-control]' ({reason})") from error
    return suite


class Simulator:
    """A copy of a task, for the thread that makes it.

    A state is a vector of `size` float64 numbers: MuJoCo's, with the solver's warm start, then the array of the model
    that the task draws at a reset. Tasks draw at resets only, so the state of a random generator is not part of it.
    """

    def __init__(self, task: Task, pixels: int, fast: bool):
        self._env: Any = load_suite().load(task.domain, task.name, task_kwargs={"random": 0})
        self._env.reset()  # makes the changes to the model that are the same in all episodes
        self._task, self._physics = self._env.task, self._env.physics
        self._model, self._data = self._physics.model.ptr, self._physics.data.ptr
        self._substeps = round(self._env.control_timestep() / self._physics.timestep())
        self._drawn = np.zeros(0) if task.drawn is None else getattr(self._model, task.drawn)
        self._numbers = mujoco.mj_stateSize(self._model, STATE)
        self._camera, self._pixels = task.camera, pixels
        self._renderer: mujoco.Renderer | None = None
        visual = self._model.vis
        visual.global_.offwidth = visual.global_.offheight = pixels
        if fast:
            visual.quality.shadowsize = visual.quality.offsamples = 0
        bounds = self._env.action_spec()
        self._middle, self._half = (bounds.maximum + bounds.minimum) / 2, (bounds.maximum - bounds.minimum) / 2
        self.action_dim: int = bounds.shape[0]
        self.size: int = self._numbers + self._drawn.size

    def start(self, seed: int) -> np.ndarray:
        """The state (size,) at the beginning of the episode that dm_control draws with this seed, of 32 bits."""
        self._task.random.seed(seed)
        self._env.reset()
        return self._save()

    def advance(self, state: np.ndarray, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, float]:
        """The state (size,) after `repeat` control steps with an action (action_dim,) in [-1, 1], reward and discount.

        Rewards of control steps are summed, each times the discounts before it, and discounts multiplied, up to the
        end of the episode if the task ends it. A simulation that blows up goes back to the state that it was given;
        its discount is 0.
        """
        from dm_control.rl.control import PhysicsError

        self._load(state)
        control, reward, discount = self._middle + self._half * action, 0.0, 1.0
        try:
            for _ in range(repeat):
                self._task.before_step(control, self._physics)
                self._physics.step(self._substeps)
                self._task.after_step(self._physics)
                reward += discount * float(self._task.get_reward(self._physics))
                last_discount = self._task.get_termination(self._physics)
                if last_discount is not None:
                    discount *= last_discount
                    break
        except PhysicsError:
            self._load(state)
            return state, reward, 0.0
        return self._save(), reward, discount

    def picture(self) -> np.ndarray:
        """The state that `start` or `advance` has led to, (pixels, pixels, 3) uint8. UsageError without OpenGL."""
        if self._renderer is None:
            self._renderer = offscreen(self._model, self._pixels, self._pixels)
            keep(self._renderer)
        self._renderer.update_scene(self._data, camera=self._camera)
        return self._renderer.render()

    def observation(self) -> np.ndarray:
        """What the task observes of that state without pictures, flat."""
        parts = self._task.get_observation(self._physics).values()
        return np.concatenate([np.ravel(part) for part in parts])

    def _save(self) -> np.ndarray:
        state = np.empty(self.size)
        mujoco.mj_getState(self._model, self._data, state[: self._numbers], STATE)
        state[self._numbers :] = self._drawn.ravel()
        return state

    def _load(self, state: np.ndarray) -> None:
        """Also computes what follows from positions and velocities, which dm_control expects before a step."""
        self._drawn[...] = state[self._numbers :].reshape(self._drawn.shape)
        mujoco.mj_setState(self._model, self._data, state[: self._numbers], STATE)
        mujoco.mj_step1(self._model, self._data)


class Host:
    """A task's episodes, many at a time: each call is a pure function of its arguments."""

    def __init__(self, task: Task, pixels: int, fast: bool, repeat: int):
        self._make = functools.partial(Simulator, task, pixels, fast)
        self._repeat, self._own = repeat, threading.local()
        self._pool = ThreadPoolExecutor(_core_count(), thread_name_prefix="dm_control")  # starts threads when needed
        self.size, self.action_dim = self._pool.submit(self._try).result()

    def start(self, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Episodes with these seeds (n,) uint32: states (n, size) float64, pictures (n, pixels, pixels, 3) uint8."""
        states, pictures = zip(*self._pool.map(self._start, seeds.tolist()))
        return np.stack(states), np.stack(pictures)

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """An agent step: states (n, size), actions (n, action_dim) in [-1, 1], both float64.

        Returns states, pictures as `start`, rewards (n,) and discounts (n,) float32.
        """
        after, pictures, rewards, discounts = zip(*self._pool.map(self._step, states, actions))
        return np.stack(after), np.stack(pictures), np.array(rewards, np.float32), np.array(discounts, np.float32)

    def _simulator(self) -> Simulator:
        if not hasattr(self._own, "simulator"):
            self._own.simulator = self._make()
        return self._own.simulator

    def _try(self) -> tuple[int, int]:
        """Draw a picture, so that a machine without OpenGL is known before anything is compiled for it."""
        simulator = self._simulator()
        simulator.picture()
        return simulator.size, simulator.action_dim

    def _start(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        simulator = self._simulator()
        return simulator.start(seed), simulator.picture()

    def _step(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        simulator = self._simulator()
        after, reward, discount = simulator.advance(state, action, self._repeat)
        return after, simulator.picture(), reward, discount


def _core_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
