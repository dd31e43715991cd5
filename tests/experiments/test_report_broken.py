"""Runs that went wrong, each shown and explained, without a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.report import report
from tests.experiments.test_report import cell, paper, write_plan

assert paper  # a fixture


def _unfinished(run: Path) -> None:
    (run / "result.json").unlink()


def _torn(run: Path) -> None:
    (run / "result.json").unlink()
    with open(run / "metrics.csv", "a") as file:
        file.write("400,1")


def _before_the_first_evaluation(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "metrics.csv").unlink()


def _empty_metrics_unfinished(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "metrics.csv").write_text("")


def _empty_metrics(run: Path) -> None:
    (run / "metrics.csv").write_text("")


def _change(**changes: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | changes))

    return change


def _garbled_metrics(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "metrics.csv").write_text("update,score\n100,much\n")


def _shuffled_metrics(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "metrics.csv").write_text("update,score\n200,1\n100,1\n")


NAN = {"last": float("nan"), "best": 1.0, "mean_of_last_ten": 1.0}


@pytest.mark.usefixtures("paper")
@pytest.mark.parametrize(
    ("harm", "state", "words"),
    [
        (_unfinished, "unfinished", "stopped at update 300 of 300"),
        (_torn, "unfinished", "stopped at update 300 of 300"),
        (_before_the_first_evaluation, "unfinished", "stopped before its first evaluation"),
        (_empty_metrics_unfinished, "unfinished", "stopped before its first evaluation"),
        (_empty_metrics, "no curve", "metrics.csv holds no evaluation"),
        (_change(diverged_at=200), "diverged", "parameters no longer finite at update 200"),
        (_change(score=NAN), "diverged", "a score is not finite"),
        (_change(score={}), "unusable", "result.json has no score"),
        (_change(score=None), "unusable", "result.json cannot be read"),
        (_change(updates=200), "unusable", "trained for 200 updates where the plan has 300"),
        (_change(updates=None), "unusable", "trained for 0 updates where the plan has 300"),
        (_change(seed=9), "unusable", "holds seed 9"),
        (lambda run: (run / "result.json").write_text('{"algo'), "unusable", "result.json cannot be read"),
        (lambda run: (run / "result.json").write_text("[]"), "unusable", "result.json cannot be read"),
        (_garbled_metrics, "unusable", "metrics.csv cannot be read"),
        (_shuffled_metrics, "unusable", "metrics.csv is out of order"),
        (lambda run: run.rename(run.with_name("elsewhere")), "not started", "run the command again"),
    ],
)
def test_one_bad_run_of_three(tmp_path: Path, harm: Callable[[Path], None], state: str, words: str) -> None:
    cells = [cell(tmp_path / "runs", "toy", "ours", [9.0, 100.0, 11.0])]
    harm(tmp_path / "runs/ours/toy/seed1")
    write_plan(tmp_path / "runs", cells)
    text = report(tmp_path / "runs", tmp_path / "out")
    line = next(line for line in text.splitlines() if line.startswith("| Table 1 | toy | ours | 1 |"))
    assert f"| {state} | " in line
    assert words in line
    if state == "no curve":
        assert "| 3 |" in text
        return
    assert f"2 of 3 (1 {state})" in text
    assert f"**not comparable**: 1 of 3 seeds {state}" in text
    assert "10.0 [-2.7, 22.7]" in text  # mean of 9 and 11, t(1) = 12.7062
    again = report(tmp_path / "out", tmp_path / "again")
    assert again == text
    assert (tmp_path / "again/runs.csv").read_bytes() == (tmp_path / "out/runs.csv").read_bytes()


@pytest.mark.usefixtures("paper")
def test_nothing_at_all_has_run(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "toy", "ours", [], runs=[{"seed": 0, "dir": "nowhere/0"}, {"seed": 1, "dir": "nowhere/1"}]),
        cell(tmp_path, "other", "ours", [], missing="hopper-medium-v2.hdf5 is not here: download it with X"),
        cell(tmp_path, "other", "theirs", [], runs=[{"seed": 0, "dir": "nowhere/2"}], missing="no data: get them"),
    ]
    write_plan(tmp_path, cells)
    text = report(tmp_path, tmp_path / "out")
    assert "**0 of 3** planned runs" in text
    assert "| Table 1 | toy | ours | 0, 1 | not started | not started; run the command again |" in text
    assert "| Table 1 | other | ours | all | missing | hopper-medium-v2.hdf5 is not here: download it with X |" in text
    assert "| Table 1 | other | theirs | 0 | missing | no data: get them |" in text


@pytest.mark.usefixtures("paper")
def test_an_empty_table(tmp_path: Path) -> None:
    write_plan(tmp_path, [])
    assert "None: every planned run is finished" in report(tmp_path, tmp_path / "out")


@pytest.mark.usefixtures("paper")
def test_one_seed_zero_variance_and_unequal_numbers_of_seeds_side_by_side(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "toy", "ours", [7.0]),
        cell(tmp_path, "other", "ours", [8.0]),
        cell(tmp_path, "toy", "theirs", [4.0] * 3),
        cell(tmp_path, "other", "theirs", [5.0, 6.0, 5.5, 5.0, 6.0]),
    ]
    (tmp_path / "theirs/other/seed2/metrics.csv").write_text("update,score\n100,1\n300,5.5\n")  # evaluated less often
    write_plan(tmp_path, cells)
    text = report(tmp_path, tmp_path / "out")
    assert "| toy | ours | 10.0 ± 1.0 (std, n = 5) | 7.00 | 7.00 | -3.00 | 1 | **not comparable**: one seed |" in text
    assert "| 4.00 [4.00, 4.00] | 4.00 [4.00, 4.00] | -1.00 [-1.05, -0.95] | 3 | **below** |" in text
    assert "| average over 2 tasks | ours | – | 7.50 | 7.50 | – | 2 |" in text
    assert "| ours | – | 1.00 |" in text  # probability of improvement, no interval


@pytest.mark.usefixtures("paper")
def test_all_diverged(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "toy", "ours", [1.0, 2.0]), cell(tmp_path, "toy", "theirs", [1.0, 2.0])]
    for seed in (0, 1):
        _change(diverged_at=100 * (seed + 1))(tmp_path / f"ours/toy/seed{seed}")
    write_plan(tmp_path, cells)
    text = report(tmp_path, tmp_path / "out")
    assert "| toy | ours | 10.0 ± 1.0 (std, n = 5) | – | – | – | 0 of 2 (2 diverged) |" in text
    assert "| Table 1 | toy | ours | 0 | diverged | parameters no longer finite at update 100" in text
