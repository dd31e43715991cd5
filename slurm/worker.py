"""The job of one group of a sweep: `python -m slurm.worker SWEEP_DIR INDEX`.

Its members train in one program. A member that cannot be trained is recorded and does not stop the others; the exit
status is 1 if there was one, so that SLURM says FAILED.
"""

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from submitit.helpers import DelayedSubmission

from envs.core import UsageError
from experiments import config as schema
from experiments import results, rundir
from experiments.cli import guarded, one_line, use_compilation_cache
from experiments.loop import train
from experiments.train import show
from slurm import pack, sweep
from slurm.pack import Overrides


@dataclass
class Member:
    """One member of the group, or why it cannot be trained."""

    overrides: Overrides
    config: schema.Config | None = None
    job: rundir.Job | None = None
    error: str | None = None

    @property
    def dir(self) -> Path | None:
        """Its run directory, if its configuration says."""
        return None if self.config is None else schema.run_dir(self.config)

    def note(self) -> dict[str, Any]:
        """What the group's file says of it."""
        folder = None if self.dir is None else str(self.dir.absolute())
        return {"overrides": list(self.overrides), "dir": folder, "error": self.error}


def job_id() -> str:
    """SLURM's id as squeue prints it, else the process."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    process = os.environ.get("SUBMITIT_LOCAL_JOB_ID", str(os.getpid()))
    return os.environ.get("SLURM_JOB_ID", process)


def run(folder: Path, index: int) -> int:
    """Train a group; the exit status.

    Raises:
        UsageError: no such sweep or group.
        SystemExit: stopped by a signal; the state is saved.
    """
    plan = sweep.read_plan(folder)
    if not 0 <= index < len(plan["groups"]):
        raise UsageError(f"{folder} has no group {index}: there are 0 to {len(plan['groups']) - 1}")
    os.chdir(plan["cwd"])
    use_compilation_cache()
    before = sweep.read_group(folder, index) or {"lives": 0, "job": None}
    note = {"index": index, "job": job_id(), "host": socket.gethostname(), "pid": os.getpid()}
    note["lives"] = before["lives"] + 1

    def record(state: str) -> None:
        content = note | {"state": state, "members": [member.note() for member in members]}
        sweep.write(sweep.group_file(folder, index), content)

    members = prepare(plan, sweep.members_of(plan, index))
    if before["job"] == note["job"]:  # requeued: what was begun afresh goes on
        for member in members:
            if member.config is not None:
                member.config.run.fresh = False
    record("running")
    train_members([member for member in members if member.error is None])
    failed = any(member.error is not None for member in members)
    record("failed" if failed else "done")
    for member in members:
        if member.error is not None:
            print(f"failed: {' '.join(member.overrides)}: {member.error}", file=sys.stderr)
    return int(failed)


def prepare(plan: dict[str, Any], overrides: list[Overrides]) -> list[Member]:
    """Compose the members; those that cannot be, or not together, have an error."""
    with composer(plan) as composed:
        members = [_composed(own, composed) for own in overrides]
    good = [member for member in members if member.config is not None]
    try:
        if good:
            pack.check_same([schema.as_dict(member.config) for member in good if member.config is not None])
            pack.check_unique([member.dir for member in good if member.dir is not None])
    except UsageError as error:
        for member in good:
            member.error = one_line(error)
    return members


@contextlib.contextmanager
def composer(plan: dict[str, Any]) -> Iterator[Callable[[Overrides], DictConfig]]:
    """Composes as the command did that the sweep was launched by."""
    told = plan["compose"]
    (main,) = (source for source in told["sources"] if source["provider"] == "main")
    begin = initialize_config_dir if main["schema"] == "file" else initialize_config_module
    added = [f"{s['schema']}://{s['path']}" for s in told["sources"] if s["provider"] == "command-line"]
    own = [f"hydra.searchpath=[{','.join(added)}]"] if added else []
    with begin(main["path"], version_base="1.3", job_name=told["job_name"]):
        yield lambda overrides: compose(
            told["config_name"], [*told["overrides"], *own, *overrides], return_hydra_config=True
        )


def _composed(overrides: Overrides, composed: Callable[[Overrides], DictConfig]) -> Member:
    try:
        config = composed(overrides)
        HydraConfig.instance().set_config(config)
        os.environ.update(config.hydra.job.env_set)
        task = config.copy()
        with open_dict(task):
            del task["hydra"]
        (member,) = schema.members(schema.to_config(task))
        return Member(overrides, member, rundir.job_of(config, member.seed))
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        return Member(overrides, error=one_line(error))


def train_members(members: list[Member]) -> None:
    """Train those that can be, and note the error of each that could not."""
    found = {member.dir: member for member in members if member.dir is not None}
    configs = [member.config for member in members if member.config is not None]
    jobs = {folder: member.job for folder, member in found.items() if member.job is not None}
    refused: dict[Path, str] = {}
    if not configs:
        return
    try:
        for config, result in zip(configs, train(configs, jobs=jobs, refused=refused)):
            if result:
                show(config, result)
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        refused |= dict.fromkeys(_unfinished(found), one_line(error))
    except Exception as error:  # whatever it is, the sweep must be told which members it hit
        traceback.print_exc()
        refused |= dict.fromkeys(_unfinished(found), _told(error, len(configs)))
    for folder, reason in refused.items():
        found[folder].error = " ".join(reason.split())


def _unfinished(found: dict[Path, Member]) -> list[Path]:
    return [folder for folder in found if results.read(folder) is None]


def _told(error: Exception, members: int) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if "RESOURCE_EXHAUSTED" in text and members > 1:
        return f"{text}; {members} members do not fit: set run.max_members={members // 2}"
    return text


class Job:
    """What submitit sends: a group's index to train. Requeued, it goes on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, index: int) -> None:
        """Train, and leave with the status of the group."""
        if status := guarded(lambda: _leave(run(self.folder, index))):
            raise SystemExit(status)

    def checkpoint(self, index: int) -> DelayedSubmission:
        """Asked by submitit at a preemption: what to do in the next life."""
        return DelayedSubmission(self, index)


def _leave(status: int) -> None:
    if status:
        raise SystemExit(status)


def main(arguments: list[str]) -> None:
    """The command.

    Raises:
        UsageError: other arguments than a folder and a number.
        SystemExit: members failed.
    """
    if len(arguments) != 2 or not arguments[1].isdigit():
        raise UsageError("usage: python -m slurm.worker SWEEP_DIR INDEX")
    _leave(run(Path(arguments[0]).absolute(), int(arguments[1])))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
