"""Animations of allocation episodes: entities, tasks, and who is on the way to which. Drawn with Pillow alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from envs.allocation.core import AllocationEnv, Problem
from envs.allocation.generate import Episode
from envs.allocation.picture import Frame, picture
from envs.core import EnvParams, Key, UsageError

TITLES = {"rbf": "RBF", "material": "Material", "electric": "Electric", "almighty": "Almighty"}
EVEN = 40  # pictures of an episode, at most, besides those of completed tasks
MILLISECONDS = 200  # a picture stands


class Recording(NamedTuple):
    """An episode: leading axis S + 1 for states and problems, S for the rest. NumPy arrays."""

    kind: str
    states: Any
    problems: Problem
    profit: np.ndarray  # (S,) of each step
    gross: np.ndarray  # (S,)
    side: int  # cells along the grid's side; 0 where there is no grid


def record(
    env: AllocationEnv, policy: Callable[[Key, Problem], jax.Array], key: Key, params: EnvParams | None = None
) -> Recording:
    """Play one episode, policy: (key, Problem) -> allocation (T, N), and cut it off at its end."""
    params = env.params if params is None else params

    def advance(carry: tuple[Any, Problem], step_key: Key) -> tuple[Any, Any]:
        state, problem = carry
        act_key, env_key = jax.random.split(step_key)
        after, outcome = env.step(env_key, state, policy(act_key, problem), params)
        over = outcome.terminated | outcome.truncated
        return (after, outcome.problem), (state, outcome.reward, outcome.gross, over)

    def play(key: Key) -> tuple[Any, ...]:
        reset_key, key = jax.random.split(key)
        (last, _), (states, *rest) = jax.lax.scan(
            advance, env.reset(reset_key, params), jax.random.split(key, env.horizon)
        )
        return jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), states, last), *rest

    states, profit, gross, over = jax.jit(play)(key)
    length = int(np.argmax(over)) + 1
    return recording_of(env, jax.tree.map(lambda x: x[: length + 1], states), profit[:length], gross[:length], params)


def recording_of(
    env: AllocationEnv, states: Any, profit: jax.Array, gross: jax.Array, params: EnvParams | None = None
) -> Recording:
    """An episode that was played elsewhere.

    states: what `env.reset` and `env.step` returned, leading axis S + 1; profit, gross: (S,) of its steps.
    """
    params = env.params if params is None else params
    problems = jax.jit(jax.vmap(env.problem, (0, None)))(states, params)
    states, problems = jax.device_get((states, problems))
    side = int(np.ravel(getattr(getattr(states, "instance", params), "side", 0))[0])
    if isinstance(states, Episode):
        states = states.state
    return Recording(env.kind, states, problems, np.asarray(profit), np.asarray(gross), side)


def draw(recording: Recording) -> list[Image.Image]:
    """Pictures of at most EVEN steps evenly apart, of those that complete a task, and of the last one.

    In Almighty, which has only one step, there is a picture for each team.
    """
    steps = len(recording.profit)
    profit, gross = np.cumsum(recording.profit), np.cumsum(recording.gross)
    shown = [i for i in range(steps) if i % -(-steps // EVEN) == 0 or recording.gross[i] > 0 or i == steps - 1]
    frames = [_frame(recording, step) for step in shown]
    titles = [f"step {i + 1}    profit {profit[i]:.1f}    gross {gross[i]:.0f}" for i in shown]
    if recording.kind == "almighty":
        count = int(frames[0].problem.slot_mask.sum())
        begun = [np.arange(len(frames[0].team)) < i for i in range(count + 1)]
        frames = [
            frames[0]._replace(team=frames[0].team & x[:, None], completed=x & frames[0].completed) for x in begun
        ]
        titles = [f"team {i} of {count}" for i in range(count)] + titles
    return [picture(frame, f"{TITLES[recording.kind]}    {title}") for frame, title in zip(frames, titles)]


def save_gif(path: str | Path, pictures: Sequence[Image.Image], milliseconds: int = MILLISECONDS) -> None:
    """Write an animation that holds its last picture for two seconds. Raises UsageError for no pictures."""
    if not pictures:
        raise UsageError("no pictures to animate; draw a recording of at least one step")
    few = [picture.quantize(64, dither=Image.Dither.NONE) for picture in pictures]
    durations = [milliseconds] * (len(few) - 1) + [2000]
    few[0].save(path, save_all=True, append_images=few[1:], duration=durations, loop=0, optimize=True)


def _frame(recording: Recording, step: int) -> Frame:
    problem = jax.tree.map(lambda x: x[step], recording.problems)
    after = jax.tree.map(lambda x: x[step + 1], recording.states)
    before = jax.tree.map(lambda x: x[step], recording.states)
    holds = (problem.slots != 0).any(axis=1)
    emptied = ~(after.board.slots != 0).any(axis=1)
    team = after.board.team & holds[:, None]
    place, task_place = _places(recording, before, after, problem)
    if recording.kind in ("rbf", "material"):
        assert place is not None
        assert task_place is not None
        arrived = team & (np.abs(place - task_place[:, None]).sum(axis=2) < 1e-6)
    else:
        arrived = team
    completed = holds & ((after.board.age == 0) | emptied)
    return Frame(recording.kind, problem, place, task_place, team, arrived, completed, recording.side)


def _places(recording: Recording, before: Any, after: Any, problem: Problem) -> tuple[Any, Any]:
    """Entities' and tasks' coordinates, in [0, 1] over what the whole episode needs."""
    kind = recording.kind
    if kind == "rbf":
        return (after.position.T + 0.5) / recording.side, (np.abs(before.cells.T) + 0.5) / recording.side
    if kind == "material":
        width = recording.side + 1
        return (after.position.T + 1) / width, (problem.slots[:, 4:] + 1) / width
    if kind == "electric":
        most = 1.08 * max(recording.problems.entities[..., 2:].max(), recording.problems.slots[..., 2:].max())
        return problem.entities[:, 2:] / most, problem.slots[:, 2:] / most
    return None, None
