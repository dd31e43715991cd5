"""What every algorithm's comparison shares: cases, arrays that remember being read, the table of errors."""

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.core import UsageError

NOT_DATA = ("README.md", "settings.json")
BULK = 0.999  # the share of entries that a rule's `bulk` bound is for


class Rule(NamedTuple):
    """How far a quantity may be off. Relative errors are |ours - recorded| / (1 + |recorded|)."""

    largest: float
    bulk: float | None = None  # tighter bound for 99.9 % of the entries
    relative: bool = True


EXACT = Rule(0.0, relative=False)


class Row(NamedTuple):
    """A line of the table."""

    quantity: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """False for an error that is not a number, too."""
        return self.error <= self.tolerance


class Comparison:
    """Collects the errors of each quantity over a whole case."""

    def __init__(self) -> None:
        self._errors: dict[tuple[str, Rule], list[np.ndarray]] = {}

    def add(self, quantity: str, ours: Any, recorded: np.ndarray, rule: Rule) -> None:
        """Compare two arrays; a trailing axis of size one may be missing in ours."""
        ours = np.asarray(ours)
        if ours.ndim + 1 == recorded.ndim and recorded.shape[-1] == 1:
            recorded = recorded.squeeze(-1)
        if ours.shape != recorded.shape:
            error = np.full(1, np.inf)
        else:
            x, y = ours.astype(np.float64), recorded.astype(np.float64)
            error = np.abs(x - y) / (1.0 + np.abs(y) if rule.relative else 1.0)
        self._errors.setdefault((quantity, rule), []).append(error.ravel())

    def rows(self) -> Iterator[Row]:
        """Worst error of each quantity, and where the rule has a bulk bound, the error that bound is for."""
        for (quantity, rule), errors in self._errors.items():
            ordered = np.sort(np.concatenate(errors))  # NaN comes last
            yield Row(quantity, float(ordered[-1]), rule.largest)
            if rule.bulk is not None:
                bulk = ordered[math.ceil(BULK * len(ordered)) - 1]
                yield Row(f"{quantity} ({BULK:.1%} of entries)", float(bulk), rule.bulk)


class Arrays:
    """The arrays of one case's files under one roof. Every one of them has to be read."""

    def __init__(self, paths: Sequence[Path], prefixes: Sequence[str] = ()) -> None:
        self.name = ", ".join(path.name for path in paths)
        self._arrays: dict[str, np.ndarray] = {}
        self._read: set[str] = set()
        for path, prefix in zip(paths, prefixes or [""] * len(paths), strict=True):
            arrays = {f"{prefix}{key}": x for key, x in read_npz(path).items()}
            twice = sorted(arrays.keys() & self._arrays.keys())
            if twice:
                raise UsageError(f"{path}: array '{twice[0]}' is in another file of the same case, too")
            self._arrays |= arrays

    def __getitem__(self, key: str) -> np.ndarray:
        """The array, which counts as read from now on."""
        if key not in self._arrays:
            raise UsageError(f"{self.name}: array '{key}' is missing")
        self._read.add(key)
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def children(self, prefix: str = "") -> list[str]:
        """Sorted next parts of the names that begin with `prefix` (which ends in a slash, or is empty)."""
        names = [key.removeprefix(prefix) for key in self._arrays if key.startswith(prefix)]
        return sorted({name.split("/")[0] for name in names})

    def check_all_read(self) -> None:
        """Raise UsageError where an array was not read: nobody compared or used it."""
        unread = sorted(self._arrays.keys() - self._read)
        if unread:
            more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            raise UsageError(f"{self.name}: not understood, so not compared: {', '.join(unread[:5])}{more}")


class Case(NamedTuple):
    """An entry of settings.json with its files read."""

    kind: str
    arrays: Arrays
    settings: dict[str, Any]  # the entry as it stands


Kinds = dict[str, Callable[[Case, Comparison], None]]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file. Raises UsageError where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read as a file of arrays ({type(error).__name__})") from None


def read_settings(folder: Path) -> list[dict[str, Any]]:
    """The cases of a folder. Raises UsageError where settings.json is missing or not as described."""
    path = folder / "settings.json"
    try:
        cases = json.loads(path.read_text())["cases"]
        well_formed = bool(cases) and all(case["kind"] and file_names(case["files"]) for case in cases)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: no readable list of cases ({type(error).__name__})") from None
    if not well_formed:
        raise UsageError(f"{path}: each case needs a kind and files, and there must be one")
    return cases


def file_names(files: Any) -> list[str]:
    """Every file that a case's `files` names, at any depth."""
    if isinstance(files, str):
        return [files]
    parts = files.values() if isinstance(files, dict) else files
    return [name for part in parts for name in file_names(part)]


def file_prefix(files: Any, name: str) -> str:
    """What the names of a file's arrays begin with: `files` {"after": {"5": name}} has them below `after5/`."""
    groups = {key: group for key, group in files.items() if isinstance(group, dict)} if isinstance(files, dict) else {}
    below = [f"{key}{part}/" for key, group in groups.items() for part, file in group.items() if file == name]
    return below[0] if below else ""


def check_all_used(folder: Path, cases: list[dict[str, Any]]) -> None:
    """Raise UsageError where a file lies in the folder that no case names."""
    used = {folder / name for case in cases for name in file_names(case["files"])}
    spare = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in used]
    spare = [path for path in spare if str(path.relative_to(folder)) not in NOT_DATA]
    if spare:
        raise UsageError(f"{spare[0]}: no case of settings.json uses this file")


def run_case(folder: Path, settings: dict[str, Any], kinds: Kinds) -> tuple[str, list[Row]]:
    """Title and rows of one case."""
    kind, names = settings["kind"], file_names(settings["files"])
    if kind not in kinds:
        raise UsageError(f"settings.json: no comparison for kind '{kind}'; known: {', '.join(kinds)}")
    prefixes = [file_prefix(settings["files"], name) for name in names]
    arrays = Arrays([folder / name for name in names], prefixes)
    comparison = Comparison()
    try:
        kinds[kind](Case(kind, arrays, settings), comparison)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"{arrays.name}: the arrays do not fit each other: {reason}") from error
    arrays.check_all_read()
    return f"{kind}: {', '.join(names)}", list(comparison.rows())


def print_table(title: str, rows: list[Row]) -> None:
    """One case's quantities, aligned."""
    width = max(len(row.quantity) for row in rows)
    print(f"\n{title}\n{'quantity':{width}}  {'worst error':>11}  {'tolerance':>9}")
    for quantity, error, tolerance in rows:
        verdict = "ok" if error <= tolerance else "EXCEEDED"
        print(f"{quantity:{width}}  {error:11.2e}  {tolerance:9.0e}  {verdict}")
