"""What training leaves behind: one directory per member, complete and honest results."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from algos import a2pr, bc
from envs.datasets.hdf5 import write_d4rl
from experiments.checkpoint import Checkpoints
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_schema, members, run_dir
from experiments.log import MetricsFile
from experiments.loop import train


def make_config(file: Path, root: Path, **run: object) -> Config:
    algo = algo_schema("bc")(static=bc.Static(hidden=(16, 16), batch_size=32))
    settings = {"updates": 60, "eval_every": 20, "save_every": 20, "chunk": 10, "eval_episodes": 3, "root": str(root)}
    data = DataConfig(name="custom", path=str(file))
    return Config(algo, data, EnvConfig(), RunConfig(**(settings | run)), [0, 1])  # type: ignore[arg-type]


def test_members_write_their_own_complete_directories(pointmix_file: Path, tmp_path: Path) -> None:
    config = make_config(pointmix_file, tmp_path, tensorboard=True)
    written = train(members(config))
    for member, result in zip(members(config), written):
        folder = run_dir(member)
        names = {path.name for path in folder.iterdir()}
        assert {".hydra", "metrics.csv", "result.json", "checkpoints", "curve.png", "tensorboard"} <= names
        assert json.loads((folder / "result.json").read_text()) == result
        rows = MetricsFile(folder).rows()
        assert [row["update"] for row in rows] == [20, 40, 60]
        scores = [row["score"] for row in rows]
        assert result["score"] == {
            "last": scores[-1],
            "best": max(scores),
            "mean_of_last_ten": pytest.approx(np.mean(scores)),
        }
        assert result["behaviour_score"] < -10
        for key in ("versions", "device", "git", "data_sha256", "parameters_sha256", "compile_seconds"):
            assert result[key], key
        assert result["peak_memory_bytes"] > 1e6
        assert Checkpoints(folder).steps() == [60, 40]
    assert written[0]["parameters_sha256"] != written[1]["parameters_sha256"]


def test_finished_members_are_left_alone_and_new_ones_join(pointmix_file: Path, tmp_path: Path) -> None:
    config = make_config(pointmix_file, tmp_path)
    first = train(members(dataclasses.replace(config, seed=[0])))
    both = train(members(config))
    assert both[0] == first[0]
    assert both[1]["seed"] == 1


def test_a_member_that_diverges_is_marked(pointmix_file: Path, tmp_path: Path) -> None:
    config = make_config(pointmix_file, tmp_path)
    hopeless = dataclasses.replace(config.algo, hyper=bc.Hyper(actor_lr=1e38))
    pair = [dataclasses.replace(config, seed=0), dataclasses.replace(config, seed=1, algo=hopeless)]
    good, bad = train(pair)
    assert good["diverged_at"] is None
    assert bad["diverged_at"] is not None
    assert np.isfinite(bad["score"]["last"])


def test_a_member_without_a_directory_stops_no_other(pointmix_file: Path, tmp_path: Path) -> None:
    pair = members(make_config(pointmix_file, tmp_path))
    blocked = run_dir(pair[0])
    blocked.parent.mkdir(parents=True)
    blocked.write_text("no directory at all")
    refused: dict[Path, str] = {}
    without, other = train(pair, refused=refused)
    assert list(refused) == [blocked]
    assert f"{blocked} cannot be written: File exists" in refused[blocked]
    assert without == {}
    assert other["updates"] == 60
    assert blocked.read_text() == "no directory at all"


def test_evaluation_in_a_gymnasium_environment(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = 50
    arrays = {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) == rows - 1,
    }
    file = tmp_path / "pendulum.hdf5"
    write_d4rl(file, arrays, {})
    base = make_config(file, tmp_path / "runs", eval_every=60)
    config = dataclasses.replace(base, env=EnvConfig(name="gymnasium:Pendulum-v1"))
    written = train(members(config))
    assert all(-2000 < result["return"] < 0 for result in written)


def test_a_full_a2pr_population_learns_on_pointmix(pointmix_file: Path, tmp_path: Path) -> None:
    static = a2pr.Static(actor_hidden=(32, 32), critic_hidden=(32, 32), vae_hidden=32, batch_size=64)
    base = make_config(pointmix_file, tmp_path, updates=2000, eval_every=1000, save_every=2000, chunk=1000)
    hyper = a2pr.Hyper(discount=0.95, actor_lr=1e-3, critic_lr=1e-3, value_lr=1e-3)
    config = dataclasses.replace(base, algo=algo_schema("a2pr")(static=static, hyper=hyper))
    for result in train(members(config)):
        assert result["score"]["last"] > result["behaviour_score"] + 5
