"""Make data sets as D4RL did: `python -m experiments.make_dataset env=hopper level=all`.

SAC learns in one of our environments. What is recorded:
    random         a policy drawing actions uniformly
    medium         the stochastic policy when its score first reached a third of the expert's
    medium-replay  everything that policy had seen while learning
    expert         the stochastic policy at the end
    medium-expert  both
    mixed          of safe environments (env=safe-hopper): the stochastic policies of SAC under several penalties of
                   the cost, each at several stages of its training, in DSRL's layout
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from algos import sac
from algos.core import Env
from algos.runner import Population
from envs.core import UsageError
from envs.datasets.episodes import bounds, episode_returns, sums
from envs.datasets.hdf5 import Raw, write_d4rl
from envs.datasets.minari_write import write_minari
from experiments import collect, provenance, safe_dataset
from experiments import config as schema
from experiments.checkpoint import Checkpoints
from experiments.cli import guarded, hydra_job, use_compilation_cache
from experiments.config import Config, EnvConfig, RunConfig
from experiments.log import write_atomically
from experiments.loop import train
from experiments.task import Task, make_task, robot_reference

LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert")
MIXED = "mixed"  # stands alone: it is trained for in other ways
SNAPSHOT = "medium.json"  # when the policy first was medium: updates, transitions, score


@dataclass
class MakeConfig:
    """One command. Files are OUT/ENV-LEVEL.hdf5."""

    algo: Any = None
    env: EnvConfig = field(default_factory=EnvConfig)
    run: RunConfig = field(default_factory=RunConfig)
    level: str = "all"  # all, or some of the levels separated by +; or mixed
    seed: int = 0
    transitions: int = 1_000_000  # of random, medium, expert and mixed; at most so many of medium-replay
    medium_score: float = 100.0 / 3.0  # score at which a policy is medium
    # Of level=mixed: what a unit of cost takes off the reward, a training for each. On the velocity tasks one pays only
    # if it is more than the speed to be gained, 3 to 10 m/s: these give fast, hesitant and slow policies.
    penalties: list[float] = field(default_factory=lambda: [0.0, 1.0, 3.0, 10.0])
    stages: int = 4  # of level=mixed: policies kept of each training, evenly spaced
    out: str = "data"
    file: str | None = None  # file of a single level, instead of the above
    next_observations: bool = True  # also in the HDF5 file, where readers of D4RL's layout ignore them
    minari: bool = False  # also as a Minari data set adaptax/ENV/LEVEL-v0 below OUT
    overwrite: bool = False


def register() -> None:
    """Make the schema known to Hydra."""
    schema.register()
    ConfigStore.instance().store(name="make_dataset_schema", node=MakeConfig)


def levels(config: MakeConfig) -> list[str]:
    """The levels asked for, in the order of their names above.

    Raises:
        UsageError: an unknown level, or a single file for several levels.
    """
    if config.level == MIXED:
        return [MIXED]
    asked = list(LEVELS) if config.level == "all" else config.level.split("+")
    if unknown := [level for level in asked if level not in LEVELS]:
        raise UsageError(
            f"level={unknown[0]}: there are all, {', '.join(LEVELS)}; several are joined by +, {MIXED} stands alone"
        )
    if config.file is not None and len(asked) > 1:
        raise UsageError("file=PATH is for one level; for several set out=FOLDER")
    return asked


def target(config: MakeConfig, level: str) -> Path:
    """Where a level is written.

    Raises:
        UsageError: the file exists.
    """
    path = Path(config.file) if config.file else Path(config.out) / f"{config.env.name}-{level}.hdf5"
    if path.exists() and not config.overwrite:
        raise UsageError(f"{path} exists; overwrite=true replaces it")
    return path


def make(config: MakeConfig) -> list[Path]:
    """Train SAC as far as the levels need, record them, write the files; their paths."""
    asked = levels(config)
    paths = {level: target(config, level) for level in asked}
    training = Config(config.algo, schema.DataConfig(), config.env, config.run, config.seed)
    task = make_task(training)
    if asked == [MIXED]:
        return [_make_mixed(config, training, task, paths[MIXED])]
    assert isinstance(task.env, Env)
    learned = {}
    if asked != ["random"]:
        learned = _learn(config, training, task, expert=any("expert" in level for level in asked))
    recorded: dict[str, collect.Rows] = {}
    for level in asked:
        rows = _record(config, task, level, learned, recorded)
        _write(config, task, level, rows, learned, paths[level])
    return list(paths.values())


def _make_mixed(config: MakeConfig, training: Config, task: Task, path: Path) -> Path:
    """The level that is not D4RL's."""
    if config.minari or not config.next_observations:
        raise UsageError("level=mixed is in DSRL's layout alone: leave minari and next_observations out")
    safe_dataset.check(training, task.env, config.penalties, config.stages)
    rows, policies = safe_dataset.record(training, task, config.penalties, config.stages, config.transitions)
    _write(config, task, MIXED, rows, {"policies": policies}, path)
    return path


