"""Safe and unsafe, good and bad episodes for one data set: SAC under several cost penalties, at several stages."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algos import sac
from algos.core import Env
from algos.runner import Population
from envs.core import UsageError, measure_names
from envs.datasets import dsrl
from envs.datasets.episodes import bounds, sums
from envs.datasets.hdf5 import Raw
from experiments import collect
from experiments.checkpoint import Checkpoints
from experiments.config import Config, EnvConfig, run_dir
from experiments.loop import train
from experiments.task import Task


def check(training: Config, env: Any, penalties: list[float], stages: int) -> None:
    """Refuse what cannot be recorded.

    Raises:
        UsageError: an environment without costs, no or impossible penalties, more stages than evaluations.
    """
    if not isinstance(env, Env) or "cost" not in measure_names(env):
        raise UsageError(f"level=mixed records costs and env={training.env.name} has none: choose e.g. env=safe-hopper")
    if not penalties or len(set(penalties)) < len(penalties) or not all(0.0 <= x < float("inf") for x in penalties):
        raise UsageError(f"penalties={penalties} must be different numbers, 0 or more, e.g. penalties=[0,1,10]")
    evaluations = training.run.updates // training.run.eval_every
    if not 1 <= stages <= evaluations:
        raise UsageError(f"stages={stages} must be at least 1 and at most the {evaluations} evaluations of a run")
    if training.run.dir is not None:
        raise UsageError("run.dir is the directory of one run and level=mixed makes several: set run.root")


def record(
    training: Config, task: Task, penalties: list[float], stages: int, transitions: int
) -> tuple[collect.Rows, list[dict[str, Any]]]:
    """At least `transitions` steps of whole episodes, less what the end of the recording cuts, and whose they are.

    SAC learns reward - penalty x cost for each penalty, and its stochastic policy acts as it was after each of
    `stages` equal parts of the training, every policy for as many steps. Rewards are those of the task, without
    penalty, and costs are raw.
    """
    env, static = task.env, training.algo.static
    assert isinstance(env, Env)
    kept, actors = [], []
    for penalty in penalties:
        for update, actor in learn(training, task, penalty, stages):
            kept.append({"penalty": penalty, "update": update})
            actors.append(actor)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *actors)
    nets = sac.make_nets(static, task.spec)

    def policy(key: jax.Array, obs: jax.Array) -> jax.Array:
        """The copies of the environment in equal shares, in the order of the policies."""
        keys, by_actor = jax.random.split(key, len(actors)), obs.reshape(len(actors), -1, obs.shape[-1])
        action = jax.vmap(lambda k, actor, o: sac.sample_action(k, nets, actor, o))(keys, stacked, by_actor)
        return action.reshape(len(obs), -1)

    share = -(-transitions // (len(actors) * env.horizon)) * env.horizon  # steps of each policy
    rows = collect.rollouts(policy, env, training.seed + 1, share * len(actors))
    parts = []
    for i, whose in enumerate(kept):
        part = collect.whole({key: value[i * share : (i + 1) * share] for key, value in rows.items()}, env.horizon)
        whose |= summary(part)
        parts.append(part)
    return collect.join(*parts), kept


def learn(training: Config, task: Task, penalty: float, stages: int) -> list[tuple[int, Any]]:
    """Train (or go on training) under a penalty; the updates and the actor at the end of each stage.

    Raises:
        UsageError: the run was finished by another command, which kept no policies.
    """
    name = f"{training.env.name}-penalty{penalty:g}"
    config = replace(training, env=EnvConfig(name, training.env.backend))
    run, folder = config.run, run_dir(config)
    wanted = [-(-run.updates * stage // (stages * run.eval_every)) * run.eval_every for stage in range(1, stages + 1)]
    policies = Checkpoints(folder / "policies", keep=run.updates)  # as many as there are

    def on_evaluation(update: int, population: Population, scores: np.ndarray) -> bool:
        """Keep the policy at the end of a stage."""
        if update in wanted:
            actor = jax.tree.map(lambda x: np.asarray(x[0]), population.state.agent.actor)
            policies.save(update, actor, {"update": update, "score": float(scores[0])})
        return False

    train([config], on_evaluation)
    like = jax.eval_shape(task.algo.init, jax.random.key(0), config.algo.hyper).agent.actor
    found = [policies.restore(like, newest=update) for update in wanted]
    for update, policy in zip(wanted, found):
        if policy is None or policy[0] != update:
            raise UsageError(f"{folder} kept no policy of update {update}: run.fresh=true trains again and keeps it")
    return [(policy[0], policy[1]) for policy in found if policy is not None]


def summary(rows: collect.Rows) -> dict[str, Any]:
    """Number of whole episodes and the means of their returns and costs; None where there is no episode."""
    if not len(rows["rewards"]):
        return {"episodes": 0, "return_mean": None, "cost_mean": None}
    episodes = bounds(Raw(**rows))
    returns, costs = (float(sums(rows[key], episodes).mean()) for key in ("rewards", "costs"))
    return {"episodes": len(episodes.length), "return_mean": returns, "cost_mean": costs}


def dsrl_name(env: str) -> str | None:
    """DSRL's data set of that environment, whose reference returns then apply."""
    return next((name for name, task in dsrl.tasks().items() if task.env == env), None)
