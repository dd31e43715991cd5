"""The fixture `lab`: a real SLURM cluster on this machine (slurm/lab.sh), one for each test process."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "lab.sh"
NOT_INSTALLED = 3  # exit status of lab.sh when SLURM's programs are missing
FOREIGN = ("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_", "SCANCEL_", "SALLOC_", "LAB_")  # settings of another cluster
LAB = pytest.StashKey["Lab"]()
_PORT_BLOCKS = itertools.count(os.getpid() % 500)


def free_ports(count: int) -> int:
    """Return the first of `count` free ports; other test processes start to look somewhere else."""
    for block in itertools.islice(_PORT_BLOCKS, 500):
        first = 10_000 + block % 500 * 40  # below the ports that the kernel hands out
        if all(_is_free(first + k) for k in range(count)):
            return first
    raise RuntimeError(f"no {count} free ports in a row")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def wait_until(condition: Callable[[], object], timeout: float, what: Callable[[], str] = lambda: "") -> None:
    """Return when `condition()` is true; after `timeout` seconds fail with the text of `what()`."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what() or condition}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Lab:
    """A cluster in `directory`: nodes n1 n2 ..., partition low (preemptible, default) and partition high.

    env: the environment in which SLURM's commands talk to it, with a sacct that needs no slurmdbd.
    """

    directory: Path
    env: dict[str, str]

    def script(self, verb: str) -> subprocess.CompletedProcess[str]:
        """Run `lab.sh VERB`, whatever its exit status."""
        return self.run(shutil.which("bash") or "bash", str(SCRIPT), verb)

    def up(self) -> None:
        """Start what is not running; skip the test without SLURM (fail, with REQUIRE_SLURM=1), fail with the logs."""
        result = self.script("up")
        if result.returncode == NOT_INSTALLED and os.environ.get("REQUIRE_SLURM") != "1":
            pytest.skip(result.stderr.strip())
        if result.returncode != 0:
            pytest.fail(f"lab.sh up: {result.stderr}", pytrace=False)

    def run(self, *command: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster, whatever its exit status; `options` go to subprocess.run."""
        settings: dict[str, Any] = {"env": self.env, "capture_output": True} | options
        return subprocess.run(command, text=True, timeout=timeout, **settings)

    def check(self, *command: str, **options: Any) -> str:
        """Run a command that must succeed and return what it prints."""
        result = self.run(*command, **options)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
        return result.stdout

    def sbatch(self, script: str, *options: str) -> str:
        """Submit the text of a script and return the job's id; its output is read by `output`."""
        (self.directory / "jobs").mkdir(exist_ok=True)
        script = script if script.startswith("#!") else f"#!/bin/bash\n{script}\n"
        return self.check("sbatch", "--parsable", *options, input=script, cwd=self.directory / "jobs").strip()

    def output(self, job: str) -> str:
        """Return what a job submitted by `sbatch` has printed so far; `job` is "12", or "12_3" in an array."""
        file = self.directory / "jobs" / f"slurm-{job}.out"
        return file.read_text() if file.exists() else ""

    def wait_output(self, job: str, text: str, timeout: float = 60) -> None:
        """Wait until the job has printed `text`."""
        wait_until(lambda: text in self.output(job), timeout, lambda: f"{text!r} of job {job}: {self.output(job)!r}")

    def squeue(self, job: str | None = None) -> dict[str, str]:
        """Return the state of every job, finished ones too, by id ("12", "12_3"); of one job or array if given."""
        text = self.check("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T")
        states = dict(line.split("|") for line in text.splitlines())
        return {key: state for key, state in states.items() if job is None or job in (key, key.partition("_")[0])}

    def wait_state(self, job: str, states: str | Iterable[str], timeout: float = 60) -> dict[str, str]:
        """Wait until the job, every task of it if it is an array, is in one of `states`; return `squeue(job)`."""
        wanted = {states} if isinstance(states, str) else set(states)
        seen: dict[str, str] = {}

        def reached() -> bool:
            seen.clear()
            seen.update(self.squeue(job))
            return bool(seen) and set(seen.values()) <= wanted

        wait_until(reached, timeout, lambda: f"job {job} in {wanted}; it is {seen}\n{self.logs()}")
        return seen

    def job(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`, such as Restarts, ExitCode, NodeList, Reason."""
        words = self.check("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def set_grace(self, seconds: int) -> None:
        """Set the time that a preempted job of partition low is given; with 0 it gets TERM at once and KILL after 5 s.

        slurmctld looks at ends of grace only every 30 s: any other value means up to 30 s.
        """
        self.check("scontrol", "update", "PartitionName=low", f"GraceTime={seconds}")

    def cancel_all(self) -> None:
        """Cancel all jobs and wait until none holds a node."""
        self.run("scancel", f"--user={os.getuid()}")
        wait_until(lambda: not self.check("squeue", "--noheader"), 40, lambda: self.check("squeue"))

    def kill(self, daemon: str) -> None:
        """Kill slurmctld, slurmd-n1, ... or munged with -9; `up` starts it again."""
        os.kill(int((self.directory / "run" / f"{daemon}.pid").read_text()), signal.SIGKILL)

    def wait_saved(self) -> None:
        """Wait until slurmctld has saved its state, which takes it up to 5 s: killed before, it forgets what is new.

        It then starts jobs a second time that it had already started, without counting a restart. It saves where
        something has changed: a job that is held and cancelled sees to that, as the last change may be saved already.
        """
        now = time.time()
        self.check("scancel", self.sbatch("true", "--hold"))
        wait_until(lambda: (self.directory / "state" / "job_state").stat().st_mtime > now, 60)

    def crash_node(self, node: str) -> None:
        """Kill everything that runs on a node with -9, as a power cut would, and tell the controller that it is down.

        The controller notices by itself only after half a minute, and a node that is back within 20 s of a job's start
        leaves the job RUNNING for good. `up` starts the node again.
        """
        self.kill(f"slurmd-{node}")
        log, mark = str(self.directory / "log" / f"slurmd-{node}.log"), f"SLURMD_NODENAME={node}".encode()
        for process in self.processes():
            if log in _open_files(process) or mark in _read(process / "environ").split(b"\0"):
                with suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGKILL)
        self.check("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=crashed")

    def processes(self) -> list[Path]:
        """Return /proc/PID of every living process of the cluster: daemons, steps and jobs."""
        mark = bytes(self.directory) + b"/"
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            traces = [_read(process / "cmdline"), _read(process / "environ"), *map(os.fsencode, _open_files(process))]
            if any(mark in trace for trace in traces):
                found.append(process)
        return found

    def logs(self, lines: int = 15) -> str:
        """Return the ends of the daemons' logs."""
        files = sorted((self.directory / "log").glob("*.log"))
        return "\n".join(f"--- {file.name}\n" + "\n".join(file.read_text().splitlines()[-lines:]) for file in files)


def _read(file: Path) -> bytes:
    with suppress(OSError):
        return file.read_bytes()
    return b""


def _open_files(process: Path) -> list[str]:
    files = []
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                files.append(os.readlink(descriptor))
    return files


def lab_env(directory: Path, nodes: int, **settings: object) -> dict[str, str]:
    """The environment that lab.sh and SLURM's commands need for a cluster in `directory`, on free ports."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    env |= {f"LAB_{name.upper()}": str(value) for name, value in settings.items()}
    env |= {"LAB_DIR": str(directory), "LAB_NODES": str(nodes), "LAB_PORT": str(free_ports(nodes + 1))}
    path = f"{ROOT}/slurm/bin:{env.get('PATH', os.defpath)}"
    return env | {"SLURM_CONF": f"{directory}/etc/slurm.conf", "PATH": path}


@contextmanager
def running_lab(directory: Path, nodes: int = 3, **settings: object) -> Iterator[Lab]:
    """A cluster in `directory`; `settings` are lab.sh's without the prefix, e.g. cpus=1, extra="KillWait=9"."""
    lab = Lab(directory, lab_env(directory, nodes, **settings))
    try:
        lab.up()
        yield lab
    finally:
        lab.script("down")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The cluster of this test process: 3 nodes of 4 CPUs, 4000 MB and 2 GPUs (which exist by name only)."""
    with running_lab(tmp_path_factory.mktemp("lab")) as cluster:
        request.config.stash[LAB] = cluster
        yield cluster


@pytest.fixture(scope="module", autouse=True)
def no_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test file leaves jobs to the next one, nor takes a cluster up that it does not use."""
    yield
    cluster = request.config.stash.get(LAB, None)
    if cluster:
        cluster.cancel_all()
