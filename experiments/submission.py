"""Send the populations of a plan to SLURM, one job of an array each, without waiting for them."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import submitit

from envs.core import UsageError


@dataclass
class SlurmConfig:
    """What each job asks for."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    timeout_min: int = 720
    gpus_per_node: int = 1
    cpus_per_task: int = 8
    mem_gb: int | None = None
    array_parallelism: int = 64  # jobs of the array that run at once


def submit(cluster: str, asked: SlurmConfig, root: Path, indices: list[int]) -> list[submitit.Job]:
    """Submit one job for each index into the plan's populations; logs go to ROOT/jobs.

    Raises:
        UsageError: another `cluster` than slurm and local, or no SLURM on this machine.
    """
    if cluster not in ("slurm", "local"):
        raise UsageError(f"submit={cluster}: there are none, slurm, local")
    try:
        executor = submitit.AutoExecutor(root / "jobs", cluster=cluster)
    except RuntimeError as error:
        raise UsageError(f"submit={cluster}: {' '.join(str(error).split())}; submit=none trains here") from error
    executor.update_parameters(
        name=root.name, timeout_min=asked.timeout_min, gpus_per_node=asked.gpus_per_node,
        cpus_per_task=asked.cpus_per_task, mem_gb=asked.mem_gb, slurm_array_parallelism=asked.array_parallelism,
        slurm_partition=asked.partition, slurm_account=asked.account, slurm_qos=asked.qos,
    )  # fmt: skip
    words = [word for word in sys.argv[1:] if not word.startswith(("submit=", "population=", "only="))]
    commands = [[sys.executable, "-m", "experiments.reproduce", *words, f"population={index}"] for index in indices]
    jobs = executor.map_array(_call, commands) if commands else []
    for job in jobs:
        print(f"submitted: {job.job_id}")
    if jobs and cluster == "slurm":
        print(
            f"state: squeue -j {jobs[0].job_id.split('_')[0]}; when they are done, the same command writes the report"
        )
    return jobs


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
