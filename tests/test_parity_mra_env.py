"""The parity tool on resource occupation: recorded episodes are met, and wrong numbers are noticed."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity import mra_env
from tests.parity.core import Kinds, Row, run_case

pytestmark = pytest.mark.usefixtures("quick_compilation")
GOLDEN = Path(__file__).parent / "golden" / "mra"
NAME = "resource_env_n03_seed0.npz"
KINDS: Kinds = {"resource_env": mra_env.check}
GIVEN = ("initial_positions", "initial_velocities", "landmark_positions", "landmark_sizes", "actions")


def rows(folder: Path) -> list[Row]:
    return run_case(folder, {"kind": "resource_env", "files": {"all": NAME}}, KINDS)[1]


def wrong(key: str, x: np.ndarray) -> np.ndarray:
    """Off by more than any tolerance, except what is fed to the first step."""
    name = key.split("/")[1]
    if name in GIVEN:
        return x
    if name == "action_indices":
        return (x + 1) % 5
    return ~x if x.dtype == bool else x + 0.01 * (1 + np.abs(x))


def test_records_are_met_and_every_quantity_can_fail(tmp_path: Path) -> None:
    met = rows(GOLDEN)
    assert [row for row in met if not row.ok] == []
    with np.load(GOLDEN / NAME) as file:
        arrays = {key: wrong(key, file[key]) for key in file.files}
    np.savez(tmp_path / NAME, **arrays)  # type: ignore[arg-type]
    changed = rows(tmp_path)
    assert [row.quantity for row in changed if row.ok] == []
    assert {row.quantity for row in changed} == {row.quantity for row in met}
