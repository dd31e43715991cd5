"""The parity tool on DrQ-v2 and the adaptive rule: recorded numbers are met, and wrong numbers are noticed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.golden_case import GOLDEN, copy_case
from tests.parity.__main__ import compare, main

pytestmark = pytest.mark.usefixtures("quick_compilation")
SHARED = Path(__file__).parents[2] / "shared" / "golden" / "adaptive_rr"
GIVEN = {
    "updates": r"(encoder|actor|critic.*)/.*|u\d+/((next_)?obs|action|reward|discount|step|shift.*|noise.*)",
    "nstep_sampling": r".*/(reward|discount|action|nstep|gamma)",
    "random_shift": r"images|shift_xy|pad",
    "rr_switch_trace": r".*/(phi_per_update|episode_len.*|seed_frames|action_repeat|check_freq|phi_gap)",
    "truncated_normal_and_schedule": r".*/(mean|noise|stddev|clip|cotangent|steps|durations)",
}


@pytest.mark.parametrize("kind", GIVEN)
def test_records_are_met_and_every_quantity_can_fail(kind: str, tmp_path: Path) -> None:
    def wrong(key: str, x: np.ndarray) -> np.ndarray:
        if re.fullmatch(GIVEN[kind], key):
            return x
        return x + 1 if np.issubdtype(x.dtype, np.integer) else x + 2e-2 * (1 + np.abs(x))

    met = compare("adaptive_rr", copy_case("adaptive_rr", kind, tmp_path / "original", lambda key, x: x))
    assert [row for row in met if not row.ok] == []
    changed = compare("adaptive_rr", copy_case("adaptive_rr", kind, tmp_path / "changed", wrong))
    assert [row.quantity for row in changed if row.ok] == []


def case_of_updates(folder: Path, name: str, change: object, **hyper: object) -> Path:
    """The recorded updates with one array replaced (None: left out) and other settings."""
    copy_case("adaptive_rr", "updates", folder, lambda key, x: x)
    path, settings = folder / "img17_updates.npz", folder / "settings.json"
    with np.load(path) as file:
        arrays = dict(file)
    arrays.pop(name, None)
    np.savez(path, **arrays | ({} if change is None else {name: change}))
    cases = json.loads(settings.read_text())
    cases["cases"][0]["hyper"] |= hyper
    settings.write_text(json.dumps(cases))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "hyper", "complaint"),
    [
        ("after2/critic/q2/dense1/bias", None, {}, "'after2/critic/q2/dense1/bias' is missing"),
        ("u2/target_q", None, {}, "'u2/target_q' is missing"),
        ("after2/encoder/conv5/kernel", np.zeros(1), {}, "not compared: after2/encoder/conv5/kernel"),
        ("u1/target_value", np.zeros(1), {}, "not compared: u1/target_value"),
        ("u1/pad", None, {"pad": 2}, "pad 4 only"),
    ],
)
def test_what_is_not_understood_exits_2(
    name: str, change: object, hyper: dict, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adaptive_rr", str(case_of_updates(tmp_path, name, change, **hyper))]) == 2
    assert complaint in capsys.readouterr().err


def test_files_of_a_group_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    with np.load(GOLDEN / "adaptive_rr" / "img17_updates.npz") as file:
        arrays = dict(file)
    after = {key.removeprefix("after2/"): x for key, x in arrays.items() if key.startswith("after2/")}
    rest = {key: x for key, x in arrays.items() if not key.startswith("after2/")}
    np.savez(tmp_path / "rest.npz", **rest)
    np.savez(tmp_path / "later.npz", **after)
    case = json.loads((GOLDEN / "adaptive_rr" / "settings.json").read_text())["cases"][0]
    case["files"] = {"updates": "rest.npz", "after": {"2": "later.npz"}}
    (tmp_path / "settings.json").write_text(json.dumps({"cases": [case]}))
    assert main(["adaptive_rr", str(tmp_path)]) == 0


@pytest.mark.slow
def test_full_size_records_are_met() -> None:
    if not SHARED.is_dir():
        pytest.skip("full-size records are not beside this checkout")
    assert main(["adaptive_rr", str(SHARED)]) == 0
