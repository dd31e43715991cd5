"""What dm_control's walker does: `python -m tests.golden.walker.record` writes walker.npz anew (needs dm_control)."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import mujoco
import numpy as np

TASKS = ("stand", "walk", "run")
PATH = Path(__file__).with_name("walker.npz")


def load_walker() -> ModuleType:
    """dm_control's module, without its choice of an OpenGL library, which would be the whole process's."""
    with mock.patch.dict(os.environ, {"MUJOCO_GL": "disable"}):
        from dm_control.suite import walker
    return walker


def episode(walker: ModuleType, seed: int, steps: int = 200) -> dict[str, np.ndarray]:
    """An episode of random actions (T, 6): qpos (T + 1, 9), obs (T + 1, 24), and reward (T, 3) in every task.

    The tasks differ in nothing but the reward. The last 9 numbers of an observation are qvel.
    """
    env, rng = walker.run(random=seed), np.random.default_rng(seed)
    observe = lambda step: np.concatenate([np.ravel(part) for part in step.observation.values()])  # noqa: E731
    tasks = [getattr(walker, task)().task for task in TASKS]
    obs = [observe(env.reset())]
    qpos = [env.physics.data.qpos.copy()]
    reward, actions = [], rng.uniform(-1.0, 1.0, (steps, 6))
    for action in actions:
        obs.append(observe(env.step(action)))
        qpos.append(env.physics.data.qpos.copy())
        reward.append([task.get_reward(env.physics) for task in tasks])
    arrays = {"action": actions, "qpos": qpos, "obs": obs, "reward": reward}
    return {name: np.array(values) for name, values in arrays.items()}


def postures(walker: ModuleType, seed: int, count: int = 40) -> dict[str, np.ndarray]:
    """States that random actions seldom reach: qpos, qvel (n, 9), obs (n, 24), reward (n, 3).

    The torso is 0.6 to 1.4 m high, its velocity 8 m/s backward to 16 m/s forward.
    """
    env, rng = walker.run(random=seed), np.random.default_rng(seed)
    tasks = [getattr(walker, task)().task for task in TASKS]
    qpos, qvel = rng.uniform(-1.0, 1.0, (count, 9)), rng.uniform(-4.0, 4.0, (count, 9))
    qpos[:, 0], qvel[:, 1] = rng.uniform(-0.7, 0.1, count), rng.uniform(-8.0, 16.0, count)
    obs, reward = [], []
    for positions, velocities in zip(qpos, qvel):
        with env.physics.reset_context():
            env.physics.data.qpos[:], env.physics.data.qvel[:] = positions, velocities
        obs.append(np.concatenate([np.ravel(part) for part in env.task.get_observation(env.physics).values()]))
        reward.append([task.get_reward(env.physics) for task in tasks])
    return {"qpos": qpos, "qvel": qvel, "obs": np.array(obs), "reward": np.array(reward)}


def recording(walker: ModuleType, seed: int) -> dict[str, np.ndarray]:
    """Both: episode_action, episode_qpos, ..., postures_reward."""
    parts = {"episode": episode(walker, seed), "postures": postures(walker, seed)}
    return {f"{part}_{name}": values for part, named in parts.items() for name, values in named.items()}


def main() -> None:
    """Write the recording."""
    arrays: dict[str, Any] = {"mujoco": np.array(mujoco.__version__), **recording(load_walker(), 0)}
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    main()
