"""Tasks of the DeepMind Control Suite as dm_control simulates and MuJoCo draws them, on the host, by name.

dmc-walker-run           84x84 pictures in colour, three stacked, actions repeated twice: DrQ-v2's setting
dmc-walker-run-64        pictures of another size
dmc-walker-run-fast      drawn without shadows and smoothed edges: 5 to 10 times as fast without a GPU
dmc-walker-run-64-fast

Needs `pip install 'adaptax[dm-control]'` and OpenGL, with or without a GPU (MUJOCO_GL=egl or osmesa).
"""

import difflib
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from envs.core import Env, Key, Spec, TimeStep, UsageError
from envs.pixels.adapter import CHANNELS, MIN_SIZE, REPEAT, SIZE, STACK
from envs.pixels.core import STEPS
from envs.pixels.dmc_host import Host, Task

QUADRUPED_CAMERA = 2  # as DrQ-v2 (Yarats et al., arXiv 2107.09645) sees it; the others from camera 0
TASKS: dict[str, Task] = {
    "acrobot-swingup": Task("acrobot", "swingup"),
    "ball-in-cup-catch": Task("ball_in_cup", "catch"),
    "cartpole-balance": Task("cartpole", "balance"),
    "cartpole-balance-sparse": Task("cartpole", "balance_sparse"),
    "cartpole-swingup": Task("cartpole", "swingup"),
    "cartpole-swingup-sparse": Task("cartpole", "swingup_sparse"),
    "cheetah-run": Task("cheetah", "run"),
    "finger-spin": Task("finger", "spin"),
    "finger-turn-easy": Task("finger", "turn_easy", drawn="site_pos"),
    "finger-turn-hard": Task("finger", "turn_hard", drawn="site_pos"),
    "hopper-hop": Task("hopper", "hop"),
    "hopper-stand": Task("hopper", "stand"),
    "humanoid-run": Task("humanoid", "run"),
    "humanoid-stand": Task("humanoid", "stand"),
    "humanoid-walk": Task("humanoid", "walk"),
    "pendulum-swingup": Task("pendulum", "swingup"),
    "quadruped-run": Task("quadruped", "run", QUADRUPED_CAMERA),
    "quadruped-walk": Task("quadruped", "walk", QUADRUPED_CAMERA),
    "reacher-easy": Task("reacher", "easy", drawn="geom_pos"),
    "reacher-hard": Task("reacher", "hard", drawn="geom_pos"),
    "walker-run": Task("walker", "run"),
    "walker-stand": Task("walker", "stand"),
    "walker-walk": Task("walker", "walk"),
}
PREFIX, FAST = "dmc-", "-fast"
NAMES = tuple(f"{PREFIX}{task}{end}" for end in ("", FAST) for task in TASKS)
PIXELS = re.compile(rf"{PREFIX}(.+?)(?:-(\d+))?({FAST})?")

# On the CPU, JAX copies callback arguments of 100 KB or more on the very threads that callbacks may be
# blocking, which is a deadlock on machines with few cores (jax issues 24255 and 25861).
ARGUMENT_BYTES = 64 * 1024


class State(NamedTuple):
    """Everything that an episode goes on from, bit by bit: `step` is a pure function of it and the action."""

    words: jax.Array  # (2 * size,) uint32: the float64 numbers of `dmc_host.Simulator`'s state
    obs: jax.Array  # (obs_dim,) uint8 pictures, the newest one's channels last
    t: jax.Array  # () int32, steps taken


def is_name(name: str) -> bool:
    """Whether the name is meant for a task here; whether there is such a task is for `make` to say."""
    return name.startswith(PREFIX)


@functools.cache
def make(name: str) -> Env:
    """An environment by its name, see above. The same name gives the same object.

    Raises UsageError: a task that is not known, with the nearest one that is; pictures below 36 pixels; dm_control
    missing or together with a MuJoCo that it breaks with; no OpenGL to draw with.
    """
    found = PIXELS.fullmatch(name)
    if found is None or found[1] not in TASKS:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)[0]
        raise UsageError(f"dm_control task {name!r} is not known; did you mean {near!r}?")
    return pixel_env(name, TASKS[found[1]], int(found[2] or SIZE), fast=bool(found[3]))


