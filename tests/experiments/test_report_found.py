"""Reports of runs that nobody planned."""

import json
from pathlib import Path

from experiments.config import fingerprint_of
from experiments.report import report
from tests.experiments.test_report import write_run


def setting(lr: float) -> dict:
    return {"settings": {"algo": {"name": "bc", "hyper": {"lr": lr, "discount": 0.9}}}, "config": f"lr{lr}"}


def test_methods_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed, last in enumerate([1.0, 2.0, 3.0]):
        write_run(runs / "a" / f"seed{seed}", [0.0, last], seed, **setting(0.1))
        write_run(runs / "b" / f"seed{seed}", [0.0, 2 * last], seed, **setting(0.2))
        write_run(runs / "c" / f"seed{seed}", [0.0, 5.0], seed, algo="iql", config="iql")
    write_run(runs / "d" / "seed0", [50.0], score_is="D4RL normalised score", data="hopper-medium-v2")
    write_run(runs / "a" / "seed0.old1", [9.0, 9.0], **setting(0.1))
    text = report(runs, tmp_path / "out")
    # t(0.975, 2 degrees) = 4.3027, std 1, n 3
    assert "| toy | bc (hyper.lr=0.1) | 2.00 [1.00, 3.00] | 2.00 [-0.48, 4.48] | 3 |" in text
    assert "| toy | bc (hyper.lr=0.2) |" in text
    assert "| toy | iql | 5.00 [5.00, 5.00] |" in text
    assert "## D4RL normalised score" in text
    assert "| hopper-medium-v2 | bc | 50.0 | 50.0 | 1 |" in text
    assert "| toy | behaviour policy | – | 3.00 | data |" in text
    assert "verdict" not in text.split("How each number")[0]
    assert report(tmp_path / "out", tmp_path / "again") == text


def test_a_plan_that_was_made_is_made_anew_when_there_are_more_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", [1.0, 2.0])
    assert "**1 of 1**" in report(tmp_path, tmp_path)
    write_run(tmp_path / "seed1", [1.0, 2.0], 1)
    assert "**2 of 2**" in report(tmp_path, tmp_path)


def test_unfinished_runs_stand_beside_their_siblings(tmp_path: Path) -> None:
    settings = {"run": {"updates": 200}, "data": {"name": "custom"}}
    write_run(tmp_path / "probe", [1.0], settings=settings)
    config = fingerprint_of(json.loads((tmp_path / "probe" / ".hydra" / "config.yaml").read_text()))
    folder = tmp_path / "runs" / "bc" / "custom" / config
    write_run(folder / "seed0", [1.0, 2.0], config=config, settings=settings)
    write_run(folder / "seed1", [1.0], 1, result=None, settings=settings)
    write_run(folder / "seed2", [1.0], 2, result=None)
    (folder / "seed2" / ".hydra" / "config.yaml").write_text("algo: {")  # torn; its place says what it is
    text = report(tmp_path / "runs", tmp_path / "out")
    assert "| toy | bc | 2.00 | 2.00 | 1 of 3 (2 unfinished) |" in text
    assert "| Raw return | toy | bc | 1, 2 | unfinished | stopped at update 100 of 200; run" in text


def test_only_unfinished_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", [1.0], result=None)
    text = report(tmp_path, tmp_path / "out")
    assert "**0 of 1** planned runs" in text
    assert "| Score | toy | bc | 0 | unfinished | stopped at update 100 of 100" in text


def test_a_copied_run_counts_once(tmp_path: Path) -> None:
    for place in ("first", "copy"):
        write_run(tmp_path / place / "seed0", [1.0, 2.0])
    text = report(tmp_path, tmp_path / "out")
    assert "1 run directories repeat a seed" in text
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["tables"][0]["cells"][0]["runs"] == [{"seed": 0, "dir": "copy/seed0"}]