def _learn(config: MakeConfig, training: Config, task: Task, expert: bool) -> dict[str, Any]:
    """Train (or go on training) until the last policy needed is there; that policy, the medium one, the buffer."""
    folder = schema.run_dir(training)
    static, threshold = config.algo.static, config.medium_score
    per_update = static.num_envs / task.algo.updates_per_step
    needed = int(config.run.updates * per_update)
    if static.buffer_capacity < needed:
        raise UsageError(
            f"algo.static.buffer_capacity={static.buffer_capacity} is less than the {needed} transitions of the whole "
            "training, and medium-replay is all of them: raise it, or lower run.updates"
        )
    medium = folder / "medium"

    def on_evaluation(update: int, population: Population, scores: np.ndarray) -> bool:
        """Keep the policy when it first is medium; stop there if no expert is wanted."""
        if scores[0] >= threshold and not (medium / SNAPSHOT).exists():
            state = jax.tree.map(lambda x: np.asarray(x[0]), population.state)
            Checkpoints(medium, keep=1).save(update, state.agent.actor, {"update": update})
            snapshot = {"update": update, "transitions": int(state.buffer.count), "score": float(scores[0])}
            write_atomically(medium / SNAPSHOT, json.dumps(snapshot).encode())
        return (medium / SNAPSHOT).exists() and not expert

    if expert or not (medium / SNAPSHOT).exists() or not Checkpoints(folder).steps():
        train([training], on_evaluation)
    if not (medium / SNAPSHOT).exists():
        raise UsageError(
            f"after run.updates={config.run.updates} no evaluation reached medium_score={threshold:.1f} (see "
            f"{folder / 'metrics.csv'}): train longer or lower medium_score"
        )
    like = jax.eval_shape(task.algo.init, jax.random.key(0), config.algo.hyper)
    found = Checkpoints(folder).restore(like)
    actor = Checkpoints(medium).restore(like.agent.actor)
    assert found is not None
    assert actor is not None
    snapshot = json.loads((medium / SNAPSHOT).read_text())
    return {"medium": actor[1], "expert": found[1].agent.actor, "buffer": found[1].buffer, "snapshot": snapshot,
            "updates": found[0], "folder": str(folder)}  # fmt: skip


def _record(
    config: MakeConfig, task: Task, level: str, learned: dict[str, Any], recorded: dict[str, collect.Rows]
) -> collect.Rows:
    """The rows of one level; recorded ones are used again."""
    if level in recorded:
        return recorded[level]
    if level == "medium-expert":
        return collect.join(*(_record(config, task, part, learned, recorded) for part in ("medium", "expert")))
    if level == "medium-replay":
        count, num_envs = learned["snapshot"]["transitions"], config.algo.static.num_envs
        rows = collect.replay(learned["buffer"].transitions, count, num_envs)
        return collect.subset(rows, config.transitions)
    assert isinstance(task.env, Env)
    bound, nets = task.spec.max_action, sac.make_nets(config.algo.static, task.spec)

    def policy(key: jax.Array, obs: jax.Array) -> jax.Array:
        if level == "random":
            return jax.random.uniform(key, (*obs.shape[:-1], task.spec.action_dim), minval=-bound, maxval=bound)
        return sac.sample_action(key, nets, jax.tree.map(jnp.asarray, learned[level]), obs)

    seed = config.seed + 1 + LEVELS.index(level)
    recorded[level] = collect.rollouts(policy, task.env, seed, config.transitions)
    return recorded[level]


def _write(config: MakeConfig, task: Task, level: str, rows: collect.Rows, learned: dict[str, Any], path: Path) -> None:
    """The file, with its origin inside."""
    returns = episode_returns(Raw(**rows))
    reference = robot_reference(config.env.name)
    metadata = {
        "env": config.env.name,
        "level": level,
        "max_episode_steps": task.env.horizon if isinstance(task.env, Env) else 0,
        "transitions": len(rows["rewards"]),
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "score_mean": task.score(float(returns.mean())),
        "seed": config.seed,
        "snapshot": learned.get("snapshot"),
        "updates": learned.get("updates"),
        "policies": learned.get("policies"),
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "command": "python -m experiments.make_dataset " + " ".join(sys.argv[1:]),
        **provenance.describe(),
    }
    if "costs" in rows:
        costs = sums(rows["costs"], bounds(Raw(**rows)))
        metadata |= {"cost_mean": float(costs.mean()), "cost_std": float(costs.std())}
    if reference is not None:
        metadata["dataset"] = f"{config.env.name}-{level}-v2"
    if level == MIXED:
        metadata["dataset"] = safe_dataset.dsrl_name(config.env.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in rows.items() if config.next_observations or key != "next_observations"}
    write_d4rl(path, kept, metadata, overwrite=config.overwrite, flags=np.float32 if level == MIXED else bool)
    if config.minari:
        name = f"adaptax/{config.env.name}/{level}-v0"
        write_minari(path.parent, name, rows, metadata, overwrite=config.overwrite)
    print(
        f"{path}: {metadata['transitions']:,} transitions, {metadata['episodes']:,} episodes, return "
        f"{metadata['return_mean']:.1f} +- {metadata['return_std']:.1f}, score {metadata['score_mean']:.1f}"
        + (f", cost {metadata['cost_mean']:.1f} +- {metadata['cost_std']:.1f}" if "costs" in rows else "")
    )


register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="make_dataset")
@hydra_job
def run(config: DictConfig) -> None:
    """One Hydra job."""
    use_compilation_cache()
    schema.check_keys(config, MakeConfig)
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, MakeConfig)
    make(typed)


if __name__ == "__main__":
    sys.exit(guarded(run))
