"""Environments of other libraries: gymnax's as `Env`, gymnasium's as a pool on the host for evaluation."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Env, EnvParams, EnvState, Key, Spec, TimeStep, UsageError


class _ActionRange(NamedTuple):
    """How actions in [-max_action, max_action] fill a box: by the identity where the box is that interval."""

    max_action: float
    scale: np.ndarray  # (action_dim,)
    shift: np.ndarray  # (action_dim,)
    low: np.ndarray  # (action_dim,)
    high: np.ndarray  # (action_dim,)

    def to_box(self, xp: Any, action: Any) -> Any:
        """(..., action_dim) -> (..., action_dim) within the box."""
        return xp.clip(self.shift + self.scale * action, self.low, self.high)


def _action_range(env_id: str, space: Any) -> _ActionRange:
    """Raises UsageError unless the space is a flat box with finite bounds."""
    if not hasattr(space, "low") or len(space.shape) != 1:
        raise UsageError(
            f"{env_id} has actions {space}; choose an environment with a flat vector of continuous actions"
        )
    low = np.broadcast_to(np.asarray(space.low, np.float32), space.shape)
    high = np.broadcast_to(np.asarray(space.high, np.float32), space.shape)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UsageError(f"{env_id} has unbounded actions; wrap it so that its action space has finite bounds")
    if (low == -high[0]).all() and (high == high[0]).all():
        ones = np.ones_like(low)
        return _ActionRange(float(high[0]), ones, 0.0 * ones, low, high)
    return _ActionRange(1.0, (high - low) / 2, (high + low) / 2, low, high)


def _observation_dim(env_id: str, space: Any) -> int:
    if not hasattr(space, "low") or len(space.shape) != 1:
        raise UsageError(f"{env_id} has observations {space}; choose an environment that observes a flat vector")
    return space.shape[0]


def _unknown(env_id: str, known: Iterable[str], library: str) -> UsageError:
    near = difflib.get_close_matches(env_id, list(known), n=1, cutoff=0.0)
    return UsageError(f"{library} has no environment {env_id!r}; did you mean {near[0]!r}?")


def from_gymnax(env_id: str) -> Env:
    """A continuous-control environment of gymnax, with its own parameters and time limit.

    Actions in [-max_action, max_action] are mapped onto the action box if that is not symmetric.
    Raises UsageError for unknown ids, and for actions or observations that are not flat bounded vectors.
    """
    import gymnax  # only here: it takes seconds

    if env_id not in gymnax.registered_envs:
        raise _unknown(env_id, gymnax.registered_envs, "gymnax")
    env, params = gymnax.make(env_id)
    actions = _action_range(env_id, env.action_space(params))
    obs_dim = _observation_dim(env_id, env.observation_space(params))

    def reset(key: Key, params: EnvParams) -> tuple[EnvState, jax.Array]:
        obs, state = env.reset_env(key, params)
        return jax.tree.map(jnp.asarray, state), obs.astype(jnp.float32)

    def step(key: Key, state: EnvState, action: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        # `step_env`, unlike `step`, does not reset at the end and knows nothing of the time limit.
        obs, state, reward, terminated, _ = env.step_env(key, state, actions.to_box(jnp, action), params)
        truncated = env.is_truncated(state, params)
        reward = jnp.asarray(reward, jnp.float32).reshape(())
        return state, TimeStep(obs.astype(jnp.float32), reward, terminated, truncated)

    spec = Spec(obs_dim, len(actions.low), actions.max_action)
    return Env(env_id, spec, int(params.max_steps_in_episode), jax.tree.map(jnp.asarray, params), reset, step)


class GymnasiumPool:
    """Episodes of a registered gymnasium environment, `count` at a time on the host, for evaluation.

    Nothing resets by itself: an episode that ended stays as it is and earns nothing, until `reset`.
    Raises UsageError for unknown ids, missing simulators, environments without a time limit, and actions or
    observations that are not flat bounded vectors.
    """

    def __init__(self, env_id: str, count: int):
        if count < 1:
            raise UsageError(f"count={count} leaves no episodes; ask for at least 1")
        if env_id not in gymnasium.registry:
            raise _unknown(env_id, gymnasium.registry, "gymnasium")
        self._envs = [_make_gymnasium(env_id) for _ in range(count)]
        first = self._envs[0]
        self._actions = _action_range(env_id, first.action_space)
        obs_dim = _observation_dim(env_id, first.observation_space)
        limit = first.spec.max_episode_steps if first.spec else None
        if limit is None:
            raise UsageError(f"{env_id} has no time limit; register it with max_episode_steps")
        self.spec = Spec(obs_dim, len(self._actions.low), self._actions.max_action)
        self.horizon = limit
        self._obs = np.zeros((count, obs_dim), np.float32)
        self._terminated = np.zeros(count, bool)
        self._truncated = np.zeros(count, bool)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode per seed: observations (count, obs_dim)."""
        if len(seeds) != len(self._envs):
            raise UsageError(f"{len(seeds)} seeds for {len(self._envs)} episodes; give one seed per episode")
        for i, (env, seed) in enumerate(zip(self._envs, seeds)):
            self._obs[i], _ = env.reset(seed=int(seed))
        self._terminated[:] = self._truncated[:] = False
        return self._obs.copy()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the episodes that have not ended; actions (count, action_dim) in [-max_action, max_action].

        Returns float32 (obs, reward, terminated, truncated), the flags 0 or 1 and kept after the end.
        """
        reward = np.zeros(len(self._envs), np.float32)
        boxed = self._actions.to_box(np, np.asarray(actions, np.float32))
        for i in np.flatnonzero(~(self._terminated | self._truncated)):
            step = self._envs[i].step(boxed[i])
            self._obs[i], reward[i], self._terminated[i], self._truncated[i] = step[:4]
        flags = self._terminated.astype(np.float32), self._truncated.astype(np.float32)
        return self._obs.copy(), reward, *flags

    def close(self) -> None:
        """Release the simulators."""
        for env in self._envs:
            env.close()


def _make_gymnasium(env_id: str) -> gymnasium.Env:
    try:
        return gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"gymnasium cannot make {env_id!r}: {reason}") from error