def pixel_env(
    name: str, task: Task, size: int = SIZE, fast: bool = False, repeat: int = REPEAT, stack: int = STACK
) -> Env:
    """The task seen in pictures: the last `stack` ones, oldest first; at a reset `stack` times the first one.

    Each action is applied for `repeat` control steps, and one picture is drawn after them. Observation and `Env.view`
    are those of `adapter.pixel_env`; horizon 1000 / repeat; terminated where the task's discount is 0, or where the
    simulation blew up. Inside JAX, resets and steps are callbacks to the host. Where episodes are stepped under
    `jax.vmap`, `autoreset` makes and draws a new episode in each step, ended or not, as both branches are computed.
    Raises UsageError as `make`.
    """
    if size < MIN_SIZE:
        raise UsageError(f"{name}: pictures of {size} pixels are too small; ask for at least {MIN_SIZE}")
    host = Host(task, size, fast, repeat)
    words, picture = _like(jnp.uint32, 2 * host.size), _like(jnp.uint8, size, size, CHANNELS)
    start = _batched(lambda seeds: _as_words(*host.start(seeds)), [_like(jnp.uint32)], [words, picture])
    advance = _batched(
        lambda words, actions: _as_words(*host.step(words.view(np.float64), actions.astype(np.float64))),
        [words, _like(jnp.float32, host.action_dim)],
        [words, picture, _like(jnp.float32), _like(jnp.float32)],
    )

    def view(obs: jax.Array) -> jax.Array:
        return obs.reshape(*obs.shape[:-1], size, size, CHANNELS * stack)

    def reset(key: Key, params: object) -> tuple[State, jax.Array]:
        words, picture = start(jax.random.bits(key, dtype=jnp.uint32))
        obs = jnp.tile(picture, stack).reshape(-1)
        return State(words, obs, jnp.int32(0)), obs

    def step(key: Key, state: State, action: jax.Array, params: object) -> tuple[State, TimeStep]:
        action = jnp.clip(action, -1.0, 1.0).astype(jnp.float32)
        words, picture, reward, discount = advance(state.words, action)
        obs = jnp.concatenate([view(state.obs)[..., CHANNELS:], picture], axis=-1).reshape(-1)
        state = State(words, obs, state.t + 1)
        return state, TimeStep(obs, reward, discount == 0.0, state.t >= STEPS // repeat)

    spec = Spec(size * size * CHANNELS * stack, host.action_dim)
    return Env(name, spec, STEPS // repeat, (), reset, step, view)


def _like(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _as_words(states: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    return states.view(np.uint32), *others


def _batched(on_host: Callable, arguments: list[jax.ShapeDtypeStruct], results: list[jax.ShapeDtypeStruct]) -> Callable:
    """`on_host`, numpy arrays with one leading axis to the like, in JAX with any leading axes.

    arguments and results: shapes and types without leading axes.
    """
    rows = ARGUMENT_BYTES // max(4 * int(np.prod(x.shape)) for x in arguments)

    def call(*values: jax.Array) -> list[jax.Array]:
        n = len(values[0])
        shapes = [_like(x.dtype, n, *x.shape) for x in results]
        return jax.pure_callback(lambda *x: on_host(*(np.ascontiguousarray(y) for y in x)), shapes, *values)

    @custom_vmap
    def batched(*values: jax.Array) -> tuple[jax.Array, ...]:
        lead = values[0].shape[: values[0].ndim - len(arguments[0].shape)]
        flat = [value.reshape(-1, *x.shape) for value, x in zip(values, arguments)]
        chunks = [call(*(value[i : i + rows] for value in flat)) for i in range(0, len(flat[0]), rows)]
        return tuple(jnp.concatenate(parts).reshape(*lead, *x.shape) for parts, x in zip(zip(*chunks), results))

    @batched.def_vmap
    def _over_axis(axis_size: int, has_axis: list[bool], *values: jax.Array):
        full = [x if has else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, has in zip(values, has_axis)]
        return batched(*full), (True,) * len(results)

    return batched
