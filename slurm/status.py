"""How a sweep is going: `python -m slurm.status SWEEP_DIR [--watch] [--all]`.

Reads the sweep's files and the members' run directories, and asks squeue where there is one; changes nothing. Exit
status 1 if a member failed or was lost, 2 for a wrong command, else 0.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from slurm import pack, sweep

LIVES = ".lives"
LIMIT = 50  # rows shown without --all
SECONDS = 10.0  # between two looks of --watch
SUBMITTING = 60.0  # seconds after its plan was written that a sweep may take to be submitted
BLOCK = 8192  # bytes read from the ends of growing files
LAST_LINES = 6  # of a job, among which an error is looked for
STATES = ("failed", "lost", "diverged", "running", "pending", "done")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING")

Queue = dict[str, tuple[str, str]]  # job id -> (state, reason) of the jobs that have not ended


@dataclass
class Row:
    """One member."""

    name: str
    state: str
    done: int | None = None  # updates
    total: int | None = None
    score: float | None = None
    lives: int = 0
    note: str = ""
    going: bool = False  # whether that may still change


class Mistake(Exception):
    """Of the user: one line."""


def read_sweep(folder: Path) -> tuple[list[Row], str]:
    """The members of a sweep in the plan's order, and a warning if SLURM did not answer, else an empty text.

    Raises:
        Mistake: `folder` is no sweep.
    """
    try:
        plan = json.loads((folder / sweep.PLAN).read_text())
        groups, jobs, launcher = plan["groups"], plan["jobs"], plan["launcher"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{folder} is no sweep directory: {sweep.PLAN}: {' '.join(str(error).split())}") from None
    queue, warning = ask_queue(set(jobs.values())) if launcher == "slurm" else (None, "")
    named = names([tuple(member) for group in groups for member in group["members"]])
    rows: list[Row] = []
    for group in groups:
        told = _json(sweep.group_file(folder, group["index"])) or {}
        job = jobs.get(str(group["index"]))
        state, note = group_state(folder, launcher, job, told, queue)
        if job is None and plan.get("refused"):
            state, note = "lost", plan["refused"]
        fresh = launcher != "slurm" or told.get("job") == job  # else its errors are of an earlier submission
        rows += _members(named[len(rows) : len(rows) + len(group["members"])], told, fresh, state, note)
    return rows, warning


def ask_queue(jobs: set[str]) -> tuple[Queue | None, str]:
    """What squeue says of these jobs; None, and why in a warning, if it does not answer."""
    if shutil.which("squeue") is None or not jobs:
        return (None, "") if jobs else ({}, "")
    arrays = sorted({job.partition("_")[0] for job in jobs})
    chosen = [f"--jobs={','.join(arrays)}"] if len(arrays) <= 100 else []
    command = ["squeue", "--noheader", "--array", "--format=%i|%T|%r", *chosen]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"squeue: {error}"
    if done.returncode and "Invalid job id" in done.stderr:  # it has forgotten them
        return {}, ""
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["squeue failed"])[-1]
    lines = [line.split("|", 2) for line in done.stdout.splitlines()]
    return {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}, ""


def group_state(
    folder: Path, launcher: str, job: str | None, told: dict[str, Any], queue: Queue | None
) -> tuple[str, str]:
    """Whether a group is pending, running, done, failed or lost, and a word on it.

    `told`: its file, {} if there is none. `queue`: None if there is no telling from SLURM.
    """
    said = told.get("state", "pending")
    if launcher != "slurm":
        gone = (
            said == "running"
            and told.get("host") == socket.gethostname()
            and not sweep.alive(told["pid"], folder.absolute().name)
        )
        if gone:
            return "lost", why(folder, told, "its process is gone; give the command again")
        return said, why(folder, told, "") if said == "failed" else ""
    if job is None:
        young = time.time() - (folder / sweep.PLAN).stat().st_mtime < SUBMITTING
        return ("pending", "being submitted") if young else ("lost", "was never submitted; give the command again")
    current = said if told.get("job") == job else "pending"  # else of an earlier submission
    if queue is None:
        return current, why(folder, told, "") if current == "failed" else ""
    if job in queue:
        state, reason = queue[job]
        reason = "" if reason == "None" else reason
        return ("pending", f"{state.lower()}: {reason}") if state in WAITING else ("running", "")
    if current in ("done", "failed"):
        return current, why(folder, told, "") if current == "failed" else ""
    return "lost", why(folder, {"index": told.get("index"), "job": job}, f"job {job} is gone")


def why(folder: Path, told: dict[str, Any], default: str) -> str:
    """What the job of a group printed last: an error of ours, else one of srun, which goes on to say less."""
    for name in (f"{told.get('job')}_0_log.err", f"{told.get('job')}_0_log.out", f"{told.get('index')}.log"):
        text = _ends(folder / "logs" / name)[1].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
        errors = [line for line in lines if re.match(r"(error: |[\w.]*(Error|Exception)\b)", line)]
        errors = errors or [line for line in lines if re.match(r"(srun|slurmstepd): error: ", line)]
        if lines:
            return "".join(c for c in (errors or lines)[-1] if c.isprintable())[:300]
    return default


def _members(named: list[str], told: dict[str, Any], fresh: bool, state: str, note: str) -> list[Row]:
    """The rows of a group, whose file lists its members in the plan's order."""
    listed = told.get("members") or [{}] * len(named)
    folders = [Path(member["dir"]) if member.get("dir") else None for member in listed]
    total = next((n for folder in folders if folder is not None and (n := _total(folder))), None)
    errors = [member.get("error") if fresh and state != "pending" else None for member in listed]
    return [read_member(name, folder, error, state, note, total) for name, folder, error in zip(named, folders, errors)]


