"""Speed on this machine: `python -m experiments.bench algo=a2pr population=1,4,8`.

For each population size, on synthetic data: seconds to compile, updates per second, memory, the share of the
device's matrix-multiplication peak that training reaches, and environment steps per second in evaluation and of
the environment alone, 256 in parallel. A table is printed and OUT (CSV) replaced, with device, versions and commit in
every row. On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N shares members among N of its cores.
"""

import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import pandas as pd
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

import algos
from algos.core import Env, Spec
from envs import registry
from envs.core import Dataset, Transition, UsageError
from experiments import config as schema
from experiments import provenance
from experiments.cli import guarded, hydra_job
from experiments.config import EnvConfig, algo_module
from experiments.log import write_atomically
from experiments.measure import Subject, env_alone_steps_per_second, flops_per_update, matmul_peak, measure
from experiments.task import members_by

HALFCHEETAH = Spec(17, 6)


@dataclass
class BenchConfig:
    """One command."""

    algo: Any = None
    env: EnvConfig = field(default_factory=EnvConfig)
    population: Any = 1  # members: a number or a list
    members: str = "auto"  # vmap | map | auto, as run.members
    obs_dim: int | None = None  # null: the environment's, else HalfCheetah's
    action_dim: int | None = None
    transitions: int = 100_000  # rows of synthetic data
    updates: int = 500  # gradient updates of a timed chunk
    chunks: int = 5  # timed chunks, after one of warm-up
    out: str = "bench.csv"


def register() -> None:
    """Make the schema known to Hydra."""
    schema.register()
    ConfigStore.instance().store(name="bench_schema", node=BenchConfig)


def sizes(config: BenchConfig) -> list[int]:
    """The population sizes in ascending order, as peak memory is that of the largest so far.

    Raises:
        UsageError: something else than positive integers, or more than one size to a device's share.
    """
    asked = config.population if isinstance(config.population, list) else [config.population]
    if not asked or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in asked):
        raise UsageError(f"population={config.population} must be a positive number or a list such as 1,4,8")
    devices = jax.local_device_count()
    if unequal := [size for size in asked if size > devices and size % devices]:
        raise UsageError(f"population={unequal[0]} is shared by {devices} devices: choose multiples of {devices}")
    return sorted(set(asked))


def make_subject(config: BenchConfig) -> Subject:
    """Check everything, make the algorithm, its environment and its data.

    Raises:
        UsageError: numbers that cannot be run, an environment of other shapes or on the host.
    """
    for key in ("transitions", "updates", "chunks"):
        if getattr(config, key) < 1:
            raise UsageError(f"{key}={getattr(config, key)} must be at least 1")
    if config.members not in ("auto", "vmap", "map"):
        raise UsageError(f"members={config.members} must be auto, vmap or map")
    if Path(config.out).is_dir() or Path(config.out).suffix != ".csv":
        raise UsageError(f"out={config.out} must name a file that ends in .csv")
    env = None if config.env.name == "auto" else registry.make(config.env.name, config.env.backend)
    if env is not None and not isinstance(env, Env):
        raise UsageError(f"env={config.env.name} lives on the host: choose a functional environment, or env=auto")
    spec, name, start = _spec(config, env), config.algo.name, ()
    module = algo_module(name)
    if name in algos.ONLINE:
        if env is None:
            raise UsageError(f"algo={name} learns in an environment: set env=NAME, e.g. env=hopper")
        algo = module.make(config.algo.static, spec, env)
        source, begun = env.params, [env]
    else:
        algo = module.make(config.algo.static, spec)
        source, begun = synthetic(spec, config.transitions), []
    if hasattr(module, "example_start"):
        start = module.example_start(jax.random.key(0), config.algo.static, spec, *begun)
    if config.updates % algo.updates_per_step:
        raise UsageError(f"updates={config.updates} must be a multiple of {algo.updates_per_step} for algo={name}")
    return Subject(algo, config.algo.hyper, source, env, members_by(config.members), start)


def _spec(config: BenchConfig, env: Env | None) -> Spec:
    own = HALFCHEETAH if env is None else env.spec
    asked = {key: getattr(config, key) for key in ("obs_dim", "action_dim") if getattr(config, key) is not None}
    for key, value in asked.items():
        if value < 1:
            raise UsageError(f"{key}={value} must be at least 1")
        if env is not None and value != getattr(own, key):
            raise UsageError(
                f"{key}={value}, but env={env.name} has {getattr(own, key)}: leave {key} out or set env=auto"
            )
    return dataclasses.replace(own, **asked)


