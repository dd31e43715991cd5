"""Verdicts on numbers worked out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.core import UsageError
from experiments.report import gather
from experiments.reporting import analysis, claims, figures
from experiments.reporting.analysis import CellResult
from experiments.reporting.claims import ClaimResult
from experiments.reporting.numbers import digits_for, interval, number, to_csv
from experiments.reporting.published import Published
from experiments.stats import Interval
from tests.experiments.test_report import cell, paper, write_plan

assert paper  # a fixture


def judged(root: Path, cells: list[dict], **changes: Any) -> CellResult:
    """The first cell of a plan of one table."""
    write_plan(root, cells, **changes)
    plan, members, _ = gather(root)
    return analysis.analyse(plan, members)[0].cells[0]


@pytest.mark.usefixtures("paper")
def test_verdicts_from_the_interval_of_the_difference(tmp_path: Path) -> None:
    """Published 10.0 ± 1.0 of 5 seeds; ours has n 5, and the same spread: Welch has t(8), se sqrt(2/5), slack 0.05."""
    spread = np.array([-1.0, 1.0, -1.0, 1.0, 0.0])  # variance 1
    half = 2.306004 * np.sqrt(2 / 5) + 0.05
    for shift, word in [
        (half - 0.01, "agrees"),
        (half + 0.01, "above"),
        (-half + 0.01, "agrees"),
        (-half - 0.01, "below"),
    ]:
        result = judged(
            tmp_path / f"{shift:.3f}", [cell(tmp_path / f"{shift:.3f}", "toy", "ours", list(10 + shift + spread))]
        )
        assert str(result.verdict) == word
        assert result.difference == pytest.approx((shift, shift - half, shift + half), abs=1e-5)


@pytest.mark.usefixtures("paper")
def test_a_spread_of_unknown_kind_is_not_used(tmp_path: Path) -> None:
    """Published 5.0 ± 1.0 (not stated): exact but for rounding. Ours has t(4) * sqrt(1/5) = 1.2416."""
    lasts = 5.0 + 1.3 + np.array([-1.0, 1.0, -1.0, 1.0, 0.0])
    result = judged(tmp_path, [cell(tmp_path, "toy", "theirs", list(lasts))])
    assert str(result.verdict) == "above"
    assert result.difference == pytest.approx((1.3, 1.3 - 1.24164 - 0.05, 1.3 + 1.24164 + 0.05), abs=1e-4)
    assert "spread of unknown kind, not used" in str(result.published)


@pytest.mark.usefixtures("paper")
@pytest.mark.parametrize(("last", "word"), [(5.0, "agrees"), (5.04, "agrees"), (5.06, "above"), (4.94, "below")])
def test_zero_variance_leaves_what_rounding_hides(tmp_path: Path, last: float, word: str) -> None:
    assert str(judged(tmp_path, [cell(tmp_path, "toy", "theirs", [last] * 3)]).verdict) == word


@pytest.mark.usefixtures("paper")
def test_reasons_against_comparing(tmp_path: Path) -> None:
    cases: list[tuple[str, dict, dict, str]] = [
        ("one", cell(tmp_path / "one", "toy", "ours", [10.0]), {}, "one seed"),
        ("lost", cell(tmp_path / "lost", "other", "ours", [1.0, 2.0]), {}, "the paper's number was not found"),
        (
            "short",
            cell(tmp_path / "short", "toy", "ours", [1.0, 2.0]),
            {"not_comparable": "fewer updates"},
            "fewer updates",
        ),
        ("norow", cell(tmp_path / "norow", "toy", "nobody", [1.0, 2.0]), {}, "no such published row"),
        (
            "none",
            cell(tmp_path / "none", "toy", "ours", [1.0, 2.0], published_method=None),
            {},
            "the paper has no such number",
        ),
        ("data", cell(tmp_path / "data", "toy", "ours", [], missing="no file"), {}, "data missing"),
        ("long", cell(tmp_path / "long", "toy", "ours", [1.0, 2.0], updates=400), {}, "2 of 2 seeds unusable"),
    ]
    for name, of, changes, why in cases:
        assert str(judged(tmp_path / name, [of], **changes).verdict) == f"not comparable: {why}"
    assert judged(tmp_path / "plain", [cell(tmp_path / "plain", "toy", "ours", [1.0])], published=None).verdict is None


@pytest.mark.usefixtures("paper")
def test_the_protocol_s_score_is_compared(tmp_path: Path) -> None:
    """Last 9, best 10 of every seed."""
    cells = [cell(tmp_path, "toy", "ours", [9.0] * 5)]
    assert judged(tmp_path, cells, score="best").difference == pytest.approx((0.0, -1.2916, 1.2916), abs=1e-3)
    assert judged(tmp_path, cells, score="last").difference == pytest.approx((-1.0, -2.2916, 0.2916), abs=1e-3)


def claimed(root: Path, cells: list[dict], **changes: Any) -> ClaimResult:
    claim = {
        "name": "a",
        "text": "a",
        "source": "s",
        "table": "main",
        "task": "toy",
        "better": "ours",
        "worse": "theirs",
    }
    write_plan(root, cells, [claim | {"min_gap": 0.0, "min_wins": None} | changes])
    plan, members, _ = gather(root)
    return claims.judge(plan.claims, analysis.analyse(plan, members))[0]


@pytest.mark.usefixtures("paper")
def test_claims_hold_or_not_by_gap_and_wins(tmp_path: Path) -> None:
    """Differences 2, 2, 2, -1: mean 1.25, three wins; Student's interval t(3) * 1.5 / 2 = 2.3868."""
    cells = [cell(tmp_path, "toy", "ours", [3.0, 4.0, 5.0, 0.0]), cell(tmp_path, "toy", "theirs", [1.0, 2.0, 3.0, 1.0])]
    result = claimed(tmp_path, cells)
    assert result.paired is not None
    assert result.paired.difference == pytest.approx((1.25, 1.25 - 2.38684, 1.25 + 2.38684), abs=1e-4)
    assert (result.paired.wins, result.paired.n) == (3, 4)
    words: dict[str, list[dict[str, Any]]] = {
        "holds": [{}, {"min_gap": 1.2}, {"min_wins": 3}],
        "does not hold": [{"min_gap": 1.25}, {"min_wins": 4}, {"better": "theirs", "worse": "ours"}],
    }
    for word, changes in words.items():
        assert all(str(claimed(tmp_path, cells, **change).verdict) == word for change in changes)


