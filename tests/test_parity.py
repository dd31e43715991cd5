"""The parity tool: recorded numbers are met; wrong numbers, arrays and files are noticed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden_case import GOLDEN, copy_case
from tests.parity.__main__ import compare, main

SHARED = Path(__file__).parents[2] / "shared" / "golden"
NARROW, CONVERSION = "narrow_base_seed0.npz", "d4rl_conversion.npz"
RAW = ("data/observations_raw", "data/next_observations_raw", "data/actions", "data/rewards", "raw/")
INPUTS = (*RAW, "init/", "config/")
DRAWN = ("/draws/", "/batch/index", "prior/state", "prior/latent", "prior/normal_draw", "eval/observation_raw")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "a2pr" / name) as file:
        return dict(file)


def case_folder(folder: Path, kind: str, arrays: dict[str, np.ndarray]) -> Path:
    """A folder with one case."""
    np.savez(folder / "case.npz", **arrays)  # type: ignore[arg-type]
    settings = {"cases": [{"kind": kind, "files": {"all": "case.npz"}}]}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def shifted(name: str, x: np.ndarray) -> np.ndarray:
    """Off by a little more than any tolerance; flags and counts flipped or off by one."""
    if name.endswith(("/indicator", "/choose_vae", "/gate", "/not_done")):
        return 1 - x
    if x.dtype == bool:
        return ~x
    return x + 1 if np.issubdtype(x.dtype, np.integer) else x + 5e-5 * (1 + np.abs(x))


@pytest.mark.parametrize("algorithm", ["a2pr", "psec", pytest.param("task_allocation", marks=pytest.mark.slow)])
def test_public_records_are_met(algorithm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([algorithm, str(GOLDEN / algorithm)]) == 0
    assert "0 beyond tolerance" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ["a2pr", pytest.param("psec", marks=pytest.mark.slow)])
def test_full_size_records_are_met(algorithm: str) -> None:
    if not (SHARED / algorithm).is_dir():
        pytest.skip("full-size records are not beside this checkout")
    assert main([algorithm, str(SHARED / algorithm)]) == 0


@pytest.mark.parametrize(("kind", "name"), [("updates", NARROW), ("d4rl_conversion", CONVERSION)])
def test_every_quantity_can_fail(kind: str, name: str, tmp_path: Path) -> None:
    arrays = load(name)
    sizes = ("config/hidden_width", "config/vae_hidden_width", "config/latent_dim", "config/batch_size")
    for key, x in arrays.items():
        given = key.startswith(INPUTS) or any(part in key for part in DRAWN)
        if not given or key in sizes or key.endswith("_scaled"):
            arrays[key] = shifted(key, x)
    met = [row.quantity for row in compare("a2pr", case_folder(tmp_path, kind, arrays)) if row.ok]
    assert met == []


PSEC_KINDS = ["pretrain_dropout", "lora", "critics", "composition", "composition_baselines", "sampling"]
PSEC_GIVEN = re.compile(
    r"(init|base/params|reward_lora|cost_lora|alpha_net|qc_target)/.*|observation|(.*/)?(x_init|z)"
    r"|.*/batch/.*|.*/(reward_|cost_)?(time|noise)|.*/dropout_keep_mask/.*|composed_given_alpha/alpha"
    r"|step[0-9]+/(q_target_min|v|qc_target_max|vc)"
)


@pytest.mark.parametrize("kind", PSEC_KINDS)
def test_every_quantity_of_psec_can_fail(kind: str, tmp_path: Path) -> None:
    given = "noise_level/weights" if kind == "sampling" else None

    def wrong(key: str, x: np.ndarray) -> np.ndarray:
        if key.endswith("selected_index_min_qc"):
            return (x + 1) % 8
        return x if PSEC_GIVEN.fullmatch(key) or key == given else x + 1e-2 * (1 + np.abs(x))

    changed = copy_case("psec", kind, tmp_path, wrong)
    assert [row.quantity for row in compare("psec", changed) if row.ok] == []


DECIDE_GIVEN = re.compile(
    r"(params0|tables)[.].*|hidden_dim|lr|preassign_.*|manager_initial_entity"
    r"|decision[.](step_index|.*_uniform|replay_index)"
)


def test_every_quantity_of_decisions_can_fail(tmp_path: Path) -> None:
    def wrong(key: str, x: np.ndarray) -> np.ndarray:
        x = x if DECIDE_GIVEN.fullmatch(key) else shifted(key, x)
        if key.endswith(("select_critic_loss", "select_actor_loss")):
            x[0, 0, -1] = 0.0  # one pick more
        if key == "decision.step_index":
            x[1] = 1  # of a decision in which nothing was drawn
        return x

    changed = copy_case("task_allocation", "decide_rbf.npz", tmp_path, wrong)
    assert [row.quantity for row in compare("task_allocation", changed) if row.ok] == []


@pytest.mark.parametrize(
    "name", ["after_10/vae/mean/kernel", "update_02/actor/gate", "update_10/actor/grad_loss_wrt_pi"]
)
def test_one_number_beyond_tolerance_exits_1(name: str, tmp_path: Path) -> None:
    arrays = load(NARROW)
    arrays[name].flat[3] = shifted(name, arrays[name]).flat[3]
    assert main(["a2pr", str(case_folder(tmp_path, "updates", arrays))]) == 1


def test_not_a_number_exits_1(tmp_path: Path) -> None:
    arrays = load(NARROW)
    arrays["update_01/value/pred"].flat[0] = np.nan
    assert main(["a2pr", str(case_folder(tmp_path, "updates", arrays))]) == 1


def line_of_exit_2(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the tool complains with."""
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    "name", ["update_03/vae/z", "after_02/adam/nu/value/l1/bias", "init/actor/l2/bias", "config/alpha"]
)
def test_missing_array_exits_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = load(NARROW)
    del arrays[name]
    line = line_of_exit_2(capsys, "a2pr", str(case_folder(tmp_path, "updates", arrays)))
    assert f"'{name}' is missing" in line


