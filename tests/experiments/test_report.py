"""Tables and curves of finished runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import guarded
from experiments.report import report
from experiments.stats import mean_interval


def fake_run(folder: Path, algo: str, scores: list[float], diverged: int | None = None) -> None:
    """What a finished run leaves behind."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("seed: 0\n")
    rows = [f"{(i + 1) * 100},{score}" for i, score in enumerate(scores)]
    (folder / "metrics.csv").write_text("\n".join(["update,score", *rows]) + "\n")
    result = {
        "algo": algo, "data": "toy", "config": algo * 2, "updates": 100 * len(scores), "behaviour_score": 3.0,
        "score": {"last": scores[-1], "best": max(scores), "mean_of_last_ten": float(np.mean(scores))},
        "score_is": "raw return", "diverged_at": diverged, "device": "abacus", "git": "abc", "versions": {"jax": "1"},
        "data_sha256": ["d" * 64],
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def test_report_of_several_methods(tmp_path: Path) -> None:
    for seed, last in enumerate([1.0, 2.0, 3.0]):
        fake_run(tmp_path / "a" / f"seed{seed}", "one", [0.0, last])
    fake_run(tmp_path / "b" / "seed0", "two", [5.0, 4.0], diverged=200)
    (tmp_path / "c" / ".hydra").mkdir(parents=True)
    (tmp_path / "c" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    text = report(tmp_path, tmp_path / "out")
    # t(0.975, 2 degrees) = 4.3027, std 1, n 3
    assert "| toy | one | 3 | 200 | 2.0 [-0.5, 4.5]" in text
    assert "| toy | two | 1 | 200 | 4.0 [nan, nan]" in text
    assert "Diverged: seed0 of two" in text
    assert "Not finished, so not counted: 1 runs" in text
    assert "abacus" in text
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "report.csv").read_text().count("\n") == 3


def test_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from experiments import report as module

    for args, word in [([str(tmp_path)], "no finished run"), ([], "usage"), ([str(tmp_path), "to=x"], "to")]:
        monkeypatch.setattr("sys.argv", ["report", *args])
        assert guarded(module.main) == 2
        assert word in capsys.readouterr().err


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(2.0, 3.0, 5)) for _ in range(2000)]
    covered = np.mean([low <= 2.0 <= high for _, low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)
    assert np.isnan(mean_interval(np.array([1.0]))[1])
