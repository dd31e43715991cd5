"""Pictures beside dm_control's own: `python -m tests.envs.dmc_pictures TASK ...` prints how many bytes differ.

To be run in a process of its own, since dm_control chooses an OpenGL library for the whole process when it is imported.
"""

import os
import sys

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")
SIZE, SEED, REPEAT = 84, 3, 25


def differing_bytes(name: str) -> int:
    """Of the picture after 25 control steps of an episode."""
    from dm_control import suite  # before the project's import of it, which does without OpenGL

    from envs.pixels.dmc import TASKS
    from envs.pixels.dmc_host import Host

    task = TASKS[name]
    theirs = suite.load(task.domain, task.name, task_kwargs={"random": SEED})
    theirs.reset()
    host = Host(task, SIZE, fast=False, repeat=REPEAT)
    action = np.random.default_rng(0).uniform(-1.0, 1.0, host.action_dim)
    low, high = theirs.action_spec().minimum, theirs.action_spec().maximum
    for _ in range(REPEAT):
        theirs.step(low + (high - low) * (action + 1.0) / 2.0)
    states, _ = host.start(np.array([SEED], np.uint32))
    _, pictures, *_ = host.step(states, action[None])
    expected = theirs.physics.render(SIZE, SIZE, camera_id=task.camera)
    assert expected.std() > 5  # a picture, not a blank
    return int((pictures[0] != expected).sum())


def main() -> None:
    """Of the tasks that the arguments name."""
    print(*(differing_bytes(name) for name in sys.argv[1:]))


if __name__ == "__main__":
    main()
