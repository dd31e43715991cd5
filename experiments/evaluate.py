"""Evaluate a trained policy: `python -m experiments.evaluate RUN_DIR [key=value ...]`.

The newest undamaged checkpoint of the run directory acts; the data set is not needed. Keys:
    episodes=100        episodes, side by side
    seed=0              of the initial states; the run's own seed starts with those of its training evaluations
    video=true          draw the first episode to RUN_DIR/video.mp4 (task allocation: .gif), or video=PATH.mp4, PATH.gif
    env.name=auto       another environment of the same shapes, e.g. gymnasium:Hopper-v5
    env.backend=auto    physics of the locomotion tasks: mujoco or mjx
Mean, standard deviation and 95 % interval are printed and written, with every return, to RUN_DIR/evaluation.json.
"""

import difflib
import json
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from omegaconf import OmegaConf

import algos
from algos.core import Algorithm, Env, Spec
from algos.runner import Population
from envs import registry
from envs.core import UsageError
from envs.datasets import scores
from experiments import library, provenance, video
from experiments.checkpoint import Checkpoints
from experiments.cli import guarded, use_compilation_cache
from experiments.config import DataConfig, algo_module, algo_schema
from experiments.log import write_atomically
from experiments.rollout import RETURN, Normalizer, PoolMaker, episode_seeds, make_evaluator, spec_of
from experiments.start import from_shapes
from experiments.stats import mean_interval
from experiments.task import any_population, check_other, members_by, robot_reference

FILE = "evaluation.json"


@dataclass(frozen=True)
class Options:
    """What the command line says; `.` of a key is `_` here."""

    run_dir: Path
    episodes: int = 100
    seed: int = 0
    video: str = "false"
    env_name: str = "auto"
    env_backend: str = "auto"


@dataclass(frozen=True)
class Policy:
    """A checkpoint brought to life: a population of one, and what it acts in."""

    algo: Algorithm
    population: Population
    normalizer: Normalizer
    env: Env | PoolMaker
    env_name: str
    backend: str
    reference: tuple[float, float] | None  # returns of score 0 and of the top score
    top_score: float
    cost_limit: float  # of an episode
    update: int
    note: dict[str, Any]


def parse(args: list[str]) -> Options:
    """The options in `RUN_DIR key=value ...`.

    Raises:
        UsageError: no run directory or several, an unknown key, a value of the wrong type.
    """
    folders = [arg for arg in args if "=" not in arg]
    if len(folders) != 1:
        found = f"not {len(folders)} ({' '.join(folders)})" if folders else "none is given"
        raise UsageError(f"one run directory is needed, {found}: python -m experiments.evaluate RUN_DIR [key=value]")
    keys = {field.name.replace("_", ".", 1): field for field in fields(Options) if field.name != "run_dir"}
    values: dict[str, Any] = {}
    for key, text in (arg.split("=", 1) for arg in args if "=" in arg):
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            raise UsageError(
                f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else f"keys: {', '.join(keys)}")
            )
        values[keys[key].name] = _integer(key, text) if keys[key].type is int else text
    options = Options(Path(folders[0]), **values)
    if options.episodes < 1:
        raise UsageError(f"episodes={options.episodes} must be at least 1")
    return options


def _integer(key: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{key}={text} must be a whole number, 0 or more")
    return int(text)


def load(options: Options) -> Policy:
    """Restore the newest undamaged checkpoint of a run and make its environment.

    Raises:
        UsageError: no or only damaged checkpoints, an unknown environment or one of other shapes.
    """
    checkpoints = _checkpoints(options.run_dir)
    note = checkpoints.note()
    if note is None:
        raise UsageError(f"every checkpoint in {checkpoints.folder} is damaged; train again with run.fresh=true")
    library.refuse_part(options.run_dir, note)
    config, name = note["config"], note["config"]["algo"]["name"]
    env_name = note["env"] if options.env_name == "auto" else options.env_name
    backend = options.env_backend
    if backend == "auto" and env_name == note["env"]:
        backend = config["env"]["backend"]
    env = registry.make(env_name, backend)
    spec = Spec(note["obs_dim"], note["action_dim"], note["max_action"])
    online = name in algos.ONLINE
    extra: tuple[Any, ...] = (registry.make(config["env"]["name"], config["env"]["backend"]),) if online else ()
    if not any_population(name):
        _check_spec(options.run_dir, spec, env_name, spec_of(env))
    if online:
        check_other(name, extra[0], env, env_name)

    typed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(algo_schema(name)), config["algo"]))
    algo = algo_module(name).make(typed.static, spec, *extra)
    began = [from_shapes(one["shapes"]) for one in note.get("start", [])]
    found = checkpoints.restore(jax.eval_shape(algo.init, jax.random.key(0), typed.hyper, *began))
    assert found is not None
    update, state, note = found
    state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
    hyper = jax.tree.map(lambda x: jnp.array([x], jnp.float32), typed.hyper)
    population = Population(jax.random.key(config["seed"])[None], state, hyper, jnp.ones(1, bool))
    normalizer = (jnp.array(note["obs_mean"], jnp.float32), jnp.array(note["obs_std"], jnp.float32))
    score = _score_of(note, env_name)
    cost_limit = note.get("cost_limit", DataConfig.cost_limit)
    return Policy(algo, population, normalizer, env, env_name, backend, *score, cost_limit, update, note)


