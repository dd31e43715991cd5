"""The configuration: a closed, typed schema for Hydra, and where a run's files go."""

import dataclasses
import difflib
import hashlib
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

import algos
from envs import registry as env_registry
from envs.core import UsageError
from envs.datasets import registry as data_registry


@dataclass
class DataConfig:
    """An offline data set. `name` is D4RL's or DSRL's; `path` a local HDF5 file in one of their layouts."""

    name: str = "none"
    path: str | None = None
    normalize: bool | None = None  # observations to zero mean, unit variance; null: the data set's default
    reward_scale: float | None = None  # r <- reward_scale r + reward_shift; null: the data set's default
    reward_shift: float | None = None
    seed: int = 0  # of every draw: a mixed or generated data set, and the keys below
    episodes: int | None = None  # train on so many whole episodes, drawn at random
    fraction: float | None = None  # train on this share of the transitions, drawn at random
    best_safe: int | None = None  # train on the best of the episodes that cost at most half of cost_limit
    holdout: int = 0  # episodes drawn first and kept apart from training
    also: list[str] = field(default_factory=list)  # data sets, by name or file, appended: joint training
    cost_limit: float = 10.0  # cost of an episode that is just not safe
    reward_range: float | None = None  # instead of reward_scale: returns of whole episodes lie so far apart


@dataclass
class EnvConfig:
    """Where policies act. `auto` is the environment that the data come from."""

    # halfcheetah, hopper, walker2d, ant, safe-hopper ..., walker-run ..., toys; gymnax:ID, gymnasium:ID. Behind a robot
    # other dynamics, e.g. walker2d-gravity2; behind an environment with costs -penaltyW. See envs/registry.py: NAMES.
    name: str = "auto"
    backend: str = "auto"  # physics of the locomotion tasks: mujoco (C, any host) | mjx (in jit) | auto
    evaluate: str | None = None  # online: where policies are evaluated, if not where they learn; of the same shapes
    # online: where they are evaluated besides, e.g. [resource-4,resource-9]; columns `return_mean@resource-4`, ...
    also: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    """How long, how often, where to."""

    updates: int = 1_000_000  # gradient updates
    eval_every: int = 5_000  # updates between evaluations
    eval_episodes: int = 10
    eval_seed_mode: str = "fixed"  # fixed: the same initial states at each evaluation | fresh
    save_every: int = 50_000  # updates between checkpoints
    chunk: int = 1_000  # updates per compiled call at most; a signal is answered after a chunk
    keep: int = 2  # checkpoints kept
    members: str = "auto"  # vmap | map (one after another: exact) | auto: vmap on accelerators, map on CPUs
    pack: str = "on"  # on: members of a sweep that may, train in one job | off: each member has its own
    max_members: int = 64  # members of a job at most
    memory_gb: float | None = None  # of a job: fewer members where more are not estimated to fit; null: no limit
    root: str = "runs"  # run directories are ROOT/ALGO/DATA/HASH/seedN
    dir: str | None = None  # run directory of a single member, instead of the above
    fresh: bool = False  # start another run even if this one exists
    tensorboard: bool = False
    wandb: str | None = None  # project name


@dataclass
class Config:
    """One command. `seed` is a number or a list: a population."""

    algo: Any = None  # name, hyper, static: see `algo_schema`
    data: DataConfig = field(default_factory=DataConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: Any = 0
    # Run directories that the run begins from (or the folders of their seeds), for algorithms with several phases.
    start: list[str] = field(default_factory=list)


# What does not change a run's numbers, so that it does not change its directory either.
UNHASHED = (
    "root", "dir", "fresh", "chunk", "keep", "save_every", "members", "pack", "max_members", "memory_gb",
    "tensorboard", "wandb",
)  # fmt: skip
UNHASHED_STATIC = ("frames_in",)  # likewise of algo.static

# Keys added after runs had been recorded: they count only where they differ from their default, so that runs
# without them keep their directories.
ADDED = ("start",)
ADDED_TO_ENV = ("evaluate", "also")
ADDED_TO_STATIC = {"prefetch": 0}
ADDED_TO_DATA = ("episodes", "fraction", "best_safe", "holdout", "also", "cost_limit", "reward_range")


def algo_module(name: str) -> Any:
    """The module of an algorithm: Hyper, Static, make; check_settings, if any; START where it begins from runs."""
    return importlib.import_module(f"algos.{algos.FOLDERS.get(name, name)}")


def algo_schema(name: str) -> type:
    """The dataclass {name, hyper, static} of an algorithm; its `check_settings`, if any, sees the latter two."""
    module = algo_module(name)
    fields = [
        ("name", str, field(default=name)),
        ("hyper", module.Hyper, field(default_factory=module.Hyper)),
        ("static", module.Static, field(default_factory=module.Static)),
    ]

    def check(self: Any) -> None:
        if hasattr(module, "check_settings"):
            module.check_settings(self.static, self.hyper)

    return dataclasses.make_dataclass(f"{name}_config", fields, namespace={"__post_init__": check})


def register() -> None:
    """Make the schema, the algorithms and the data sets known to Hydra."""
    # Hydra copies its whole store at each composition, and for each group that --help lists, but only reads the copies.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="run", name="schema", node=RunConfig)
    for name in algos.OFFLINE + algos.ONLINE:
        store.store(group="algo", name=f"{name}_schema", node=algo_schema(name))
    for name in data_registry.registry():
        store.store(group="data", name=name, node=DataConfig(name=name))
    for name in ("none", "custom", "minari"):
        store.store(group="data", name=name, node=DataConfig(name=name))
    for name in ("auto", *env_registry.NAMES):
        store.store(group="env", name=name, node=EnvConfig(name=name))


def check_keys(config: DictConfig, command: type = Config) -> None:
    """Refuse keys that no schema has: Hydra's `+key=value` gets past its own check.

    Raises:
        UsageError: naming the key and the nearest existing one.
    """
    schema = OmegaConf.structured(command())
    name = OmegaConf.select(config, "algo.name")
    if name not in algos.OFFLINE + algos.ONLINE:
        raise UsageError(f"algo={name}: no such algorithm; choose one of {', '.join(algos.OFFLINE + algos.ONLINE)}")
    schema.algo = OmegaConf.structured(algo_schema(name)())
    refuse_unknown(config, schema)


def refuse_unknown(config: DictConfig, schema: DictConfig, prefix: str = "") -> None:
    """Raise UsageError for a key that `schema` does not have, at any depth, with the nearest one that it has."""
    for key in config:
        if key not in schema:
            nearest = difflib.get_close_matches(str(key), [str(k) for k in schema], 1)
            hint = f"; did you mean {prefix}{nearest[0]}?" if nearest else f"; there are {', '.join(map(str, schema))}"
            raise UsageError(f"unknown key {prefix}{key!s}{hint}")
        if isinstance(config._get_node(key), DictConfig) and isinstance(schema._get_node(key), DictConfig):
            refuse_unknown(config[key], schema[key], f"{prefix}{key!s}.")


def to_config(config: DictConfig) -> Config:
    """The typed configuration, every key checked, every value of its declared type."""
    check_keys(config)
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, Config)
    check_values(typed)
    return typed