@pytest.mark.usefixtures("paper")
def test_claims_against_numbers(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "toy", "ours", [3.0, 4.0, 5.0])]
    words: dict[str, list[dict[str, Any]]] = {
        "holds": [{"worse": "2.9", "min_wins": 3}, {"better": "5.5", "worse": "ours", "min_wins": 3}],
        "does not hold": [{"worse": "3.5", "min_wins": 3}, {"worse": "4.5"}, {"better": "-1", "worse": "ours"}],
        "not tested": [{"worse": "theirs"}, {"better": "2", "worse": "1"}],
    }
    for word, changes in words.items():
        for change in changes:
            assert str(claimed(tmp_path, cells, **change).verdict).startswith(word), change
    result = claimed(tmp_path, cells, worse="3.5")
    assert result.paired is not None
    assert result.paired.difference.value == pytest.approx(0.5)


@pytest.mark.usefixtures("paper")
def test_claims_of_equality_need_every_seed_the_same_in_every_digit(tmp_path: Path) -> None:
    third = 1.0 / 3.0
    for last, word, sign in [
        (third, "holds", "= 0 for 2 of 2 seeds"),
        (float(np.nextafter(third, 1.0)), "does not hold", "= 0 for 1 of 2 seeds"),
    ]:
        root = tmp_path / word
        cells = [cell(root, "toy", "ours", [2.0, third]), cell(root, "toy", "theirs", [2.0, last])]
        result = claimed(root, cells, relation="equal")
        assert (str(result.verdict), result.sign, result.required) == (word, sign, "= 0, every seed")
    with pytest.raises(UsageError, match="claim a: relation=same must be better or equal"):
        claimed(tmp_path / "holds", [], relation="same")
    with pytest.raises(UsageError, match="claim a: relation=equal has no min_gap and no min_wins"):
        claimed(tmp_path / "holds", [], relation="equal", min_gap=1.0)


