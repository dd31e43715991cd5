"""Locomotion on C MuJoCo, as a pure function of an explicit state.

The state holds float64 numbers as pairs of uint32 words, so nothing is rounded on the way through float32 JAX
programs, and a checkpoint of the state continues the simulation to the last bit.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax.custom_batching import custom_vmap

from envs.core import Env, EnvParams, Key, TimeStep
from envs.mujoco.dynamics import NOMINAL, Dynamics, as_arrays
from envs.mujoco.locomotion import HORIZON, Task, load_model, spec_of

# On the CPU, JAX copies callback arguments of 100 KB or more on the very threads that callbacks may be
# blocking, which is a deadlock on machines with few cores (jax issues 24255 and 25861).
ARGUMENT_BYTES = 64 * 1024

# MuJoCo reports a simulation that blew up by counting warnings, and prints the first of a kind (count zero).
# Counts are kept at this value, so that nothing is printed and an automatic reset, which leaves 1, shows too.
QUIET = 2

MACHINES = 64  # models with shifted dynamics that are kept


class CState(NamedTuple):
    """An environment's state. A finished episode (terminated or at the horizon) no longer changes."""

    words: jax.Array  # (2 * size,) uint32: float64 numbers, see `Physics`
    t: jax.Array  # () int32, steps taken
    terminated: jax.Array  # () bool


class Machine(NamedTuple):
    """A model, and what each thread needs to simulate it."""

    model: mujoco.MjModel
    datas: list[mujoco.MjData]


