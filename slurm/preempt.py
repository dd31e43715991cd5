"""What a job does with a signal of the scheduler once its work is saved.

Seen on SLURM 22.05: `--signal=USR2@N` (without `B:`) reaches what srun started, N seconds before the time limit or,
where the cluster is set up so, at the start of a preemption's grace; `scontrol requeue` kills the job at once, so it
comes after the save. SIGTERM is either `scancel` or a preemption without another signal, and a job cannot tell which.
"""

import enum
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from envs.core import UsageError

NOTICE_VARIABLE = "ADAPTAX_NOTICE_SECONDS"  # set it to the N of --signal=USR2@N
NOTICE_SECONDS = 120.0
WAIT_SECONDS = 3600.0  # longer than the grace of a preemption; after it, the SIGTERM was nobody's but a person's


class Action(enum.Enum):
    """How to stop once everything is saved."""

    LEAVE = "leave with status 75"
    HAND_ON = "call the handler that was there before, as submitit's, which requeues"
    REQUEUE = "scontrol requeue, then leave"
    WAIT = "wait for SIGKILL, after which SLURM records CANCELLED, or PREEMPTED and requeues; leaving would be FAILED"


def action(environment: Mapping[str, str], number: int | None, handled_before: bool) -> Action:
    """What a signal asks for. `number` None: no signal; `handled_before`: another handler of it had been installed."""
    in_slurm = "SLURM_JOB_ID" in environment
    if number == signal.SIGUSR2 and handled_before:
        return Action.HAND_ON
    if number == signal.SIGUSR2 and in_slurm:
        return Action.REQUEUE
    if number == signal.SIGTERM and in_slurm:
        return Action.WAIT
    return Action.LEAVE


def notice(environment: Mapping[str, str]) -> float:
    """Seconds between a signal and the end of the job.

    Raises:
        UsageError: the environment variable is no positive number.
    """
    text = environment.get(NOTICE_VARIABLE, str(NOTICE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{NOTICE_VARIABLE}={text} must be a positive number of seconds, such as the N of USR2@N")
    return seconds


def requeue(environment: Mapping[str, str]) -> None:
    """Ask SLURM to start this job again; say why if it will not."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes while scontrol, which inherits this, still runs
    command = ["scontrol", "requeue", environment["SLURM_JOB_ID"]]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"warning: {' '.join(command)}: {error}", file=sys.stderr, flush=True)
        return
    if done.returncode:
        print(f"warning: {' '.join(command)}: {' '.join(done.stdout.split())}", file=sys.stderr, flush=True)


def wait(until: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> None:
    """Sleep until SIGKILL comes, `until` is true (another signal), or WAIT_SECONDS are over."""
    for _ in range(int(WAIT_SECONDS)):
        if until():
            return
        sleep(1.0)