@pytest.mark.usefixtures("paper")
def test_where_lower_is_better(tmp_path: Path) -> None:
    """Scores of a run are (last / 2, last + 1, last): its best is the first; ours, which are lower, are ahead."""
    cells = [
        cell(tmp_path, task, method, [level, level + 1.0])
        for task in ("toy", "other")
        for method, level in (("ours", 4.0), ("theirs", 10.0))
    ]
    claimed = {"name": "a", "text": "a", "table": "main", "task": "toy", "better": "ours", "worse": "theirs"}
    write_plan(tmp_path, cells, [claimed], lower_is_better=True, metric="cost")
    plan, members, _ = gather(tmp_path)
    (table,) = analysis.analyse(plan, members)
    assert [member.best for member in members if member.method == "ours"] == [2.0, 2.5, 2.0, 2.5]
    probability = {(pair.better, pair.worse): pair.probability.value for pair in table.improvements}
    assert probability == {("ours", "theirs"): 1.0, ("theirs", "ours"): 0.0}
    assert list(table.thresholds) == sorted(table.thresholds, reverse=True)
    below = {
        method: profile.value[np.searchsorted(-table.thresholds, -7.0)] for method, profile in table.profiles.items()
    }
    assert below == {"ours": 1.0, "theirs": 0.0}
    (claim,) = claims.judge(plan.claims, [table])
    assert claim.paired is not None
    assert (claim.paired.difference.value, claim.paired.wins, str(claim.verdict)) == (6.0, 2, "holds")
    rows = to_csv([table], [claim]).decode()
    assert "claims,main,toy,theirs - ours,,paired difference,6," in rows
    assert "ours < theirs" in rows
    assert "share below" in rows
    figure = figures.profiles(table, figures.Look(table.table.methods))
    assert figure is not None
    assert "share of runs below it" in figure.light


@pytest.mark.usefixtures("paper")
def test_claims_against_the_behaviour_policy(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "toy", "ours", [3.5, 4.0])]  # the behaviour policy has 3
    result = claimed(tmp_path, cells, worse="behaviour policy")
    assert str(result.verdict) == "holds"
    assert result.paired is not None
    assert result.paired.difference.value == pytest.approx(0.75)


@pytest.mark.usefixtures("paper")
def test_claims_are_not_tested_with_a_reason(tmp_path: Path) -> None:
    both = [cell(tmp_path, "toy", "ours", [3.0, 4.0]), cell(tmp_path, "toy", "theirs", [1.0, 2.0])]
    apart = [both[0], both[1] | {"runs": [{"seed": 7, "dir": "theirs/toy/seed7"}]}]
    (tmp_path / "theirs/toy/seed0").rename(tmp_path / "theirs/toy/seed7")
    gone = [both[0], both[1] | {"runs": [], "missing": "no data"}]
    cases: list[tuple[list[dict], dict[str, Any], str]] = [
        (both, {}, "theirs: 1 of 2 seeds not started"),
        (apart, {}, "theirs: 1 of 1 seeds unusable"),  # it holds seed 0
        (gone, {}, "theirs: no data"),
        (both, {"table": "second"}, "there is no table second"),
        (both, {"worse": "nobody"}, "nobody is not in the plan for this task"),
        (both, {"worse": "behaviour policy", "min_wins": 4}, "it needs 4 seeds, there are 2"),
    ]
    for cells, changes, why in cases:
        result = claimed(tmp_path, cells, **changes)
        assert str(result.verdict) == f"not tested: {why}"
        assert result.paired is None


@pytest.mark.parametrize(
    ("kind", "n", "std"),
    [
        ("sample_std_over_seeds", "5", 2.0),
        ("population std over seeds", "5", 2.0 * np.sqrt(5 / 4)),
        ("std over 5 solver seeds (ddof=0)", "5", 2.0 * np.sqrt(5 / 4)),
        ("standard error", "5", None),
        ("std over episodes", "5", None),
        ("not stated in table (figures say std)", "5", None),
        ("not found", "5", None),
        ("sample_std_over_seeds", "not found", None),
        ("sample_std_over_seeds", "1", None),
    ],
)
def test_only_a_standard_deviation_over_seeds_is_used(kind: str, n: str, std: float | None) -> None:
    found = Published("48.3", "2.0", kind, n, "")
    assert found.std[0] == (None if std is None else pytest.approx(std))
    assert ("not used" in str(found)) == (std is None)


def test_slack_is_half_a_unit_of_the_last_digit() -> None:
    slacks = {"48.3": 0.05, "-9.25": 0.005, "101": 0.5, "1.0": 0.05}
    assert {mean: Published(mean, "", "", "", "").slack for mean in slacks} == pytest.approx(slacks)


def test_numbers_for_people() -> None:
    assert [digits_for([x]) for x in (0.0, 1234.5, -33.2, 4.2, 0.51, 0.012)] == [1, 1, 1, 2, 3, 4]
    assert number(-0.04, 1) == "0.0"
    assert number(-1234.56, 1) == "-1,234.6"
    assert interval(Interval(1.0, float("nan"), float("nan")), 1) == "1.0"
    assert interval(Interval(1.0, -2.0, 4.0), 1) == "1.0 [-2.0, 4.0]"
