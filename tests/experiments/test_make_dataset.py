"""Data sets made here: levels in D4RL's layout, with their origin inside."""

import functools
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs import datasets
from envs.datasets.hdf5 import read_hdf5
from envs.datasets.metadata import read_metadata
from experiments import collect, make_dataset
from tests.conftest import call

Make = Callable[..., int]
TINY = [
    "env=pointmix",
    "medium_score=-22",  # PointMix has no reference scores: a return (uniform actions -35, an expert -4)
    "transitions=900",
    "run.updates=3000",
    "run.eval_every=100",
    "run.save_every=500",
    "run.chunk=100",
    "algo.static.hidden=[32,32]",
    "algo.static.batch_size=64",
    "algo.static.num_envs=4",
    "algo.static.warmup=400",
    "algo.static.buffer_capacity=3200",
    "algo.hyper.actor_lr=1e-3",
    "algo.hyper.critic_lr=1e-3",
    "algo.hyper.discount=0.95",
]


@pytest.fixture
def make() -> Make:
    return functools.partial(call, make_dataset.run, *TINY)


def test_all_levels(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = (f"out={tmp_path / 'data'}", f"run.root={tmp_path / 'runs'}")
    assert make("level=all", "minari=true", *arguments) == 0
    returns = {}
    for level in make_dataset.LEVELS:
        path = tmp_path / "data" / f"pointmix-{level}.hdf5"
        loaded = datasets.load("custom", path=path)
        metadata = loaded.info.metadata
        assert loaded.info.env == "pointmix"
        assert metadata["level"] == level
        assert {"return_mean", "seed", "versions", "git", "command"} <= set(metadata)
        returns[level] = loaded.info.behaviour_returns.mean()
        assert returns[level] == pytest.approx(metadata["return_mean"], rel=1e-5)
        raw = read_hdf5(path)
        assert raw.timeouts is not None
        assert raw.timeouts[29] or not raw.terminals.any()
        # rows follow one another within an episode
        inside = ~raw.timeouts[:-1]
        moved = raw.observations[:-1] + 0.15 * raw.actions[:-1]
        np.testing.assert_allclose(np.clip(moved, -1, 1)[inside], raw.observations[1:][inside], atol=1e-5)
    assert returns["random"] < returns["medium-replay"] < returns["medium"] < returns["expert"]
    assert make_dataset_rows(tmp_path, "medium-expert") == 1800
    minari = datasets.load(f"minari:{tmp_path}", path=tmp_path / "data" / "adaptax" / "pointmix" / "medium-v0")
    assert minari.info.transitions == 900

    # again: nothing is written over, and the training is not repeated
    assert make("level=random", *arguments) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert make("level=medium", f"file={tmp_path / 'again.hdf5'}", *arguments) == 0
    assert (
        read_hdf5(tmp_path / "again.hdf5").rewards.tolist()
        == read_hdf5(tmp_path / "data" / "pointmix-medium.hdf5").rewards.tolist()
    )


def make_dataset_rows(tmp_path: Path, level: str) -> int:
    return len(read_hdf5(tmp_path / "data" / f"pointmix-{level}.hdf5").rewards)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["level=medum"], "level=medum"),
        (["level=all", "file=one.hdf5"], "file=PATH"),
        (["+levle=all"], "levle"),
        (["level=medium", "algo.static.buffer_capacity=800"], "buffer_capacity=800"),
    ],
)
def test_bad_input(args: list[str], words: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert make(*args, f"out={tmp_path}", f"run.root={tmp_path / 'runs'}") == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1
    assert list(tmp_path.rglob("*.hdf5")) == []


def test_never_medium(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert make("level=medium", "medium_score=0", "run.updates=500", f"out={tmp_path}", f"run.root={tmp_path}") == 2
    assert "medium_score=0" in capsys.readouterr().err


def test_subset_keeps_whole_episodes_evenly_spaced() -> None:
    lengths = np.array([5, 1, 9, 4, 7, 3, 8, 2, 6, 5])
    ends = np.cumsum(lengths) - 1
    timeouts = np.zeros(lengths.sum(), bool)
    timeouts[ends] = True
    rows = {
        "rewards": np.arange(lengths.sum(), dtype=np.float32),
        "terminals": np.zeros_like(timeouts),
        "timeouts": timeouts,
    }
    part = collect.subset(rows, 25)
    assert abs(len(part["rewards"]) - 25) <= 5
    starts = set((ends - lengths + 1).tolist())
    first_of_each = [0, *(np.flatnonzero(part["timeouts"])[:-1] + 1)]
    assert all(int(part["rewards"][i]) in starts for i in first_of_each)
    assert part["rewards"].max() > 30  # reaches to the end of the recording
    assert collect.subset(rows, 1000)["rewards"].tolist() == rows["rewards"].tolist()


MIXED = [
    "env=safe-hopper",
    "level=mixed",
    "penalties=[0,2]",
    "stages=2",
    "transitions=4000",
    "run.updates=400",
    "run.eval_every=200",
    "run.save_every=400",
    "run.chunk=200",
    "run.eval_episodes=1",
    "algo.static.hidden=[16,16]",
    "algo.static.warmup=80",
]


@pytest.mark.usefixtures("quick_compilation")
def test_mixed_safe_and_unsafe(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [*MIXED, f"out={tmp_path / 'data'}", f"run.root={tmp_path / 'runs'}"]
    assert make(*arguments) == 0
    path = tmp_path / "data" / "safe-hopper-mixed.hdf5"
    with h5py.File(path) as file:
        columns = {key: file[key][()] for key in file if key != "metadata"}
    keys = {"observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts"}
    assert set(columns) == keys
    assert {column.dtype for column in columns.values()} == {np.dtype(np.float32)}
    rows = len(columns["rewards"])
    assert columns["observations"].shape == columns["next_observations"].shape == (rows, 11)
    assert columns["actions"].shape == (rows, 3)
    assert {columns[key].shape for key in keys if key[0] in "rct"} == {(rows,)}

    # rewards without penalty, raw costs: hopper's reward is speed + 1 - 0.001 |a|^2, and its limit 0.7402 m/s
    speed = columns["rewards"] - 1.0 + 1e-3 * np.square(columns["actions"]).sum(-1)
    clear = np.abs(speed - 0.7402) > 1e-4
    np.testing.assert_array_equal(columns["costs"][clear], speed[clear] > 0.7402)
    assert set(columns["costs"]) == {0.0, 1.0}

    # whole episodes, each row's successor the next row
    ends = np.flatnonzero(np.maximum(columns["terminals"], columns["timeouts"]))
    assert ends[-1] == rows - 1
    assert columns["terminals"].sum() > 4
    assert columns["timeouts"][ends[np.diff(ends, prepend=-1) < 1000]].sum() == 0
    inside = np.setdiff1d(np.arange(rows - 1), ends)
    np.testing.assert_array_equal(columns["next_observations"][inside], columns["observations"][inside + 1])

    metadata = read_metadata(path)
    assert metadata["env"] == "safe-hopper"
    assert metadata["dataset"] == "OfflineHopperVelocityGymnasium-v1"
    assert {"versions", "git", "command", "config", "cost_mean", "return_mean"} <= set(metadata)
    policies = metadata["policies"]
    assert [(p["penalty"], p["update"]) for p in policies] == [(0.0, 200), (0.0, 400), (2.0, 200), (2.0, 400)]
    assert len({p["return_mean"] for p in policies}) == 4
    assert sum(p["episodes"] for p in policies) == metadata["episodes"] == len(ends)
    assert sum(p["episodes"] * p["cost_mean"] for p in policies) == pytest.approx(columns["costs"].sum())

    # again: nothing is written over, and the training is not repeated
    assert make(*arguments) == 2
    assert "overwrite=true" in capsys.readouterr().err
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.csv"))
    assert make(*arguments, f"file={tmp_path / 'again.hdf5'}") == 0
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.csv")) == before
    with h5py.File(tmp_path / "again.hdf5") as file:
        np.testing.assert_array_equal(file["rewards"][()], columns["rewards"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["env=hopper"], "env=hopper has none"),
        (["penalties=[]"], "penalties=[]"),
        (["penalties=[1,-1]"], "penalties=[1.0, -1.0]"),
        (["stages=3"], "stages=3 must be at least 1 and at most the 2 evaluations"),
        (["minari=true"], "leave minari"),
        (["run.dir=here"], "run.dir is the directory of one run"),
        (["level=mixed+random"], "mixed stands alone"),
    ],
)
def test_bad_mixture(args: list[str], words: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert make(*MIXED, f"out={tmp_path}", f"run.root={tmp_path / 'runs'}", *args) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1
    assert list(tmp_path.rglob("*")) == []


def test_whole_drops_what_the_recordings_end_cut() -> None:
    row = np.arange(10)  # an episode that terminates, one cut after 2 steps, another that terminates, one of 3 steps
    rows = {"rewards": row, "terminals": np.isin(row, [2, 6]), "timeouts": np.isin(row, [4, 9])}
    rows |= {"observations": row[:, None], "actions": row[:, None]}
    assert collect.whole(rows, 3)["rewards"].tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
