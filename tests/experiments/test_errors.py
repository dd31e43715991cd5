"""Every mistake of the user: one line that names it, exit status 2, nothing written over."""

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiments import train
from tests.conftest import NARROW, ROOT, Train, call

SHORT = [*NARROW, "run.updates=40", "run.eval_every=20", "run.save_every=20", "run.chunk=20", "run.eval_episodes=2"]


@pytest.fixture
def run_short(run_train: Train, tmp_path: Path) -> Train:
    """Short runs of narrow networks."""
    return functools.partial(run_train, f"run.root={tmp_path / 'runs'}", *SHORT)


def refuses(outcome: tuple[int, str], *words: str) -> None:
    """One line, status 2, all the words in it."""
    status, text = outcome
    assert status == 2, text
    assert len(text.splitlines()) == 1, text
    for word in words:
        assert word in text, text


def damaged(data: Path, target: Path, change: Callable[[h5py.File], None]) -> str:
    """A changed copy of a data file, as an argument."""
    shutil.copy(data, target)
    with h5py.File(target, "r+") as file:
        change(file)
    return f"data.path={target}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["algo.hyper.alhpa=1"], ["algo.hyper.alhpa"]),
        (["+algo.hyper.alhpa=1"], ["algo.hyper.alhpa", "algo.hyper.alpha"]),
        (["+run.update=1"], ["run.update", "run.updates"]),
        (["+sede=1"], ["sede", "seed"]),
        (["algo.hyper.alpha=much"], ["algo.hyper.alpha", "much"]),
        (["run.updates=2.5"], ["run.updates", "2.5"]),
        (["seed=zero"], ["seed=zero", "integer"]),
        (["seed=[0,0]"], ["seed", "twice"]),
        (["algo=a2rp"], ["algo=a2rp", "a2pr"]),
        (["algo.static.candidate=prior"], ["algo.static.candidate", "prior_sample"]),
        (["data=hopper-medum-v2"], ["hopper-medum-v2", "hopper-medium-v2"]),
        (["data=none"], ["data=none", "a2pr"]),
        (["data=custom"], ["data.path"]),
        (["data=custom", "data.path=nowhere.hdf5"], ["nowhere.hdf5"]),
        (["run.updates=41"], ["run.updates=41", "run.eval_every"]),
        (["run.eval_every=5"], ["run.eval_every=5", "multiple of 2"]),
        (["run.members=both"], ["run.members=both", "vmap"]),
        (["run.eval_episodes=0"], ["run.eval_episodes=0"]),
    ],
)
def test_bad_configuration(
    args: list[str], words: list[str], run_short: Train, pointmix_file: Path, tmp_path: Path
) -> None:
    base = [] if any(a.startswith("data") for a in args) else ["data=custom", f"data.path={pointmix_file}"]
    refuses(run_short(*base, *args), *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data=hopper-medium-v2", "env=hopper"], ["algo=sac", "data=none"]),
        (["data=none"], ["algo=sac", "env=NAME"]),
        (["data=none", "env.name=gymnasium:Pendulum-v1"], ["gymnasium:Pendulum-v1", "evaluation only"]),
    ],
)
def test_sac_needs_an_environment(args: list[str], words: list[str], run_train: Train) -> None:
    refuses(run_train("algo=sac", *args), *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["algo=sac", "env=hopper", "env.evaluate=walker2d"], ["env.evaluate=walker2d", "same shapes"]),
        (["algo=sac", "env=hopper", "env.evaluate=hoper"], ["hoper", "hopper"]),
        (["algo=bc", "env.evaluate=pointmix"], ["env.evaluate=pointmix", "env.name"]),
        (["algo=task_allocation", "env=pointmix"], ["algo=task_allocation", "env=pointmix", "env=almighty"]),
        (["algo=task_allocation", "env.name=rbf-train-30x3-in-20x5"], ["30", "20"]),
        (["algo=task_allocation", "env.name=rbf-train-0x3"], ["0 entities", "at least one"]),
        (["algo=task_allocation", "env=almighty", "algo.static.variant=greedy"], ["variant=greedy", "two_stage"]),
        (["algo=task_allocation_transfer", "env=almighty"], ["start=[RUN_DIR]", "algo=task_allocation"]),
    ],
)
def test_online_algorithms_refuse_what_they_cannot_learn_or_be_evaluated_in(
    args: list[str], words: list[str], run_train: Train, tmp_path: Path
) -> None:
    refuses(run_train(f"run.root={tmp_path / 'runs'}", *args), *words)
    assert not (tmp_path / "runs").exists()


def test_file_without_a_needed_key(run_short: Train, pointmix_file: Path, tmp_path: Path) -> None:
    argument = damaged(pointmix_file, tmp_path / "bad.hdf5", lambda file: file.__delitem__("rewards"))
    refuses(run_short("data=custom", argument), "bad.hdf5", "rewards")


def test_nan_in_the_data(run_short: Train, pointmix_file: Path, tmp_path: Path) -> None:
    def spoil(file: h5py.File) -> None:
        file["rewards"][7] = np.nan

    refuses(run_short("data=custom", damaged(pointmix_file, tmp_path / "bad.hdf5", spoil)), "bad.hdf5", "rewards", "7")


def test_data_of_other_dimensions_than_the_environment(run_short: Train, pointmix_file: Path) -> None:
    refuses(run_short("data=custom", f"data.path={pointmix_file}", "env=hopper"), "2", "11", "environment")


