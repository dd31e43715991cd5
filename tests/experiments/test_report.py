"""The report of a plan: its files, its bytes, its pages, its command."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import report as module
from experiments.cli import guarded
from experiments.report import report
from experiments.reporting import published

ROWS = [
    "experiment,environment,method,metric,mean,spread,spread_kind,n_seeds,source",
    "main,toy,ours,return,10.0,1.0,sample_std_over_seeds,5,a paper",
    "main,toy,theirs,return,5.0,1.0,not stated,5,a paper",
    "main,other,ours,return,not found,not found,not found,not found,a paper",
]


def write_run(folder: Path, scores: list[float], seed: int = 0, **changes: Any) -> None:
    """What a finished run leaves behind; `result=None` for one that has not finished."""
    (folder / ".hydra").mkdir(parents=True)
    config = {"algo": {"name": "bc", "hyper": {"lr": 0.1}}, "data": {"name": "toy"}, "env": {"name": "auto"}}
    config |= {"run": {"updates": 100 * len(scores)}, "seed": seed, **changes.pop("settings", {})}
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    rows = [f"{(i + 1) * 100},{score:.9g},{score:.9g}" for i, score in enumerate(scores)]
    (folder / "metrics.csv").write_text("\n".join(["update,score,return_mean", *rows]) + "\n")
    result = {
        "algo": "bc", "data": "toy", "env": "hopper", "seed": seed, "config": "c0ffee", "updates": 100 * len(scores),
        "score": {"last": scores[-1], "best": max(scores), "mean_of_last_ten": float(np.mean(scores[-10:]))},
        "score_is": "raw return", "behaviour_score": 3, "diverged_at": None, "parameters_sha256": "e" * 64,
        "data_sha256": ["d" * 64], "updates_per_second": 1000.0, "compile_seconds": 1.5, "eval_seconds": 2,
        "peak_memory_bytes": 1 << 30, "device": "abacus", "git": "abc123", "versions": {"jax": "1", "numpy": "2"},
    }  # fmt: skip
    if changes.pop("result", ...) is not None:
        (folder / "result.json").write_text(json.dumps(result | changes))


def cell(root: Path, task: str, method: str, lasts: list[float], **changes: Any) -> dict[str, Any]:
    """A cell of the plan and its finished runs, one a last score, each of three evaluations."""
    runs = []
    for seed, last in enumerate(lasts):
        place = f"{method}/{task}/seed{seed}"
        write_run(root / place, [0.5 * last, last + 1.0, last], seed, data=task, algo=method)
        runs.append({"seed": seed, "dir": place})
    base = {"task": task, "method": method, "published_task": task, "published_method": method, "missing": None}
    return base | {"updates": 300, "runs": runs} | changes


def write_plan(root: Path, cells: list[dict], claims: list[dict] | None = None, **changes: Any) -> None:
    """A plan of one table."""
    table: dict[str, Any] = {
        "name": "main",
        "title": "Table 1",
        "protocol": "Toys.",
        "metric": "raw return",
        "published": "main",
    }
    table |= {"score": "last", "not_comparable": None, "cells": cells, **changes}
    plan: dict[str, Any] = {
        "paper": "toy",
        "preset": "cpu",
        "title": "Toys & <games>",
        "command": "make toys",
        "tables": [table],
    }
    root.mkdir(exist_ok=True)
    (root / "plan.json").write_text(json.dumps(plan | {"claims": claims or []}))


@pytest.fixture
def paper(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published numbers of the paper `toy`."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "toy.csv").write_text("\n".join(ROWS) + "\n")
    monkeypatch.setattr(published, "FOLDER", folder)


@pytest.fixture
def root(tmp_path: Path, paper: None) -> Path:
    """Two methods on two tasks, one of which lacks a curve."""
    folder = tmp_path / "runs"
    rng = np.random.default_rng(0)
    cells = [
        cell(folder, task, method, [*(level + rng.normal(0, 1, 4)), level])
        for task in ("toy", "other")
        for method, level in (("ours", 10.0), ("theirs", 4.0))
    ]
    (folder / "ours/other/seed4/metrics.csv").write_text("")
    claim = {"name": "a", "text": "ours beats theirs | always", "source": "section 1", "table": "main", "task": "toy"}
    write_plan(folder, cells, [claim | {"better": "ours", "worse": "theirs", "min_gap": 2.5, "min_wins": 4}])
    return folder


def test_same_bytes_again_and_from_the_report_alone(root: Path, tmp_path: Path) -> None:
    text = report(root, tmp_path / "first")
    assert report(root, tmp_path / "again") == text
    # the report folder holds no run, only plan.json, runs.csv and curves.csv
    assert report(tmp_path / "first", tmp_path / "third") == text
    assert report(tmp_path / "first", tmp_path / "first") == text
    files = sorted(p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*") if p.is_file())
    names = {str(name) for name in files}
    assert names >= {"plan.json", "runs.csv", "curves.csv", "numbers.csv", "report.md", "report.html"}
    assert names >= {f"figures/main-{name}.svg" for name in ("curves", "seeds", "profile")}
    for other in ("again", "third"):
        assert all((tmp_path / other / f).read_bytes() == (tmp_path / "first" / f).read_bytes() for f in files)


def test_every_number_of_the_tables_is_in_numbers_csv(root: Path, tmp_path: Path) -> None:
    text = report(root, tmp_path / "out")
    with open(tmp_path / "out" / "numbers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    known = {float(row[k]) for row in rows for k in ("value", "low", "high") if row[k]}
    tables = [line for line in text.splitlines() if re.match(r"\| (toy|other|average|ours|theirs)", line)]
    # scores have one or two decimals here; whole numbers are seeds, and what the plan and the paper say
    shown = {n for line in tables for n in re.findall(r"(?<![\d±] )-?\d+\.\d+", re.sub(r"\(.*?\)|> \S+", "", line))}
    assert len(shown) > 50
    for number in shown:
        assert any(f"{value:.{len(number.split('.')[1])}f}" == number for value in known), number


def test_the_page_needs_nothing_else_and_is_well_formed(root: Path, tmp_path: Path) -> None:
    report(root, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert checker.loads == []
    assert len(checker.ids) == len(set(checker.ids))
    assert set(checker.targets) <= set(checker.ids)
    assert "Toys &amp; &lt;games&gt;" in html
    assert "<script" not in html
    assert "prefers-color-scheme: dark" in html
    for picture in (tmp_path / "out" / "figures").glob("*.svg"):
        svg = picture.read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "var(--" not in svg
        assert "<dc:date>" not in svg
    assert html.count("<svg") == 3
    assert not re.search(r"<svg.*?(stroke|fill): #1f2328", html, re.S)  # axes and text take the page's colours


class Checker(HTMLParser):
    """Unclosed tags, ids, links inside the page, and whatever would be loaded from elsewhere."""

    VOID = ("meta", "link", "br", "hr", "img", "!doctype")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.look(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            value = value or ""
            self.ids += [value] if name == "id" else []
            self.targets += re.findall(r"url\(#([^)]*)\)", value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
                (self.targets if value.startswith("#") else self.loads).append(value.removeprefix("#"))


def test_provenance(root: Path, tmp_path: Path) -> None:
    text = report(root, tmp_path / "out")
    for word in (
        "`make toys`",
        "abacus",
        "abc123",
        "jax 1, numpy 2",
        "toy " + "d" * 64,
        "20 finished",
        "seed 0, 2,000",
    ):
        assert word in text


def test_wrong_commands_end_in_one_line(
    tmp_path: Path, paper: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("empty", "torn", "unknown", "nopaper", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "torn" / "plan.json").write_text('{"tables": [')
    (tmp_path / "unknown" / "plan.json").write_text('{"tables": [], "tabels": []}')
    write_plan(tmp_path / "nopaper", [cell(tmp_path / "nopaper", "toy", "ours", [1.0])])
    plan = json.loads((tmp_path / "nopaper" / "plan.json").read_text())
    (tmp_path / "nopaper" / "plan.json").write_text(json.dumps(plan | {"paper": "nobody"}))
    (tmp_path / "damaged" / "plan.json").write_text('{"tables": []}')
    (tmp_path / "damaged" / "runs.csv").write_text("table,colour\nmain,red\n")
    wrong = [
        ([str(tmp_path / "empty")], "no run below it"),
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([], "usage"),
        ([str(tmp_path), "to=x"], "unknown key to"),
        ([str(tmp_path / "torn")], "plan.json cannot be read"),
        ([str(tmp_path / "unknown")], "unknown key tabels"),
        ([str(tmp_path / "nopaper")], "paper=nobody"),
        ([str(tmp_path / "damaged")], "damaged"),
    ]
    for args, word in wrong:
        monkeypatch.setattr("sys.argv", ["report", *args])
        assert guarded(module.main) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1


def test_command(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(root)])
    assert guarded(module.main) == 0
    printed = capsys.readouterr().out
    assert "**holds**" in printed
    assert str(root / "report.html") in printed
    assert (root / "report.html").exists()
