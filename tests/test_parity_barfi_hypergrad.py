"""The parity tool on BARFI's hypergradients: records are met, and wrong numbers are noticed."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.golden_case import copy_case
from tests.parity.__main__ import compare

GIVEN = re.compile(
    r"(inner|outer)_batch_.*|phi|psi|lam_ent|theta_l2|gamma_outer|neumann_loops|unrolled_(lr|steps)|.*_probe"
    r"|transition|reward_(primary|aux)"
)


@pytest.mark.parametrize("kind", ["tabular_chain", "population_chain", "softmax_bandit"])
@pytest.mark.parametrize("shift", [0.0, 1e-6])
def test_records_are_met_and_every_quantity_can_fail(kind: str, shift: float, tmp_path: Path) -> None:
    def shifted(key: str, x: np.ndarray) -> np.ndarray:
        return x if GIVEN.fullmatch(key) else x + shift * (1 + np.abs(x))

    rows = compare("barfi", copy_case("barfi", kind, tmp_path, shifted))
    assert [row.quantity for row in rows if row.ok == (shift > 0.0)] == []
