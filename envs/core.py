"""What an environment, a transition and a data set are. Everything else in `envs` produces these.

Environments follow the gymnax style: pure functions of explicit state and parameters, so that they can be
jitted, vmapped over episodes and members, and saved in a checkpoint like any other array.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

Key = jax.Array
EnvState = Any  # a pytree of arrays
EnvParams = Any  # a pytree of arrays


class UsageError(Exception):
    """A mistake the user can mend. The message is one line: it names the culprit and the mend.

    Command-line programs print it and leave with exit status 2; nothing has been written by then.
    """


class Transition(NamedTuple):
    """One step, or a batch of them along leading axes. All fields are float32.

    `terminated` stops bootstrapping, `truncated` (a time limit) does not; the two are never merged.
    """

    obs: jax.Array  # (..., obs_dim)
    action: jax.Array  # (..., action_dim)
    reward: jax.Array  # (...)
    next_obs: jax.Array  # (..., obs_dim)
    terminated: jax.Array  # (...), 0 or 1
    truncated: jax.Array  # (...), 0 or 1
    cost: jax.Array | None = None  # (...), of data with costs (safe RL); None where there are none


class Dataset(NamedTuple):
    """An offline data set on the device: observations already normalised with the statistics it carries."""

    transitions: Transition  # leading axis: number of transitions
    obs_mean: jax.Array  # (obs_dim,); zeros when observations are not normalised
    obs_std: jax.Array  # (obs_dim,), offset included; ones when observations are not normalised


@dataclass(frozen=True)
class Spec:
    """Shapes that an algorithm is built for. Actions lie in [-max_action, max_action]."""

    obs_dim: int
    action_dim: int
    max_action: float = 1.0


class TimeStep(NamedTuple):
    """What `Env.step` returns besides the new state."""

    obs: jax.Array  # (obs_dim,) float32; the successor observation, before any reset
    reward: jax.Array  # () float32
    terminated: jax.Array  # () bool
    truncated: jax.Array  # () bool; the time limit was reached
    measures: dict[str, jax.Array] = {}  # () float32 each: what evaluations sum over an episode too, e.g. cost
    rewards: jax.Array | None = None  # (N,) float32: each agent's own where there are several; `reward` is their sum


@dataclass(frozen=True)
class Env:
    """A functional environment.

        reset: (key, params) -> (state, obs)
        step:  (key, state, action, params) -> (state, TimeStep)

    `step` never resets by itself; `autoreset` below does.
    """

    name: str
    spec: Spec
    horizon: int  # steps after which an episode is truncated
    params: EnvParams
    reset: Callable[[Key, EnvParams], tuple[EnvState, jax.Array]]
    step: Callable[[Key, EnvState, jax.Array, EnvParams], tuple[EnvState, TimeStep]]
    view: Callable[[jax.Array], Any] | None = None  # an observation as what it flattens, where it is no plain vector


def measure_names(env: Env) -> list[str]:
    """What `step` measures besides the reward; it is traced for it, not run."""
    key, action = jax.random.key(0), jax.numpy.zeros(env.spec.action_dim)
    state = jax.eval_shape(env.reset, key, env.params)[0]
    return list(jax.eval_shape(env.step, key, state, action, env.params)[1].measures)


def autoreset(env: Env, key: Key, state: EnvState, action: jax.Array, params: EnvParams):
    """One step, then a reset where the episode ended.

    Returns (state, obs, step): `obs` is what the policy sees next, `step.obs` the true successor.
    """
    step_key, reset_key = jax.random.split(key)
    state, step = env.step(step_key, state, action, params)
    done = step.terminated | step.truncated
    state, obs = jax.lax.cond(done, lambda: env.reset(reset_key, params), lambda: (state, step.obs))
    return state, obs, step
