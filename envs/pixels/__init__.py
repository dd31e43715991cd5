"""Control tasks of the DeepMind Control Suite in jnp, physics and pictures, by name.

pixels-cartpole-swingup        84x84 pictures in colour, three stacked, actions repeated twice: DrQ-v2's setting
pixels-cartpole-swingup-36     smaller pictures, for small runs
cartpole-swingup-state         seen by its state, actions not repeated
"""

import difflib
import re

from envs.core import Env, UsageError
from envs.pixels import acrobot, cartpole, pendulum, pointmass, reacher
from envs.pixels.adapter import SIZE, pixel_env, state_env
from envs.pixels.core import Task

TASKS: dict[str, Task] = {
    **cartpole.TASKS, **pendulum.TASKS, **reacher.TASKS, **pointmass.TASKS, **acrobot.TASKS
}  # fmt: skip
SMALL = 36
NAMES = (
    *(f"pixels-{task}" for task in TASKS),
    *(f"pixels-{task}-{SMALL}" for task in TASKS),
    *(f"{task}-state" for task in TASKS),
)
PIXELS = re.compile(r"pixels-(.+?)(?:-(\d+))?")


def is_name(name: str) -> bool:
    """Whether the name is meant for a task here; whether there is such a task is for `make` to say."""
    return name.startswith("pixels-") or name in NAMES


def make(name: str) -> Env:
    """An environment by its name, see above.

    Raises UsageError: a task that is not known, with the nearest one that is; pictures below 36 pixels.
    """
    if name.endswith("-state") and (task := name.removesuffix("-state")) in TASKS:
        return state_env(name, TASKS[task])
    found = PIXELS.fullmatch(name)
    if found is None or found[1] not in TASKS:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)[0]
        raise UsageError(f"control task {name!r} is not known; did you mean {near!r}?")
    return pixel_env(name, TASKS[found[1]], int(found[2] or SIZE))
