"""HalfCheetah whose reward is the forward velocity alone; what control costs is the auxiliary reward.

The robot of `envs.mujoco` on either simulator, as in Gupta et al., "Behavior Alignment via Reward Function
Optimization" (2023).
"""

import dataclasses

import jax
import jax.numpy as jnp

from envs import mujoco
from envs.core import Env, EnvParams, EnvState, Key, TimeStep
from envs.mujoco.locomotion import HORIZON, ROBOTS

NAME = "shaped-halfcheetah"
_ROBOT = "halfcheetah"


def make(backend: str = "auto") -> Env:
    """The forward velocity (m/s) as reward; `measures["auxiliary"]`: minus the squared action, as it was asked for.

    How much weight the auxiliary reward has is up to the algorithm. It counts on the last step, too. Actions beyond
    [-1, 1] are paid for in full, while the motors do what they can. 1000 steps, never terminal; `reset` draws a start:
    with the same key, the same one. Raises UsageError for an unknown backend.
    """
    robot = mujoco.make(_ROBOT, backend)

    def step(key: Key, state: EnvState, action: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        running = (~state.terminated & (state.t < HORIZON)).astype(jnp.float32)
        state, outcome = robot.step(key, state, action, params)
        effort = running * jnp.sum(jnp.square(action.astype(jnp.float32)), axis=-1)
        velocity = (
            outcome.reward + ROBOTS[_ROBOT].control_cost * effort
        )  # the robot's own reward has the cost taken off
        return state, outcome._replace(reward=velocity, measures={"auxiliary": -effort, "length": running})

    return dataclasses.replace(robot, name=NAME, step=step)
