"""Adaptive Replay Ratio: recorded updates of DrQ-v2, its parts, and the traces of the rule, against ours."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos import buffers
from algos.buffers import FrameBuffer, FrameLayout, FrameRow
from algos.drqv2 import learn, replay_ratio
from algos.drqv2.replay_ratio import RatioHyper, RatioState, RatioStatic
from algos.drqv2.settings import Hyper
from tests.parity.adaptive_rr_updates import CROP, FORWARD, compare_updates
from tests.parity.core import EXACT, Arrays, Case, Comparison, Kinds, Rule

ROUNDING = Rule(1e-6)


def filled(reward: np.ndarray, discount: np.ndarray, action: np.ndarray, layout: FrameLayout) -> FrameBuffer:
    """A buffer with one whole episode, whose frames are their own numbers in two bytes."""
    length = len(reward)
    numbers = np.arange(length)
    frame = jnp.asarray(np.stack([numbers % 256, numbers // 256], -1)[:, None, None], jnp.uint8)
    rows = FrameRow(
        frame, jnp.asarray(action), jnp.asarray(reward), jnp.asarray(discount),
        jnp.asarray(numbers == 0), jnp.asarray(numbers == length - 1),
    )  # fmt: skip
    empty = buffers.empty_frames(length + 2 * (layout.stack + layout.nstep), layout, action.shape[-1])
    add = lambda buffer, row: (buffers.add_frame(buffer, row, layout), None)  # noqa: E731
    return jax.jit(lambda rows: jax.lax.scan(add, empty, rows)[0])(rows)


def compare_nstep(case: Case, comparison: Comparison) -> None:
    """All windows of a recorded episode, in order."""
    arrays = case.arrays
    for name in arrays.children():
        reward, discount, action = (arrays[f"{name}/{key}"] for key in ("reward", "discount", "action"))
        layout = FrameLayout((1, 1, 2), stack=1, nstep=int(arrays[f"{name}/nstep"]))
        buffer = filled(reward[:, 0], discount[:, 0], action, layout)
        begin, end = buffers.whole_windows(buffer, layout)
        windows = jnp.arange(int(begin), int(end))
        batch = jax.jit(buffers.read_windows, static_argnums=2)(buffer, windows, layout, arrays[f"{name}/gamma"])
        for field in ("action", "reward", "discount"):
            comparison.add(field, getattr(batch, field), arrays[f"{name}/out_{field}"], ROUNDING)
        for field, x in {"obs": batch.obs, "next_obs": batch.next_obs}.items():
            number = np.asarray(x[:, 0, 0]).astype(np.int64) @ np.array([1, 256])
            comparison.add(f"{field}'s number", number, arrays[f"{name}/out_{field}_index"], EXACT)


def compare_shift(case: Case, comparison: Comparison) -> None:
    """Shifted images."""
    arrays = case.arrays
    shifted = learn.random_shift(jnp.asarray(arrays["images"]), jnp.asarray(arrays["shift_xy"]), int(arrays["pad"]))
    comparison.add("shifted images", shifted, arrays["output"], CROP)


class Trace(NamedTuple):
    """What a recorded loop of episodes of one length saw, one entry for each agent step."""

    due: jax.Array
    check: replay_ratio.Check
    episodes: jax.Array  # ended by then


def play(arrays: Arrays, name: str) -> Trace:
    """Our counters through the recorded loop, with the recorded FAU of each update."""
    get = lambda key: arrays[f"{name}/{key}"]  # noqa: E731
    length, phi = len(get("updates_per_agent_step")), jnp.asarray(get("phi_per_update"), jnp.float32)
    static = RatioStatic(warmup=int(get("seed_frames")) // int(get("action_repeat")))
    hyper = RatioHyper(gap=float(get("phi_gap")), check_interval=float(get("check_freq")))
    episode = int(get("episode_len_agent_steps"))

    def update(learner: None, value: jax.Array) -> tuple[None, jax.Array]:
        return learner, value

    def body(state: RatioState, t: jax.Array) -> tuple[RatioState, Any]:
        state, check = replay_ratio.check(state, (t > 0) & (t % episode == 0), static, hyper)
        state, due = replay_ratio.grant(state, static, hyper)
        inputs = lambda made: phi[jnp.minimum(made, len(phi) - 1)]  # noqa: E731
        _, state = replay_ratio.masked_updates(update, None, state, due, inputs, static, hyper)
        return state, Trace(due, check, state.episodes)

    run = jax.jit(lambda: jax.lax.scan(body, replay_ratio.init_ratio(), jnp.arange(length)))
    return jax.tree.map(np.asarray, run()[1])


def compare_trace(case: Case, comparison: Comparison) -> None:
    """When updates are made, what every check found, and when the ratio switched."""
    arrays = case.arrays
    for name in arrays.children():
        trace = play(arrays, name)
        at = np.flatnonzero(trace.check.made)
        comparison.add("updates of each agent step", trace.due, arrays[f"{name}/updates_per_agent_step"], EXACT)
        comparison.add("episodes at checks", trace.episodes[at], arrays[f"{name}/check_episode"], EXACT)
        comparison.add("agent steps of checks", at, arrays[f"{name}/check_agent_step"], EXACT)
        for field, key in {"phi": "average_phi", "phi_before": "previous_average_phi"}.items():
            ours = getattr(trace.check, field)[at]
            comparison.add(f"check: {key}", ours, arrays[f"{name}/check_{key}"], ROUNDING)
        comparison.add("updates in windows", trace.check.updates[at], arrays[f"{name}/check_window_updates"], EXACT)
        twice = np.flatnonzero(np.asarray(trace.due) >= 2)
        switch = twice[0] if len(twice) else -1
        comparison.add("agent step of the switch", np.array(switch), arrays[f"{name}/switch_agent_step"], EXACT)
        first = arrays[f"{name}/phi_per_update"][:1]
        comparison.add("reference phi", first, arrays[f"{name}/init_phi"][None], ROUNDING)


def compare_noise(case: Case, comparison: Comparison) -> None:
    """Sampled actions, their gradient and density, and the schedule of the standard deviation."""
    arrays = case.arrays
    for name in sorted(set(arrays.children()) - {"schedule"}):
        mean, noise, cotangent = (jnp.asarray(arrays[f"{name}/{key}"]) for key in ("mean", "noise", "cotangent"))
        stddev, clip = float(arrays[f"{name}/stddev"]), float(arrays[f"{name}/clip"])
        clip = np.inf if clip < 0.0 else clip
        action, pull = jax.vjp(partial(learn.sample_action, noise=noise, stddev=stddev, clip=clip), mean)
        comparison.add("action", action, arrays[f"{name}/action"], ROUNDING)
        comparison.add("gradient of the mean", pull(cotangent)[0], arrays[f"{name}/grad_mean"], ROUNDING)
        each = learn.ActorOutputs(jnp.zeros(0), mean[..., None], action[..., None], [])
        log_prob, entropy = learn.policy_densities(each, jnp.float32(stddev))
        comparison.add("log density", log_prob, arrays[f"{name}/log_prob"], FORWARD)
        comparison.add("entropy", jnp.broadcast_to(entropy, mean.shape), arrays[f"{name}/entropy"], FORWARD)
    steps = jnp.asarray(arrays["schedule/steps"])
    for i, duration in enumerate(arrays["schedule/durations"]):
        ours = learn.stddev_at(steps, Hyper(stddev_steps=float(duration)))
        comparison.add("schedule", ours, arrays["schedule/values"][i], ROUNDING)


KINDS: Kinds = {
    "updates": compare_updates,
    "nstep_sampling": compare_nstep,
    "random_shift": compare_shift,
    "rr_switch_trace": compare_trace,
    "truncated_normal_and_schedule": compare_noise,
}
