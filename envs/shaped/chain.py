"""A chain of seven states that pays at its right end: small enough for its returns to be computed, not estimated.

One starts at the left end. Steps go left or right; now and then a random one is executed. At the left end a step to the
left stays. The episode ends at the right end, with the only reward there is. There is no auxiliary reward (it is 0).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from envs.core import Env, EnvParams, Key, Spec, TimeStep

NAME = "chain"
STATES = 7
LEFT, RIGHT = 0, 1
SLIP = 0.1  # probability that either step, with equal chances, is executed
HORIZON = 42


class State(NamedTuple):
    """Where one is, and when."""

    place: jax.Array  # () int32, from 0 at the left end to STATES - 1
    t: jax.Array  # () int32, steps taken


def make() -> Env:
    """The chain; at most 42 steps.

    Observation (7,): 1 at the state one is in, else 0. Action (2,): the larger entry is executed. Reward: 1 on arrival
    at the right end, else 0.
    """
    return Env(NAME, Spec(obs_dim=STATES, action_dim=2), HORIZON, (), _reset, _step, view=lambda obs: obs)


def _reset(key: Key, params: EnvParams) -> tuple[State, jax.Array]:
    state = State(jnp.int32(0), jnp.int32(0))
    return state, _observe(state.place)


def _step(key: Key, state: State, action: jax.Array, params: EnvParams) -> tuple[State, TimeStep]:
    slip_key, action_key = jax.random.split(key)
    random_action = jax.random.randint(action_key, (), 0, 2)
    executed = jnp.where(jax.random.bernoulli(slip_key, SLIP), random_action, jnp.argmax(action))
    place = jnp.clip(state.place + jnp.where(executed == RIGHT, 1, -1), 0, STATES - 1).astype(jnp.int32)
    arrived, t = place == STATES - 1, state.t + 1
    measures = {"auxiliary": jnp.zeros(()), "length": jnp.ones(())}
    return State(place, t), TimeStep(_observe(place), arrived * 1.0, arrived, t >= HORIZON, measures)


def _observe(place: jax.Array) -> jax.Array:
    return jax.nn.one_hot(place, STATES)


def transitions() -> np.ndarray:
    """Probabilities P[s, a, s'] (6, 2, 7) of what follows each state but the right end, where nothing does."""
    table = np.zeros((STATES - 1, 2, STATES))
    for place in range(STATES - 1):
        for action in (LEFT, RIGHT):
            for executed, end in ((LEFT, max(place - 1, 0)), (RIGHT, place + 1)):
                table[place, action, end] += SLIP / 2 + (1.0 - SLIP) * (executed == action)
    return table


def expected_return(policy: jax.Array, discount: ArrayLike) -> jax.Array:
    """E sum_t discount^t r_t () of pi(a|s) (7, 2) from the left end, without a time limit; it can be differentiated.

    The discount lies below 1. What the policy does at the right end has no influence.
    """
    table = jnp.asarray(transitions(), policy.dtype)
    moves = jnp.einsum("sa,sat->st", policy[:-1], table, precision="highest")
    # Bellman's equation: V = arrival + discount moves V, with V = 0 at the end
    return jnp.linalg.solve(jnp.eye(STATES - 1) - discount * moves[:, :-1], moves[:, -1])[0]
