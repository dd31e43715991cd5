"""On a real cluster: a packed sweep that is preempted, loses a node or its time ends as one that nobody disturbed."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from experiments.results import LIVES, RESULT
from slurm import sweep
from tests.conftest import ROOT
from tests.slurm.conftest import Lab, running_lab, wait_until

TINY = [
    "algo=bc", "data=pointmix-random-expert-0.1", "algo.static.hidden=[16,16]", "run.members=map", "run.chunk=200",
    "run.eval_episodes=3",
]  # fmt: skip
UPDATES = 200_000  # some fifteen seconds: time to interrupt them
EVERY = 20_000
SETTINGS = [*TINY, f"run.updates={UPDATES}", f"run.eval_every={EVERY}", "algo.static.batch_size=32,64", "seed=0,1"]
ONLY_WHEN_ASKED = "run.save_every=100000000"


class Sweep:
    """A sweep in a folder of its own: the command that launches it, and what becomes of its members.

    A job takes a whole node, so that another one takes its place.
    """

    def __init__(self, lab: Lab, root: Path, *settings: str):
        self.lab, self.root, self.folder = lab, root, root / "runs" / "sweeps" / "tried"
        self.settings = ["hydra.launcher.name=tried", *settings]
        self.env = lab.env | {"PYTHONPATH": str(ROOT)}
        root.mkdir(exist_ok=True)

    def command(self, *options: str, launcher: str = "slurm") -> list[str]:
        chosen = [f"hydra/launcher={launcher}", *self.settings]
        if launcher == "slurm":
            asked = {"partition": "low", "gpus_per_node": 0, "cpus_per_task": 4, "timeout_min": 30}
            chosen += [f"hydra.launcher.{key}={value}" for key, value in asked.items()]
        return [sys.executable, "-m", "experiments.train", "-m", *chosen, *options]

    def run(self, *options: str, launcher: str = "slurm") -> subprocess.CompletedProcess[str]:
        """Give the command, whatever its exit status."""
        return self.lab.run(*self.command(*options, launcher=launcher), cwd=self.root, env=self.env, timeout=300)

    def launch(self, *options: str) -> str:
        """Give the command, which must succeed; what it prints."""
        done = self.run(*options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *options: str) -> "subprocess.Popen[str]":
        """Give the command and go on; `communicate` tells how it ended."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*options), cwd=self.root, env=self.env, stdout=pipe, stderr=pipe, text=True
        )  # fmt: skip

    def status(self) -> subprocess.CompletedProcess[str]:
        """What `slurm.status` says, whatever its exit status."""
        command = [sys.executable, "-m", "slurm.status", str(self.folder)]
        return self.lab.run(*command, cwd=self.root, env=self.env)

    def job(self, index: int) -> str:
        """The SLURM job of a group, as squeue names it."""
        return json.loads((self.folder / sweep.PLAN).read_text())["jobs"][str(index)]

    def array(self) -> str:
        return self.job(0).partition("_")[0]

    def told(self, index: int) -> dict[str, Any]:
        """What the job of a group says of itself; {} before it has started."""
        return sweep.read_group(self.folder, index) or {}

    def members(self) -> list[Path]:
        """Run directories of the members that have been begun."""
        return sorted(file.parent for file in (self.root / "runs").glob(f"*/*/*/*/{LIVES}"))

    def lives(self) -> dict[str, list[int]]:
        """By member: how many updates it had at the beginning of each of its lives."""
        return {
            str(folder.relative_to(self.root)): [int(n) for n in re.findall("update=([0-9]+)", text)]
            for folder in self.members()
            for text in [(folder / LIVES).read_text()]
        }

    def wait_rows(self, rows: int, members: int = 4) -> None:
        """Until that many members have been evaluated that often."""

        def evaluated() -> bool:
            files = [folder / "metrics.csv" for folder in self.members()]
            return sum(file.exists() and file.read_text().count("\n") > rows for file in files) == members

        wait_until(evaluated, 120, lambda: f"{rows} evaluations\n{self.log()}")

    def wait_completed(self, timeout: float = 240) -> None:
        self.lab.wait_state(self.array(), "COMPLETED", timeout)

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("logs/*.err")))

    def outcome(self) -> dict[str, tuple]:
        """By member: what must not depend on who disturbed it; only of finished ones."""
        found = {}
        for folder in self.members():
            result = json.loads((folder / RESULT).read_text())
            kept = tuple(result[key] for key in ("parameters_sha256", "score", "return", "updates", "diverged_at"))
            found[str(folder.relative_to(self.root))] = (*kept, (folder / "metrics.csv").read_bytes())
        return found

    def rows(self) -> list[list[str]]:
        """By member: the lines of its metrics.csv, its names and one for every evaluation."""
        return [(folder / "metrics.csv").read_text().splitlines() for folder in self.members()]


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The sweep when nobody disturbs it."""
    undisturbed = Sweep(lab, tmp_path_factory.mktemp("whole"), *SETTINGS, ONLY_WHEN_ASKED)
    undisturbed.launch()
    undisturbed.wait_completed()
    assert list(undisturbed.lives().values()) == [[0]] * 4
    assert len(undisturbed.outcome()) == 4
    return undisturbed


def preempted(tried: Sweep, by: str) -> None:
    """Let a job of the higher partition take all nodes while both groups train, and wait for the end of all."""
    tried.launch(ONLY_WHEN_ASKED)
    tried.wait_rows(1)
    high = tried.lab.sbatch("sleep 1", "--partition=high", "--nodes=3", "--exclusive")
    tried.lab.wait_state(high, "COMPLETED", 120)
    tried.wait_completed()
    assert len(tried.lives()) == 4
    assert all(len(starts) >= 2 and starts[1] > 0 for starts in tried.lives().values()), tried.log()
    assert tried.log().count(f"{by}: stopped after") >= 2
    assert [tried.told(index)["state"] for index in (0, 1)] == ["done", "done"]
    assert tried.status().returncode == 0


@pytest.mark.slow
def test_preempted_with_sigterm_only(lab: Lab, whole: Sweep, tmp_path: Path) -> None:
    lab.set_grace(0)  # SIGKILL five seconds later
    tried = Sweep(lab, tmp_path, *SETTINGS)
    preempted(tried, by="SIGTERM")
    assert tried.outcome() == whole.outcome()


@pytest.mark.slow
def test_preempted_with_sigusr2(whole: Sweep, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On a cluster that sends the signal of --signal at the start of the grace: submitit asks to be requeued."""
    extra = "SlurmctldParameters=preempt_send_user_signal"
    with running_lab(tmp_path_factory.mktemp("lab"), grace=20, extra=extra) as cluster:
        tried = Sweep(cluster, tmp_path, *SETTINGS)
        preempted(tried, by="SIGUSR2")
    assert tried.outcome() == whole.outcome()


