"""The reports in docs/results are what the code makes of the raw numbers beside them; nothing was edited by hand."""

from pathlib import Path

import pytest

from experiments.report import report

ROOT = Path(__file__).parent.parent
REPORTS = sorted(path.parent for path in (ROOT / "docs" / "results").rglob("plan.json"))


def test_there_is_a_report() -> None:
    assert ROOT / "docs" / "results" / "a2pr" / "cpu" in REPORTS


@pytest.mark.parametrize("folder", REPORTS, ids=lambda path: str(path.relative_to(ROOT / "docs" / "results")))
def test_a_report_is_made_again_to_the_byte(folder: Path, tmp_path: Path) -> None:
    report(folder, tmp_path)
    written, kept = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path, folder)
    )
    assert sorted(written) == sorted(kept)
    for name, content in kept.items():
        assert content == written[name], f"{name} differs: python -m experiments.report {folder.relative_to(ROOT)}"
