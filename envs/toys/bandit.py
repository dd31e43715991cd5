"""What the contextual bandits here have in common: one action, one reward, the end."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Env, EnvParams, Key, Spec, TimeStep, Transition, UsageError

Outcome = Callable[[ModuleType, Any, Any], tuple[Any, dict[str, Any]]]


class State(NamedTuple):
    """The context in which the one action is taken."""

    obs: jax.Array  # (obs_dim,)


def make_env(name: str, spec: Spec, draw_obs: Callable[[Key], jax.Array], outcome: Outcome) -> Env:
    """A bandit as an environment of horizon 1: its only step is terminal and shows the same observation again.

    draw_obs: key -> obs (obs_dim,).
    outcome: (array module, obs (..., obs_dim), action (..., action_dim)) -> reward (...) and measures (...),
        for actions already clipped to [-1, 1].
    """

    def reset(key: Key, params: EnvParams) -> tuple[State, jax.Array]:
        obs = draw_obs(key)
        return State(obs), obs

    def step(key: Key, state: State, action: jax.Array, params: EnvParams) -> tuple[State, TimeStep]:
        reward, measures = outcome(jnp, state.obs, jnp.clip(action, -1.0, 1.0))
        return state, TimeStep(state.obs, reward, jnp.asarray(True), jnp.asarray(False), measures)

    return Env(name, spec, 1, (), reset, step)


def record(obs: np.ndarray, action: np.ndarray, outcome: Outcome) -> Transition:
    """Transitions of a bandit from obs (N, obs_dim) and action (N, action_dim), both float32.

    Every transition is an episode; `cost` is the outcome's measure of that name, None where it has none.
    """
    reward, measures = outcome(np, obs, action)
    ones = np.ones(len(obs), np.float32)
    fields = Transition(obs, action, reward, obs, ones, 0 * ones, measures.get("cost"))  # type: ignore[arg-type]
    return jax.tree.map(jnp.asarray, fields)


def generator(name: str, sizes: dict[str, int], seed: int) -> np.random.Generator:
    """Random numbers of a data set: data sets of different names are independent, with the same seed too."""
    return np.random.default_rng([seed, list(sizes).index(name)])


def noisy(rng: np.random.Generator, centres: np.ndarray, noise: float) -> np.ndarray:
    """Actions (N, action_dim) float32: the centres plus isotropic Gaussian noise, clipped to [-1, 1]."""
    return np.clip(centres + noise * rng.standard_normal(centres.shape), -1.0, 1.0).astype(np.float32)


def rows_of(name: str, sizes: dict[str, int], samples: int | None) -> int:
    """How many rows to draw for a data set: `samples`, by default its size.

    Raises UsageError for a name without a size and for fewer than one sample.
    """
    if name not in sizes:
        raise UsageError(f"data set {name!r} is not known here; choose one of {', '.join(sizes)}")
    rows = sizes[name] if samples is None else samples
    if rows < 1:
        raise UsageError(f"samples={rows} leaves no data; ask for at least 1")
    return rows
