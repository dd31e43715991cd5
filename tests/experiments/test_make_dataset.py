"""Data sets made here: levels in D4RL's layout, with their origin inside."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from envs import datasets
from envs.datasets.hdf5 import read_hdf5
from experiments import collect, make_dataset
from experiments.cli import guarded

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
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    def run(*args: str) -> int:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["make_dataset", *TINY, *args])
        return guarded(make_dataset.run)

    return run


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
