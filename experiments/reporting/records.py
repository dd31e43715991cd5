"""What the members of a plan left behind, as runs.csv (one row a member) and curves.csv (one row an evaluation).

Everything the report shows is computed from these two files and the plan: run directories are read here only.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from envs.core import UsageError
from experiments.log import MetricsFile
from experiments.reporting.plan import MEASURE, SCORES, Cell, Plan, Run, Table

RUNS, CURVES = "runs.csv", "curves.csv"
Key = tuple[str, str, str, int]  # table, task, method, seed
_FROM_RESULT = (
    "updates", "score_is", "behaviour_score", "diverged_at", "algo", "data", "env", "config", "git", "device",
    "parameters_sha256", "updates_per_second", "compile_seconds", "eval_seconds", "peak_memory_bytes",
)  # fmt: skip
Curve = tuple[np.ndarray, np.ndarray]  # updates (evaluations,), values of the table's measure (evaluations,)
Curves = dict[Key, Curve]


@dataclass
class Member:
    """One row of runs.csv. None where it is not known."""

    table: str
    task: str
    method: str
    seed: int
    dir: str
    status: str  # finished | diverged | unfinished | not started | missing | failed | unusable
    why: str = ""  # one line unless finished
    updates: int | None = None  # trained
    last: float | None = None
    mean_of_last_ten: float | None = None
    best: float | None = None
    score_is: str | None = None
    behaviour_score: float | None = None
    diverged_at: int | None = None
    algo: str | None = None
    data: str | None = None
    env: str | None = None
    config: str | None = None
    git: str | None = None
    device: str | None = None
    versions: str | None = None
    data_sha256: str | None = None
    parameters_sha256: str | None = None
    updates_per_second: float | None = None
    compile_seconds: float | None = None
    eval_seconds: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.table, self.task, self.method, self.seed

    @property
    def counts(self) -> bool:
        """Whether it enters statistics."""
        return self.status == "finished"


def planned(plan: Plan) -> Iterator[tuple[Table, Cell, Run]]:
    """(table, cell, run) of every planned member, in the plan's order."""
    for table in plan.tables:
        for cell in table.cells:
            for run in cell.runs:
                yield table, cell, run


def collect(plan: Plan, root: Path) -> tuple[list[Member], Curves]:
    """Read the run directories of a plan; nothing in them can make this fail."""
    members, curves = [], {}
    for table, cell, run in planned(plan):
        empty = Member(table.name, cell.task, cell.method, run.seed, run.dir, "")
        member, curve = _read_member(root / run.dir, empty, table, cell)
        members.append(_begun(member, cell, root))
        if len(curve[0]):
            curves[member.key] = curve
    return members, curves


def _read_member(folder: Path, member: Member, table: Table, cell: Cell) -> tuple[Member, Curve]:
    curve, curve_error = _read_curve(folder, table.measure)
    try:
        result = json.loads((folder / "result.json").read_text())
        filled = dataclasses.replace(member, **(_fields(result) | _measured(table, curve[1])))
    except FileNotFoundError:
        status, why = _not_finished(folder, curve[0], curve_error, cell)
        reached = int(curve[0][-1]) if len(curve[0]) else None
        return dataclasses.replace(member, status=status, why=why, updates=reached), curve
    except (OSError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        why = f"result.json cannot be read ({type(error).__name__}); delete it and run the command again"
        return dataclasses.replace(member, status="unusable", why=why), curve
    status, why = _judge(filled, result.get("seed"), cell)
    if status == "unusable" and curve_error and not table.usual:
        why = curve_error
    return dataclasses.replace(filled, status=status, why=why), curve


def _begun(member: Member, cell: Cell, root: Path) -> Member:
    """The member, diverged if a run that it begins from is."""
    for folder in cell.start if member.counts else ():
        place = f"{folder}/seed{member.seed}"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if (update := json.loads((root / place / "result.json").read_text()).get("diverged_at")) is not None:
                why = f"it begins from {place}, which diverged at update {update:,}; left out of all statistics"
                return dataclasses.replace(member, status="diverged", why=why)
    return member


def _measured(table: Table, values: np.ndarray) -> dict[str, Any]:
    """The scores of a table that does not hold those of result.json: from the curve of its measure."""
    if table.usual:
        return {}
    scores: dict[str, Any] = dict.fromkeys(SCORES)
    if len(values):
        best = values.min() if table.lower_is_better else values.max()
        scores = {"last": float(values[-1]), "best": float(best), "mean_of_last_ten": float(values[-10:].mean())}
    return scores if table.measure == MEASURE else scores | {"score_is": table.measure, "behaviour_score": None}


def _fields(result: dict[str, Any]) -> dict[str, Any]:
    """The columns of runs.csv that come from result.json.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: the file holds something else.
    """
    versions = ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items())
    known = {name: result.get(name) for name in _FROM_RESULT} | {kind: result["score"].get(kind) for kind in SCORES}
    known |= {"versions": versions, "data_sha256": " ".join(result.get("data_sha256") or [])}
    hints = get_type_hints(Member)
    return {name: None if value is None else _kind(hints[name])(value) for name, value in known.items()}


