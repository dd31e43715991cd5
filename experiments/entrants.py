"""Trained runs in one game: what `experiments.exploitability` and `experiments.crossplay` have in common."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from algos.core import Env, Key, Params, UsageError
from algos.mra import joint, maac, maddpg
from algos.mra.adapt import counts_of
from algos.mra.joint import Form, Seats
from algos.mra.nets import task_log_probs
from envs import particles
from envs.core import EnvParams, EnvState, TimeStep
from experiments import evaluate, provenance
from experiments.log import write_atomically
from experiments.population_programs import Player, played
from experiments.population_study import Run, check_places, run_of
from experiments.rollout import Evaluator, episode_seeds, make_evaluator
from experiments.task import members_by


class Entrant(NamedTuple):
    """A run that plays."""

    folder: Path
    seed: int
    trained_in: str
    method: str  # the same for all seeds of a configuration
    config: str  # of the algorithm, by which methods of the same name are told apart
    learner: Run | Params  # MRA's, or actors as MADDPG has them, and MAAC

    @property
    def form(self) -> Form:
        """How its networks act."""
        return joint.RELATIONAL if isinstance(self.learner, Run) else joint.OWN_ACTORS

    @property
    def owners(self) -> int:
        """Agents that have an actor of their own each; 1 where all of a kind share one."""
        return 1 if isinstance(self.learner, Run) else jax.tree.leaves(self.learner)[0].shape[0]

    def networks(self, env: Env) -> Any:
        """As they are in the only population of an environment."""
        if not isinstance(self.learner, Run):
            return self.learner
        learner, divisor = self.learner.learner, self.learner.hyper.skill_divisor
        log_probs = task_log_probs(learner.task_encoder, counts_of(env), divisor)
        return Player(learner.policy, learner.relation_net, log_probs)


def load(folders: list[Path]) -> list[Entrant]:
    """The newest checkpoints of runs; methods that differ in their settings alone are numbered.

    Raises:
        UsageError: no such run or one of another algorithm.
    """
    found = [_load(folder) for folder in folders]
    named: dict[str, list[str]] = {}
    for entrant in found:
        configs = named.setdefault(entrant.method, [])
        if entrant.config not in configs:
            configs.append(entrant.config)
    return [e._replace(method=_numbered(e.method, named[e.method].index(e.config))) for e in found]


def _numbered(name: str, index: int) -> str:
    return f"{name} ({index + 1})" if index else name


def _load(folder: Path) -> Entrant:
    policy = evaluate.load(evaluate.Options(folder))
    config, learner = policy.note["config"], getattr(policy.population.state, "learner", None)
    name, trained_in = config["algo"]["name"], config["env"]["name"]
    run = run_of(policy, folder)
    if isinstance(run, Run) and name == "mra" and run.static.relation == "policy":
        name = "mra_unimodal"
    if not isinstance(run, Run):
        if not isinstance(learner, maddpg.Learner | maac.Learner):
            raise UsageError(
                f"{folder} is a run of algo={name}: choose runs of algo=mra, mra_reptile, mra_maddpg or mra_maac"
            )
        shared = isinstance(learner, maac.Learner)  # the axis of members is then that of owners: there is one
        run = learner.actor if shared else jax.tree.map(lambda x: x[0], learner.actor)
    told = json.dumps(config["algo"], sort_keys=True)
    return Entrant(folder, config["seed"], trained_in, f"{name} {trained_in}", told, run)


def check(entrants: list[Entrant], places: tuple[str, ...]) -> None:
    """Refuse what runs cannot play.

    Raises:
        UsageError: as `population_study.check_places` does, and for another number of agents than have actors of their
            own each.
    """
    check_places([(entrant.folder, entrant.trained_in) for entrant in entrants], places)
    for entrant in entrants:
        for place in places:
            slots = slots_of(particles.make(place))
            if entrant.owners not in (1, slots):
                raise UsageError(
                    f"in={place}: {entrant.folder} has an actor for each of {entrant.owners} agents, not {slots}: "
                    f"choose as many, or pad as in resource-2-in-3, or train with algo.static.share=true"
                )


def slots_of(env: Env) -> int:
    """N, agents with padding."""
    return env.spec.action_dim // particles.core.ACTIONS


def kinds_of(env: Env) -> np.ndarray:
    """The kind of each agent that exists, (n,)."""
    counts = np.asarray(counts_of(env))
    return np.repeat(np.arange(len(counts)), counts)


def stacked(networks: list[Any]) -> Any:
    """Networks of the same shapes, with a leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *networks)


def alike(entrants: list[Entrant], env: Env) -> list[list[int]]:
    """Which entrants have networks of the same form and shapes: numbers of entrants, in groups."""
    groups: dict[Any, list[int]] = {}
    for i, entrant in enumerate(entrants):
        networks = entrant.networks(env)
        shapes = tuple(x.shape for x in jax.tree.leaves(networks))
        groups.setdefault((entrant.form, jax.tree.structure(networks), shapes), []).append(i)
    return list(groups.values())


def told_apart(env: Env) -> Env:
    """The environment, whose measures are each agent's reward, by its slot."""

    def step(key: Key, state: EnvState, action: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        state, outcome = env.step(key, state, action, params)
        assert outcome.rewards is not None  # particle games give them
        return state, outcome._replace(measures={f"agent_{i}": x for i, x in enumerate(outcome.rewards)})

    return replace(env, step=step)


@functools.cache
def _evaluator(place: str, forms: tuple[Form, ...], episodes: int) -> Evaluator:
    env = told_apart(particles.make(place))
    return make_evaluator(joint.algorithm(env, forms), env, episodes, members_by("auto"))


def returns(place: str, forms: tuple[Form, ...], seats: Seats, episodes: int, seed: int) -> np.ndarray:
    """Each agent's return, (members, episodes, N) float64, of seats with a leading axis of members.

    Members begin in the same scenes and draw by the same numbers.
    """
    seeds = np.tile(episode_seeds([seed], episodes, 0, "fixed"), (len(seats.who), 1))
    sums = played(_evaluator(place, forms, episodes), seats, seeds)
    return np.stack([sums[f"agent_{i}"] for i in range(seats.who.shape[-1])], -1).astype(np.float64)


def write(out: Path, name: str, request: Any, runs: list[Path], frames: dict[str, pd.DataFrame]) -> None:
    """Tables as CSV, and name.json: all of them with what was asked for, device, versions and commit."""
    out.mkdir(parents=True, exist_ok=True)
    for stem, frame in frames.items():
        text = frame.to_csv(index=False, lineterminator="\n", float_format="%.9g")
        write_atomically(out / f"{stem}.csv", text.encode())
    rows = {stem: json.loads(frame.to_json(orient="records")) for stem, frame in frames.items()}
    told = {"runs": [str(run) for run in runs], **request._asdict(), **rows, **provenance.describe()}
    write_atomically(out / f"{name}.json", json.dumps(told, indent=1).encode())
