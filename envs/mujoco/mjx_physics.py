"""Locomotion on MJX: the simulator itself is JAX code, so episodes run by the thousand on an accelerator.

Contacts of capsules with the ground are ours (`mjx_contacts.py`); with them all robots follow C MuJoCo.
"""

import contextlib
import io
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.core import Env, EnvParams, Key, TimeStep
from envs.mujoco.dynamics import NOMINAL, Dynamics
from envs.mujoco.locomotion import HORIZON, Task, load_model, spec_of

with contextlib.redirect_stdout(io.StringIO()):  # it prints that its optional Warp backend is not installed
    from mujoco import mjx

    from envs.mujoco import mjx_contacts


# What of MJX's model depends on the factors of `Dynamics`.
SHIFTED = (
    "opt.gravity", "stat.meaninertia", "stat.meanmass", "stat.meansize", "body_mass", "body_subtreemass",
    "body_inertia", "body_invweight0", "dof_invweight0", "dof_M0", "geom_size", "geom_aabb", "geom_rbound",
    "geom_friction", "cam_poscom0", "light_poscom0", "actuator_acc0",
)  # fmt: skip


class MjxState(NamedTuple):
    """An environment's state. A finished episode (terminated or at the horizon) no longer changes."""

    qpos: jax.Array  # (nq,)
    qvel: jax.Array  # (nv,)
    warmstart: jax.Array  # (nv,), where the constraint solver starts
    x: jax.Array  # () m, the coordinate that velocities are measured on; (2,) where y counts, too
    t: jax.Array  # () int32, steps taken
    terminated: jax.Array  # () bool


def make(robot: Task) -> Env:
    """The task on MJX, in float32. The first compilation of `step` takes minutes on a CPU."""
    model = load_model(robot)
    spec = spec_of(robot, model)
    init_qpos = jnp.asarray(model.qpos0, jnp.float32)
    dt = model.opt.timestep * robot.frame_skip
    simulate = _simulator(robot, model)

    def reset(key: Key, params: EnvParams) -> tuple[MjxState, jax.Array]:
        qpos, qvel = robot.draw_start(init_qpos, model.nv, key)
        place = qpos[:2] if robot.planar else qpos[0]
        state = MjxState(qpos, qvel, jnp.zeros(model.nv), place, jnp.int32(0), jnp.asarray(False))
        return state, robot.observation(jnp, qpos, qvel)

    def step(key: Key, state: MjxState, action: jax.Array, params: EnvParams) -> tuple[MjxState, TimeStep]:
        finished = state.terminated | (state.t >= HORIZON)
        after = simulate(state, action, params)
        sound = jnp.all(jnp.isfinite(after.qpos)) & jnp.all(jnp.isfinite(after.qvel))
        keep = finished | ~sound  # a simulation that blew up keeps its last sound state and is terminated
        after = jax.tree.map(lambda old, new: jnp.where(keep, old, new), state, after)
        ended = ~sound | ~robot.is_healthy(jnp, after.qpos, after.qvel)
        after = after._replace(t=state.t + ~finished, terminated=state.terminated | (ended & ~finished))
        moved = jnp.atleast_1d(after.x - state.x)
        reward = robot.reward(jnp, after.qpos, after.qvel, moved[0], action, dt)
        obs = robot.observation(jnp, after.qpos, after.qvel)
        reward, measures = jnp.where(finished, 0.0, reward), robot.measures(jnp, moved, dt)
        return after, TimeStep(obs, reward, after.terminated, after.t >= HORIZON, measures)

    params = model_arrays(robot, NOMINAL) if robot.thighs else ()
    return Env(robot.name, spec, HORIZON, params, reset, step)


def model_arrays(robot: Task, dynamics: Dynamics) -> dict[str, jax.Array]:
    """The environment's parameters for factors of one shape (...): what they change of the model, (..., *its shape).

    Inertias, and what the constraint solver derives from them, are the work of MuJoCo's compiler, on the host.
    """
    rows = np.stack(dynamics, axis=-1)  # (..., 4)
    models = [mjx.put_model(load_model(robot, Dynamics(*row))) for row in rows.reshape(-1, 4).tolist()]
    stacks = {path: jnp.stack([attrgetter(path)(model) for model in models]) for path in SHIFTED}
    return {path: x.reshape(*rows.shape[:-1], *x.shape[1:]) for path, x in stacks.items()}


def _simulator(robot: Task, model: mujoco.MjModel) -> Any:
    """(state, action, params) -> state after `frame_skip` steps of the simulator, counters untouched."""
    mjx_contacts.follow_axes()
    mjx_model = mjx.put_model(model)
    template = mjx.make_data(model)
    torso = model.body(robot.torso).id if robot.torso else None

    def simulate(state: MjxState, action: jax.Array, params: EnvParams) -> MjxState:
        shifted = mjx_model.tree_replace(params) if params else mjx_model
        data = template.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, ctrl=action)
        data, _ = jax.lax.scan(lambda data, _: (mjx.step(shifted, data), None), data, length=robot.frame_skip)
        place = data.qpos if torso is None else data.xpos[torso]
        x = place[:2] if robot.planar else place[0]
        return state._replace(qpos=data.qpos, qvel=data.qvel, warmstart=data.qacc_warmstart, x=x)

    return simulate
