"""Point speed: a point mass that has to move at a given speed in a given direction, against drag and wind.

One family of tasks that differ in the wanted speed alone. Everything else is shared: what is seen, the dynamics,
the wind to be compensated, and thrusters that are fixed to the body, so that forces have to be turned into
its frame. A network trained on one speed can pass all this on to another, which few episodes do not show.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Env, Key, Spec, TimeStep, Transition, UsageError

SPEEDS = (0.0, 1.0, 3.0)  # m/s, of the named tasks
HORIZON = 50
DT = 0.1  # s
THRUST = np.array([6.0, 3.0], np.float32)  # m/s^2 at full action, along the wanted direction and to its left
DRAG = 0.3  # 1/m: the deceleration is DRAG * speed^2
INITIAL_SPEED = 2.0  # m/s: at most, on each coordinate
WIND = 1.5  # m/s^2: the largest acceleration by wind
WIDTH = 0.5  # m/s: the error of the velocity at which the reward has fallen to exp(-1/2)
RESPONSE = 0.3  # s: the expert wants to remove the error of the velocity at this time constant
EXPERT_NOISE = 0.1  # standard deviation on each action coordinate
EPISODES = 400


class Params(NamedTuple):
    """What tells one task from another."""

    speed: jax.Array  # () m/s, wanted


class State(NamedTuple):
    """What is seen, and when."""

    obs: jax.Array  # (6,)
    t: jax.Array  # () int32, steps taken


def make(speed: float) -> Env:
    """The task of one wanted speed, in m/s. Never terminal; horizon 50.

    Observation (6,): velocity, wanted direction (a unit vector, constant in an episode), acceleration by the
    wind (constant too), each as (x, y). Action (2,): thrust along the wanted direction and to its left.
    Reward: exp(-|e|^2 / (2 WIDTH^2)) for the error e of the velocity after the step.
    Raises UsageError for a negative speed.
    """
    name, params = f"pointspeed-{_checked(speed):g}", Params(jnp.float32(speed))
    return Env(name, Spec(obs_dim=6, action_dim=2), HORIZON, params, _reset, _step)


def _reset(key: Key, params: Params) -> tuple[State, jax.Array]:
    obs = _initial(jnp, jax.random.uniform(key, (5,)))
    return State(obs, jnp.int32(0)), obs


def _step(key: Key, state: State, action: jax.Array, params: Params) -> tuple[State, TimeStep]:
    obs, reward = _advance(jnp, state.obs, action, params.speed)
    t = state.t + 1
    return State(obs, t), TimeStep(obs, reward, jnp.asarray(False), t >= HORIZON)


def _initial(xp: ModuleType, uniform: Any) -> Any:
    """Five draws from [0, 1) -> the first observation (..., 6): velocity in a square, the rest in all directions."""
    velocity = INITIAL_SPEED * (2 * uniform[..., :2] - 1)
    angles = 2 * xp.pi * uniform[..., 2:4]
    vectors = [xp.stack([xp.cos(angle), xp.sin(angle)], -1) for angle in (angles[..., 0], angles[..., 1])]
    return xp.concatenate([velocity, vectors[0], WIND * uniform[..., 4:] * vectors[1]], axis=-1)


def _advance(xp: ModuleType, obs: Any, action: Any, speed: Any) -> tuple[Any, Any]:
    """(..., 6), (..., 2) -> the next observation (..., 6) and the reward (...)."""
    velocity, direction = obs[..., :2], obs[..., 2:4]
    thrust = _to_world(xp, xp.clip(action, -1.0, 1.0) * THRUST, direction)
    velocity = velocity + DT * (thrust + _drift(xp, obs))
    error = velocity - speed * direction
    reward = xp.exp(-xp.sum(xp.square(error), axis=-1) / (2 * WIDTH**2))
    return xp.concatenate([velocity, obs[..., 2:]], axis=-1), reward


def expert(xp: ModuleType, obs: Any, speed: Any) -> Any:
    """(..., 6) -> action (..., 2): remove the error of the velocity and balance drag and wind, as far as possible."""
    velocity, direction = obs[..., :2], obs[..., 2:4]
    wanted = (speed * direction - velocity) / RESPONSE - _drift(xp, obs)
    return xp.clip(_to_body(xp, wanted, direction) / THRUST, -1.0, 1.0)


def _drift(xp: ModuleType, obs: Any) -> Any:
    """Acceleration (..., 2) without thrust: wind and quadratic drag."""
    velocity = obs[..., :2]
    return obs[..., 4:] - DRAG * velocity * xp.sqrt(xp.sum(xp.square(velocity), axis=-1, keepdims=True))


def _to_world(xp: ModuleType, vector: Any, direction: Any) -> Any:
    """Components along `direction` and to its left -> (x, y)."""
    return vector[..., :1] * direction + vector[..., 1:] * _left_of(xp, direction)


def _to_body(xp: ModuleType, vector: Any, direction: Any) -> Any:
    """(x, y) -> components along `direction` and to its left."""
    return xp.stack([xp.sum(vector * axis, axis=-1) for axis in (direction, _left_of(xp, direction))], axis=-1)


def _left_of(xp: ModuleType, direction: Any) -> Any:
    return xp.stack([-direction[..., 1], direction[..., 0]], axis=-1)


def make_dataset(seed: int, speed: float, episodes: int = EPISODES) -> Transition:
    """Whole episodes of the expert with noise on its actions, recorded as they were executed.

    Leading size 50 * episodes, one episode after another; `truncated` marks each last step.
    Raises UsageError for a negative speed and for fewer than one episode.
    """
    _checked(speed)
    if episodes < 1:
        raise UsageError(f"episodes={episodes} leaves no data; ask for at least 1")
    # Speeds with the same seed are independent: they must not share the winds and directions of their episodes.
    rng = np.random.default_rng([seed, int(np.float32(speed).view(np.uint32))])
    obs = _initial(np, rng.random((episodes, 5), np.float32))
    steps = []
    for t in range(HORIZON):
        noise = EXPERT_NOISE * rng.standard_normal((episodes, 2), np.float32)
        action = np.clip(expert(np, obs, speed) + noise, -1.0, 1.0)
        after, reward = _advance(np, obs, action, speed)
        truncated = np.full(episodes, t == HORIZON - 1, np.float32)
        steps.append((obs, action, reward, after, np.zeros_like(truncated), truncated))
        obs = after
    fields = (np.stack(x, axis=1) for x in zip(*steps))  # (episodes, 50, ...)
    return Transition(*(jnp.asarray(x.reshape(-1, *x.shape[2:])) for x in fields))


def _checked(speed: float) -> float:
    if not 0.0 <= speed < np.inf:
        raise UsageError(f"speed={speed} is not a speed; choose a number of m/s from 0 up")
    return speed