def _score_of(note: dict[str, Any], env_name: str) -> tuple[tuple[float, float] | None, float]:
    """Reference returns and top score: those of training, elsewhere D4RL's of the robot."""
    if env_name != note["env"]:
        return robot_reference(env_name), scores.TOP_SCORE
    return note["reference"], note.get("top_score", scores.TOP_SCORE)


def _checkpoints(run_dir: Path) -> Checkpoints:
    """The checkpoints of a run directory that has some; else UsageError, with a run below it if there is one."""
    if not run_dir.is_dir():
        raise UsageError(f"{run_dir}: there is no such run directory")
    checkpoints = Checkpoints(run_dir)
    if not checkpoints.steps():
        below = next((path.parent for path in sorted(run_dir.rglob("checkpoints")) if path.is_dir()), None)
        mend = f"did you mean {below}?" if below not in (None, run_dir) else "train there until run.save_every"
        raise UsageError(f"{run_dir} holds no checkpoint; {mend}")
    return checkpoints


def _check_spec(run_dir: Path, trained: Spec, env_name: str, spec: Spec) -> None:
    if trained != spec:
        raise UsageError(
            f"{run_dir} was trained for (observations, actions, largest action) of "
            f"({trained.obs_dim}, {trained.action_dim}, {trained.max_action:g}), {env_name} has "
            f"({spec.obs_dim}, {spec.action_dim}, {spec.max_action:g}): choose another env.name"
        )


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and Student's 95 % interval of the mean; of one value only the mean."""
    mean, low, high = mean_interval(values)
    if len(values) == 1:
        return {"mean": mean, "std": None, "interval95": None}
    return {"mean": mean, "std": float(values.std(ddof=1)), "interval95": [low, high]}


def evaluate(options: Options) -> dict[str, Any]:
    """Draw the video if asked for, roll out the episodes, write evaluation.json; its content.

    Raises:
        UsageError: see `load`, `video.target` and `video.record`; nothing has been written then.
    """
    policy = load(options)
    target = video.target(options.video, options.run_dir, policy.env_name)
    seeds = episode_seeds([options.seed], options.episodes, policy.update, "fixed")
    if target is not None:
        _draw(policy, int(seeds[0, 0]), target)
    how = members_by("auto")
    began = time.monotonic()
    evaluate = make_evaluator(policy.algo, policy.env, options.episodes, how)
    sums = evaluate(policy.population, policy.normalizer, seeds)
    returns = sums.pop(RETURN)[0].astype(np.float64)
    measures = {name: summary(values[0].astype(np.float64)) for name, values in sorted(sums.items())}
    if "cost" in sums:
        costs = scores.normalized_cost(sums["cost"][0], policy.cost_limit)
        measures["normalized_cost"] = summary(costs)
    result = {
        "algo": policy.note["config"]["algo"]["name"],
        "data": policy.note["config"]["data"]["name"],
        "update": policy.update,
        "env": policy.env_name,
        "backend": policy.backend,
        "episodes": options.episodes,
        "seed": options.seed,
        "return": summary(returns),
        "score": None if policy.reference is None else summary(_scores(policy, returns)),
        "measures": measures,
        "diverged_at": policy.note["diverged_at"],
        "returns": returns.tolist(),
        "seconds": time.monotonic() - began,
        **provenance.describe(),
    }
    write_atomically(options.run_dir / FILE, json.dumps(result, indent=1).encode())
    return result


def _scores(policy: Policy, returns: np.ndarray) -> np.ndarray:
    """Normalised, as in training where the environment is the same."""
    assert policy.reference is not None
    return scores.score(returns, policy.reference, policy.top_score)


def _draw(policy: Policy, seed: int, target: Path) -> None:
    assert isinstance(policy.env, Env)  # video.target refuses the others
    video.record(policy.algo, policy.env, policy.population, policy.normalizer, seed, target)
    print(f"video: {target}")


def _line(name: str, numbers: dict[str, Any]) -> str:
    text = f"{name:7} {numbers['mean']:.2f}"
    if numbers["std"] is not None:
        low, high = numbers["interval95"]
        text += f" +- {numbers['std']:.2f} (mean's 95 % interval {low:.2f} to {high:.2f})"
    return text


def main(args: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return
    options = parse(args)
    use_compilation_cache()
    result = evaluate(options)
    diverged = "" if result["diverged_at"] is None else f", diverged at update {result['diverged_at']:,}"
    print(
        f"{result['algo']} after {result['update']:,} updates{diverged}: {result['episodes']} episodes of "
        f"{result['env']}, seed {result['seed']}"
    )
    print(_line("return", result["return"]))
    if result["score"] is not None:
        print(_line("score", result["score"]))
    for name, numbers in result["measures"].items():
        print(_line(name, numbers))
    print(f"written: {options.run_dir / FILE}")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
