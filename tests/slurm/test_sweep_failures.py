"""On a real cluster: a failure is told by `slurm.status` and the exit status, stops nothing else, and can be mended."""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments import config as schema
from experiments.results import RESULT
from tests.conftest import ROOT
from tests.slurm.conftest import Lab, running_lab, wait_until
from tests.slurm.test_sweep_preempted import TINY, Sweep

SHORT = [*TINY, "run.updates=400", "run.eval_every=200"]
WAITING = "hydra.launcher.wait=true"
TOLD_WITHIN = 60  # seconds


def rows(tried: Sweep) -> dict[str, tuple[str, str]]:
    """What slurm.status says: by member, its state and the last word on it."""
    lines = [re.split(r"\s{2,}", line) for line in tried.status().stdout.splitlines()]
    return {words[0]: (words[1], words[-1]) for words in lines if len(words) > 1 and words[0] != "member"}


def refused(tried: Sweep, *options: str) -> str:
    """Give a command that must fail; its one line."""
    done = tried.run(*options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def finish(process: "subprocess.Popen[str]", timeout: float = 120) -> tuple[int, str, str]:
    """Wait for a command; its exit status and what it printed to stdout and stderr."""
    try:
        told, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, told, errors


def run_dir(tried: Sweep, *overrides: str) -> Path:
    """Where a member's files go."""
    schema.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        (member,) = schema.members(schema.to_config(compose("config", [*SHORT, *overrides])))
    return tried.root / schema.run_dir(member)


@pytest.mark.slow
def test_members_that_cannot_be_trained_and_members_that_diverge(lab: Lab, tmp_path: Path) -> None:
    axes = ["algo.static.batch_size=32,64,${oc.env:BATCH}", "algo.hyper.actor_lr=0.001,1e30", "seed=0,1"]
    tried = Sweep(lab, tmp_path, *SHORT, *axes, WAITING, "hydra.launcher.cpus_per_task=2")
    tried.env["BATCH"] = "128"
    occupied = run_dir(tried, "algo.static.batch_size=32", "algo.hyper.actor_lr=0.001", "seed=0")
    occupied.mkdir(parents=True)
    (occupied / "thesis.txt").write_text("not a run")
    blocked = run_dir(tried, "algo.static.batch_size=64", "algo.hyper.actor_lr=0.001", "seed=1")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("no directory at all")

    done = tried.run("hydra.launcher.setup=[unset BATCH]")
    assert done.returncode == 1, done.stderr
    failed = [
        f"algo.static.batch_size={size} algo.hyper.actor_lr=0.001 seed={seed}" for size, seed in ((32, 0), (64, 1))
    ]
    told = rows(tried)
    assert tried.status().returncode == 1
    assert Counter(state for state, _ in told.values()) == {"failed": 6, "diverged": 4, "done": 2}
    assert told[failed[0]][0] == told[failed[1]][0] == "failed"
    assert "exists and is no run of ours" in told[failed[0]][1]
    assert f"{blocked.relative_to(tmp_path)} cannot be written: File exists" in told[failed[1]][1]
    without = {name: word for name, (_, word) in told.items() if "BATCH" in name}
    assert len(without) == 4
    assert all("'BATCH' not found" in word for word in without.values())
    assert {name for name, (state, _) in told.items() if state == "diverged"} == {
        f"algo.static.batch_size={size} algo.hyper.actor_lr=1e+30 seed={seed}" for size in (32, 64) for seed in (0, 1)
    }
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("failed: ") for line in lines)
    assert set(lab.squeue(tried.array()).values()) == {"FAILED"}

    finished = {folder: (folder / RESULT).read_bytes() for folder in tried.members()}
    shutil.rmtree(occupied)
    blocked.unlink()
    again = tried.run()
    assert again.returncode == 0, again.stderr
    assert tried.status().returncode == 0
    assert Counter(state for state, _ in rows(tried).values()) == {"diverged": 6, "done": 6}
    assert all((folder / RESULT).read_bytes() == content for folder, content in finished.items())
    assert list(tried.lives().values()) == [[0]] * 12
    assert "nothing to submit" in tried.launch()


def test_a_job_killed_with_9(lab: Lab, tmp_path: Path) -> None:
    settings = [*TINY, "run.updates=40000", "run.eval_every=20000", "algo.static.batch_size=32,64", "seed=0,1"]
    tried = Sweep(lab, tmp_path, *settings)
    process = tried.start(WAITING)
    wait_until(lambda: tried.told(0).get("state") == "running", 60, tried.log)
    os.kill(tried.told(0)["pid"], signal.SIGKILL)
    killed = {f"algo.static.batch_size=32 seed={seed}" for seed in (0, 1)}
    wait_until(lambda: tried.status().returncode == 1, TOLD_WITHIN, tried.log)
    told = {name: word for name, (state, word) in rows(tried).items() if state in ("lost", "failed")}
    assert set(told) == killed  # failed, once the command has seen it too
    assert all(re.search("srun: error: n[123]: task 0: Killed", word) for word in told.values())
    status, _, errors = finish(process)
    assert status == 1
    assert [line.count("ended without a result: srun: error: n") for line in errors.splitlines()] == [1, 1]
    assert [rows(tried)[f"algo.static.batch_size=64 seed={seed}"][0] for seed in (0, 1)] == ["done", "done"]
    assert lab.job(tried.job(0))["JobState"] == "FAILED"

    other = tried.job(1)
    again = tried.launch(WAITING)
    assert "1 groups have finished, 0 are queued or running" in again
    assert ", 1 tasks;" in again
    assert tried.job(1) == other
    assert tried.status().returncode == 0
    assert len(tried.outcome()) == 4
    assert [starts for name, starts in tried.lives().items() if name in str(tried.told(1)["members"])] == [[0]] * 2


