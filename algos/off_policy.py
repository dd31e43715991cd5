"""What an off-policy method is to the loop that plays, stores and replays: `algos.adaptive_rr.loop`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from algos.core import Hyper, Key, Metrics, Transition

Agent = Any  # what updates change
Buffer = Any  # replay memory, written in place
Batch = Any  # what an update learns from


class Learner(NamedTuple):
    """An off-policy method as pure functions of one environment's experience. Actions are (action_dim,) in [-1, 1].

        init:    (key, hyper) -> agent
        explore: (key, agent, obs, steps, hyper) -> action     of training, at an agent step; obs (obs_dim,)
        act:     (agent, obs, hyper) -> action                 of evaluation; obs (..., obs_dim)

        empty:   () -> buffer
        begin:   (buffer, obs, write) -> buffer                an episode's first observation
        add:     (buffer, step, write) -> buffer               a step of an episode begun
        ready:   (buffer) -> () bool                           whether there is anything to draw
        sample:  (key, buffer, hyper) -> batch

        update:  (key, agent, batch, steps, updates, hyper) -> (agent, metrics)

    `write` () bool: with false the buffer's contents do not change. `update` is made at agent step `steps` () after
    `updates` () others; its metrics, each (), have `fau_critic`, the share of active units of the critic's hidden
    layers on the batch, before the update.
    """

    init: Callable[[Key, Hyper], Agent]
    explore: Callable[[Key, Agent, jax.Array, jax.Array, Hyper], jax.Array]
    act: Callable[[Agent, jax.Array, Hyper], jax.Array]
    empty: Callable[[], Buffer]
    begin: Callable[[Buffer, jax.Array, jax.Array], Buffer]
    add: Callable[[Buffer, Transition, jax.Array], Buffer]
    ready: Callable[[Buffer], jax.Array]
    sample: Callable[[Key, Buffer, Hyper], Batch]
    update: Callable[[Key, Agent, Batch, jax.Array, jax.Array, Hyper], tuple[Agent, Metrics]]