def test_unknown_environment(run_short: Train, pointmix_file: Path) -> None:
    refuses(run_short("data=custom", f"data.path={pointmix_file}", "env.name=hoper"), "hoper", "hopper")


def test_no_network(run_short: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPTAX_DATA", str(tmp_path / "cache"))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # nothing listens there
    status, text = run_short("data=hopper-medium-v2")
    error = [line for line in text.splitlines() if not line.startswith("fetching ")]  # says what it tries
    refuses((status, "\n".join(error)), "hopper_medium-v2.hdf5", "data.path")


def test_checksum_mismatch(
    run_short: Train, pointmix_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cache" / "hopper_medium-v2.hdf5"
    file.parent.mkdir()
    shutil.copy(pointmix_file, file)
    (tmp_path / "cache" / "hopper_medium-v2.hdf5.sha256").write_text("0" * 64 + "  hopper_medium-v2.hdf5\n")
    monkeypatch.setenv("ADAPTAX_DATA", str(file.parent))
    refuses(run_short("data=hopper-medium-v2"), "hopper_medium-v2.hdf5", "0000")


class TestRunDirectories:
    """One trained run, and everything that must not be done to it."""

    @pytest.fixture(scope="class")
    def finished(self, pointmix_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("finished") / "run"
        assert call(train.run, *SHORT, "data=custom", f"data.path={pointmix_file}", f"run.dir={folder}") == 0
        return folder

    @pytest.fixture
    def trained(self, finished: Path, run_short: Train, pointmix_file: Path, tmp_path: Path) -> tuple[Train, Path]:
        folder = Path(shutil.copytree(finished, tmp_path / "run"))
        return functools.partial(run_short, "data=custom", f"data.path={pointmix_file}", f"run.dir={folder}"), folder

    def test_are_kept(self, trained: tuple[Train, Path]) -> None:
        again, folder = trained
        before = contents(folder)
        refuses(again("algo.hyper.alpha=7"), str(folder), "another configuration")
        refuses(again("seed=5"), str(folder), "another configuration")
        assert contents(folder) == before
        assert again()[0] == 0  # finished: nothing to do
        assert contents(folder) == before

    def test_checkpoint_of_another_configuration(self, trained: tuple[Train, Path]) -> None:
        again, folder = trained
        shutil.rmtree(folder / ".hydra")
        (folder / "result.json").unlink()
        before = contents(folder)
        refuses(again("algo.hyper.alpha=7"), str(folder), "another configuration")
        assert contents(folder) == before

    def test_data_changed_since(self, trained: tuple[Train, Path], pointmix_file: Path) -> None:
        again, folder = trained
        original = pointmix_file.read_bytes()
        try:
            with h5py.File(pointmix_file, "r+") as file:
                file["rewards"][0] += 1.0
            refuses(again(), str(folder), "checksum")
        finally:
            pointmix_file.write_bytes(original)

    def test_foreign_folder(self, run_short: Train, pointmix_file: Path, tmp_path: Path) -> None:
        folder = tmp_path / "thesis"
        folder.mkdir()
        (folder / "chapter1.tex").write_text("precious")
        refuses(run_short("data=custom", f"data.path={pointmix_file}", f"run.dir={folder}"), str(folder))
        assert contents(folder) == {str(folder / "chapter1.tex"): b"precious"}

    def test_fresh_sets_the_old_run_aside(self, trained: tuple[Train, Path]) -> None:
        again, folder = trained
        before = (folder / "metrics.csv").read_bytes()
        assert again("run.fresh=true")[0] == 0
        assert (folder.with_name("run.old1") / "metrics.csv").read_bytes() == before
        assert (folder / "metrics.csv").read_bytes() == before

    def test_damaged_checkpoints(self, trained: tuple[Train, Path]) -> None:
        again, folder = trained
        result, metrics = (folder / "result.json").read_text(), (folder / "metrics.csv").read_bytes()
        (folder / "result.json").unlink()
        newest = folder / "checkpoints" / "40"
        largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        os.truncate(largest, 10)
        status, text = again()
        assert status == 0
        assert "checkpoint 40 is damaged" in text
        fields = ("parameters_sha256", "score", "return")
        old, new = json.loads(result), json.loads((folder / "result.json").read_text())
        assert [old[f] for f in fields] == [new[f] for f in fields]
        assert (folder / "metrics.csv").read_bytes() == metrics
        (folder / "result.json").unlink()
        for file in (folder / "checkpoints").rglob("_METADATA"):
            file.write_text("{}")
        before = contents(folder)
        refuses(again(), str(folder), "damaged", "run.fresh=true")
        assert contents(folder) == before

    def test_another_process_holds_it(self, trained: tuple[Train, Path]) -> None:
        again, folder = trained
        (folder / "result.json").unlink()
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            refuses(again(), str(folder), "another process")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a small disk needs Linux and root")
def test_disk_full_while_saving(pointmix_file: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    args = ["data=custom", f"data.path={pointmix_file}", f"run.dir={disk / 'run'}", *SHORT]
    program = (
        f"mount -t tmpfs -o size=320k none {disk} && {sys.executable} -m experiments.train {' '.join(args)}; "
        f"status=$?; ls {disk}/run/checkpoints/*/manifest.json; exit $status"
    )
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True)
    if probe.returncode:
        pytest.skip("this container may not mount a small disk")
    done = subprocess.run(["unshare", "-m", "sh", "-c", program], cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert "No space left" in errors[0]
    assert "Traceback" not in done.stderr
    assert [line.split("/")[-2] for line in done.stdout.split()] == ["20"]  # the checkpoint before is whole
