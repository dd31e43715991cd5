"""The benchmark counts what it says, writes whole rows, and refuses what it cannot time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
import pytest

from algos import bc
from envs.core import Env, Spec, UsageError
from experiments import bench, measure
from experiments.bench import BenchConfig
from experiments.config import EnvConfig, algo_schema

COLUMNS = {
    "algo", "static", "env", "transitions", "updates", "chunks", "members", "population", "devices",
    "compile_seconds", "updates_per_second_best", "updates_per_second_median",
    "updates_per_second_per_member_best", "updates_per_second_per_member_median", "program_bytes",
    "peak_memory_bytes", "env_steps_per_second", "env_alone_steps_per_second", "flops_per_update", "flops_per_second",
    "matmul_flops_per_second", "fraction_of_matmul_peak", "device", "git", "python", "jax", "jaxlib", "mujoco",
}  # fmt: skip
NARROW = ["algo=bc", "algo.static.hidden=[8]", "algo.static.batch_size=8", "env=pointmix", "transitions=64"]


def config(**keys: Any) -> BenchConfig:
    algo = algo_schema("bc")(static=bc.Static((8,), 8))
    base = BenchConfig(algo, EnvConfig(name="pointmix"), transitions=64, updates=4, chunks=2)
    return dataclasses.replace(base, **keys)


def test_the_command_writes_complete_rows(command: Callable[..., CompletedProcess], tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench.csv"
    done = command("experiments.bench", *NARROW, "population=2,1", "updates=4", "chunks=2", f"out={out}")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(out)
    assert set(rows) >= COLUMNS
    assert list(rows.population) == [1, 2]
    assert not rows.drop(columns="git").isna().any(axis=None)
    assert ((rows.fraction_of_matmul_peak > 0) & (rows.fraction_of_matmul_peak < 1.5)).all()
    assert (rows.updates_per_second_best >= rows.updates_per_second_median).all()
    assert rows.updates_per_second_best[1] == pytest.approx(2 * rows.updates_per_second_per_member_best[1])
    assert rows.program_bytes[1] > rows.program_bytes[0] > 64 * 7 * 4  # the data set is among its arguments
    assert "updates/s" in done.stdout


def test_misspelt_key(command: Callable[..., CompletedProcess], tmp_path: Path) -> None:
    done = command("experiments.bench", *NARROW, "+chunk=2", f"out={tmp_path / 'bench.csv'}")
    assert done.returncode == 2
    assert done.stderr == "error: unknown key chunk; did you mean chunks?\n"
    assert not any(tmp_path.iterdir())


def test_flops_are_those_of_the_matrix_products() -> None:
    batch, widths = 256, (17, 128, 64, 6)
    algo = bc.make(bc.Static(widths[1:-1], batch), Spec(widths[0], widths[-1]))
    source = bench.synthetic(Spec(widths[0], widths[-1]), 1000)
    flops = measure.flops_per_update(measure.Subject(algo, bc.Hyper(), source, None, "map"))
    products = [2 * batch * fan_in * fan_out for fan_in, fan_out in zip(widths, widths[1:])]
    expected = 3 * sum(products) - products[0]  # forward, weights' and inputs' gradients; none of the observations
    assert flops is not None
    assert expected < flops < 1.25 * expected  # the rest is elementwise: Adam, tanh, random numbers


def test_env_steps_count_unfinished_episodes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = bench.make_subject(config())
    hyper = jax.tree.map(lambda x: jnp.full(2, x), subject.hyper)
    population = measure.runner.init_population(subject.algo, jnp.arange(2), hyper, "map")
    monkeypatch.setattr(measure, "seconds", lambda function: 0.5)
    steps = 2 * measure.EPISODES * 30  # PointMix never ends before its time limit
    assert measure.env_steps_per_second(subject, population, 2) == steps / 0.5


def test_the_environment_alone_is_timed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed = []

    def timer(env: Env | None) -> float:
        timed.append(env)
        return 700.0

    def measured(subject: measure.Subject, size: int, updates: int, chunks: int) -> dict[str, Any]:
        return {"population": size, "devices": 1, "updates_per_second_best": 1.0}

    monkeypatch.setattr(bench, "env_alone_steps_per_second", timer)
    monkeypatch.setattr(bench, "measure", measured)
    monkeypatch.setattr(bench, "matmul_peak", lambda: 1e9)
    rows = bench.bench(config(population=[1, 2], out=str(tmp_path / "bench.csv")))
    assert list(rows.env_alone_steps_per_second) == [700.0, 700.0]
    assert [env.name for env in timed if env is not None] == ["pointmix"]


BAD: dict[str, dict[str, Any]] = {
    "population=0 must be a positive number": {"population": 0},
    "population=.* must be a positive number": {"population": [1, "two"]},
    "updates=0 must be at least 1": {"updates": 0},
    "members=all must be auto, vmap or map": {"members": "all"},
    "out=bench.txt must name a file": {"out": "bench.txt"},
    "obs_dim=3, but env=pointmix has 2": {"obs_dim": 3},
    "action_dim=0 must be at least 1": {"action_dim": 0},
    "environment 'point' is not known": {"env": EnvConfig(name="point")},
    "lives on the host": {"env": EnvConfig(name="gymnasium:Pendulum-v1")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_values(message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        bench.bench(config(**{"out": str(tmp_path / "bench.csv")} | BAD[message]))
    assert not any(tmp_path.iterdir())


def test_what_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = measure.measure

    def limited(subject: measure.Subject, size: int, updates: int, chunks: int) -> dict[str, Any]:
        if size > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return whole(subject, size, updates, chunks)

    monkeypatch.setattr(bench, "measure", limited)
    monkeypatch.setattr(bench, "matmul_peak", lambda: 1e9)
    out = tmp_path / "bench.csv"
    assert len(bench.bench(config(population=[1, 2], env=EnvConfig(name="auto"), out=str(out)))) == 1
    assert "population=2 does not fit in memory" in capsys.readouterr().err
    with pytest.raises(UsageError, match="population=2 does not fit"):
        bench.bench(config(population=2, out=str(out)))
