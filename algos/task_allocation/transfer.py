"""Trained networks elsewhere: other entities and tasks, other numbers of them.

Zero-shot with `learning=false`, which is the default here; few-shot with `learning=true`: optimisers and buffer
begin anew. Begins from a run of algo=task_allocation.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from algos.core import Algorithm, Env, Key, Params, Spec, UsageError
from algos.task_allocation import decide, manager, nets, play, preassign, train, worker
from algos.task_allocation.nets import Hyper

START = ("agent",)
START_FROM = "a run of algo=task_allocation"

__all__ = ["START", "START_FROM", "Hyper", "Static", "check_start", "example_start", "make"]


@dataclass(unsafe_hash=True)
class Static(nets.Static):
    """Those of training, which say what networks there are; but nothing is learnt unless asked for."""

    learning: bool = False


SAME = ("variant", "hidden", "critic", "mixer", "mixer_activation")  # what the networks' meaning rests on


def check_start(algo: Any, places: tuple[str, ...], parts: tuple[dict, ...], configs: list[dict]) -> None:
    """Whether these networks can go on.

    Raises:
        UsageError: more than one run, one of another method, or of other settings.
    """
    if len(places) > 1:
        raise UsageError(f"start={list(places)}: name one run; the method has one set of networks")
    if configs[0]["name"] not in ("task_allocation", "task_allocation_transfer"):
        raise UsageError(f"start={places[0]} is a run of algo={configs[0]['name']}; name {START_FROM}")
    for name in SAME:
        if (theirs := configs[0]["static"][name]) != getattr(algo.static, name):
            raise UsageError(
                f"algo.static.{name}={getattr(algo.static, name)}, but {places[0]} was trained with {theirs}: set that"
            )


def example_start(key: Key, static: Static, spec: Spec, env: Env) -> tuple[dict[str, Any]]:
    """Untrained networks, as a run's checkpoint holds them, to measure speed and memory with."""

    def plain(tree: Any) -> Any:
        return {name: plain(x) for name, x in tree._asdict().items()} if hasattr(tree, "_asdict") else tree

    return ({"agent": plain(decide.init(key, static, play.example(env), Hyper()))},)


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build the method for an allocation environment, which may have other sizes than that of training.

    Raises UsageError for other environments, and where it is begun from networks of rows of other widths.
    """
    play.check_env("task_allocation_transfer", env)

    def init(key: Key, hyper: Hyper, learnt: dict[str, Any]) -> train.State:
        agent_key, env_key = jax.random.split(key)
        episode = play.begin(env_key, env, env.params)
        problem = play.problem_of(env, episode.obs)
        fresh = decide.init(agent_key, static, problem, hyper)
        return train.State(carried_over(static, fresh, learnt["agent"], problem, hyper), episode)

    return Algorithm(init, *train.step_and_act(static, env))


def carried_over(static: Static, fresh: decide.State, learnt: Any, problem: Any, hyper: Hyper) -> decide.State:
    """The fresh state with what was learnt in its networks, and everything else as at the start."""

    def networks(part: str, fresh: Any, learnt: Any, names: tuple[str, ...]) -> dict[str, Params]:
        return {name: _fitting(f"{part} {name}", learnt[name], getattr(fresh, name)) for name in names}

    both = ("actor", "critic")
    stage1, workers = None, None
    if fresh.stage1 is not None:
        names = (*both, "mixer", "target_critic")
        stage1 = preassign.begin(**networks("stage-1", fresh.stage1.networks, learnt["stage1"]["networks"], names))
    if fresh.workers is not None:
        workers = worker.begin(**networks("worker", fresh.workers, learnt["workers"], both), hyper=hyper)
    found = networks("manager", fresh.manager, learnt["manager"], (*both, "target_critic"))
    state = decide.begin(static, stage1, manager.begin(**found, table=fresh.manager.table), problem)
    return state._replace(workers=workers)


def _fitting(name: str, learnt: Params, fresh: Params) -> Params:
    shapes = [(x.shape, y.shape) for x, y in zip(jax.tree.leaves(learnt), jax.tree.leaves(fresh)) if x.shape != y.shape]
    if shapes:
        raise UsageError(
            f"the trained {name} has weights of shape {shapes[0][0]}, this environment needs {shapes[0][1]}: choose an "
            "environment of the same kind, and of the same sizes unless critic=amix"
        )
    return jax.tree.map(jnp.asarray, learnt)