@pytest.mark.parametrize(("option", "reason"), [("partition=lunar", "partition"), ("cpus_per_task=5", "configuration")])
def test_jobs_that_slurm_refuses(lab: Lab, tmp_path: Path, option: str, reason: str) -> None:
    tried = Sweep(lab, tmp_path, *SHORT, "seed=0,1")
    line = refused(tried, f"hydra.launcher.{option}")
    assert reason in line
    assert tried.status().returncode == 1
    assert {(state, reason in word) for state, word in rows(tried).values()} == {("lost", True)}
    assert "submitted: job" in tried.launch()
    assert {state for state, _ in rows(tried).values()} <= {"pending", "running"}
    lab.check("scancel", tried.array())


@pytest.mark.slow
def test_sweep_directories_that_cannot_be_written(lab: Lab, tmp_path: Path) -> None:
    tried = Sweep(lab, tmp_path, *SHORT, "seed=0,1")
    tried.folder.mkdir(parents=True)
    for name in ("logs", "groups"):
        (tried.folder / name).write_text("")
    assert "logs" in refused(tried)
    assert {state for state, _ in rows(tried).values()} == {"lost"}
    (tried.folder / "logs").unlink()
    assert "groups/0.json cannot be written" in refused(tried, WAITING)  # now the job finds out
    assert tried.status().returncode == 1
    assert [(state, "0.json cannot be written" in word) for state, word in rows(tried).values()] == [("lost", True)] * 2
    (tried.folder / "groups").unlink()
    tried.launch(WAITING)
    assert tried.status().returncode == 0


LOSING = """#!/bin/bash
# Once the first array is in, and the controller has written it down, the controller dies.
if [[ -e {mark} ]]; then
  until [[ {lab}/state/job_state -nt {mark} ]]; do sleep 0.1; done
  kill -KILL "$(cat {lab}/run/slurmctld.pid)"
fi
touch {mark}
exec {sbatch} "$@"
"""


@pytest.mark.slow
def test_a_controller_that_is_lost_during_submission(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arrays of three: the first is in when the controller dies; the same command submits the other group."""
    with running_lab(tmp_path_factory.mktemp("lab"), extra="MaxArraySize=3\nMessageTimeout=2") as cluster:
        tried = Sweep(cluster, tmp_path, *SHORT, "algo.static.batch_size=16,32,64,128", "seed=0,1")
        cluster.kill("slurmctld")
        assert "Unable to contact slurm controller" in refused(tried)
        assert tried.status().returncode == 1
        assert {(state, "Unable to contact" in word) for state, word in rows(tried).values()} == {("lost", True)}
        cluster.up()

        path, sbatch = tried.env["PATH"], shutil.which("sbatch", path=tried.env["PATH"])
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "sbatch").write_text(
            LOSING.format(mark=tmp_path / "mark", lab=cluster.directory, sbatch=sbatch)
        )
        (tmp_path / "bin" / "sbatch").chmod(0o755)
        tried.env["PATH"] = f"{tmp_path}/bin:{path}"
        assert "SLURM refuses the jobs: " in refused(tried)  # for one of several reasons: it may still be heard from
        assert tried.status().returncode == 1
        lost = {name for name, (state, _) in rows(tried).items() if state == "lost"}
        assert lost == {f"algo.static.batch_size=128 seed={seed}" for seed in (0, 1)}
        tried.env["PATH"] = path
        cluster.up()

        again = tried.launch()
        assert ", 1 tasks;" in again
        for array in {tried.array(), tried.job(3)}:
            cluster.wait_state(array, "COMPLETED", 120)
        assert tried.status().returncode == 0
        assert list(tried.lives().values()) == [[0]] * 8


@pytest.mark.slow  # about twelve minutes on two cores
@pytest.mark.skipif("SLURM_SCALE" not in os.environ, reason="it takes all cores for long: set SLURM_SCALE=1")
def test_256_groups_of_which_some_are_killed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On 32 nodes, with kill -9 for every twentieth job while it runs; the same command finishes those."""
    groups, at_once = int(os.environ.get("SLURM_SCALE_GROUPS", 256)), 8
    victims, killed = set(range(7, groups, 20)), set[int]()
    settings = ["run.updates=2", "run.eval_every=2", "run.pack=off", f"seed=range({groups})"]
    with running_lab(tmp_path_factory.mktemp("lab"), nodes=32, cpus=1) as cluster:
        tried = Sweep(cluster, tmp_path, *TINY, *settings, "algo.static.batch_size=32")
        tried.launch("hydra.launcher.cpus_per_task=1", f"hydra.launcher.array_parallelism={at_once}")

        def ended() -> bool:
            for index in victims - killed:
                if (told := tried.told(index)).get("state") == "running":
                    os.kill(told["pid"], signal.SIGKILL)
                    killed.add(index)
            states = cluster.squeue(tried.array())
            return len(states) == groups and set(states.values()) <= {"COMPLETED", "FAILED"}

        wait_until(ended, 40 * groups, lambda: tried.status().stdout)
        assert killed == victims
        done = tried.status()
        assert done.returncode == 1
        assert f"{groups} members: {groups - len(killed)} done, {len(killed)} lost" in done.stdout
        again = tried.launch("hydra.launcher.cpus_per_task=1", WAITING)
        assert f", {len(killed)} tasks;" in again
        assert tried.status().returncode == 0
    assert sum((folder / RESULT).exists() for folder in tried.members()) == groups
