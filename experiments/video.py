"""One episode of a policy as a film: MP4 through imageio's ffmpeg, GIF through Pillow."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from algos.core import Algorithm, Env
from algos.runner import Population
from envs.core import UsageError
from envs.mujoco import dynamics, find_robot, qpos_qvel
from envs.mujoco.locomotion import TASKS, load_model
from envs.mujoco.render import render
from experiments.log import replacing
from experiments.rollout import Normalizer, acting_key

FRAMES_PER_SECOND = 30  # at most; simulators step up to 125 times a second


def target(asked: str, run_dir: Path) -> Path | None:
    """Where `video=` asks for a film: a path, RUN_DIR/video.mp4 for `true`, None for `false`.

    Raises:
        UsageError: another kind of file, no folder for it, or no ffmpeg for MP4.
    """
    if asked.lower() == "false":
        return None
    path = run_dir / "video.mp4" if asked.lower() == "true" else Path(asked)
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise UsageError(f"video={asked} must be true, false, or a path that ends in .mp4 or .gif")
    if asked.lower() != "true" and not path.parent.is_dir():
        raise UsageError(f"video={asked}: there is no folder {path.parent}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UsageError("video in MP4 needs: pip install 'adaptax[video]'; or choose video=PATH.gif")
    return path


def record(algo: Algorithm, env: Env, population: Population, normalizer: Normalizer, seed: int, path: Path) -> None:
    """Draw the episode of `seed` that the population's only member acts in, and write it to `path`.

    Raises:
        UsageError: the environment is no MuJoCo robot, or the machine has no OpenGL.
    """
    if dynamics.split(env.name)[0] not in TASKS:
        raise UsageError(f"video draws MuJoCo robots only, not {env.name}: leave video out")
    positions = trajectory(algo, env, population, normalizer, seed)
    robot = find_robot(env.name)
    step_seconds = load_model(robot).opt.timestep * robot.frame_skip
    stride = max(1, round(1.0 / (FRAMES_PER_SECOND * step_seconds)))
    write(path, render(env.name, positions[::stride]), 1.0 / (stride * step_seconds))


def trajectory(algo: Algorithm, env: Env, population: Population, normalizer: Normalizer, seed: int) -> np.ndarray:
    """Positions (T, nq) of the episode of `seed`, from its start to its end.

    It is the one that an evaluation makes; with a stochastic policy, another of the same start.
    """
    mean, std = normalizer
    state, hyper = jax.tree.map(lambda x: x[0], (population.state, population.hyper))

    @jax.jit
    def run(key: jax.Array):
        def body(carry: tuple, t: jax.Array) -> tuple[tuple, tuple]:
            env_state, obs = carry
            action = algo.act(acting_key(seed, t), state, (obs - mean) / std, hyper)
            after, step = env.step(jax.random.fold_in(key, t), env_state, action, env.params)
            return (after, step.obs), (env_state, step.terminated | step.truncated)

        return jax.lax.scan(body, env.reset(key, env.params), jnp.arange(env.horizon))[1]

    states, done = run(jax.random.key(seed))
    length = int(np.argmax(np.asarray(done))) + 1
    return qpos_qvel(env.name, states)[0][:length]


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
