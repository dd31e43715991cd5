"""One episode of a policy as a film: MP4 through imageio's ffmpeg, GIF through Pillow."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from algos.core import Algorithm, Env
from algos.runner import Population
from envs import allocation, particles
from envs.allocation import render as pictures
from envs.core import UsageError
from envs.mujoco import dynamics, find_robot, qpos_qvel
from envs.mujoco.locomotion import TASKS, load_model
from envs.mujoco.render import render
from envs.particles import render as particle_pictures
from experiments.log import replacing
from experiments.rollout import BEGIN, Normalizer, acting_key, begin_episodes

FRAMES_PER_SECOND = 30  # at most; simulators step up to 125 times a second


class Played(NamedTuple):
    """An episode of S steps, from its start to its end."""

    states: Any  # of the environment, leading axis S + 1
    reward: jax.Array  # (S,)
    measures: dict[str, jax.Array]  # (S,) each


def target(asked: str, run_dir: Path, env_name: str) -> Path | None:
    """Where `video=` asks for a film: a path, or None for `false`.

    For `true` it is RUN_DIR/video.mp4 of a MuJoCo robot, RUN_DIR/video.gif of task allocation and particle games.

    Raises:
        UsageError: an environment that cannot be drawn, another kind of file, no folder for it, or no ffmpeg for MP4.
    """
    if asked.lower() == "false":
        return None
    robot = _is_robot(env_name)
    path = run_dir / ("video.mp4" if robot else "video.gif") if asked.lower() == "true" else Path(asked)
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise UsageError(f"video={asked} must be true, false, or a path that ends in .mp4 or .gif")
    if not path.parent.is_dir():
        raise UsageError(f"video={asked}: there is no folder {path.parent}")
    if not (robot or allocation.is_name(env_name) or particles.is_name(env_name)):
        drawn = "MuJoCo robots, task allocation and particle games"
        raise UsageError(f"video draws {drawn} only, not {env_name}: leave video out")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UsageError("video in MP4 needs: pip install 'adaptax[video]'; or choose video=PATH.gif")
    return path


def record(algo: Algorithm, env: Env, population: Population, normalizer: Normalizer, seed: int, path: Path) -> None:
    """Draw the episode of `seed` that the population's only member acts in, and write it to `path`.

    `env` is one that `target` lets pass.

    Raises:
        UsageError: a robot shall be drawn and the machine has no OpenGL.
    """
    played = play(algo, env, population, normalizer, seed)
    if _is_robot(env.name):
        _film_robot(env, played, path)
    elif particles.is_name(env.name):
        frames = particle_pictures.film(particles.game_of(env.name), played.states.scene, played.reward)
        write(path, frames, particle_pictures.FRAMES_PER_SECOND)
    else:
        _film_allocation(env, played, path)


def _is_robot(env_name: str) -> bool:
    return dynamics.split(env_name)[0] in TASKS


def _film_robot(env: Env, played: Played, path: Path) -> None:
    robot = find_robot(env.name)
    step_seconds = load_model(robot).opt.timestep * robot.frame_skip
    stride = max(1, round(1.0 / (FRAMES_PER_SECOND * step_seconds)))
    positions = qpos_qvel(env.name, played.states)[0][:-1:stride]
    write(path, render(env.name, positions), 1.0 / (stride * step_seconds))


def _film_allocation(env: Env, played: Played, path: Path) -> None:
    """As GIF in few colours, which these drawings need, and with a rest at its end."""
    drawn = pictures.draw(
        pictures.recording_of(allocation.make(env.name), played.states, played.reward, played.measures["gross"])
    )
    if path.suffix.lower() == ".gif":
        with replacing(path) as temporary:
            pictures.save_gif(temporary, drawn)
    else:
        write(path, np.stack([np.asarray(picture) for picture in drawn]), 1000 / pictures.MILLISECONDS)


def play(algo: Algorithm, env: Env, population: Population, normalizer: Normalizer, seed: int) -> Played:
    """The episode of `seed`.

    It is the one that an evaluation makes; with a stochastic policy, another of the same start.
    """
    mean, std = normalizer
    state, hyper = jax.tree.map(lambda x: x[0], (population.state, population.hyper))

    @jax.jit
    def run(key: jax.Array):
        def body(carry: tuple, t: jax.Array) -> tuple[tuple, tuple]:
            env_state, obs = carry
            action = algo.act(acting_key(seed, t), state, (obs - mean) / std, hyper, *memory)
            after, step = env.step(jax.random.fold_in(key, t), env_state, action, env.params)
            return (after, step.obs), (env_state, step)

        start = env.reset(key, env.params)
        memory = begin_episodes(algo, acting_key(seed, BEGIN), state, (start[1] - mean) / std, hyper)
        (last, _), (states, steps) = jax.lax.scan(body, start, jnp.arange(env.horizon))
        states = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), states, last)
        return states, steps.reward, steps.measures, steps.terminated | steps.truncated

    states, reward, measures, done = run(jax.random.key(seed))
    length = int(np.argmax(np.asarray(done))) + 1
    states = jax.tree.map(lambda x: x[: length + 1], states)
    return Played(states, *jax.tree.map(lambda x: x[:length], (reward, measures)))


def write(path: Path, frames: np.ndarray, frames_per_second: float) -> None:
    """Write frames (T, height, width, 3) uint8 as MP4 or GIF, by the path's suffix; whole or not at all."""
    with replacing(path) as temporary:
        _encode(temporary, frames, frames_per_second)


def _encode(path: Path, frames: np.ndarray, frames_per_second: float) -> None:
    if path.suffix.lower() == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / frames_per_second), loop=0)
    else:
        from imageio import v2 as imageio

        imageio.mimwrite(path, list(frames), fps=frames_per_second, macro_block_size=8)
