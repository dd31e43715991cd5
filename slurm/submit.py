"""Send the groups of a sweep to where they run: a SLURM cluster, submitit's local processes, this machine's devices."""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from envs.core import UsageError
from experiments.interrupt import EX_TEMPFAIL
from hydra_plugins.adaptax_launcher.config import LauncherConf
from slurm import preempt, sweep
from slurm.status import why
from slurm.worker import Job

ROOT = Path(__file__).parent.parent
CLUSTERS = ("local", "slurm_local", "slurm")
POLL_SECONDS = 2.0
WAITED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


def check(options: LauncherConf) -> None:
    """Refuse a launcher that cannot work here.

    Raises:
        UsageError: no such cluster, or no SLURM on this machine.
    """
    if options.cluster not in CLUSTERS:
        raise UsageError(f"hydra.launcher.cluster={options.cluster}: there are {', '.join(CLUSTERS)}")
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if options.cluster == "slurm" and missing:
        raise UsageError(f"hydra/launcher=slurm: no {missing[0]} on this machine; hydra/launcher=local trains here")


def running(folder: Path, plan: dict[str, Any], indices: list[int]) -> list[int]:
    """The groups that are queued or running by an earlier call.

    Raises:
        UsageError: they were sent to SLURM, which does not answer.
    """
    queued = _queued() if plan["launcher"] == "slurm" and plan["jobs"] else set()
    found = []
    for index in indices:
        told = sweep.read_group(folder, index)
        here = told is not None and told["state"] == "running" and told["host"] == socket.gethostname()
        if plan["jobs"].get(str(index)) in queued or (
            told is not None and here and sweep.alive(told["pid"], str(folder))
        ):
            found.append(index)
    return found


def submit(folder: Path, plan: dict[str, Any], indices: list[int], options: LauncherConf) -> int:
    """Send groups on their way; the exit status of those that were waited for, else 0.

    Raises:
        UsageError: SLURM refuses the jobs.
    """
    if not indices:
        print("nothing to submit")
        return 0
    if options.cluster == "local":
        return _ended(folder, indices, run_here(folder, plan, indices))
    if options.cluster == "slurm_local":
        return _ended(folder, indices, _run_in_submitit(folder, plan, indices, options))
    _submit_array(folder, plan, indices, options)
    return _ended(folder, indices, _wait(folder, plan, indices)) if options.wait else 0


def _ended(folder: Path, indices: list[int], interrupted: bool) -> int:
    """Say how the groups ended."""
    told = sweep.errors(folder, indices)
    for member, error in told[:10]:
        print(f"failed: {member}: {error}", file=sys.stderr)
    if len(told) > 10:
        print(f"failed: {len(told) - 10:,} members more: see {folder / 'groups'}", file=sys.stderr)
    if interrupted:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return EX_TEMPFAIL
    return int(bool(told))


def _queued() -> set[str]:
    """Ids of this user's jobs that have not ended."""
    try:
        done = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"squeue: {' '.join(str(error).split())}") from None
    if done.returncode:
        raise UsageError(f"SLURM does not answer: {' '.join(done.stderr.split())}; try again")
    return set(done.stdout.split())


def _submit_array(folder: Path, plan: dict[str, Any], indices: list[int], options: LauncherConf) -> None:
    # While Python starts it cannot answer signals, which would end it, and SLURM does not requeue what has ended.
    python = f'sh -c \'trap "" USR2 TERM; exec "$0" "$@"\' {shlex.quote(sys.executable)}'
    executor = submitit.SlurmExecutor(folder / "logs", options.max_num_timeout, python=python)
    asked = {
        "job_name": folder.name, "partition": options.partition, "account": options.account, "qos": options.qos,
        "constraint": options.constraint, "time": options.timeout_min, "gpus_per_node": options.gpus_per_node or None,
        "cpus_per_task": options.cpus_per_task, "array_parallelism": options.array_parallelism,
        "mem": None if options.mem_gb is None else f"{options.mem_gb}GB", "signal_delay_s": options.signal_delay_s,
        "additional_parameters": options.additional_parameters, "setup": _setup(options),
    }  # fmt: skip
    executor.update_parameters(**{key: value for key, value in asked.items() if value is not None})
    most = _most_tasks()
    for batch in (indices[at : at + most] for at in range(0, len(indices), most)):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit shows there what it raises
                jobs = executor.map_array(Job(folder), batch)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            for leftover in (folder / "logs").glob(f"{'[0-9a-f]' * 32}.pkl"):
                leftover.unlink()
            plan["refused"] = f"SLURM refuses the jobs: {_refusal(error)}"
            sweep.write(folder / sweep.PLAN, plan)
            raise UsageError(plan["refused"]) from None
        plan["jobs"] |= {str(index): job.job_id for index, job in zip(batch, jobs)}
        sweep.write(folder / sweep.PLAN, plan)
        array = jobs[0].job_id.partition("_")[0]
        print(f"submitted: job {array}, {len(batch)} tasks; squeue -j {array}; scancel {array}")
    print(f"state: python -m slurm.status {sweep.short(folder)}")


