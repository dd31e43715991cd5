"""The contract that every algorithm keeps and every other part of Adaptax relies on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from envs.core import Dataset, Env, Key, Spec, Transition, UsageError

__all__ = [
    "Algorithm", "Dataset", "Env", "Hyper", "Key", "Loss", "Metrics", "Params", "Source", "Spec", "State",
    "Transition", "UsageError",
]  # fmt: skip

Params = Any  # a pytree of float32 arrays
State = Any  # an algorithm's NamedTuple of arrays: parameters, targets, optimiser states, buffers
Hyper = Any  # an algorithm's registered dataclass of scalars that may differ between members
Source = Any  # a Dataset (offline) or environment parameters (online); shared by all members
Metrics = dict[str, jax.Array]  # scalars
Loss = tuple[jax.Array, Metrics]


class Algorithm(NamedTuple):
    """A method as three pure functions of arrays.

        init: (key, hyper, *start) -> state
        step: (key, state, source, hyper) -> (state, metrics)    one training iteration, sampling included
        act:  (key, state, obs, hyper) -> action                 the evaluation policy; obs (..., obs_dim)
        validate: (key, state, held-out data, hyper) -> metrics  optional; asked for at each evaluation

    `step` makes `updates_per_step` gradient updates: a method with delayed actor updates makes a whole period at
    a time, so that the delay is a shape of the program and not a branch whose both sides `vmap` would compute.

    A later phase of a method (a skill on a trained base) begins from what earlier runs learnt: its module names, as
    `START`, the fields of their states that it needs, and `init` takes them as `start`, a dictionary for each run.
    """

    init: Callable[..., State]
    step: Callable[[Key, State, Source, Hyper], tuple[State, Metrics]]
    act: Callable[[Key, State, jax.Array, Hyper], jax.Array]
    updates_per_step: int = 1
    validate: Callable[[Key, State, Dataset, Hyper], Metrics] | None = None
