"""Killed at any moment and started again, a run ends with the bytes of an uninterrupted one."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import NARROW, ROOT

UPDATES, INTERVAL = 800, 100
SETTINGS = [
    *NARROW,
    f"run.updates={UPDATES}",
    f"run.eval_every={INTERVAL}",
    f"run.save_every={INTERVAL}",
    "run.chunk=50",
]


def run_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob("metrics.csv"))


def outcome(folder: Path) -> dict:
    """What must not depend on interruptions."""
    result = json.loads((folder / "result.json").read_text())
    kept = {key: result[key] for key in ("score", "return", "parameters_sha256", "diverged_at", "config")}
    return kept | {"metrics": (folder / "metrics.csv").read_bytes()}


def start(data: Path, root: Path, seed: str) -> subprocess.Popen:
    args = ["algo=a2pr", "data=custom", f"data.path={data}", f"run.root={root}", f"seed={seed}", *SETTINGS]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *args], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kill_when(process: subprocess.Popen, happened: Callable[[], bool]) -> bool:
    """SIGKILL as soon as something has happened; whether the process was still running."""
    deadline = time.monotonic() + 300
    while process.poll() is None and not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL) if alive else None
    process.communicate()
    return alive


def saves_beyond(root: Path, seen: int) -> bool:
    """Whether some member's unfinished save of a step later than `seen` is on disk."""
    names = [path.name for path in root.glob("*/*/*/*/checkpoints/*orbax-checkpoint-tmp*")]
    return any(int(name.split(".")[0]) > seen for name in names if name.split(".")[0].isdigit())


def saved_something(root: Path, seen: int) -> bool:
    """Whether a step later than `seen` was saved, and a random moment has passed since."""
    if newest(root) <= seen:
        return False
    time.sleep(random.uniform(0, 0.5))
    return True


def newest(root: Path) -> int:
    steps = [int(path.parent.name) for path in root.glob("*/*/*/*/checkpoints/*/manifest.json")]
    return max(steps, default=0)


@pytest.fixture(scope="module")
def uninterrupted(pointmix_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    root = tmp_path_factory.mktemp("whole")
    process = start(pointmix_file, root, "[0,1,2]")
    assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
    return {folder.name: outcome(folder) for folder in run_folders(root)}


@pytest.mark.parametrize("seed", ["1", "[0,1,2]"], ids=["single", "population"])
def test_kill_9_changes_nothing(seed: str, uninterrupted: dict, pointmix_file: Path, tmp_path: Path) -> None:
    kills = 0
    for moment in range(3):
        process = start(pointmix_file, tmp_path, seed)
        seen = newest(tmp_path)
        if moment % 2:  # in the middle of a save
            kills += kill_when(process, partial(saves_beyond, tmp_path, seen + INTERVAL))
        else:  # anywhere
            kills += kill_when(process, partial(saved_something, tmp_path, seen))
    assert kills >= 2
    assert start(pointmix_file, tmp_path, seed).wait() == 0
    folders = run_folders(tmp_path)
    assert len(folders) == (3 if seed.startswith("[") else 1)
    for folder in folders:
        assert outcome(folder) == uninterrupted[folder.name]
        assert 2 <= json.loads((folder / "result.json").read_text())["lives"] <= kills + 1
