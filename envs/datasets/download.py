"""Fetching data files into a cache: mirrors in turn, resumable, checked by SHA-256.

ADAPTAX_DATA names the cache (default ~/.cache/adaptax/datasets); ADAPTAX_MIRRORS is a comma-separated list
of base addresses that are tried first, as `<base>/<file name>`.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from envs.core import UsageError
from envs.datasets.files import one_line, sha256_of

ATTEMPTS = 5  # per mirror, while each brings the file further
TIMEOUT = 30.0  # seconds without an answer
BLOCK = 1 << 20  # bytes


class Interrupted(Exception):
    """The connection broke or the content changed on the server: worth another attempt on the same mirror."""


def default_cache() -> Path:
    """The folder of the cache: ADAPTAX_DATA, or ~/.cache/adaptax/datasets."""
    return Path(os.environ.get("ADAPTAX_DATA") or "~/.cache/adaptax/datasets").expanduser()


def fetch(name: str, urls: Sequence[str], cache_dir: str | Path | None = None, sha256: str | None = None) -> Path:
    """The path of file `name` in the cache, downloaded from the first of `urls` that has it.

    What has arrived stays in `<name>.part`, so that the next call goes on from there. The checksum is kept in
    `<name>.sha256` and checked whenever the file is asked for. Raises UsageError: no mirror answers, wrong
    checksum (the bad file is put aside), a cache that cannot be written.
    """
    target = Path(cache_dir or default_cache()).expanduser() / name
    mirrors = [base.strip().rstrip("/") for base in os.environ.get("ADAPTAX_MIRRORS", "").split(",") if base.strip()]
    if target.is_file():
        return _checked(target, sha256)
    with _locked(target):
        if target.is_file():  # another job was faster
            return _checked(target, sha256)
        failures = []
        for url in [*(f"{base}/{name}" for base in mirrors), *urls]:
            reason = _from_mirror(url, target, sha256)
            if reason is None:
                return target
            failures.append(f"{url}: {reason}")
    why = "; ".join(failures) or "no public address of it is known"
    mend = "give the file by data.path=FILE, or a server that has it by ADAPTAX_MIRRORS=URL"
    raise UsageError(f"{name} cannot be fetched to {target.parent} ({why}): {mend}")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Make the folder and hold a lock on `target`, so that parallel jobs download it once."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.with_name(f".{target.name}.lock"), "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        mend = "set ADAPTAX_DATA=FOLDER to a folder that can be written, or give the file by data.path=FILE"
        raise UsageError(f"{target.parent}: cache cannot be written ({one_line(error)}); {mend}") from error
    with lock:
        with suppress(OSError):  # a file system without locks: two jobs may then both download
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checked(target: Path, expected: str | None) -> Path:
    """`target` if its checksum is the expected or recorded one; otherwise it is put aside."""
    record = _beside(target, "sha256")
    recorded = record.read_text().split()[0] if record.is_file() and record.stat().st_size else None
    wanted, found = expected or recorded, sha256_of(target)
    if wanted is not None and wanted != found:
        aside, mend = _beside(target, "damaged"), "delete it and run again to fetch it anew"
        with suppress(OSError):
            os.replace(target, aside)
            record.unlink(missing_ok=True)
            mend = f"it is now {aside.name}; run again to fetch it anew"
        raise UsageError(f"{target}: sha256 is {found}, expected {wanted}; {mend}")
    if recorded is None:
        with suppress(UsageError):  # a cache shared for reading only
            _write(record, f"{found}  {target.name}\n".encode(), "wb")
    return target


def _from_mirror(url: str, target: Path, expected: str | None) -> str | None:
    """Download from one address. Returns None when `target` is in place, otherwise why it is not."""
    part = _beside(target, "part")
    reason = "no answer"
    for _ in range(ATTEMPTS):
        before = _size(part)
        try:
            _transfer(url, part)
        except Interrupted as error:
            reason = one_line(error)
            if _size(part) == before:
                return reason
            continue
        except HTTPError as error:
            return f"HTTP {error.code} {error.reason}"
        except (OSError, HTTPException, ValueError) as error:
            return one_line(error)
        return _accept(part, target, expected)
    return reason


def _accept(part: Path, target: Path, expected: str | None) -> str | None:
    """Put a whole download in place, with its checksum beside it."""
    found = sha256_of(part)
    _beside(part, "json").unlink(missing_ok=True)
    if expected is not None and found != expected:
        part.unlink()
        return f"sha256 is {found}, expected {expected}; not kept"
    _write(_beside(target, "sha256"), f"{found}  {target.name}\n".encode(), "wb")
    os.replace(part, target)
    return None


def _transfer(url: str, part: Path) -> None:
    """Bring `part` to its full length, going on where an earlier attempt at the same content stopped."""
    state = _state(part, url)
    offset = _size(part) if state else 0
    if offset and offset == state.get("total"):
        return
    headers = {"User-Agent": "adaptax"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": state["validator"]}
    print(f"fetching {url} to {part.parent}" + (f", from byte {offset}" if offset else ""), file=sys.stderr)
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)
        raise Interrupted("the server has less than what had arrived") from error
    with response:
        if getattr(response, "status", None) != 206:
            offset = 0  # the server ignores ranges, or the content is no longer the same
            length = response.headers.get("Content-Length")
            state = {"url": url, "total": int(length) if length else None, "validator": _validator(response)}
            _write(_beside(part, "json"), json.dumps(state).encode(), "wb")
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            part.unlink(missing_ok=True)
            raise Interrupted("the server sent another range than asked for")
        _write(part, _blocks(response), "ab" if offset else "wb")
    if state["total"] not in (None, _size(part)):
        raise Interrupted(f"the connection broke after {_size(part)} of {state['total']} bytes")


def _state(part: Path, url: str) -> dict[str, Any]:
    """What is known of the content in `part`; {} where it cannot be gone on with from this address."""
    try:
        state = json.loads(_beside(part, "json").read_text())
    except (OSError, ValueError):
        return {}
    return state if state.get("url") == url and state.get("validator") else {}


def _validator(response: Any) -> str | None:
    """What names the content for If-Range: a strong ETag or the date of change; None: never resume."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _blocks(response: Any) -> Iterator[bytes]:
    try:
        while block := response.read(BLOCK):
            yield block
    except (OSError, HTTPException) as error:
        raise Interrupted(f"the connection broke ({one_line(error) or type(error).__name__})") from error


def _write(path: Path, content: bytes | Iterator[bytes], mode: str) -> None:
    """Write or append; a full or read-only disk becomes a UsageError, and what was written stays."""
    try:
        with open(path, mode) as file:
            for block in [content] if isinstance(content, bytes) else content:
                file.write(block)
                file.flush()
    except OSError as error:
        mend = "free some space or set ADAPTAX_DATA=FOLDER; what has arrived is kept for the next run"
        raise UsageError(f"{path}: cannot be written ({one_line(error)}); {mend}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")
