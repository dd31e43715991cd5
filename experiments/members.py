"""Members of a population as runs of their own: their files, how far they are, saving and restoring them."""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from algos import runner
from algos.host_memory import HOST, Space, memory_space, shapes_and_spaces
from algos.runner import Population
from envs.core import UsageError
from experiments import rundir
from experiments.checkpoint import Checkpoints
from experiments.config import Config, RunConfig, as_dict, run_dir
from experiments.log import MetricsFile
from experiments.start import Start
from experiments.task import Task


@dataclass
class Member:
    """One run: its configuration and files."""

    config: Config
    dir: Path
    checkpoints: Checkpoints
    metrics: MetricsFile
    job: rundir.Job | None = None
    start: Start = field(default_factory=Start)


@dataclass
class Progress:
    """How far a group is, and the sums of its metrics since the last evaluation."""

    update: int
    sums: dict[str, np.ndarray]  # (members,) each
    chunks: int
    diverged_at: list[int | None]
    chunk: int | None = None  # updates of a chunk, once a shorter one was needed than the configuration says

    def unevaluated(self, run: RunConfig) -> bool:
        """Whether an evaluation is due; a checkpoint may have been saved before it, as little time was left."""
        return self.chunks > 0 and self.update % run.eval_every == 0

    def finished(self, run: RunConfig) -> bool:
        """Whether nothing is left to do."""
        return self.update == run.updates and not self.unevaluated(run)


def open_member(config: Config, task: Task, job: rundir.Job | None) -> Member:
    """Look at its run directory, and refuse one that is not its own; see `rundir.check`."""
    folder = run_dir(config)
    checkpoints = Checkpoints(folder, config.run.keep)
    rundir.check(folder, config, task.data_sha256, checkpoints)
    return Member(config, folder, checkpoints, MetricsFile(folder), job)


def groups(members: list[Member], save_every: int) -> list[list[Member]]:
    """Members that can go on together: their newest checkpoints lie at most one save apart.

    A kill while a population was being saved leaves some members one save ahead; they go back to the common one.
    """
    newest = {id(m): (m.checkpoints.steps() or [0])[0] for m in members}
    groups: list[list[Member]] = []
    for member in sorted(members, key=lambda m: -newest[id(m)]):
        if groups and newest[id(groups[-1][0])] - newest[id(member)] <= save_every:
            groups[-1].append(member)
        else:
            groups.append([member])
    order = {id(m): i for i, m in enumerate(members)}
    return [sorted(group, key=lambda m: order[id(m)]) for group in groups]


def fresh_population(task: Task, members: list[Member], mesh: Mesh) -> Population:
    """Fresh members, padded with copies of the last to a multiple of the devices."""
    padded = members + [members[-1]] * (-len(members) % mesh.size)
    seeds = jnp.array([m.config.seed for m in padded], jnp.uint32)
    hypers = [m.config.algo.hyper for m in padded]
    hyper = jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *hypers)
    start = jax.tree.map(lambda *x: jnp.stack(x), *[m.start.parts for m in padded])
    return runner.init_population(task.algo, seeds, hyper, task.how, start, mesh)


def resume(task: Task, members: list[Member], mesh: Mesh) -> tuple[Population, Progress]:
    """The newest state that all members have, or a fresh one; spread over the devices of the mesh.

    Raises:
        UsageError: the checkpoints are damaged, or what a member began from is no longer the same.
    """
    fresh = partial(fresh_population, task, members, mesh)
    shapes, spaces = shapes_and_spaces(fresh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes.state)
    newest = None
    while True:
        restored = [m.checkpoints.restore(like, newest) for m in members]
        steps = {found[0] if found else 0 for found in restored}
        if len(steps) == 1:
            break
        newest = min(steps)
    if restored[0] is None:
        return runner.shard(fresh(), mesh), Progress(0, {}, 0, [None] * len(members))
    notes = [found[2] for found in restored if found]
    for member, note in zip(members, notes):
        if [one["sha256"] for one in note.get("start", [])] != [one["sha256"] for one in member.start.description]:
            raise UsageError(
                f"what {member.dir} began from, {', '.join(member.start.places)}, has changed since; restore it, or "
                "run.fresh=true starts another run"
            )
    padding = [restored[-1]] * (-len(members) % mesh.size)
    state = spread([found[1] for found in restored + padding if found], spaces.state, mesh)
    diverged = [note["diverged_at"] for note in notes]
    alive = jnp.array([at is None for at in diverged + [diverged[-1]] * len(padding)])
    rest = jax.jit(lambda: fresh()._replace(state=None))()  # of the states only the shapes are computed
    sums = {name: np.array([note["sums"][name] for note in notes]) for name in notes[0]["sums"]}
    progress = Progress(newest or steps.pop(), sums, notes[0]["chunks"], diverged, notes[0].get("chunk"))
    return runner.shard(rest._replace(state=state, alive=alive), mesh), progress


def spread(states: list[Any], spaces: Any, mesh: Mesh) -> Any:
    """Members' states, NumPy's, stacked where the members are trained: no device holds more than its share.

    `spaces`: for each array of a state, the memory that it goes to.
    """

    def stacked(space: Space, *leaves: Any) -> jax.Array:
        shape, sharding = (len(leaves), *np.shape(leaves[0])), runner.member_sharding(mesh, space)
        return jax.make_array_from_callback(shape, sharding, lambda index: np.stack(leaves[index[0]]))  # type: ignore[index]

    return jax.tree.map(stacked, spaces, *states)


def accumulate(progress: Progress, metrics: runner.Metrics, population: Population, members: int, updates: int) -> None:
    """Add a chunk's metrics to the sums, and note who diverged."""
    values = {name: np.asarray(value, np.float64)[:members] for name, value in jax.device_get(metrics).items()}
    progress.update += updates
    progress.chunks += 1
    progress.sums = {name: progress.sums.get(name, 0.0) + value for name, value in values.items()}
    for index, alive in enumerate(np.asarray(population.alive)[:members]):
        if not alive and progress.diverged_at[index] is None:
            progress.diverged_at[index] = progress.update


def member_state(population: Population, index: int) -> Any:
    """A member's state as NumPy's arrays. What lies in the host's memory is not brought to a device."""

    def own(x: jax.Array) -> np.ndarray:
        if memory_space(x) != HOST:
            return np.asarray(x[index])
        starts = {shard.index[0].indices(len(x))[0]: shard.data for shard in x.addressable_shards}
        start = max(start for start in starts if start <= index)
        return np.asarray(jax.jit(runner.part)(starts[start], index - start))

    return jax.tree.map(own, population.state)


def save(task: Task, members: list[Member], population: Population, progress: Progress) -> None:
    """A checkpoint of each member, as if it had run alone."""
    for index, member in enumerate(members):
        state = member_state(population, index)
        mean, std = (np.asarray(x, np.float64).tolist() for x in task.normalizer)
        note = {
            "config": as_dict(dataclasses.replace(member.config)),
            "data_sha256": task.data_sha256,
            "obs_mean": mean,
            "obs_std": std,
            "obs_dim": task.spec.obs_dim,
            "action_dim": task.spec.action_dim,
            "max_action": task.spec.max_action,
            "env": task.env_name,
            "reference": task.reference,
            "sums": {name: float(total[index]) for name, total in progress.sums.items()},
            "chunks": progress.chunks,
            "diverged_at": progress.diverged_at[index],
            "chunk": progress.chunk,
            "start": member.start.description,
            "cost_limit": task.cost_limit,
            "top_score": task.top_score,
        }
        member.checkpoints.save(progress.update, state, note)
