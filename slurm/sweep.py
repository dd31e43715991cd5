"""A sweep's directory: the plan, what became of its groups, logs. Members' own files are in their run directories.

plan.json       what is to be done, written before anything is submitted
groups/N.json   what the job of group N says of itself, when it starts and when it ends
logs/           output of the jobs
"""

import json
import os
from pathlib import Path
from typing import Any

from slurm.pack import Overrides, fingerprint

PLAN = "plan.json"
RESULT = "result.json"  # of a member: it has finished


def read_plan(sweep: Path) -> dict[str, Any]:
    """The plan of a sweep.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from envs.core import UsageError  # here, as it brings JAX along

    try:
        return json.loads((sweep / PLAN).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{sweep} is no sweep directory: {PLAN}: {' '.join(str(error).split())}") from None


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file whole or not at all; folders are made.

    Raises:
        UsageError: the file cannot be written.
    """
    from envs.core import UsageError
    from experiments.log import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=None if path.name == PLAN else 1).encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; set hydra.sweep.dir=DIR") from None


def short(path: Path) -> Path:
    """The path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def members_of(plan: dict[str, Any], index: int) -> list[Overrides]:
    """The members of a group of a plan."""
    return [tuple(overrides) for overrides in plan["groups"][index]["members"]]


def group_file(sweep: Path, index: int) -> Path:
    """Where the job of a group writes what it does."""
    return sweep / "groups" / f"{index}.json"


def read_group(sweep: Path, index: int) -> dict[str, Any] | None:
    """What the job of a group last wrote; None if no job has started."""
    try:
        return json.loads(group_file(sweep, index).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def alive(pid: int, mark: str) -> bool:
    """Whether a process is still a job of the sweep that `mark` names; its number may have been given to another."""
    command = Path(f"/proc/{pid}/cmdline")
    try:
        if Path("/proc/self/cmdline").exists():
            return os.fsencode(mark) in command.read_bytes()
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def new_plan(
    command: str, cluster: str, compose: dict[str, Any], groups: list[list[Overrides]], versions: dict[str, str]
) -> dict[str, Any]:
    """The plan of a sweep launched from this directory, of which nothing is submitted yet.

    `compose`: what the jobs need to compose their members: config_name, job_name, sources, overrides.
    """
    members = [member for group in groups for member in group]
    return {
        "command": command,
        "launcher": cluster,
        "cwd": os.getcwd(),
        "compose": compose,
        "members": len(members),
        "members_hash": fingerprint(members),
        "groups": [{"index": index, "members": group} for index, group in enumerate(groups)],
        "jobs": {},
        "created_by": versions,
    }


def mark_failed(sweep: Path, plan: dict[str, Any], index: int, reason: str) -> None:
    """Write for a job that could not say it itself that its unfinished members failed."""
    told = read_group(sweep, index) or {"index": index, "job": None, "host": None, "pid": None, "lives": 0}
    members = told.get("members") or [
        {"overrides": list(overrides), "dir": None, "error": None} for overrides in members_of(plan, index)
    ]
    for member in members:
        finished = member["dir"] is not None and (Path(member["dir"]) / RESULT).exists()
        member["error"] = None if finished else member["error"] or reason
    write(group_file(sweep, index), told | {"state": "failed", "members": members})


def errors(sweep: Path, indices: list[int]) -> list[tuple[str, str]]:
    """(member, error in one line) of the members that failed in their last job."""
    found = []
    for index in indices:
        for member in (read_group(sweep, index) or {"members": []})["members"]:
            if member["error"] is not None:
                found.append((" ".join(member["overrides"]), member["error"]))
    return found