class Physics:
    """C MuJoCo stepping batches of state vectors on one thread per core.

    A state vector is float64: qpos, qvel, the solver's warm start, and the place that velocity is taken of: its x
    coordinate, then y where that counts. These robots have no other state (no activations, nothing that varies with
    time); without the warm start a continued simulation would drift.
    """

    def __init__(self, robot: Task, threads: int | None = None):
        self.robot = robot
        self.model = load_model(robot)
        self.nq, self.nv = self.model.nq, self.model.nv
        self.simulated = self.nq + 2 * self.nv
        self.size = self.simulated + 1 + robot.planar
        self.measures = tuple(robot.measures(np, np.zeros(2), 1.0))
        self.dt = self.model.opt.timestep * robot.frame_skip
        self.threads = threads or _core_count()
        self._nominal = self._machine(self.model)
        self._shifted = functools.lru_cache(MACHINES)(
            lambda *factors: self._machine(load_model(robot, Dynamics(*factors)))
        )
        self._torso = self.model.body(robot.torso).id if robot.torso else None
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mujoco")
        self._lock = threading.Lock()

    def _machine(self, model: mujoco.MjModel) -> Machine:
        datas = [mujoco.MjData(model) for _ in range(self.threads)]
        for data in datas:
            data.warning.number[:] = QUIET
        return Machine(model, datas)

    def positions_velocities(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(qpos, qvel) of state vectors (..., size)."""
        return vector[..., : self.nq], vector[..., self.nq : self.nq + self.nv]

    def step(
        self, vector: np.ndarray, action: np.ndarray, finished: np.ndarray, factors: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One environment step of every state that is not finished, in float64.

        vector (n, size), action (n, action_dim), finished (n,) -> (vector, observation, reward, terminated).
        factors (n, 4) are those of each state's `Dynamics`; None leaves the robot as it is. Models are made when
        they are first met. A simulation that blows up keeps its last sound state and is terminated.
        """
        after = vector.copy()
        diverged = np.zeros(len(vector), dtype=bool)
        live = np.flatnonzero(~finished)
        with self._lock:  # the MjData of a thread belongs to one call at a time
            machines, owner = self._machines(live, len(vector), factors)
            work = functools.partial(self._work, machines, owner, after, action, diverged)
            parts = np.array_split(live, min(self.threads, max(len(live), 1)))
            jobs = [self._pool.submit(work, i, rows) for i, rows in enumerate(parts[1:], start=1)]
            work(0, parts[0])
            for job in jobs:
                job.result()
        after[diverged] = vector[diverged]
        qpos, qvel = self.positions_velocities(after)
        observation = self.robot.observation(np, qpos, qvel)
        reward = self.robot.reward(np, qpos, qvel, self.moved(vector, after)[:, 0], action, self.dt)
        terminated = diverged | ~self.robot.is_healthy(np, qpos, qvel)
        return after, observation, np.where(finished, 0.0, reward), terminated & ~finished

    def moved(self, vector: np.ndarray, after: np.ndarray) -> np.ndarray:
        """How far each state got in a step, (n, 1 or 2) m; zero where it was finished or blew up."""
        return after[:, self.simulated :] - vector[:, self.simulated :]

    def _machines(self, live: np.ndarray, n: int, factors: np.ndarray | None) -> tuple[list[Machine], np.ndarray]:
        """The machines that the live states need, and for each of n states the index of its own."""
        owner = np.zeros(n, int)
        if factors is None or (factors[live] == 1.0).all():
            return [self._nominal], owner
        kinds, which = np.unique(factors[live], axis=0, return_inverse=True)
        owner[live] = which.reshape(-1)
        return [self._shifted(*kind) for kind in kinds.tolist()], owner

    def _work(self, machines, owner, vector, action, diverged, thread: int, rows: np.ndarray) -> None:
        """One thread's share of a step."""
        for index, machine in enumerate(machines):
            own = rows[owner[rows] == index]
            self._advance(machine.model, machine.datas[thread], own, vector, action, diverged)

    def _advance(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        rows: np.ndarray,
        vector: np.ndarray,
        action: np.ndarray,
        diverged: np.ndarray,
    ) -> None:
        """Step the given rows of `vector` in place, marking those that blew up.

        Numbers are copied through views: of all these lines only `mj_step` lets go of the interpreter's lock.
        """
        counts, ctrl = data.warning.number, data.ctrl
        tracked = data.qpos if self._torso is None else data.xpos[self._torso]
        *simulated, place = np.split(vector, [self.nq, self.nq + self.nv, self.simulated], axis=1)
        views = tuple(zip((data.qpos, data.qvel, data.qacc_warmstart), simulated))
        for row in rows:
            for inside, outside in views:
                inside[:] = outside[row]
            ctrl[:] = action[row]
            mujoco.mj_step(model, data, nstep=self.robot.frame_skip)
            for inside, outside in views:
                outside[row] = inside
            place[row] = tracked[: place.shape[1]]
            if (counts != QUIET).any():
                counts[:] = QUIET
                diverged[row] = True


def make(robot: Task) -> Env:
    """The task on C MuJoCo, through a callback to the host: best on CPUs, and usable in any JAX program."""
    physics = Physics(robot)
    spec = spec_of(robot, physics.model)
    init_qpos = jnp.asarray(physics.model.qpos0, jnp.float32)
    advance = _batched_callback(physics, spec.obs_dim)

    def reset(key: Key, params: EnvParams) -> tuple[CState, jax.Array]:
        qpos, qvel = robot.draw_start(init_qpos, physics.nv, key)
        zeros = jnp.zeros(physics.nv)
        vector = jnp.concatenate([qpos, qvel, zeros, qpos[: 1 + robot.planar]])
        state = CState(float64_words(vector), jnp.int32(0), jnp.asarray(False))
        return state, robot.observation(jnp, qpos, qvel)

    def step(key: Key, state: CState, action: jax.Array, params: EnvParams) -> tuple[CState, TimeStep]:
        finished = state.terminated | (state.t >= HORIZON)
        words, obs, reward, terminated, *measures = advance(
            state.words, action.astype(jnp.float32), finished, jnp.stack(as_arrays(params or NOMINAL))
        )
        state = CState(words, state.t + ~finished, state.terminated | terminated)
        named = dict(zip(physics.measures, measures))
        return state, TimeStep(obs, reward, state.terminated, state.t >= HORIZON, named)

    params = as_arrays(NOMINAL) if robot.thighs else ()
    return Env(robot.name, spec, HORIZON, params, reset, step)


def _batched_callback(physics: Physics, obs_dim: int) -> Callable:
    """`Physics.step` in JAX, any leading axes: (words, action, finished, factors) -> (words, obs, reward, ended, ...).

    What follows are the measures, in the order of their names in `physics`.
    """
    rows = ARGUMENT_BYTES // (8 * physics.size)

    def on_host(words, action, finished, factors):
        vector = np.ascontiguousarray(words).view(np.float64)
        after, obs, reward, terminated = physics.step(
            vector, np.asarray(action, np.float64), np.asarray(finished), np.asarray(factors)
        )
        measures = physics.robot.measures(np, physics.moved(vector, after), physics.dt).values()
        return after.view(np.uint32), obs.astype(np.float32), reward.astype(np.float32), terminated, *measures

    def call(words, action, finished, factors):
        n = len(words)
        shapes = (
            jax.ShapeDtypeStruct(words.shape, jnp.uint32),
            jax.ShapeDtypeStruct((n, obs_dim), jnp.float32),
            jax.ShapeDtypeStruct((n,), jnp.float32),
            jax.ShapeDtypeStruct((n,), jnp.bool_),
            *(jax.ShapeDtypeStruct((n,), jnp.float32) for _ in physics.measures),
        )
        return jax.pure_callback(on_host, shapes, words, action, finished, factors)

    @custom_vmap
    def advance(words, action, finished, factors):
        lead = finished.shape
        flat = [x.reshape(-1, *x.shape[len(lead) :]) for x in (words, action, finished, factors)]
        chunks = [call(*(x[i : i + rows] for x in flat)) for i in range(0, len(flat[0]), rows)]
        return tuple(jnp.concatenate(x).reshape(*lead, *x[0].shape[1:]) for x in zip(*chunks))

    @advance.def_vmap
    def _over_axis(axis_size, batched, *arguments):
        full = [
            x if has_axis else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, has_axis in zip(arguments, batched)
        ]
        return advance(*full), (True,) * (4 + len(physics.measures))

    return advance


def float64_words(x: jax.Array) -> jax.Array:
    """The bits of float32 numbers (n,) widened to float64: (2n,) uint32, low word first.

    Without float64, which JAX lacks by default. Exact for normal numbers; subnormal ones become zero.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign, exponent, fraction = bits & jnp.uint32(1 << 31), (bits >> 23) & 0xFF, bits & 0x7FFFFF
    rebiased = exponent + jnp.uint32(1023 - 127)
    nonzero = exponent > 0
    high = sign | jnp.where(nonzero, (rebiased << 20) | (fraction >> 3), 0)
    low = jnp.where(nonzero, fraction << 29, 0)
    return jnp.stack([low, high], axis=-1).reshape(-1)


def float64_vector(words: np.ndarray) -> np.ndarray:
    """State vectors (..., size) from the words (..., 2 * size) of a `CState`; on the host."""
    return np.ascontiguousarray(words).view(np.float64)


def _core_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
