"""Every environment by its name."""

import difflib
import functools
from collections.abc import Callable

from envs import allocation, minatar, mujoco, particles, penalty, pixels, pointmix, shaped
from envs.adapters import GymnasiumPool, from_gymnax
from envs.allocation.adapter import contract_env
from envs.core import Env, UsageError
from envs.mujoco import dynamics
from envs.mujoco.locomotion import TASKS
from envs.pixels import dmc
from envs.toys import eight_modes, pointspeed, two_regions

GYMNAX = "gymnax:"  # gymnax:Pendulum-v1
GYMNASIUM = "gymnasium:"  # gymnasium:Ant-v5
TOYS: dict[str, Callable[[], Env]] = {
    "eight-modes": eight_modes.make,
    "two-regions": two_regions.make,
} | {f"pointspeed-{speed:g}": functools.partial(pointspeed.make, speed) for speed in pointspeed.SPEEDS}
NAMES = (
    *TASKS, *dynamics.NAMED, "pointmix", *TOYS,
    *allocation.NAMES, *shaped.NAMES, *particles.NAMES, *pixels.NAMES, *dmc.NAMES, *minatar.NAMES,
)  # fmt: skip


def make(name: str, backend: str = "auto") -> Env | Callable[[int], GymnasiumPool]:
    """An environment by name: one of NAMES, `gymnax:ID`, or `gymnasium:ID`.

    `gymnasium:` environments live on the host and are for evaluation only: for them the answer is a function
    from a number of episodes to a `GymnasiumPool`. `backend` (auto, mujoco, mjx) is for MuJoCo robots alone.
    Behind a robot's name there can be a shift of its dynamics (halfcheetah-friction0.25, see `mujoco.dynamics`), and
    behind an environment with costs what of them is taken off the reward (safe-hopper-penalty2, see `penalty`).
    Task allocation on instances drawn at random has their sizes in the name (rbf-train-12x3, see `allocation`).
    So have particle games their populations (resource-3+6-in-24, see `particles`), and control tasks seen in pictures
    the size of these (pixels-cartpole-swingup-64, see `pixels`; dmc-walker-run-64, see `pixels.dmc`).
    Raises UsageError for a name that is not known, with the nearest one that is, and for a misplaced backend.
    """
    if (found := penalty.split(name)) is not None:
        env, weight = make(found[0], backend), found[1]
        if not isinstance(env, Env):
            raise UsageError(
                f"environment {name!r}: {found[0]} lives on the host and shows no costs; leave -penalty out"
            )
        return penalty.penalised(env, weight)
    if name in TASKS or dynamics.split(name)[0] != name:
        return mujoco.make(name, backend)
    if name in shaped.NAMES:
        return shaped.make(name, backend)
    if backend != "auto":
        raise UsageError(f"backend={backend!r} does not apply to {name!r}; leave it at 'auto'")
    if name == "pointmix":
        return pointmix.make()
    if name in TOYS:
        return TOYS[name]()
    if allocation.is_name(name):
        return contract_env(allocation.make(name))
    if particles.is_name(name):
        return particles.make(name)
    if pixels.is_name(name):
        return pixels.make(name)
    if dmc.is_name(name):
        return dmc.make(name)
    if minatar.is_name(name):
        return minatar.make(name)
    if name.startswith(GYMNAX):
        return from_gymnax(name.removeprefix(GYMNAX))
    if name.startswith(GYMNASIUM):
        env_id = name.removeprefix(GYMNASIUM)
        GymnasiumPool(env_id, 1).close()  # a wrong id is to be known now, not at the first evaluation
        return functools.partial(GymnasiumPool, env_id)
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)[0]
    raise UsageError(f"environment {name!r} is not known; did you mean {near!r}? (also: {GYMNAX}ID, {GYMNASIUM}ID)")
