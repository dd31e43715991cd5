"""Control tasks as environments: seen in pictures, or by their state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Env, Key, Spec, TimeStep, UsageError
from envs.pixels.core import STEPS, Body, Task

SIZE, MIN_SIZE = 84, 36  # pixels along a side
REPEAT, STACK = 2, 3  # as DrQ-v2 (Yarats et al., arXiv 2107.09645) sees the suite
CHANNELS = 3


class State(NamedTuple):
    """What is simulated, what is seen, and when."""

    body: Body
    obs: jax.Array  # (obs_dim,) uint8 pictures, the newest one's channels last; float32 where the state is seen
    t: jax.Array  # () int32, steps taken


def pixel_env(name: str, task: Task, size: int = SIZE, repeat: int = REPEAT, stack: int = STACK) -> Env:
    """The task seen in pictures: the last `stack` ones, oldest first; at a reset `stack` times the first one.

    Each action is applied for `repeat` control steps, whose rewards are summed, and one picture is drawn after them.
    Observation (size * size * 3 * stack,) uint8; `Env.view` gives (..., size, size, 3 * stack). Never terminal;
    horizon 1000 / repeat. Raises UsageError for pictures below 36 pixels, no pictures at all, and repeats that do not
    divide 1000.
    """
    _check_repeat(name, repeat)
    if size < MIN_SIZE:
        raise UsageError(f"{name}: pictures of {size} pixels are too small; ask for at least {MIN_SIZE}")
    if stack < 1:
        raise UsageError(f"{name}: a stack of {stack} pictures shows nothing; ask for at least 1")
    with jax.ensure_compile_time_eval():  # backdrops are constants, also where this is called under jit
        paint = task.painter(size)

    def view(obs: jax.Array) -> jax.Array:
        return obs.reshape(*obs.shape[:-1], size, size, CHANNELS * stack)

    def reset(key: Key, params: object) -> tuple[State, jax.Array]:
        body = task.start(key)
        obs = jnp.tile(paint(body), stack).reshape(-1)
        return State(body, obs, jnp.int32(0)), obs

    def step(key: Key, state: State, action: jax.Array, params: object) -> tuple[State, TimeStep]:
        body, reward = _advance(task, repeat, state.body, action, params)
        obs = jnp.concatenate([view(state.obs)[..., CHANNELS:], paint(body)], axis=-1).reshape(-1)
        return _answer(State(body, obs, state.t + 1), reward, STEPS // repeat)

    spec = Spec(size * size * CHANNELS * stack, task.action_dim)
    return Env(name, spec, STEPS // repeat, _arrays(task), reset, step, view)


def state_env(name: str, task: Task, repeat: int = 1) -> Env:
    """The task seen by its state, float32, as the suite observes it without pictures; otherwise as `pixel_env`.

    Raises UsageError for a repeat that does not divide 1000.
    """
    _check_repeat(name, repeat)

    def reset(key: Key, params: object) -> tuple[State, jax.Array]:
        body = task.start(key)
        obs = task.observe(body)
        return State(body, obs, jnp.int32(0)), obs

    def step(key: Key, state: State, action: jax.Array, params: object) -> tuple[State, TimeStep]:
        body, reward = _advance(task, repeat, state.body, action, params)
        return _answer(State(body, task.observe(body), state.t + 1), reward, STEPS // repeat)

    dim = jax.eval_shape(reset, jax.random.key(0), None)[1].shape[0]
    return Env(name, Spec(dim, task.action_dim), STEPS // repeat, _arrays(task), reset, step)


def _check_repeat(name: str, repeat: int) -> None:
    if repeat < 1 or STEPS % repeat:
        raise UsageError(f"{name}: {STEPS} control steps cannot be had by repeats of {repeat}; choose 1, 2, 4, 5 or 8")


def _arrays(task: Task) -> object:
    return jax.tree.map(jnp.float32, task.params)


def _advance(task: Task, repeat: int, body: Body, action: jax.Array, params: object) -> tuple[Body, jax.Array]:
    """The body after `repeat` control steps, and the sum of their rewards."""
    action = jnp.clip(action, -1.0, 1.0)

    def control_step(body: Body, _: None) -> tuple[Body, jax.Array]:
        body = task.advance(body, action, params)
        return body, task.reward(body, action)

    body, rewards = jax.lax.scan(control_step, body, length=repeat)
    return body, rewards.sum()


def _answer(state: State, reward: jax.Array, horizon: int) -> tuple[State, TimeStep]:
    return state, TimeStep(state.obs, reward, jnp.asarray(False), state.t >= horizon)