@pytest.mark.slow
def test_a_lost_node(lab: Lab, whole: Sweep, tmp_path: Path) -> None:
    """kill -9 of its daemon and of its step daemons: the group that was there goes on from its last save."""
    tried = Sweep(lab, tmp_path, *SETTINGS)
    tried.launch(f"run.save_every={EVERY}")
    tried.wait_rows(2)
    lost = {member["dir"].removeprefix(f"{tmp_path}/") for member in tried.told(0)["members"]}
    lab.crash_node(lab.job(tried.job(0))["NodeList"])
    lab.up()
    tried.wait_completed()
    lives = tried.lives()
    assert {name for name, starts in lives.items() if len(starts) >= 2} == lost, tried.log()
    assert len(lost) == 2
    assert all(lives[name][1] >= EVERY and lives[name][1] % EVERY == 0 for name in lost)
    assert tried.outcome() == whole.outcome()


@pytest.mark.slow  # four minutes: a time limit cannot be shorter than one
def test_three_time_limits(lab: Lab, tmp_path: Path) -> None:
    """The signal comes after some 20 seconds of the minute. The members have no end, so that no machine is too fast."""
    settings = [*TINY, f"run.eval_every={EVERY}", "algo.static.batch_size=32", "seed=0,1", ONLY_WHEN_ASKED]
    tried = Sweep(lab, tmp_path / "limited", *settings, f"run.updates={10**9}")
    tried.launch("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20")
    wait_until(lambda: [len(starts) for starts in tried.lives().values()] == [4, 4], 500, tried.log)
    tried.wait_rows(max(map(len, tried.rows())) + 1, members=2)  # the fourth life has evaluated too
    lab.check("scancel", tried.array())
    lab.wait_state(tried.array(), "CANCELLED", 60)
    assert tried.log().count("SIGUSR2: stopped after") == 3
    evaluations = min(map(len, tried.rows())) - 1
    undisturbed = Sweep(lab, tmp_path / "not", *settings, f"run.updates={evaluations * EVERY}")
    assert undisturbed.run(launcher="local").returncode == 0
    assert [rows[: evaluations + 1] for rows in tried.rows()] == undisturbed.rows()


def test_signals_at_its_very_start_do_not_end_a_job(lab: Lab, tmp_path: Path) -> None:
    """Before it can answer them, while modules are imported: a job that dies of a preemption is not requeued."""
    settings = ["run.updates=4", "run.eval_every=4", "algo.static.batch_size=32", "seed=0,1"]
    tried = Sweep(lab, tmp_path, *TINY, *settings)
    tried.launch()
    wait_until(lambda: starting(tried), 30, tried.log)
    (process,) = starting(tried)
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(process, number)
    tried.wait_completed(60)
    assert tried.status().returncode == 0


def starting(tried: Sweep) -> list[int]:
    """The Python processes of a sweep's jobs."""
    folder, python = os.fsencode(tried.folder / "logs"), os.fsencode(sys.executable)
    found = []
    for process in tried.lab.processes():
        with suppress(OSError):  # it has ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[0] == python and folder in words:
                found.append(int(process.name))
    return found