def _judge(member: Member, seed: int | None, cell: Cell) -> tuple[str, str]:
    """Status and explanation of a member that has a result."""
    if seed is not None and seed != member.seed:
        return "unusable", f"the run directory holds seed {seed}; run the command again"
    if cell.updates is not None and member.updates != cell.updates:
        return "unusable", f"trained for {member.updates or 0:,} updates where the plan has {cell.updates:,}"
    if member.diverged_at is not None:
        return "diverged", f"parameters no longer finite at update {member.diverged_at:,}; left out of all statistics"
    if not all(math.isfinite(getattr(member, kind) or 0.0) for kind in SCORES):
        return "diverged", "a score is not finite; left out of all statistics"
    if any(getattr(member, kind) is None for kind in SCORES):
        return "unusable", "result.json has no score; delete it and run the command again"
    return "finished", ""


def _not_finished(folder: Path, updates: np.ndarray, curve_error: str, cell: Cell) -> tuple[str, str]:
    """Status and explanation of a member without a result."""
    total = "" if cell.updates is None else f" of {cell.updates:,}"
    if curve_error:
        return "unusable", curve_error
    if cell.failed:
        return "failed", cell.failed
    if len(updates):
        return "unfinished", f"stopped at update {int(updates[-1]):,}{total}; run the command again and it goes on"
    if (folder / ".hydra" / "config.yaml").exists() or (folder / "metrics.csv").exists():
        return "unfinished", "stopped before its first evaluation; run the command again and it goes on"
    if cell.missing:
        return "missing", cell.missing
    return "not started", "not started; run the command again"


def _read_curve(folder: Path, measure: str) -> tuple[Curve, str]:
    """Updates and values of a column of metrics.csv, and why it cannot be read (empty if it can)."""
    none = np.zeros(0, np.int64), np.zeros(0)
    try:
        rows = MetricsFile(folder).rows()
        if rows and measure not in rows[0] and measure != MEASURE:
            return none, f"metrics.csv has no column {measure}; there are {', '.join(rows[0])}"
        updates, scores = np.array([int(r["update"]) for r in rows], np.int64), np.array([r[measure] for r in rows])
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        return none, f"metrics.csv cannot be read ({type(error).__name__}); set the folder aside and run again"
    if (np.diff(updates) <= 0).any():
        return none, "metrics.csv is out of order; set the folder aside and run again"
    return (updates, scores), ""


def write(members: list[Member], curves: Curves) -> dict[str, bytes]:
    """Contents of the two files by name: what `read` gives back without a loss."""
    names = [field.name for field in dataclasses.fields(Member)]
    runs = _csv(names, ([_text(getattr(member, name)) for name in names] for member in members))
    rows = (
        [*key[:3], key[3], int(update), _text(float(score))]
        for key, (updates, scores) in curves.items()
        for update, score in zip(updates, scores)
    )
    return {RUNS: runs, CURVES: _csv(["table", "task", "method", "seed", "update", "score"], rows)}


def read(root: Path) -> tuple[list[Member], Curves]:
    """Members and curves from runs.csv and curves.csv.

    Raises:
        UsageError: a file is missing or is none of ours.
    """
    hints = get_type_hints(Member)
    try:
        with open(root / RUNS, newline="") as file:
            members = [Member(**{k: _value(v, hints[k]) for k, v in row.items()}) for row in csv.DictReader(file)]
        with open(root / CURVES, newline="") as file:
            rows = csv.reader(file)
            next(rows)
            points: dict[Key, list[tuple[int, float]]] = {}
            for table, task, method, seed, update, score in rows:
                points.setdefault((table, task, method, int(seed)), []).append((int(update), float(score)))
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename} is missing; give the folder of the runs, or the whole report") from None
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise UsageError(f"{root}: {RUNS} or {CURVES} is damaged ({error}); write the report again") from None
    return members, {
        key: (np.array([p[0] for p in rows], np.int64), np.array([p[1] for p in rows])) for key, rows in points.items()
    }


def complete(plan: Plan, members: list[Member]) -> list[Member]:
    """One member for each planned run, in the plan's order; those without a row are `not started`."""
    known = {member.key: member for member in members}
    filled = []
    for table, cell, run in planned(plan):
        absent = Member(table.name, cell.task, cell.method, run.seed, run.dir, "not started", "not in runs.csv")
        filled.append(known.get(absent.key, absent))
    return filled


def _csv(header: list[str], rows: Iterable[list[Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _text(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _value(text: str, hint: Any) -> Any:
    """The value that `_text` wrote, by the declared type of its column."""
    return None if text == "" and not isinstance(hint, type) else _kind(hint)(text)


def _kind(hint: Any) -> Any:
    """The type itself, of a hint `type` or `type | None`."""
    return hint if isinstance(hint, type) else next(t for t in hint.__args__ if t is not type(None))
