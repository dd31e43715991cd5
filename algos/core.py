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
        begin: (key, state, first obs, hyper) -> memory          optional; see below

    `step` makes `updates_per_step` gradient updates: a method with delayed actor updates makes a whole period at
    a time, so that the delay is a shape of the program and not a branch whose both sides `vmap` would compute.

    What a policy keeps in mind over an episode, such as a skill, it draws in `begin`; `act` then takes it as a fifth
    argument. Its leading axes are those of obs. A method that acts in observations of other sizes than it learnt in
    (another population of a game) has `ANY_POPULATION = True` in its module. Where shapes do not tell whether what
    learnt in `env` can act in `other`, a module has `check_other(env, other)`, which raises UsageError if it cannot.

    `replay` names the fields of the state that are replay memory: large, written in place, and read by `step` alone.
    They are spared the copies that the rest of a state is good for, see `algos.runner.make_chunk`.

    A later phase of a method (a skill on a trained base) begins from what earlier runs learnt: its module names, as
    `START`, the fields of their states that it needs, and `init` takes them as `start`, a dictionary for each run.
    """

    init: Callable[..., State]
    step: Callable[[Key, State, Source, Hyper], tuple[State, Metrics]]
    act: Callable[..., jax.Array]
    updates_per_step: int = 1
    validate: Callable[[Key, State, Dataset, Hyper], Metrics] | None = None
    begin: Callable[[Key, State, jax.Array, Hyper], Any] | None = None
    replay: tuple[str, ...] = ()
