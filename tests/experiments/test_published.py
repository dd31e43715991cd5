"""The published numbers are complete records, and those of the specification where it lies beside the checkout."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from experiments.reporting.published import lookup

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "experiments" / "published"
FILES = sorted(PUBLISHED.glob("*.csv"))
COLUMNS = ["experiment", "environment", "method", "metric", "mean", "spread", "spread_kind", "n_seeds", "source"]
UNKNOWN = ("not found", "not applicable")
OWN = "own "  # sources of numbers that belong into PAPER_reference.csv
SPECIFICATIONS = ROOT.parent / "shared" / "specs" / "results"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS
        return list(reader)


def test_there_are_published_numbers() -> None:
    assert {"a2pr.csv", "a2pr_reference.csv", "psec.csv"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_is_a_complete_record(path: Path) -> None:
    for row in rows(path):
        assert all(row[column] for column in COLUMNS), row
        for column in ("mean", "spread"):
            assert row[column] in UNKNOWN or float(row[column]) is not None, row
        assert row["n_seeds"] == "not found" or int(row["n_seeds"]) > 0, row
        assert row["spread"] in UNKNOWN or (float(row["spread"]) >= 0 and row["spread_kind"] not in UNKNOWN), row
        assert row["mean"] != "not found" or row["spread"] in UNKNOWN, row


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_number_stands_once(path: Path) -> None:
    keys = Counter((row["experiment"], row["environment"], row["method"], row["metric"]) for row in rows(path))
    assert keys.most_common(1)[0][1] == 1


@pytest.mark.parametrize("path", [path for path in FILES if not path.stem.endswith("_reference")], ids=lambda p: p.stem)
def test_numbers_are_those_of_the_specification(path: Path) -> None:
    specification = SPECIFICATIONS / path.name
    if not specification.is_file():
        pytest.skip("the specification is not beside this checkout")
    specified = [{column: text or "not found" for column, text in row.items()} for row in rows(specification)]
    assert rows(path) == [row for row in specified if not row["source"].startswith(OWN)]


def test_known_numbers_and_unknown_ones() -> None:
    """Two of the paper's scores as quoted, one of the re-run, one that was not found."""
    found = {(row["experiment"], row["environment"], row["method"]): row for row in rows(PUBLISHED / "a2pr.csv")}
    assert found["quoted_locomotion_1M", "hopper-medium-v2", "A2PR"]["mean"] == "100.8"
    rerun = found["rerun_one_setting_1M", "halfcheetah-medium-v2", "A2PR"]
    assert (rerun["mean"], rerun["spread"], rerun["n_seeds"]) == ("55.9", "0.6", "4")
    assert "not found" in {row["mean"] for row in found.values()}


def test_numbers_are_looked_up_by_what_they_measure() -> None:
    """PSEC's table 1 has two numbers a cell; its first is the score."""
    cell = "psec", "dsrl_multi_objective", "OfflineMetadrive-easysparse-v0", "BC"
    score, cost = lookup(*cell), lookup(*cell, "normalized_cost")
    assert score is not None
    assert cost is not None
    assert (score.mean, cost.mean) == ("0.32", "4.73")
    assert str(score) == "0.32 (no spread given, n = 4)"
    assert lookup(*cell, "right_mode_mean") is None
    skill = lookup("psec", "dmc_policy_shift", "dm_control walker stand->walk", "PSEC")
    assert skill is not None
    assert (skill.value, skill.n_seeds) == (688.0, "5")