def synthetic(spec: Spec, rows: int) -> Dataset:
    """Normal observations and rewards, uniform actions, no costs, no ends: the numbers do not matter to the speed."""
    keys = jax.random.split(jax.random.key(0), 4)
    obs, next_obs = (jax.random.normal(key, (rows, spec.obs_dim)) for key in keys[:2])
    action = jax.random.uniform(keys[2], (rows, spec.action_dim), minval=-spec.max_action, maxval=spec.max_action)
    reward, zeros = jax.random.normal(keys[3], (rows,)), jnp.zeros(rows)
    transitions = Transition(obs, action, reward, next_obs, terminated=zeros, truncated=zeros, cost=zeros)
    return Dataset(transitions, jnp.zeros(spec.obs_dim), jnp.ones(spec.obs_dim))


def bench(config: BenchConfig) -> pd.DataFrame:
    """Measure all sizes, one row each, and write them to `config.out`, which is replaced."""
    asked = sizes(config)
    subject = make_subject(config)
    flops, before = flops_per_update(subject), matmul_peak()
    alone = {"env_alone_steps_per_second": env_alone_steps_per_second(subject.env)}
    rows = [row | alone for row in _measured(config, subject, asked)]
    peak = max(before, matmul_peak())
    frame = pd.DataFrame([_completed(config, row, flops, peak) for row in rows])
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, lineterminator="\n")
    write_atomically(out, buffer.getvalue().encode())
    return frame


def _measured(config: BenchConfig, subject: Subject, asked: list[int]) -> list[dict[str, Any]]:
    """Rows of the sizes in turn, up to the first that does not fit in the device's memory."""
    rows: list[dict[str, Any]] = []
    for size in asked:
        try:
            rows.append(measure(subject, size, config.updates, config.chunks))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if not rows:
                raise UsageError(f"population={size} does not fit in memory: choose a smaller one") from error
            print(f"warning: population={size} does not fit in memory, left out", file=sys.stderr)
            break
    return rows


def _completed(config: BenchConfig, row: dict[str, Any], flops: float | None, peak: float) -> dict[str, Any]:
    """A row with what was timed in front, and behind it the share of the peak and the origin."""
    achieved = None if flops is None else flops * row["updates_per_second_best"]
    origin = provenance.describe()
    return {
        "algo": config.algo.name,
        "static": json.dumps(dataclasses.asdict(config.algo.static)),
        "env": config.env.name,
        "transitions": config.transitions,
        "updates": config.updates,
        "chunks": config.chunks,
        "members": members_by(config.members),
        **row,
        "flops_per_update": flops,
        "flops_per_second": achieved,
        "matmul_flops_per_second": peak,
        "fraction_of_matmul_peak": None if achieved is None else achieved / (peak * row["devices"]),
        "device": origin["device"],
        "git": origin["git"],
        **origin["versions"],
    }


def table(frame: pd.DataFrame) -> Table:
    """The rows for people."""
    columns: dict[str, Callable[[Any], str]] = {
        "members": lambda r: f"{r.population} by {r.members}",
        "compile s": lambda r: f"{r.compile_seconds:.1f}",
        "updates/s best": lambda r: f"{r.updates_per_second_best:,.0f}",
        "median": lambda r: f"{r.updates_per_second_median:,.0f}",
        "per member": lambda r: f"{r.updates_per_second_per_member_median:,.0f}",
        "program MB": lambda r: _number(r.program_bytes, 1e6, ",.0f"),
        "peak MB": lambda r: _number(r.peak_memory_bytes, 1e6, ",.0f"),
        "MFLOP/update": lambda r: _number(r.flops_per_update, 1e6, ",.0f"),
        "of matmul peak": lambda r: _number(r.fraction_of_matmul_peak, 1.0, ".1%"),
        "env steps/s": lambda r: _number(r.env_steps_per_second, 1.0, ",.0f"),
        "env alone": lambda r: _number(r.env_alone_steps_per_second, 1.0, ",.0f"),
    }
    first = frame.iloc[0]
    title = f"{first.algo} on {first.device}, matmul {first.matmul_flops_per_second / 1e9:,.0f} GFLOP/s"
    made = Table(*columns, title=title)
    for row in frame.itertuples():
        made.add_row(*(show(row) for show in columns.values()))
    return made


def _number(value: Any, unit: float, spec: str) -> str:
    return "-" if pd.isna(value) else format(value / unit, spec)


register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="bench")
@hydra_job
def run(config: DictConfig) -> None:
    """One Hydra job. Compiled programs are not taken from the cache, so that compilation is timed."""
    jax.config.update("jax_enable_compilation_cache", False)
    schema.check_keys(config, BenchConfig)
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, BenchConfig)
    width = None if sys.stdout.isatty() else 140
    Console(width=width).print(table(bench(typed)))
    print(f"written: {typed.out}")


if __name__ == "__main__":
    # Hydra writes lists in brackets; a bare population=1,4,8 is a list here too.
    sys.argv[1:] = [re.sub(r"^(population)=(\d+(,\d+)+)$", r"\1=[\2]", arg) for arg in sys.argv[1:]]
    sys.exit(guarded(run))
