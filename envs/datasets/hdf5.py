"""The flat HDF5 layout of D4RL and DSRL, one array per key and episodes end to end: reading with checks, writing."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from envs.core import UsageError
from envs.datasets.files import one_line, open_hdf5
from envs.datasets.metadata import put_metadata

NEEDED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations", "costs")
MATRICES = ("observations", "actions", "next_observations")
FLAGS = ("terminals", "timeouts")


class Raw(NamedTuple):
    """N rows as recorded, before any conversion to transitions."""

    observations: np.ndarray  # (N, obs_dim) float32
    actions: np.ndarray  # (N, action_dim) float32, as recorded: values outside [-1, 1] are not clipped
    rewards: np.ndarray  # (N,) float32
    terminals: np.ndarray  # (N,) bool
    timeouts: np.ndarray | None = None  # (N,) bool: the last row of an episode that the time limit ended
    next_observations: np.ndarray | None = None  # (N, obs_dim) float32
    costs: np.ndarray | None = None  # (N,) float32, of data for safe RL


def read_hdf5(path: str | Path) -> Raw:
    """Read a file in D4RL's layout.

    Raises UsageError naming file and key: file missing, not HDF5 or truncated; a needed key missing; wrong
    number of axes, unequal lengths, no rows, values that are not numbers, NaN or infinite.
    """
    with open_hdf5(path) as file:
        if any(name.startswith("episode_") for name in file):
            mend = "load it with data.name=minari:ID or give its folder by data.path=FOLDER"
            raise UsageError(f"{path}: this is a Minari file, not one in D4RL's layout; {mend}")
        present = [key for key in (*NEEDED, *OPTIONAL) if isinstance(file.get(key), h5py.Dataset)]
        arrays = {key: file[key][()] for key in present}
    return check_arrays(arrays, path)


def check_arrays(arrays: Mapping[str, Any], source: str | Path) -> Raw:
    """Raw from a mapping of arrays, cast to float32 and bool. `source` is named in the UsageErrors raised."""
    for key in NEEDED:
        if arrays.get(key) is None:
            raise UsageError(f"{source}: key '{key}' is missing; D4RL's layout needs {', '.join(NEEDED)}")
    present = [key for key in (*NEEDED, *OPTIONAL) if arrays.get(key) is not None]
    columns = {key: check_column(key, np.asarray(arrays[key]), source) for key in present}
    rows = len(columns["observations"])
    for key, column in columns.items():
        if len(column) != rows:
            raise UsageError(f"{source}: key '{key}' has {len(column)} rows, 'observations' has {rows}")
    raw = Raw(**columns)
    if rows == 0:
        raise UsageError(f"{source}: key 'observations' is empty: the file holds no transition")
    if raw.next_observations is not None and raw.next_observations.shape != raw.observations.shape:
        widths = raw.next_observations.shape[1], raw.observations.shape[1]
        raise UsageError(f"{source}: key 'next_observations' has width {widths[0]}, 'observations' {widths[1]}")
    return raw


def check_column(key: str, array: np.ndarray, source: str | Path) -> np.ndarray:
    """One array with its axes and values checked, as float32, or bool for flags."""
    axes = 2 if key in MATRICES else 1
    if axes == 1 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]  # some of D4RL's files hold columns (N, 1)
    if array.ndim != axes:
        wanted = "(rows, width)" if axes == 2 else "(rows,)"
        raise UsageError(f"{source}: key '{key}' has shape {array.shape}, expected {wanted}")
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{source}: key '{key}' holds {array.dtype}, expected numbers")
    if key in FLAGS:
        return _flags(key, array, source)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
        raise UsageError(f"{source}: key '{key}' has a NaN or infinite value, first at row {row}")
    return values


def _flags(key: str, array: np.ndarray, source: str | Path) -> np.ndarray:
    bad = (array != 0) & (array != 1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UsageError(f"{source}: key '{key}' must hold 0 or 1, row {row} holds {array[row]}")
    return array.astype(bool)


def write_d4rl(
    path: str | Path,
    arrays: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    overwrite: bool = False,
    flags: type = bool,
) -> Path:
    """Write arrays of N rows in D4RL's layout, compressed, with `metadata` (JSON-able values) as attributes.

    Keys are Raw's fields; further keys (such as `infos/qpos`) are kept as they are. `flags` is the type of terminals
    and timeouts: bool as in D4RL, float32 as in DSRL. The file appears whole or not at all, and the same input gives
    the same bytes. Raises UsageError: bad arrays, an existing file without `overwrite`, a folder that cannot be
    written.
    """
    path = Path(path)
    raw = check_arrays(arrays, path)
    columns = {key: np.asarray(value) for key, value in arrays.items() if value is not None}
    columns |= {key: value for key, value in raw._asdict().items() if value is not None}
    columns |= {key: columns[key].astype(flags) for key in FLAGS if key in columns}
    for key, column in columns.items():
        if len(column) != len(raw.rewards):
            raise UsageError(f"{path}: key '{key}' has {len(column)} rows, 'observations' has {len(raw.rewards)}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already and is not overwritten; delete it or write elsewhere")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as file:
            for key, column in columns.items():
                file.create_dataset(key, data=column, compression="gzip", shuffle=True)
            put_metadata(file, metadata)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({one_line(error)}); mend that or write elsewhere") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path
