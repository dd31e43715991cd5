"""The one training loop: compiled chunk of updates, evaluation, log, checkpoint, and again."""

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from algos import runner
from algos.runner import Population
from envs.core import UsageError
from experiments import memory, provenance, results, rundir, start
from experiments.config import Config, RunConfig, as_dict, run_dir
from experiments.interrupt import Interrupt, Pace
from experiments.log import Display, Trackers
from experiments.members import Member, Progress, accumulate, groups, member_state, open_member, resume, save
from experiments.rollout import RETURN, Evaluator, Validator, episode_seeds, make_evaluator, make_validator
from experiments.task import Task, make_task
from slurm import preempt

# (update, population, scores (members,)) -> whether to stop here, unfinished
EvaluationHook = Callable[[int, Population, np.ndarray], bool]


def train(
    configs: list[Config],
    on_evaluation: EvaluationHook | None = None,
    deadline: float | None = None,
    jobs: dict[Path, rundir.Job] | None = None,
    refused: dict[Path, str] | None = None,
) -> list[dict[str, Any]]:
    """Train members that differ only in seed and hyperparameters; those already finished are left alone.

    Returns each member's result, as in its result.json; {} for a member that was refused.

    jobs: how Hydra was asked for the members, by run directory; recorded there.
    refused: given, members whose directories cannot be used are noted here, with the reason, and the others train.

    Raises:
        UsageError: bad configuration, data or checkpoints; nothing has been written then.
        SystemExit: stopped by a signal or at the deadline (seconds of time.monotonic), after saving.
    """
    preempt.notice(os.environ)
    with Interrupt(deadline) as interrupt, contextlib.ExitStack() as held:
        task = make_task(configs[0])
        start.check(configs[0])
        chunk_updates(configs[0], task.algo.updates_per_step)
        members = _accepted(
            configs, lambda config: open_member(config, task, (jobs or {}).get(run_dir(config))), refused
        )
        folders = [member.dir for member in members]
        memory.check(configs[0], task, _largest_group(members, configs[0].run))
        if configs[0].run.fresh:
            with rundir.locked(folders):
                pass  # nobody trains there
            for folder in folders:
                rundir.set_aside(folder)
        _accepted([m.config for m in members], lambda c: held.enter_context(rundir.locked([run_dir(c)])), refused)
        left = [m for m in members if m.dir not in (refused or {}) and results.read(m.dir) is None]
        begun = _accepted([m.config for m in left], start.load, refused)
        left = [m for m in left if m.dir not in (refused or {})]
        for member, begins in zip(left, begun, strict=True):
            member.start = begins
        for group in groups(left, configs[0].run.save_every):
            if interrupt.signalled:  # at the end of the group before
                interrupt.leave("stopped between groups; the same command goes on")
            _train_group(task, group, on_evaluation, interrupt)
    return [{} if run_dir(c) in (refused or {}) else results.read(run_dir(c)) or {} for c in configs]


def _largest_group(members: list[Member], run: RunConfig) -> int:
    """Members that will be trained at a time."""
    left = [m for m in members if run.fresh or results.read(m.dir) is None]
    return max(map(len, [left] if run.fresh else groups(left, run.save_every)), default=0)


def _accepted(configs: list[Config], action: Callable[[Config], Any], refused: dict[Path, str] | None) -> list[Any]:
    """What `action` makes of each member; a refusal is noted, or raised where nobody takes notes."""
    made = []
    for config in configs:
        try:
            made.append(action(config))
        except Exception as error:  # a damaged directory can raise anything
            if refused is None:
                raise
            kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            refused[run_dir(config)] = f"{kind}{error}"
    return made


def chunk_updates(config: Config, per_step: int, most: int | None = None) -> int:
    """Updates per compiled call: the largest divisor of all intervals that is no more than run.chunk and `most`.

    Raises:
        UsageError: an interval is no multiple of the updates that one training iteration makes.
    """
    run = config.run
    for key in ("updates", "eval_every", "save_every"):
        if getattr(run, key) % per_step:
            raise UsageError(
                f"run.{key}={getattr(run, key)} must be a multiple of {per_step}, the updates of one iteration"
            )
    common = math.gcd(run.eval_every, run.save_every, run.updates) // per_step
    most = min(run.chunk, most or run.chunk)
    steps = max(n for n in range(1, common + 1) if common % n == 0 and (n * per_step <= most or n == 1))
    return steps * per_step


