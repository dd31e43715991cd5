"""Every environment by its name."""

import difflib
import functools
from collections.abc import Callable

from envs import mujoco, pointmix
from envs.adapters import GymnasiumPool, from_gymnax
from envs.core import Env, UsageError
from envs.mujoco.locomotion import ROBOTS

GYMNAX = "gymnax:"  # gymnax:Pendulum-v1
GYMNASIUM = "gymnasium:"  # gymnasium:Ant-v5
NAMES = (*ROBOTS, "pointmix")


def make(name: str, backend: str = "auto") -> Env | Callable[[int], GymnasiumPool]:
    """An environment by name: one of NAMES, `gymnax:ID`, or `gymnasium:ID`.

    `gymnasium:` environments live on the host and are for evaluation only: for them the answer is a function
    from a number of episodes to a `GymnasiumPool`. `backend` (auto, mujoco, mjx) is for MuJoCo robots alone.
    Raises UsageError for a name that is not known, with the nearest one that is, and for a misplaced backend.
    """
    if name in ROBOTS:
        return mujoco.make(name, backend)
    if backend != "auto":
        raise UsageError(f"backend={backend!r} does not apply to {name!r}; leave it at 'auto'")
    if name == "pointmix":
        return pointmix.make()
    if name.startswith(GYMNAX):
        return from_gymnax(name.removeprefix(GYMNAX))
    if name.startswith(GYMNASIUM):
        env_id = name.removeprefix(GYMNASIUM)
        GymnasiumPool(env_id, 1).close()  # a wrong id is to be known now, not at the first evaluation
        return functools.partial(GymnasiumPool, env_id)
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)[0]
    raise UsageError(f"environment {name!r} is not known; did you mean {near!r}? (also: {GYMNAX}ID, {GYMNASIUM}ID)")