def _setup(options: LauncherConf) -> list[str]:
    """Shell lines before the job: its modules must be found wherever SLURM starts it."""
    path = f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return [path, f"export {preempt.NOTICE_VARIABLE}={options.signal_delay_s}", *options.setup]


def _most_tasks() -> int:
    """Tasks that the cluster allows in an array."""
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60)
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", done.stdout)
    return max(int(found.group(1)), 1) if found else 1000


def _refusal(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line]
    return " ".join((lines[-1] if lines else str(error)).split())


def _wait(folder: Path, plan: dict[str, Any], indices: list[int]) -> bool:
    """Until no job of these groups is left; a job that ended without saying so is marked as failed."""
    left, absent = {index: _lives(folder, index) for index in indices}, set[int]()
    while left:
        time.sleep(POLL_SECONDS)
        try:
            queued = _queued()
        except UsageError:
            continue  # the controller restarts: jobs go on meanwhile
        gone = {index for index in left if plan["jobs"][str(index)] not in queued}
        for index in gone & absent:  # seen twice: a job that is requeued may be missing for a moment
            job = plan["jobs"][str(index)]
            last = why(folder, {"index": index, "job": job}, "it printed nothing")
            reason = f"job {job} ended without a result: {last}; see {folder / 'logs'}"
            _settle(folder, plan, index, left.pop(index), reason)
        absent = gone
    return False


def _lives(folder: Path, index: int) -> int:
    told = sweep.read_group(folder, index)
    return 0 if told is None else told["lives"]


def _settle(folder: Path, plan: dict[str, Any], index: int, lives: int, reason: str) -> None:
    """After a job's end: mark the group as failed unless the job did so, or said that it is done.

    `lives`: of the group before the job; what its file says may be of an earlier job.
    """
    told = sweep.read_group(folder, index)
    if told is None or told["lives"] <= lives or told["state"] == "running":
        sweep.mark_failed(folder, plan, index, reason)


def _run_in_submitit(folder: Path, plan: dict[str, Any], indices: list[int], options: LauncherConf) -> bool:
    executor = submitit.LocalExecutor(folder / "logs", max_num_timeout=options.max_num_timeout)
    executor.update_parameters(
        timeout_min=options.timeout_min, signal_delay_s=options.signal_delay_s, setup=_setup(options),
        gpus_per_node=options.gpus_per_node,
    )  # fmt: skip
    waiting, active = list(indices), dict[int, submitit.Job[None]]()
    lives = {index: _lives(folder, index) for index in indices}
    while waiting or active:
        while waiting and len(active) < options.array_parallelism:
            index = waiting.pop(0)
            active[index] = executor.submit(Job(folder), index)
            plan["jobs"][str(index)] = active[index].job_id
            sweep.write(folder / sweep.PLAN, plan)
            print(f"submitted: group {index} is process {active[index].job_id}; {active[index].paths.stderr}")
        time.sleep(0.2)
        for index in [index for index, job in active.items() if job.done()]:
            log = active.pop(index).paths.stderr
            _settle(folder, plan, index, lives[index], f"its process ended without a result; see {log}")
    return False


def visible_gpus() -> list[str]:
    """Ids of the GPUs that processes of this one may use, without taking any of them."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return []
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name and name != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU (\d+):", listed, re.M)


def run_here(folder: Path, plan: dict[str, Any], indices: list[int]) -> bool:
    """One process for each GPU, or one after another without any; whether they were interrupted.

    A signal is handed on to the processes, which save; groups that have not started stay for the next call.
    """
    gpus: list[str | None] = [*visible_gpus()] or [None]
    waiting, active = list(indices), dict[str | None, tuple[int, subprocess.Popen]]()
    interrupted, lives = False, {index: _lives(folder, index) for index in indices}

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        for _, process in active.values():
            process.send_signal(number)

    previous = {number: signal.signal(number, hand_on) for number in WAITED}
    try:
        while active or (waiting and not interrupted):
            for gpu in [gpu for gpu in gpus if gpu not in active and waiting and not interrupted]:
                index = waiting.pop(0)
                active[gpu] = index, _start(folder, index, gpu, alone=len(gpus) == 1)
            time.sleep(0.1)
            for gpu, (index, process) in list(active.items()):
                if (status := process.poll()) is not None:
                    del active[gpu]
                    if status != EX_TEMPFAIL and not interrupted:
                        _settle(folder, plan, index, lives[index], f"its process ended with status {status}")
                    interrupted |= status == EX_TEMPFAIL
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return interrupted


def _start(folder: Path, index: int, gpu: str | None, alone: bool) -> subprocess.Popen:
    """The process of a group, out of reach of the terminal's signals, which are handed on to it once."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    command = [sys.executable, "-m", "slurm.worker", str(folder), str(index)]
    if alone:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    log = folder / "logs" / f"{index}.log"
    log.parent.mkdir(exist_ok=True)
    print(f"started: group {index} on GPU {gpu}; {sweep.short(log)}")
    with open(log, "ab") as file:
        return subprocess.Popen(command, env=environment, start_new_session=True, stdout=file, stderr=file)
