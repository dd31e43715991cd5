"""Provenance inside data files: a dictionary of JSON-able values.

Short values are attributes of the HDF5 file. Lists, dictionaries, None and long texts are JSON texts under
`metadata/`, because HDF5 keeps attributes below 64 KB. Minari's data sets hold theirs in `metadata.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.core import UsageError
from envs.datasets.files import one_line, open_hdf5

LONGEST_TEXT = 4096  # characters of a text kept as an attribute
LARGEST_ARRAY = 64  # entries; larger arrays under `metadata/` are weights of the behaviour policy


def put_metadata(file: h5py.File, metadata: Mapping[str, Any]) -> None:
    """Write `metadata` into an open HDF5 file. Raises TypeError for values that JSON does not know."""
    for key, value in metadata.items():
        short = isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= LONGEST_TEXT)
        if short:
            file.attrs[key] = value
            continue
        entry = file.create_dataset(f"metadata/{key}", data=json.dumps(value))
        entry.attrs["encoding"] = "json"


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The provenance of a data file: D4RL's layout, or the folder of a Minari data set. {} where there is
    none.

    D4RL's own files keep theirs under `metadata/`; texts and small arrays of it are returned, weights are
    not.
    Raises UsageError where the file cannot be read.
    """
    if Path(path).is_dir():
        return dict(read_json(Path(path)).get("provenance", {}))
    with open_hdf5(path) as file:
        found = {str(key): _plain(value) for key, value in file.attrs.items()}
        group = file.get("metadata")
        if isinstance(group, h5py.Group):
            group.visititems(lambda name, item: _collect(found, name, item))
    return found


def read_json(folder: Path) -> dict[str, Any]:
    """`metadata.json` of a Minari data set, from its folder or the `data` folder inside."""
    path = folder / "metadata.json"
    path = path if path.is_file() else folder / "data" / "metadata.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as Minari's metadata ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: cannot be read as Minari's metadata (no JSON object)")
    return content


def _collect(found: dict[str, Any], name: str, item: Any) -> None:
    if not isinstance(item, h5py.Dataset) or item.size is None or item.size > LARGEST_ARRAY:
        return
    value = _plain(item[()])
    found[name] = json.loads(value) if item.attrs.get("encoding") == "json" else value


def _plain(value: Any) -> Any:
    """A Python value for what h5py returns."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
