"""On a real cluster: what slurm/job.sbatch runs ends with the bytes of a run that nobody disturbed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.results import LIVES
from slurm import status
from tests.conftest import ROOT
from tests.slurm.conftest import Lab, running_lab, wait_until

TEMPLATE = ROOT / "slurm" / "job.sbatch"
WHOLE_N1 = ("--nodelist=n1", "--cpus-per-task=4")  # so that another such job takes its place
EVERY = 100_000  # updates between evaluations
UPDATES = 4 * EVERY  # about ten seconds: time to interrupt them
SETTINGS = [
    "algo=bc", "data=pointmix-random-expert-0.1", "algo.static.hidden=[16,16]", "algo.static.batch_size=32", "seed=3",
    f"run.eval_every={EVERY}", "run.save_every=100000000", "run.chunk=200", "run.eval_episodes=3",
]  # fmt: skip


class Training:
    """A run of a folder of its own, as a job or in a shell."""

    def __init__(self, folder: Path, updates: int):
        self.folder, self.arguments = folder, [*SETTINGS, f"run.updates={updates}", "run.dir=run"]
        folder.mkdir()
        (folder / ".venv").symlink_to(sys.prefix)  # where the template looks

    def here(self) -> dict:
        command = [sys.executable, "-m", "experiments.train", *self.arguments]
        done = subprocess.run(command, cwd=self.folder, env=self._env(dict(os.environ)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return self.outcome()

    def submit(self, lab: Lab, *options: str) -> str:
        command = ["sbatch", "--parsable", *WHOLE_N1, *options, str(TEMPLATE), *self.arguments]
        return lab.check(*command, cwd=self.folder, env=self._env(lab.env)).strip()

    @staticmethod
    def _env(env: dict[str, str]) -> dict[str, str]:
        return env | {"PYTHONPATH": str(ROOT)}

    def lives(self) -> int:
        file = self.folder / "run" / LIVES
        return len(file.read_text().splitlines()) if file.exists() else 0

    def wait_lives(self, lives: int, timeout: float = 120) -> None:
        wait_until(lambda: self.lives() >= lives, timeout, lambda: self.log())
        time.sleep(1.5)  # into its updates

    def rows(self) -> list[str]:
        """Lines of metrics.csv: its names, and one for every evaluation."""
        return (self.folder / "run" / "metrics.csv").read_text().splitlines()

    def log(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("slurm-*.out"))

    def outcome(self) -> dict:
        """What must not depend on preemptions, and the speed."""
        result = json.loads((self.folder / "run" / "result.json").read_text())
        told = {key: result[key] for key in ("parameters_sha256", "score", "return", "updates_per_second")}
        return told | {"metrics": (self.folder / "run" / "metrics.csv").read_bytes()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return Training(tmp_path_factory.mktemp("whole") / "project", UPDATES).here()


@pytest.fixture
def job(tmp_path: Path) -> Training:
    return Training(tmp_path / "project", UPDATES)


def same(one: dict, other: dict) -> bool:
    return one | {"updates_per_second": None} == other | {"updates_per_second": None}


def preempted(lab: Lab, job: Training, grace: int, by: str) -> None:
    """Let a job of the higher partition take the place of `job`, and both end."""
    lab.set_grace(grace)
    number = job.submit(lab, "--partition=low", "--time=30")
    job.wait_lives(1)
    lab.wait_state(lab.sbatch("sleep 1", "--partition=high", *WHOLE_N1), "COMPLETED", 120)
    lab.wait_state(number, "COMPLETED", 240)
    assert job.lives() >= 2, job.log()
    assert f"{by}: stopped after" in job.log()
    assert int(lab.job(number)["Restarts"]) >= 1


def test_status_reads_a_real_queue(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, lab.env[name])
    array = lab.sbatch("sleep 30", "--array=0-1", "--nodelist=n1", "--cpus-per-task=3")  # one at a time
    lab.wait_state(f"{array}_0", "RUNNING")
    queue = {f"{array}_0": ("RUNNING", "None"), f"{array}_1": ("PENDING", "Resources")}
    wait_until(lambda: status.ask_queue(set(queue)) == (queue, ""), 20, lambda: str(status.ask_queue(set(queue))))
    assert status.ask_queue({*queue, "987654_0"}) == (queue, "")
    assert status.ask_queue({"987654_0"}) == ({}, "")
    lab.check("scancel", array)
    wait_until(lambda: status.ask_queue(set(queue)) == ({}, ""), 20)


@pytest.mark.slow
def test_preempted_with_sigterm_only(lab: Lab, job: Training, whole: dict) -> None:
    preempted(lab, job, grace=0, by="SIGTERM")  # SIGKILL five seconds later
    assert same(job.outcome(), whole)


@pytest.mark.slow
def test_preempted_with_sigusr2(job: Training, whole: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On a cluster that sends the signal of --signal at the start of the grace; the job asks to be requeued itself."""
    extra = "SlurmctldParameters=preempt_send_user_signal"
    with running_lab(tmp_path_factory.mktemp("lab"), nodes=1, extra=extra) as lab:
        preempted(lab, job, grace=20, by="SIGUSR2")
    assert same(job.outcome(), whole)


@pytest.mark.slow
def test_cancelled_is_cancelled_and_saved(lab: Lab, job: Training, whole: dict) -> None:
    number = job.submit(lab, "--partition=low", "--time=30")
    job.wait_lives(1)
    lab.check("scancel", number)
    lab.wait_state(number, "CANCELLED", 60)
    assert "SIGTERM: stopped after" in job.log()
    assert same(job.here(), whole)
    assert job.lives() == 2


@pytest.mark.slow  # four minutes: a time limit cannot be shorter than one
def test_three_time_limits(lab: Lab, tmp_path: Path) -> None:
    """The signal comes after some 20 seconds of the minute. The run has no end, so that no machine is too fast."""
    job = Training(tmp_path / "job", 10**9)
    number = job.submit(lab, "--partition=low", "--time=1", "--signal=USR2@20")
    job.wait_lives(4, 500)
    before = len(job.rows())
    wait_until(lambda: len(job.rows()) >= before + 2, 120, job.log)  # the fourth life has evaluated too
    lab.check("scancel", number)
    lab.wait_state(number, "CANCELLED", 60)
    assert job.log().count("SIGUSR2: stopped after") == 3
    undisturbed = Training(tmp_path / "undisturbed", (len(job.rows()) - 1) * EVERY)
    undisturbed.here()
    assert job.rows() == undisturbed.rows()
