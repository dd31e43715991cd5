"""The parity tool on MRA's networks: recorded numbers are met, and wrong numbers are noticed."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.golden_case import copy_case
from tests.parity.__main__ import compare, main

pytestmark = pytest.mark.usefixtures("quick_compilation")
SHARED = Path(__file__).parents[2] / "shared" / "golden" / "mra"
GIVEN = re.compile(
    r"params_initial/.*|config/(?!.*clip_norm).*|batch[0-9]+/(observations|actions_onehot|rewards_normalised|relations)"
    r"|batch[0-9]+/skill_uniform|batch0/skill_onehot|cycle.*/(.*_uniform|.*_action_index)"
)


def wrong(key: str, x: np.ndarray) -> np.ndarray:
    """Off by more than any tolerance wherever nothing follows from it."""
    if GIVEN.fullmatch(key):
        return x
    if key.endswith("dones"):
        x[0, 1] = 1.0  # another agent than the one that is looked at
        return x
    if key.endswith("next_observations"):
        x[..., 4:-18] += 0.01  # what the agents see of the others, which we derive
        return x
    return x + 1 if np.issubdtype(x.dtype, np.integer) else x + 1e-3 * (1 + np.abs(x))


def test_records_are_met_and_every_quantity_can_fail(tmp_path: Path) -> None:
    original = copy_case("mra", "networks", tmp_path / "original", lambda key, x: x)
    met = compare("mra", original)
    assert [row for row in met if not row.ok] == []
    changed = compare("mra", copy_case("mra", "networks", tmp_path / "changed", wrong))
    assert [row.quantity for row in changed if row.ok] == []
    assert [row.quantity for row in changed] == [row.quantity for row in met]


@pytest.mark.slow
def test_full_size_records_are_met() -> None:
    if not SHARED.is_dir():
        pytest.skip("full-size records are not beside this checkout")
    assert main(["mra", str(SHARED)]) == 0