class _Chunk:
    """A compiled chunk of `updates` updates of a population."""

    def __init__(self, task: Task, mesh: Mesh, source: Any, population: Population, updates: int):
        """Compile."""
        self.updates, self._per_step, self._source = updates, task.algo.updates_per_step, source
        chunk = runner.make_chunk(task.algo, updates // self._per_step, task.how, mesh)
        self._compiled = chunk.lower(population, source, jnp.int32(0)).compile()

    def __call__(self, population: Population, progress: Progress, members: int) -> Population:
        """Train, and add to the progress of the first `members` members."""
        step = jnp.int32(progress.update // self._per_step)
        population, metrics = self._compiled(population, self._source, step)
        accumulate(progress, metrics, population, members, self.updates)
        return population


@dataclass
class _Session:
    """What a process uses to train a group."""

    task: Task
    members: list[Member]
    compiler: Callable[[Population, int], _Chunk]
    evaluator: Evaluator
    others: dict[str, Evaluator]  # of `env.also`
    validator: Validator
    trackers: list[Trackers]
    speed: results.Speed
    pace: Pace
    interrupt: Interrupt
    on_evaluation: EvaluationHook | None


def _train_group(task: Task, members: list[Member], on_evaluation: EvaluationHook | None, interrupt: Interrupt) -> None:
    run = members[0].config.run
    mesh = runner.member_mesh(len(members))
    population, progress = resume(task, members, mesh)
    for member in members:
        rundir.begin(member.dir, member.config, member.job)
        results.begin_life(member.dir, progress.update)
        member.metrics.rewind(progress.update - progress.unevaluated(run))
    compiler = functools.partial(_Chunk, task, mesh, runner.replicate(task.source, mesh))
    evaluator = make_evaluator(task.algo, task.env, run.eval_episodes, task.how)
    others = {name: make_evaluator(task.algo, env, run.eval_episodes, task.how) for name, env in task.also.items()}
    trackers = [Trackers(m.dir, run.tensorboard, run.wandb, as_dict(m.config)) for m in members]
    speed, pace = results.Speed(provenance.describe()), Pace(preempt.notice(os.environ))
    validator = make_validator(task.algo, task.holdout, task.how)
    session = _Session(
        task, members, compiler, evaluator, others, validator, trackers, speed, pace, interrupt, on_evaluation
    )
    with contextlib.ExitStack() as stack:
        for tracker in trackers:
            stack.callback(tracker.close)
        population, stopped = _updates(session, population, progress)
    if stopped and interrupt.requested:
        interrupt.leave(f"stopped after {progress.update:,} updates; the same command goes on from there")
    if stopped:
        return
    for index, member in enumerate(members):
        state = member_state(population, index)
        results.write(member.dir, member.config, task, state, speed, progress.diverged_at[index])


def _updates(session: _Session, population: Population, progress: Progress) -> tuple[Population, bool]:
    """Train until the end, or until asked to stop; the population, saved, and whether it was stopped."""
    task, members, speed, pace = session.task, session.members, session.speed, session.pace
    run, per_step = members[0].config.run, task.algo.updates_per_step
    updates = chunk_updates(members[0].config, per_step, progress.chunk)
    chunk = _compiled(session, population, updates)
    title = f"{members[0].config.algo.name} {task.name}" + (f" x{len(members)}" if len(members) > 1 else "")
    with session.interrupt.postponed(), Display(title, run.updates, progress.update) as display:
        while not progress.finished(run):
            if chunk.updates != updates:
                chunk = _compiled(session, population, updates)
            if not progress.unevaluated(run):
                with speed.training(updates), pace.chunk():
                    population = chunk(population, progress, len(members))
                display.advance(progress.update)
            stop = not session.interrupt.signalled and _evaluate_if_due(session, population, progress, display)
            if (fitting := pace.fitting(updates, per_step)) < updates:
                print(f"{pace.told(updates)}: {fitting:,} from here on", file=sys.stderr, flush=True)
                progress.chunk = updates = fitting
                pace.forget_chunks()
            last = stop or progress.finished(run)
            saving = last or updates < chunk.updates or progress.update % run.save_every == 0
            if saving or session.interrupt.requested:
                with pace.save():
                    save(task, members, population, progress)
                stop = stop or (session.interrupt.requested and not last)  # it may have come while saving
            if stop:
                return population, True
    return population, False


def _compiled(session: _Session, population: Population, updates: int) -> _Chunk:
    with session.speed.compiling():
        return session.compiler(population, updates)


def _evaluate_if_due(session: _Session, population: Population, progress: Progress, display: Display) -> bool:
    """Whether the hook wants to stop here."""
    if not progress.unevaluated(session.members[0].config.run):
        return False
    with session.speed.evaluating():
        scores = _evaluate(session, population, progress)
    display.evaluated(progress.update, list(scores))
    return session.on_evaluation is not None and session.on_evaluation(progress.update, population, scores)


def _evaluate(session: _Session, population: Population, progress: Progress) -> np.ndarray:
    """Returns of all members, written as a row of each member's files; their scores."""
    task, members = session.task, session.members
    run = members[0].config.run
    acting = population._replace(state=runner.without_replay(task.algo, population.state))
    here = jax.device_put(acting, jax.local_devices()[0])
    seeds = [m.config.seed for m in members]
    seeds += [seeds[-1]] * (here.alive.size - len(members))
    starts = episode_seeds(seeds, run.eval_episodes, progress.update, run.eval_seed_mode)
    sums = session.evaluator(here, task.normalizer, starts)
    returns = sums.pop(RETURN)[: len(members)]
    measured = {f"{name}_mean": values.mean(-1) for name, values in sorted(sums.items())}
    if "cost" in sums:
        measured["normalized_cost"] = task.normalized_cost(measured["cost_mean"])
    for place, evaluator in session.others.items():
        there = evaluator(here, task.normalizer, starts)
        measured |= {f"{name}_mean@{place}": values.mean(-1) for name, values in sorted(there.items())}
    measured |= {name: np.asarray(values) for name, values in sorted(session.validator(here).items())}
    scores = np.array([task.score(row.mean()) for row in returns])
    for index, member in enumerate(members):
        row = {"update": progress.update, "score": scores[index], "return_mean": returns[index].mean()}
        row |= {
            "return_std": returns[index].std(),
            "diverged": float(progress.diverged_at[index] is not None),
        }
        row |= {name: values[index] for name, values in measured.items()}
        row |= {name: total[index] / progress.chunks for name, total in sorted(progress.sums.items())}
        member.metrics.append(row)
        session.trackers[index].log(progress.update, row)
    progress.sums, progress.chunks = {}, 0
    return scores
