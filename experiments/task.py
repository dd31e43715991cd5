"""From a configuration to what is trained: data, environment, algorithm. All checks come before any work."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import algos
from algos.core import Algorithm, Dataset, Env, Spec
from envs import datasets, registry
from envs.core import UsageError
from envs.datasets import scores
from envs.mujoco import dynamics
from experiments.config import Config, algo_module
from experiments.rollout import Normalizer, PoolMaker, spec_of


@dataclass
class Task:
    """Everything that members of one population share."""

    name: str  # of the data set, or of the environment of an online algorithm
    algo: Algorithm
    env: Env | PoolMaker
    env_name: str
    spec: Spec
    source: Any
    normalizer: Normalizer
    how: str  # members by vmap or map
    reference: tuple[float, float] | None  # returns of score 0 and of the top score
    data: datasets.DataInfo | None
    data_sha256: list[str]
    holdout: Dataset | None = None  # kept apart from training, for Algorithm.validate
    cost_limit: float = 10.0  # of an episode; costs are divided by it
    also: dict[str, Env | PoolMaker] = dataclasses.field(default_factory=dict)  # evaluated in besides, by name

    def score(self, returns: float) -> float:
        """The normalised score, D4RL's or DSRL's, where reference returns are known, else the return itself."""
        return float(returns if self.reference is None else scores.score(returns, self.reference, self.top_score))

    @property
    def top_score(self) -> float:
        """The score of the reference's higher return: D4RL's is 100, DSRL's 1."""
        return scores.TOP_SCORE if self.data is None else self.data.top_score

    @property
    def score_is(self) -> str:
        """What the score is, for titles."""
        if self.reference is None:
            return "raw return"
        return "D4RL normalised score" if self.top_score == scores.TOP_SCORE else "DSRL normalised return"

    def normalized_cost(self, costs: np.ndarray) -> np.ndarray:
        """Costs of whole episodes in units of the limit: safe is less than one."""
        return scores.normalized_cost(costs, self.cost_limit)


def make_task(config: Config) -> Task:
    """Load the data, make the environment and build the algorithm.

    Raises:
        UsageError: missing or damaged data, an unknown environment, or a pairing that cannot work.
    """
    if config.algo.name in algos.ONLINE:
        return _online(config)
    return _offline(config)


def members_by(how: str) -> str:
    """`auto` is vmap on accelerators and map on CPUs, where batching members gains nothing."""
    if how != "auto":
        return how
    return "map" if jax.default_backend() == "cpu" else "vmap"


def _offline(config: Config) -> Task:
    data = config.data
    if config.env.evaluate is not None:
        raise UsageError(f"env.evaluate={config.env.evaluate} is for online algorithms: set env.name to it instead")
    if config.env.also:
        raise UsageError(f"env.also=[{','.join(config.env.also)}] is for online algorithms: leave it out")
    if data.name == "none":
        name = config.algo.name
        raise UsageError(
            f"algo={name} learns from a data set, not data=none: set data=NAME, e.g. data=hopper-medium-v2"
        )
    loaded = datasets.load(
        data.name, path=data.path, normalize=data.normalize, reward_scale=data.reward_scale,
        reward_shift=data.reward_shift, seed=data.seed, episodes=data.episodes, fraction=data.fraction,
        best_safe=data.best_safe, holdout=data.holdout, also=data.also, cost_limit=data.cost_limit,
        reward_range=data.reward_range,
    )  # fmt: skip
    env_name = loaded.info.env if config.env.name == "auto" else config.env.name
    if env_name is None:
        raise UsageError(
            f"data={loaded.info.name} names no environment of ours: set env.name=gymnasium:ID or another environment"
        )
    env = registry.make(env_name, config.env.backend)
    spec = spec_of(env)
    datasets.check_spec(loaded, spec)
    dataset, info, holdout = loaded
    module = algo_module(config.algo.name)
    if hasattr(module, "check_data"):
        module.check_data(config.algo, dataset)
    algo = module.make(config.algo.static, spec)
    normalizer = (dataset.obs_mean, dataset.obs_std)
    how = members_by(config.run.members)
    sha256 = list(info.sha256)
    return Task(
        info.name, algo, env, env_name, spec, dataset, normalizer, how, info.reference, info, sha256,
        holdout=holdout, cost_limit=data.cost_limit,
    )  # fmt: skip


def _online(config: Config) -> Task:
    name = config.algo.name
    if config.data.path is not None or config.data.name not in ("none", "embedded"):
        raise UsageError(f"algo={name} learns in an environment: set data=none env=NAME, not data={config.data.name}")
    if config.env.name == "auto":
        raise UsageError(f"algo={name} learns in an environment: set env=NAME, e.g. env=hopper")
    env = registry.make(config.env.name, config.env.backend)
    if not isinstance(env, Env):
        raise UsageError(f"algo={name} needs a functional environment, {config.env.name} is for evaluation only")
    algo = algo_module(name).make(config.algo.static, env.spec, env)
    normalizer = (jnp.zeros(()), jnp.ones(()))
    how = members_by(config.run.members)
    judge = env if config.env.evaluate is None else _judge("env.evaluate", config.env.evaluate, config, env)
    judge_name = config.env.evaluate or env.name
    reference = robot_reference(judge_name)
    also = {other: _judge("env.also", other, config, env) for other in config.env.also}
    return Task(
        env.name, algo, judge, judge_name, env.spec, env.params, normalizer, how, reference, None, [], also=also
    )  # fmt: skip


def _judge(key: str, name: str, config: Config, env: Env) -> Env | PoolMaker:
    """The environment `name` that policies learnt in `env` are evaluated in."""
    judge = registry.make(name, config.env.backend)
    if (spec := spec_of(judge)) != env.spec and not any_population(config.algo.name):
        raise UsageError(
            f"{key}={name} has (observations, actions, largest action) of {spec}, "
            f"{env.name} {env.spec}: choose one of the same shapes"
        )
    check_other(config.algo.name, env, judge, name)
    return judge


def any_population(algo: str) -> bool:
    """Whether an algorithm acts in observations of other sizes than it learnt in."""
    return getattr(algo_module(algo), "ANY_POPULATION", False)


def check_other(algo: str, env: Env, other: Env | PoolMaker, name: str) -> None:
    """Raise UsageError if what `algo` learns in `env` cannot act in `other`, of this name, for more than its shapes."""
    check = getattr(algo_module(algo), "check_other", None)
    if check is None:
        return
    if not isinstance(other, Env):
        raise UsageError(f"env={name} lives on the host: algo={algo} acts in games like {env.name} only")
    check(env, other)


def robot_reference(env: str) -> tuple[float, float] | None:
    """D4RL's reference returns of a robot, which are the same for all its data sets, and for shifts of its dynamics."""
    try:
        return datasets.reference(f"{dynamics.split(env)[0]}-expert-v2")
    except UsageError:
        return None
