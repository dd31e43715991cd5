"""How much memory a job will need, estimated before it is submitted; nothing is computed or downloaded."""

from pathlib import Path

import h5py

import algos
from envs import registry
from envs.core import Env, Spec, UsageError
from envs.datasets import registry as data_registry
from envs.datasets.download import default_cache
from experiments.config import Config, algo_module
from experiments.memory import member_bytes

# While an update is made there are gradients, activations and a new state beside the state itself: XLA's analysis of
# the vmapped programs of BC, TD3+BC, IQL and A2PR at the papers' sizes says 2.7 to 3.5 times the state in all.
PER_STATE = 3.5


def per_member(config: Config) -> int | None:
    """Bytes for each member: its state and what an update of it takes; None where shapes are not known yet.

    Raises:
        UsageError: the environment or the data file does not exist.
    """
    env = _env(config)
    rows = _rows(config)
    spec = env.spec if isinstance(env, Env) else _spec(rows)
    if spec is None:
        return None
    make, static = algo_module(config.algo.name).make, config.algo.static
    algo = make(static, spec, env) if config.algo.name in algos.ONLINE else make(static, spec)
    replay, rest = member_bytes(config, algo, spec, env)
    return int(PER_STATE * rest) + replay  # which is written in place


def shared(config: Config) -> int:
    """Bytes of the data set on the device, which all members share; 0 where its file is not at hand."""
    rows = _rows(config)
    return 0 if rows is None else 4 * rows[0] * (2 * rows[1] + rows[2] + 3)


def _env(config: Config) -> Env | None:
    name: str | None = config.env.name
    if name == "auto" and config.data.name in data_registry.registry():
        name = data_registry.lookup(config.data.name).env
    if name is None or name == "auto" or name.startswith("gymnasium:"):
        return None
    env = registry.make(name, config.env.backend)
    return env if isinstance(env, Env) else None


def _spec(rows: tuple[int, int, int] | None) -> Spec | None:
    return None if rows is None else Spec(obs_dim=rows[1], action_dim=rows[2])


def _rows(config: Config) -> tuple[int, int, int] | None:
    """(transitions, obs_dim, action_dim) of a data file that is on this machine."""
    if config.algo.name in algos.ONLINE:
        return None
    path = None if config.data.path is None else Path(config.data.path).expanduser()
    if path is None and config.data.name == "embedded":
        path = data_registry.EMBEDDED
    elif path is None and config.data.name in data_registry.registry():
        path = default_cache() / (data_registry.lookup(config.data.name).file or "none")
    elif path is not None and not path.exists():
        raise UsageError(f"data.path={path}: there is no such file")
    try:
        with h5py.File(path or "", "r") as file:
            return (*file["observations"].shape, file["actions"].shape[1])
    except (OSError, KeyError, ValueError, IndexError):
        return None  # a folder, another layout: the job will say if it is not right
