"""The parity tool on BARFI's environments: recorded episodes are met, and wrong numbers are noticed."""

import functools
from pathlib import Path

import numpy as np
import pytest

from tests.golden_case import copy_case
from tests.parity.__main__ import compare

KINDS = ["env_gridworld", "env_mountaincar", "env_cartpole", "features"]
GIVEN = ("action", "input_actions", "input_slip", "input_random_action")  # ends of names
FED = {"env_cartpole": ("_x", "_x_dot", "_theta", "_theta_dot"), "features": ("_states",)}


def wrong(kind: str, key: str, x: np.ndarray) -> np.ndarray:
    """Off by more than any tolerance wherever nothing follows from it: starts, inputs and draws stay."""
    part = key.split("_", 1)[1]
    if kind == "env_gridworld" and part == "action":
        return (x + 1) % 4  # the same as is given once more
    fed = key.endswith(FED.get(kind, ())) and "next" not in key
    if fed or part in GIVEN:
        return x
    if "tile_indices" in key:
        return (x + 1) % 80
    x = x + 1e-5 * (1 + np.abs(x))
    if kind == "env_mountaincar" and part in ("position", "velocity"):
        x[0] /= 1 + 1e-5  # close to where it was
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_met_and_every_quantity_can_fail(kind: str, tmp_path: Path) -> None:
    original = copy_case("barfi", kind, tmp_path / "original", lambda key, x: x)
    assert [row for row in compare("barfi", original) if not row.ok] == []
    changed = copy_case("barfi", kind, tmp_path / "changed", functools.partial(wrong, kind))
    assert [row.quantity for row in compare("barfi", changed) if row.ok] == []
