"""A library of skills: `python -m experiments.skills COMMAND LIB ...`.

    add LIB RUN_DIR name=NAME [kind=KIND]   copy the skills of a run of algo=psec_skill; a new LIB is made
    list LIB                                a line for each skill
    show LIB NAME                           all that is known of a skill, as JSON
    merge LIB OUT NAME=ALPHA ...            W + sum_i alpha_i A_i B_i as a run directory of algo=psec_base

A run of several kinds gives a skill NAME-KIND for each, kind=KIND picks one of them. All skills of a library are of one
base; none is ever changed or removed. What other commands take:
    start=[LIB/skills/NAME,LIB/skills/NAME2]   with algo=psec_compose: a mixture of these skills
    start=[LIB/base]                           with algo=psec_skill: another skill
    start=[OUT]                                with algo=psec_skill: a skill of what was merged
"""

import difflib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.core import UsageError
from experiments import library
from experiments.cli import guarded
from experiments.library_add import add
from experiments.library_merge import write_merged

HEADER = ("name", "kind", "rank", "scale", "data", "score", "updates", "base")


@dataclass(frozen=True)
class Command:
    """What follows a command's name: positional arguments, then its keys."""

    usage: str
    positional: int
    keys: tuple[str, ...] | None  # None: any key
    run: Callable[..., list[str]]  # (positional arguments, key=value) -> lines to print


def add_lines(positional: list[str], keys: dict[str, str]) -> list[str]:
    """Add skills; a line for each."""
    if "name" not in keys:
        raise UsageError("a skill needs a name: name=NAME")
    lib = Path(positional[0])
    folders = add(lib, Path(positional[1]), **keys)
    return [f"added: {folder}" for folder in folders]


def list_lines(positional: list[str], keys: dict[str, str]) -> list[str]:
    """The library as a table, skills in the order of addition."""
    found = library.notes(Path(positional[0]))
    rows = [HEADER, *(_row(name, note) for name, note in found.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]


def _row(name: str, note: dict[str, Any] | None) -> tuple[str, ...]:
    if note is None:
        return (name, "damaged", *[""] * (len(HEADER) - 2))
    skill = note["skill"]
    rank, scale, updates = str(skill["rank"]), f"{skill['scale']:g}", f"{skill['updates']:,}"
    score = "" if skill["score"] is None else f"{skill['score']:.1f}"
    return name, skill["kind"], rank, scale, skill["data"], score, updates, library.short(note["base"]["sha256"])


def show_lines(positional: list[str], keys: dict[str, str]) -> list[str]:
    """The note of a skill whose arrays are sound."""
    return [json.dumps(library.read(Path(positional[0]), positional[1])[1], indent=1)]


def merge_lines(positional: list[str], keys: dict[str, str]) -> list[str]:
    """Write merged weights."""
    if not keys:
        raise UsageError("merge needs skills and their weights: NAME=ALPHA ..., e.g. walk=8 run=4")
    write_merged(Path(positional[0]), Path(positional[1]), {name: _number(name, text) for name, text in keys.items()})
    return [f"written: {positional[1]}"]


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{name}={text} must be a number, the weight of that skill")
    return value


COMMANDS = {
    "add": Command("add LIB RUN_DIR name=NAME [kind=KIND]", 2, ("name", "kind"), add_lines),
    "list": Command("list LIB", 1, (), list_lines),
    "show": Command("show LIB NAME", 2, (), show_lines),
    "merge": Command("merge LIB OUT NAME=ALPHA ...", 2, None, merge_lines),
}


def parse(args: list[str]) -> tuple[Command, list[str], dict[str, str]]:
    """The command, its positional arguments and its keys.

    Raises:
        UsageError: an unknown command or key, a key given twice, too few or too many arguments.
    """
    if not args or args[0] not in COMMANDS:
        near = difflib.get_close_matches(args[0], COMMANDS, 1) if args else []
        what = f"unknown command {args[0]}" if args else "a command is needed"
        raise UsageError(f"{what}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"))
    command = COMMANDS[args[0]]
    positional = [arg for arg in args[1:] if "=" not in arg]
    if len(positional) != command.positional:
        raise UsageError(
            f"{args[0]} takes {command.positional} arguments besides keys, not {len(positional)}: "
            f"python -m experiments.skills {command.usage}"
        )
    keys: dict[str, str] = {}
    for key, text in (arg.split("=", 1) for arg in args[1:] if "=" in arg):
        if command.keys is not None and key not in command.keys:
            raise UsageError(f"unknown key {key}: python -m experiments.skills {command.usage}")
        if key in keys:
            raise UsageError(f"{key} is given twice: {key}={keys[key]} and {key}={text}")
        keys[key] = text
    return command, positional, keys


def main(args: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return
    command, positional, keys = parse(args)
    print("\n".join(command.run(positional, keys)))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
