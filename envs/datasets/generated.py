"""Data sets that no file holds: each is a function of a seed. To add one, add a row to `TABLE`."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from envs import pointmix
from envs.core import Transition
from envs.toys import eight_modes, pointspeed, two_regions

RATIOS = ("0.01", "0.05", "0.1", "0.25", "0.5")  # shares of expert episodes


@dataclass(frozen=True)
class Generated:
    """A data set to be made: whole episodes of `steps` rows, one after another."""

    env: str | None  # our environment to evaluate on
    steps: int  # of every episode
    make: Callable[[int], Transition]  # seed -> rows; `truncated` or `terminated` marks each last step
    settings: Mapping[str, Any] = field(default_factory=dict)  # what is recorded of it beside the seed


_POINTMIX = {
    f"pointmix-random-expert-{ratio}": Generated(
        "pointmix",
        pointmix.HORIZON,
        functools.partial(pointmix.make_dataset, rho=float(ratio)),
        {"ratio": float(ratio)},
    )
    for ratio in RATIOS
}
_POINTSPEED = {
    f"pointspeed-{speed:g}": Generated(
        f"pointspeed-{speed:g}",
        pointspeed.HORIZON,
        functools.partial(pointspeed.make_dataset, speed=speed),
        {"speed": speed},
    )
    for speed in pointspeed.SPEEDS
}
_EIGHT_MODES = {
    name: Generated("eight-modes", 1, functools.partial(eight_modes.make_dataset, name)) for name in eight_modes.SAMPLES
}
_TWO_REGIONS = {
    name: Generated("two-regions", 1, functools.partial(two_regions.make_dataset, name)) for name in two_regions.SAMPLES
}
TABLE: dict[str, Generated] = _POINTMIX | _EIGHT_MODES | _TWO_REGIONS | _POINTSPEED


def make(recipe: Generated, seed: int) -> tuple[Transition, str]:
    """The rows as float32 numpy arrays, and the SHA-256 of their bytes."""
    transitions = jax.tree.map(np.asarray, recipe.make(seed))
    content = b"".join(column.tobytes() for column in transitions if column is not None)
    return transitions, hashlib.sha256(content).hexdigest()
