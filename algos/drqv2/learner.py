"""DrQ-v2 for the replay loop: its agent, how it acts, and its replay of single frames.

An environment seen by its state is learnt from likewise: the encoder is the identity, and states are images of one
pixel that have as many channels as the state has numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp

from algos.buffers import (
    FrameBuffer,
    FrameLayout,
    FrameRow,
    NStepBatch,
    add_frame,
    empty_frames,
    sample_frames,
    whole_windows,
)
from algos.core import Env, Key, Metrics, Transition, UsageError
from algos.drqv2 import nets
from algos.drqv2.interventions import intervene
from algos.drqv2.learn import Agent, augment_at, draw, init_agent, learn, sample_action, stddev_at
from algos.drqv2.settings import Hyper, Static
from algos.off_policy import Learner

Image = tuple[int, int, int]


def image_shape(env: Env, static: Static) -> Image:
    """Height, width and channels of all stacked frames; of a state (1, 1, obs_dim).

    Raises UsageError where environment, encoder and stack do not go together.
    """
    flat = jax.ShapeDtypeStruct((env.spec.obs_dim,), jnp.uint8)
    seen: Any = None if env.view is None else jax.eval_shape(env.view, flat)
    shape: tuple[int, ...] = seen.shape if isinstance(seen, jax.ShapeDtypeStruct) else ()
    if static.encoder == "identity":
        if len(shape) == 3:
            raise UsageError(f"algo.static.encoder=identity is for states, env={env.name} shows pixels: set it to cnn")
        return 1, 1, env.spec.obs_dim
    if len(shape) != 3:
        raise UsageError(
            f"algo.static.encoder=cnn learns from pixels, env={env.name} has none: set env=pixels-cartpole-swingup, "
            "..., or algo.static.encoder=identity for states"
        )
    if shape[2] % static.stack:
        raise UsageError(f"algo.static.stack={static.stack} does not divide the {shape[2]} channels of env={env.name}")
    return shape[0], shape[1], shape[2]


def frame_layout(env: Env, static: Static) -> FrameLayout:
    """What is kept of each observation: its newest frame, or the state. Raises UsageError as `image_shape`."""
    height, width, channels = image_shape(env, static)
    frame, stack, dtype = (height, width, channels // static.stack), static.stack, "uint8"
    if static.encoder == "identity":
        frame, stack, dtype = (1, 1, channels), 1, "float32"
    return FrameLayout(frame, stack, static.nstep, static.running_episode, dtype, static.frames_in)


def check_capacity(env: Env, static: Static) -> None:
    """Raise UsageError for a buffer in which an episode can push out all those that have ended."""
    least = 2 * (env.horizon + 1)
    if static.buffer_capacity < least and not static.running_episode:
        raise UsageError(
            f"algo.static.buffer_capacity={static.buffer_capacity} does not hold two episodes of env={env.name}: set "
            f"it to {least} or more, or algo.static.running_episode=true"
        )
    if env.horizon < static.nstep:
        raise UsageError(f"algo.static.nstep={static.nstep} is more than the {env.horizon} steps of env={env.name}")


def mean_action(agent: Agent, images: jax.Array) -> jax.Array:
    """The policy's mean (..., action_dim) at images (..., H, W, channels), which are not shifted."""
    features, *_ = nets.encoder(agent.encoder, images.reshape(-1, *images.shape[-3:]))
    mean, _ = nets.actor(agent.actor, features)
    return mean.reshape(*images.shape[:-3], -1)


def make_learner(static: Static, env: Env) -> Learner:
    """DrQ-v2 in an environment. Raises UsageError for sizes that do not fit it, and where pixels are needed."""
    image, layout, action_dim = image_shape(env, static), frame_layout(env, static), env.spec.action_dim
    check_capacity(env, static)

    def view(obs: jax.Array) -> jax.Array:
        """Observations (..., obs_dim) as images (..., H, W, channels)."""
        return obs.reshape(*obs.shape[:-1], *image) if env.view is None else env.view(obs)

    def newest(obs: jax.Array) -> jax.Array:
        return view(obs)[..., -layout.frame[2] :]

    def explore(key: Key, agent: Agent, obs: jax.Array, steps: jax.Array, hyper: Hyper) -> jax.Array:
        mean = mean_action(agent, view(obs))
        return sample_action(mean, jax.random.normal(key, mean.shape), stddev_at(steps, hyper))

    def begin(buffer: FrameBuffer, obs: jax.Array, write: jax.Array) -> FrameBuffer:
        none, yes = jnp.zeros(()), jnp.ones((), bool)
        row = FrameRow(newest(obs), jnp.zeros(action_dim), none, jnp.ones(()), yes, ~yes)
        return add_frame(buffer, row, layout, write)

    def add(buffer: FrameBuffer, step: Transition, write: jax.Array) -> FrameBuffer:
        last = (step.terminated + step.truncated) > 0.0
        frame, discount = newest(step.next_obs), 1.0 - step.terminated
        row = FrameRow(frame, step.action, step.reward, discount, jnp.zeros((), bool), last)
        return add_frame(buffer, row, layout, write)

    def ready(buffer: FrameBuffer) -> jax.Array:
        first, end = whole_windows(buffer, layout)
        return end > first

    def update(
        key: Key, agent: Agent, batch: NStepBatch, steps: jax.Array, updates: jax.Array, hyper: Hyper
    ) -> tuple[Agent, Metrics]:
        draw_key, intervention_key = jax.random.split(key)
        draws = draw(draw_key, static.batch_size, action_dim, augment_at(steps, hyper))
        agent, metrics = learn(agent, batch, draws, steps, hyper)
        agent = intervene(intervention_key, agent, batch, steps, updates + 1, static, hyper)
        return agent, metrics if agent.q_change is None else metrics | {"q_change": agent.q_change}

    return Learner(
        init=lambda key, hyper: init_agent(key, static, image, action_dim),
        explore=explore,
        act=lambda agent, obs, hyper: mean_action(agent, view(obs)),
        empty=lambda: empty_frames(static.buffer_capacity, layout, action_dim),
        begin=begin,
        add=add,
        ready=ready,
        sample=lambda key, buffer, hyper: sample_frames(key, buffer, static.batch_size, layout, hyper.discount),
        update=update,
    )
