"""Sweeps on a real cluster: packed into an array, equal to the unpacked multirun, failures told."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from slurm import sweep
from tests.conftest import NARROW
from tests.slurm.conftest import Lab, wait_until
from tests.slurm.test_launcher import SMALL, run_files

Command = Callable[..., subprocess.CompletedProcess]

ON_LAB = [
    "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=2",
    "hydra.launcher.timeout_min=10",
]  # fmt: skip
RUN = [
    "run.updates=4", "run.eval_every=4", "run.save_every=4", "run.eval_episodes=2", "run.members=map",
    "setting=single",
]  # fmt: skip


def test_twelve_members_become_two_jobs_and_equal_the_unpacked_multirun(
    lab: Lab, command: Command, tmp_path: Path
) -> None:
    data = "data=pointmix-random-expert-0.1,pointmix-random-expert-0.25"
    runs = tmp_path / "runs"
    asked = ["-m", "algo=a2pr", data, *NARROW, *RUN, "seed=0,1,2", "algo.hyper.alpha=2.5,40", f"run.root={runs}"]
    done = command("experiments.train", *asked, *ON_LAB, "hydra.launcher.wait=true", **lab.env)
    assert done.returncode == 0, done.stderr
    assert "12 members, 2 programs, 2 jobs" in done.stdout
    (folder,) = (runs / "sweeps").iterdir()
    plan = sweep.read_plan(folder)
    job = plan["jobs"]["0"].partition("_")[0]
    assert plan["jobs"] == {"0": f"{job}_0", "1": f"{job}_1"}
    assert lab.wait_state(job, "COMPLETED") == {f"{job}_0": "COMPLETED", f"{job}_1": "COMPLETED"}
    assert f"squeue -j {job}" in done.stdout

    packed = run_files(runs)
    shutil.rmtree(runs)
    assert command("experiments.train", *asked).returncode == 0
    assert run_files(runs) == packed
    assert sum(name.endswith("result.json") for name in packed) == 12


def test_a_failed_group_is_failed_for_slurm_and_the_other_finishes(lab: Lab, command: Command, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    asked = ["-m", *SMALL, f"run.root={runs}", "run.updates=4,400000000"]
    done = command("experiments.train", *asked, "run.chunk=4", *ON_LAB, **lab.env)
    assert done.returncode == 0, done.stderr
    (folder,) = (runs / "sweeps").iterdir()
    jobs = sweep.read_plan(folder)["jobs"]

    def state(index: int) -> str | None:
        return (sweep.read_group(folder, index) or {}).get("state")

    wait_until(lambda: state(0) == "done" and state(1) == "running", 90, lambda: f"{state(0)}, {state(1)}")
    again = command("experiments.train", *asked, "run.chunk=4", *ON_LAB, **lab.env)
    assert "1 groups have finished, 1 are queued or running\nnothing to submit" in again.stdout
    os.kill((sweep.read_group(folder, 1) or {})["pid"], signal.SIGKILL)
    assert lab.wait_state(jobs["1"], "FAILED")
    assert lab.squeue(jobs["0"]) == {jobs["0"]: "COMPLETED"}


def test_a_preempted_group_is_requeued_and_goes_on(lab: Lab, command: Command, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    long = ["run.updates=60000", "run.eval_every=3000", "run.save_every=30000", "run.chunk=500"]
    done = command("experiments.train", "-m", *SMALL, *long, f"run.root={runs}", "seed=0,1", *ON_LAB, **lab.env)
    assert done.returncode == 0, done.stderr
    (folder,) = (runs / "sweeps").iterdir()
    job = sweep.read_plan(folder)["jobs"]["0"]
    wait_until(lambda: len(list(runs.glob("**/metrics.csv"))) == 2, 90, lambda: f"{job}: {lab.squeue(job)}")
    lab.check("scancel", "--signal=USR2", job)  # what SLURM sends before a time limit
    lab.wait_state(job, "COMPLETED", 180)
    told = sweep.read_group(folder, 0)
    assert told is not None
    assert (told["state"], told["lives"], told["job"]) == ("done", 2, job)
    results = [json.loads(path.read_text()) for path in runs.glob("**/result.json")]
    assert [result["lives"] for result in results] == [2, 2]


def test_an_impossible_partition_is_one_line(lab: Lab, command: Command, tmp_path: Path) -> None:
    asked = ["-m", *SMALL, f"run.root={tmp_path}/runs", "seed=0,1", *ON_LAB, "hydra.launcher.partition=no_such"]
    done = command("experiments.train", *asked, **lab.env)
    assert done.returncode == 2
    assert re.fullmatch(r"error: SLURM refuses the jobs: sbatch: error: .*partition.*\n", done.stderr)
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert json.loads((folder / sweep.PLAN).read_text())["jobs"] == {}
    assert not list((folder / "logs").glob("*.pkl"))