@pytest.mark.parametrize("name", ["update_03/actor/pi", "config/dropout", "after_04/actor/l1/bias", "new"])
def test_array_not_understood_exits_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = load(NARROW) | {name: np.zeros((32, 6), np.float32)}
    line = line_of_exit_2(capsys, "a2pr", str(case_folder(tmp_path, "updates", arrays)))
    assert "after_04/" in line if name.startswith("after_04") else f"not compared: {name}" in line


def test_arrays_of_other_shapes_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = load(NARROW)
    arrays["init/vae/mean/kernel"] = arrays["init/vae/mean/kernel"].T
    assert "init/vae" in line_of_exit_2(capsys, "a2pr", str(case_folder(tmp_path, "updates", arrays)))


def test_unused_file_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = case_folder(tmp_path, "d4rl_conversion", load(CONVERSION))
    shutil.copy(folder / "case.npz", folder / "spare.npz")
    assert "spare.npz" in line_of_exit_2(capsys, "a2pr", str(folder))


def test_unreadable_input_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "settings.json" in line_of_exit_2(capsys, "a2pr", str(tmp_path / "nowhere"))
    folder = case_folder(tmp_path, "d4rl_conversion", load(CONVERSION))
    content = (folder / "case.npz").read_bytes()
    (folder / "case.npz").write_bytes(content[: len(content) // 2])
    assert "case.npz" in line_of_exit_2(capsys, "a2pr", str(folder))
    (folder / "case.npz").unlink()
    assert "case.npz" in line_of_exit_2(capsys, "a2pr", str(folder))
    (folder / "settings.json").write_text('{"cases": [{"kind": "updates"}]}')
    assert "settings.json" in line_of_exit_2(capsys, "a2pr", str(folder))


def test_unknown_algorithm_kind_and_usage_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(case_folder(tmp_path, "sampling", {"x": np.zeros(1)}))
    assert "'sampling'" in line_of_exit_2(capsys, "a2pr", folder)
    assert "'a3c'" in line_of_exit_2(capsys, "a3c", folder)
    assert "usage" in line_of_exit_2(capsys, "a2pr")