def check_values(config: Config) -> None:
    """Refuse numbers that cannot be run.

    Raises:
        UsageError: naming the key and the mend.
    """
    run, static = config.run, config.algo.static
    for key in ("updates", "eval_every", "eval_episodes", "save_every", "chunk", "keep", "max_members"):
        if getattr(run, key) < 1:
            raise UsageError(f"run.{key}={getattr(run, key)} must be at least 1")
    if run.members not in ("auto", "vmap", "map"):
        raise UsageError(f"run.members={run.members} must be auto, vmap or map")
    if run.pack not in ("on", "off"):
        raise UsageError(f"run.pack={run.pack} must be on or off")
    if run.memory_gb is not None and run.memory_gb <= 0:
        raise UsageError(f"run.memory_gb={run.memory_gb} must be more than 0")
    if not config.data.cost_limit > 0:
        raise UsageError(f"data.cost_limit={config.data.cost_limit} must be more than 0")
    if run.eval_seed_mode not in ("fixed", "fresh"):
        raise UsageError(f"run.eval_seed_mode={run.eval_seed_mode} must be fixed or fresh")
    if run.updates % run.eval_every:
        raise UsageError(f"run.updates={run.updates} must be a multiple of run.eval_every={run.eval_every}")
    if getattr(static, "batch_size", 1) < 1:
        raise UsageError(f"algo.static.batch_size={static.batch_size} must be at least 1")


def members(config: Config) -> list[Config]:
    """One configuration for each seed of `config.seed` (a number or a list).

    Raises:
        UsageError: if a seed is no integer, is repeated, or a single directory is asked for several members.
    """
    seeds = config.seed if isinstance(config.seed, list) else [config.seed]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise UsageError(f"seed={config.seed} must be an integer or a list of integers such as seed=[0,1,2]")
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"seed={config.seed} names a seed twice")
    if config.run.dir is not None and len(seeds) > 1:
        raise UsageError("run.dir is the directory of one run; for several seeds set run.root")
    return [dataclasses.replace(config, seed=seed) for seed in seeds]


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain numbers, strings, lists and dictionaries."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def fingerprint(config: Config) -> str:
    """Eight hexadecimal digits of everything that changes a run's numbers, the seed apart."""
    return fingerprint_of(as_dict(config))


def fingerprint_of(config: dict[str, Any]) -> str:
    """The same of a configuration that was saved by `as_dict`."""
    content = {key: value for key, value in _changed(config, Config(), ADDED).items() if key != "seed"}
    content["run"] = {key: value for key, value in config["run"].items() if key not in UNHASHED}
    if content.get("start"):  # named by what was run, wherever that lies
        content["start"] = [Path(*Path(folder).parts[-3:]).as_posix() for folder in content["start"]]
    static = config["algo"].get("static", {})
    static = {key: value for key, value in static.items() if key not in UNHASHED_STATIC}
    static = {key: value for key, value in static.items() if ADDED_TO_STATIC.get(key, ...) != value}
    content["algo"] = config["algo"] | {"static": static}
    content["env"] = _changed(config["env"], EnvConfig(), ADDED_TO_ENV)
    content["data"] = _changed(config["data"], DataConfig(), ADDED_TO_DATA)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _changed(part: dict[str, Any], usual: Any, added: tuple[str, ...]) -> dict[str, Any]:
    """`part` without those of its `added` keys that are as usual."""
    return {key: value for key, value in part.items() if key not in added or value != getattr(usual, key)}


def run_dir(config: Config) -> Path:
    """Where a member's files go: named by what is run, so that the same command finds its run and goes on."""
    if config.run.dir is not None:
        return Path(config.run.dir)
    subject = config.data.name if config.algo.name in algos.OFFLINE else config.env.name
    if config.data.path and config.algo.name in algos.OFFLINE and subject == "custom":
        subject = Path(config.data.path).stem
    subject = subject.replace("/", "_").replace(":", "_")
    return Path(config.run.root) / config.algo.name / subject / fingerprint(config) / f"seed{config.seed}"
