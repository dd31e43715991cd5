"""What commands that work on finished runs are told: `RUN_DIR ... key=value ...`."""

from pathlib import Path

from envs.core import UsageError


def split(args: list[str], keys: tuple[str, ...], usage: str) -> tuple[list[Path], dict[str, str], Path]:
    """Run directories, the text of each key, and the folder of `out=`; `in=` and `out=` have to be there.

    Raises:
        UsageError: no run or one that is there twice, a key that is unknown or missing, an `out` that is a file.
    """
    folders = [Path(arg) for arg in args if "=" not in arg]
    given = dict(arg.split("=", 1) for arg in args if "=" in arg)
    if not folders or set(given) - set(keys) or not (given.get("in") and given.get("out")):
        raise UsageError(f"not understood: {' '.join(args)}; use {usage}")
    if len(set(folders)) < len(folders):
        raise UsageError(f"a run is there twice: {' '.join(map(str, folders))}; name each once")
    out = Path(given["out"])
    if file := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise UsageError(f"out={out}: {file} is a file; name a folder")
    return folders, given, out


def items(key: str, text: str, choices: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The entries of [A,B]; brackets may be left out. Raises UsageError for one that is empty, twice or no choice."""
    found = [item.strip() for item in text.removeprefix("[").removesuffix("]").split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise UsageError(f"{key}={text}: name each once, as in {key}=[A,B]")
    if choices and (unknown := set(found) - set(choices)):
        raise UsageError(f"{key}={unknown.pop()} must be of {', '.join(choices)}")
    return tuple(found)


def integers(key: str, text: str) -> list[int]:
    """Whole numbers of [1,2]. Raises UsageError for anything else."""
    found = items(key, text)
    if odd := [item for item in found if not item.isdecimal()]:
        raise UsageError(f"{key}={odd[0]} must be a whole number, 0 or more")
    return [int(item) for item in found]


def integer(key: str, text: str, least: int = 0) -> int:
    """One whole number. Raises UsageError for anything else and for less than `least`."""
    (found, *more) = integers(key, text)
    if more or found < least:
        raise UsageError(f"{key}={text} must be at least {least}" if not more else f"{key}={text} must be one number")
    return found
