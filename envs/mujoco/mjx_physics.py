"""Locomotion on MJX: the simulator itself is JAX code, so episodes run by the thousand on an accelerator.

Contacts of capsules with the ground are ours (`mjx_contacts.py`); with them all robots follow C MuJoCo.
"""

import contextlib
import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco

from envs.core import Env, EnvParams, Key, TimeStep
from envs.mujoco.locomotion import HORIZON, Robot, draw_start, load_model, spec_of

with contextlib.redirect_stdout(io.StringIO()):  # it prints that its optional Warp backend is not installed
    from mujoco import mjx

    from envs.mujoco import mjx_contacts


class MjxState(NamedTuple):
    """An environment's state. A finished episode (terminated or at the horizon) no longer changes."""

    qpos: jax.Array  # (nq,)
    qvel: jax.Array  # (nv,)
    warmstart: jax.Array  # (nv,), where the constraint solver starts
    x: jax.Array  # () m, the coordinate that velocities are measured on
    t: jax.Array  # () int32, steps taken
    terminated: jax.Array  # () bool


def make(robot: Robot) -> Env:
    """The task on MJX, in float32. The first compilation of `step` takes minutes on a CPU."""
    model = load_model(robot)
    spec = spec_of(robot, model)
    init_qpos = jnp.asarray(model.qpos0, jnp.float32)
    dt = model.opt.timestep * robot.frame_skip
    simulate = _simulator(robot, model)

    def reset(key: Key, params: EnvParams) -> tuple[MjxState, jax.Array]:
        qpos, qvel = draw_start(robot, init_qpos, model.nv, key)
        state = MjxState(qpos, qvel, jnp.zeros(model.nv), qpos[0], jnp.int32(0), jnp.asarray(False))
        return state, robot.observation(jnp, qpos, qvel)

    def step(key: Key, state: MjxState, action: jax.Array, params: EnvParams) -> tuple[MjxState, TimeStep]:
        finished = state.terminated | (state.t >= HORIZON)
        after = simulate(state, action)
        sound = jnp.all(jnp.isfinite(after.qpos)) & jnp.all(jnp.isfinite(after.qvel))
        keep = finished | ~sound  # a simulation that blew up keeps its last sound state and is terminated
        after = jax.tree.map(lambda old, new: jnp.where(keep, old, new), state, after)
        ended = ~sound | ~robot.is_healthy(jnp, after.qpos, after.qvel)
        after = after._replace(t=state.t + ~finished, terminated=state.terminated | (ended & ~finished))
        reward = jnp.where(finished, 0.0, robot.reward(jnp, after.x - state.x, action, dt))
        obs = robot.observation(jnp, after.qpos, after.qvel)
        return after, TimeStep(obs, reward, after.terminated, after.t >= HORIZON)

    return Env(robot.name, spec, HORIZON, (), reset, step)


def _simulator(robot: Robot, model: mujoco.MjModel) -> Any:
    """(state, action) -> state after `frame_skip` steps of the simulator, counters untouched."""
    mjx_contacts.follow_axes()
    mjx_model = mjx.put_model(model)
    template = mjx.make_data(model)
    torso = model.body(robot.torso).id if robot.torso else None

    def simulate(state: MjxState, action: jax.Array) -> MjxState:
        data = template.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, ctrl=action)
        data, _ = jax.lax.scan(lambda data, _: (mjx.step(mjx_model, data), None), data, length=robot.frame_skip)
        x = data.qpos[0] if torso is None else data.xpos[torso, 0]
        return state._replace(qpos=data.qpos, qvel=data.qvel, warmstart=data.qacc_warmstart, x=x)

    return simulate
