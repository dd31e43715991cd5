"""Training runs with an adaptive replay ratio: interrupted ones end alike, and settings that cannot be are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from algos.adaptive_rr import sac
from algos.drqv2 import train as drqv2
from experiments.config import (
    Config,
    DataConfig,
    EnvConfig,
    RunConfig,
    algo_schema,
    as_dict,
    fingerprint_of,
    members,
    run_dir,
)
from experiments.log import MetricsFile
from experiments.loop import train
from tests.conftest import Train

pytestmark = pytest.mark.usefixtures("quick_compilation")


def make_config(root: Path) -> Config:
    algo = algo_schema("adaptive_rr_sac")(
        static=sac.Static(hidden=(8, 8), batch_size=8, buffer_capacity=70, warmup=20),
        hyper=sac.Hyper(gap=1.0, check_interval=2.0),
    )
    run = RunConfig(updates=120, eval_every=40, save_every=20, chunk=20, eval_episodes=2, root=str(root))
    return Config(algo, DataConfig(), EnvConfig("pointmix"), run, 0)


def test_an_interrupted_run_ends_with_the_bytes_of_a_whole_one(tmp_path: Path) -> None:
    outcomes = []
    for name, stops in (("whole", ()), ("parted", (40, 80))):  # the ratio switches between the two, the ring wraps
        (config,) = members(make_config(tmp_path / name))
        for at in stops:
            train([config], on_evaluation=lambda update, *_, at=at: update == at)
        (result,) = train([config])
        outcomes.append([result["parameters_sha256"], (run_dir(config) / "metrics.csv").read_bytes()])
        assert json.loads((run_dir(config) / "result.json").read_text())["lives"] == len(stops) + 1
    assert outcomes[0] == outcomes[1]
    rows = MetricsFile(run_dir(config)).rows()
    np.testing.assert_allclose([row["updates"] for row in rows], [10 / 40, (10 + 2 * 20) / 40, 2.0])
    assert [row["switched"] for row in rows] == pytest.approx([0.0, 21 / 40, 1.0])


def with_frames_in(place: str, root: Path, prefetch: int = 2) -> Config:
    static = drqv2.Static(
        batch_size=4, feature_dim=4, hidden_dim=8, encoder="identity", stack=1, warmup=30, buffer_capacity=70,
        prefetch=prefetch, frames_in=place,
    )  # fmt: skip
    run = RunConfig(updates=120, eval_every=40, save_every=20, chunk=20, eval_episodes=2, root=str(root))
    return Config(algo_schema("drqv2")(static=static), DataConfig(), EnvConfig("pointmix"), run, 0)


def test_a_run_goes_on_with_frames_in_either_memory(tmp_path: Path) -> None:
    """Begun with them on the device and ended with them on the host, it has the bytes of one on the device."""
    outcomes = []
    for name, lives in (("whole", [("device", 0)]), ("parted", [("device", 80), ("host", 0)])):
        for place, stop in lives:
            (config,) = members(with_frames_in(place, tmp_path / name))
            (result,) = train([config], on_evaluation=lambda update, *_, stop=stop: update == stop)
        outcomes.append([result["parameters_sha256"], (run_dir(config) / "metrics.csv").read_bytes()])
    assert outcomes[0] == outcomes[1]


def test_where_frames_lie_does_not_name_a_run_and_batches_drawn_ahead_do(tmp_path: Path) -> None:
    device, host = (run_dir(with_frames_in(place, tmp_path, prefetch=0)) for place in ("device", "host"))
    assert device == host != run_dir(with_frames_in("host", tmp_path))
    older = as_dict(with_frames_in("device", tmp_path, prefetch=0))  # recorded before there were the two settings
    del older["algo"]["static"]["frames_in"], older["algo"]["static"]["prefetch"]
    assert fingerprint_of(older) == device.parent.name


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("algo.hyper.high_ratio=3", "algo.hyper.high_ratio=3.0 is more than algo.static.max_updates=2: set it higher"),
        ("algo.hyper.low_ratio=0", "algo.hyper.low_ratio=0.0 must be at least"),
        ("algo.hyper.check_interval=0", "algo.hyper.check_interval=0.0 must be at least 1"),
        ("env=pixels-pendulum-swingup-36", "learns from states"),
    ],
)
def test_refusals_have_one_line(run_train: Train, tmp_path: Path, wrong: str, says: str) -> None:
    base = ["algo=adaptive_rr_sac", "data=none", "env=pointmix", f"run.root={tmp_path}"]
    status, error = run_train(*base, wrong)
    assert status == 2
    assert says in error
    assert "\n" not in error
    assert not any(tmp_path.iterdir())
