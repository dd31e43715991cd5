"""Environments with two rewards: the true one, sparse or delayed, and a designer's heuristic of unknown quality.

`TimeStep.reward` is the true one; `TimeStep.measures` has the heuristic as `auxiliary`, and 1 as `length`. Actions are
vectors of which the largest entry is executed (HalfCheetah's are torques). `Env.view` gives features of observations.
"""

import difflib
import functools
from collections.abc import Callable

from envs.core import Env, UsageError
from envs.shaped import cartpole, chain, gridworld, halfcheetah, mountaincar

_MAKERS: dict[str, Callable[[], Env]] = {
    **{f"gridworld-{variant}": functools.partial(gridworld.make, variant) for variant in gridworld.VARIANTS},
    **{f"mountaincar-{variant}": functools.partial(mountaincar.make, variant) for variant in mountaincar.VARIANTS},
    **{
        f"mountaincar-{variant}-rawtiles": functools.partial(mountaincar.make, variant, "raw")
        for variant in mountaincar.VARIANTS
    },
    **{f"cartpole-{variant}": functools.partial(cartpole.make, variant) for variant in cartpole.VARIANTS},
    chain.NAME: chain.make,
}
NAMES = (*_MAKERS, halfcheetah.NAME)


@functools.cache
def make(name: str, backend: str = "auto") -> Env:
    """The environment `name`, one of NAMES. The same arguments give the same object.

    `backend` (auto, mujoco, mjx) is for the robot alone. Raises UsageError: an unknown name, a misplaced backend.
    """
    if name == halfcheetah.NAME:
        return halfcheetah.make(backend)
    if name not in _MAKERS:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)[0]
        raise UsageError(f"environment {name!r} is not known; did you mean {near!r}?")
    if backend != "auto":
        raise UsageError(f"backend={backend!r} does not apply to {name!r}; leave it at 'auto'")
    return _MAKERS[name]()