def read_member(
    name: str, folder: Path | None, error: str | None, state: str, note: str, total: int | None
) -> Row:  # fmt: skip
    """A member, from its run directory; from its group's `state` and `note` what that does not say."""
    if folder is not None and (result := _json(folder / sweep.RESULT)) is not None:
        return _finished(name, result)
    row = Row(name, state, None if folder is None else 0, total, note=note)
    diverged = False
    if folder is not None:
        row.lives = _ends(folder / LIVES)[1].count(b"\n")
        row.done, row.score, diverged = _progress(folder)
    if state == "done":
        row.state, row.note = "failed", "its job ended without a result"
    if error:
        row.state, row.note = "failed", error
    row.going = row.state in ("running", "pending")
    if row.going and diverged:
        row.state = "diverged"
    return row


def _finished(name: str, result: dict[str, Any]) -> Row:
    try:
        at, updates, score = result["diverged_at"], result["updates"], result["score"]["last"]
    except (KeyError, TypeError):
        return Row(name, "failed", note=f"{sweep.RESULT} cannot be read; delete it and give the command again")
    note = "" if at is None else f"at update {at:,}"
    return Row(name, "done" if at is None else "diverged", updates, updates, score, result.get("lives", 0), note)


def _progress(folder: Path) -> tuple[int, float | None, bool]:
    """(updates, score, whether it has diverged) of the last whole row of metrics.csv."""
    head, tail = _ends(folder / "metrics.csv")
    header = head.partition(b"\n")[0].decode(errors="replace").split(",")
    whole = tail[: tail.rfind(b"\n") + 1].decode(errors="replace").splitlines()
    values = dict(zip(header, whole[-1].split(","))) if whole else {}
    try:
        return int(values["update"]), float(values["score"]), float(values["diverged"]) > 0
    except (KeyError, ValueError):  # nothing but the header yet
        return 0, None, False


def _total(folder: Path) -> int | None:
    """run.updates of the recorded configuration, which is read without a YAML parser: there may be thousands."""
    text = _ends(folder / ".hydra" / "config.yaml")[0].decode(errors="replace")
    found = re.search(r"^run:\n(?:  .*\n)*?  updates: (\d+)$", text, re.M)
    return int(found.group(1)) if found else None


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first and the last block of a file, which may be the same; empty if there is none."""
    try:
        with open(path, "rb") as file:
            head = file.read(BLOCK)
            if len(head) < BLOCK:
                return head, head
            file.seek(-BLOCK, os.SEEK_END)
            return head, file.read()
    except OSError:
        return b"", b""


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object; {} if it is torn or something else, None if it is not there."""
    try:
        found = json.loads(path.read_bytes())
    except OSError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def names(members: list[tuple[str, ...]]) -> list[str]:
    """What sets each member apart: its overrides without those that all have."""
    return pack.apart(members) if len(members) > 1 else [" ".join(member) for member in members]


def table(rows: list[Row], every: bool) -> list[str]:
    """Lines to print: the members, or beyond LIMIT only those in trouble, and the summary."""
    trouble = [row for row in rows if row.state in STATES[:3]]
    shown = rows if every or len(rows) <= LIMIT else sorted(trouble, key=lambda row: STATES.index(row.state))[:LIMIT]
    cells = [["member", "state", "updates", "score", "lives", ""]] if shown else []
    for row in shown:
        total = "?" if row.total is None else f"{row.total:,}"
        updates = "" if row.done is None else f"{row.done:,}/{total}"
        score = "" if row.score is None else f"{row.score:.1f}"
        cells.append([row.name, row.state, updates, score, str(row.lives or ""), row.note])
    widths = [max((len(line[column]) for line in cells), default=0) for column in range(5)]
    lines = ["  ".join([*(text.ljust(width) for text, width in zip(line, widths)), line[5]]).rstrip() for line in cells]
    if len(shown) < len(rows):
        lines.append(f"({len(rows) - len(shown):,} more members: --all)")
    counts = Counter(row.state for row in rows)
    told = ", ".join(f"{counts[state]:,} {state}" for state in reversed(STATES) if counts[state])
    return [*lines, f"{len(rows):,} members: {told}"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's two."""
        raise Mistake(f"{message}; usage: python -m slurm.status SWEEP_DIR [--watch] [--all]")


def main(arguments: list[str]) -> int:
    """Print the state of a sweep, with --watch until nothing of it is going on any more; the exit status.

    Raises:
        Mistake: wrong arguments.
    """
    parser = _Parser(prog="python -m slurm.status", description="How a sweep is going.")
    parser.add_argument("sweep", type=Path, help="the sweep's directory: runs/sweeps/NAME")
    parser.add_argument("--watch", action="store_true", help=f"look again every {SECONDS:g} s until all is over")
    parser.add_argument("--all", action="store_true", help=f"list every member, also of more than {LIMIT}")
    asked = parser.parse_args(arguments)
    while True:
        rows, warning = read_sweep(asked.sweep)
        if any(row.state == "lost" for row in rows):  # a job that is being requeued is missing for a moment
            time.sleep(1.0)
            rows, warning = read_sweep(asked.sweep)
        if asked.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print("\n".join(table(rows, asked.all)), flush=True)
        if warning:
            print(f"warning: {warning}; states are those of the files", file=sys.stderr)
        if not asked.watch or not any(row.going for row in rows):
            return int(any(row.state in ("failed", "lost") for row in rows))
        time.sleep(SECONDS)


def command() -> int:
    """The command line: mistakes and Ctrl-C end without a traceback."""
    try:
        return main(sys.argv[1:])
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (nobody reads it any more)
        return 0


if __name__ == "__main__":
    sys.exit(command())
