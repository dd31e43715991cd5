"""GridWorld of BARFI: from one corner of a unit square to the other, with a heuristic that helps or a decoy that pays.

The position is continuous, the actions are not: up, right, down, left. Gupta et al., "Behavior Alignment via Reward
Function Optimization" (2023); details as in the authors' code, its quirks included.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Env, EnvParams, Key, Spec, TimeStep
from envs.shaped.features import fourier

VARIANTS = ("none", "good", "good-fixed", "bad")
HORIZON = 50
LOW, HIGH = (0.0, 0.0), (1.0, 1.0)
START = (0.125, 0.125)
GOAL = (0.75, 0.99)  # of both coordinates
DECOY = (0.4, 0.6)  # of both coordinates; the square that `bad` pays for
DIRECTIONS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])
SLIP = 0.1  # probability that another action, or the same by chance, is executed
SUB_MOVES = 4  # of a step, at most
SUB_MOVE = 0.045
STEP_REWARD, GOAL_REWARD = -0.1, 100.0
CENTRE = 0.87  # what `good` guides to
DECOY_REWARD = 50.0  # for each sub-move


class State(NamedTuple):
    """Where the point is, and when."""

    position: jax.Array  # (2,) in [0, 1]
    t: jax.Array  # () int32, steps taken


def make(variant: str) -> Env:
    """GridWorld with one of VARIANTS as auxiliary reward; at most 50 steps of up to four sub-moves.

    Observation (2,): the position. Action (4,): the largest entry is executed. Reward: -0.1 a step, 100 at the goal.
    What each sub-move adds to `measures["auxiliary"]`, at the position it ends in:
    `good`: minus the squared distance to the goal in x and a constant, which stands where y was meant to;
    `good-fixed`: with y; `bad`: 50 in the square in the middle, again and again, but nothing on the last step.
    """
    env_step = partial(_step, variant)
    spec, view = Spec(obs_dim=2, action_dim=len(DIRECTIONS)), partial(fourier, low=LOW, high=HIGH)
    return Env(f"gridworld-{variant}", spec, HORIZON, (), _reset, env_step, view)


def _reset(key: Key, params: EnvParams) -> tuple[State, jax.Array]:
    position = jnp.array(START, jnp.float32)
    return State(position, jnp.int32(0)), position


def _step(variant: str, key: Key, state: State, action: jax.Array, params: EnvParams) -> tuple[State, TimeStep]:
    slip_key, action_key = jax.random.split(key)
    slip = jax.random.bernoulli(slip_key, SLIP)
    random_action = jax.random.randint(action_key, (), 0, len(DIRECTIONS))
    return advance(state, execute(jnp.argmax(action), slip, random_action), variant)


def execute(action: jax.Array, slip: jax.Array, random_action: jax.Array) -> jax.Array:
    """The action that happens; all four can happen at a slip."""
    return jnp.where(slip, random_action, action)


def advance(state: State, executed: jax.Array, variant: str) -> tuple[State, TimeStep]:
    """One step with the action in 0..3 that happens, nothing drawn.

    A sub-move across the border ends the step. So does one at the goal or in the last step, and then the observation
    is not renewed: it is where the point was one sub-move earlier.
    """
    position = obs = state.position
    dtype, t = position.dtype, state.t + 1
    move = jnp.asarray(SUB_MOVE * DIRECTIONS, dtype)[executed]
    moving, arrived, auxiliary = jnp.asarray(True), jnp.asarray(False), jnp.zeros((), dtype)
    for _ in range(SUB_MOVES):
        moving &= _within(position + move, 0.0, 1.0)
        position = jnp.where(moving, position + move, position)
        auxiliary += jnp.where(moving, _auxiliary(variant, position), 0.0)
        arrived |= _within(position, *GOAL)
        moving &= ~arrived & (t < HORIZON)
        obs = jnp.where(moving, position, obs)
    truncated = t >= HORIZON
    if variant == "bad":
        auxiliary = jnp.where(arrived | truncated, 0.0, auxiliary)
    reward = STEP_REWARD + GOAL_REWARD * arrived.astype(dtype)
    measures = {"auxiliary": auxiliary, "length": jnp.ones((), dtype)}
    return State(position, t), TimeStep(obs, reward, arrived, truncated, measures)


def _within(position: jax.Array, low: float, high: float) -> jax.Array:
    return jnp.all((position >= low) & (position <= high), axis=-1)


def _auxiliary(variant: str, position: jax.Array) -> jax.Array:
    """What a sub-move that ends at `position` adds."""
    if variant == "bad":
        return DECOY_REWARD * _within(position, *DECOY).astype(position.dtype)
    if variant == "none":
        return jnp.zeros((), position.dtype)
    y = GOAL[0] if variant == "good" else position[1]
    return -(jnp.square(position[0] - CENTRE) + jnp.square(y - CENTRE))
