"""The parity tool on BARFI's hypergradients: records are met, and wrong numbers are noticed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.parity.__main__ import compare

GOLDEN = Path(__file__).parent / "golden" / "barfi"
GIVEN = re.compile(
    r"(inner|outer)_batch_.*|phi|psi|lam_ent|theta_l2|gamma_outer|neumann_loops|unrolled_(lr|steps)|.*_probe"
    r"|transition|reward_(primary|aux)"
)


@pytest.mark.parametrize("kind", ["tabular_chain", "population_chain", "softmax_bandit"])
@pytest.mark.parametrize("shift", [0.0, 1e-6])
def test_records_are_met_and_every_quantity_can_fail(kind: str, shift: float, tmp_path: Path) -> None:
    (case,) = [case for case in json.loads((GOLDEN / "settings.json").read_text())["cases"] if case["kind"] == kind]
    with np.load(GOLDEN / case["files"]["all"]) as file:
        arrays = dict(file)
    for key, x in arrays.items():
        if not GIVEN.fullmatch(key):
            arrays[key] = x + shift * (1 + np.abs(x))
    np.savez(tmp_path / case["files"]["all"], **arrays)
    (tmp_path / "settings.json").write_text(json.dumps({"cases": [case]}))
    rows = compare("barfi", tmp_path)
    assert [row.quantity for row in rows if row.ok == (shift > 0.0)] == []
