"""Small helpers on data files: opening HDF5 with clear errors, checksums."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from envs.core import UsageError


def one_line(error: BaseException) -> str:
    """The first line of an exception's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Open for reading; what HDF5 finds wrong, then or while reading, is a UsageError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the data file by data.path=FILE")
    if not h5py.is_hdf5(path):
        raise UsageError(f"{path}: not an HDF5 file ({path.stat().st_size} bytes); delete it and fetch it again")
    try:
        # No lock is needed to read, and taking one fails on read-only and on some network file systems.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        mend = "delete it and fetch it again"
        raise UsageError(f"{path}: truncated or damaged HDF5 file ({one_line(error)}); {mend}") from error
