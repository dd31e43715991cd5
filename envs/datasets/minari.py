"""Minari data sets: HDF5 with a group per episode, which holds one observation more than actions.

So every transition has its true successor, the last of an episode included. Termination and truncation are
recorded apart and stay so. Reading needs no `minari` package; only downloading does.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from envs.core import Transition, UsageError
from envs.datasets.d4rl import as_transition
from envs.datasets.episodes import Episodes, returns
from envs.datasets.files import one_line, open_hdf5
from envs.datasets.hdf5 import check_arrays
from envs.datasets.metadata import read_json, read_metadata

DATA_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"  # format versions before 0.5 have attributes in the data file instead
ENVS = {"Ant": "ant", "HalfCheetah": "halfcheetah", "Hopper": "hopper", "Walker2d": "walker2d"}
STEP_KEYS = ("actions", "rewards", "terminations", "truncations")


class MinariData(NamedTuple):
    """What a Minari data set holds."""

    transitions: Transition  # float32 numpy arrays; unfinished episodes included
    returns: np.ndarray  # float64, of the episodes that terminated or were truncated
    episodes: Episodes
    metadata: dict[str, Any]  # metadata.json
    file: Path


def root() -> Path:
    """Where Minari keeps its data sets: MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def find_data(folder: Path) -> Path | None:
    """The `data` folder of a Minari data set, from its folder or that one; None where there is none."""
    for place in (folder, folder / "data"):
        if (place / DATA_FILE).is_file() or (place / METADATA_FILE).is_file():
            return place
    return None


def locate(dataset_id: str) -> Path:
    """The `data` folder of a data set id such as `mujoco/hopper/medium-v0`, downloaded if it is not there.

    Raises UsageError if it is absent and the `minari` package is missing or its download fails.
    """
    folder = root() / dataset_id
    if find_data(folder) is None:
        _download(dataset_id, folder)
    found = find_data(folder)
    if found is None:
        raise UsageError(f"Minari data set {dataset_id!r} is not at {folder}; give its folder by data.path=FOLDER")
    return found


def _download(dataset_id: str, folder: Path) -> None:
    mend = "or give the folder of a data set by data.path=FOLDER"
    try:
        import minari
    except ImportError as error:
        need = f"{folder} does not exist and downloading needs pip install 'minari[hf]'"
        raise UsageError(f"Minari data set {dataset_id!r}: {need}; {mend}") from error
    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # its storage back ends raise errors of their own kinds
        reason = f"download failed ({type(error).__name__}: {one_line(error)})"
        raise UsageError(f"Minari data set {dataset_id!r}: {reason}; check name and network, {mend}") from error


def read_minari(folder: str | Path) -> MinariData:
    """Read a Minari data set from its folder (the one that holds `data`, or `data` itself).

    Raises UsageError naming file, episode and key for damaged files and for spaces other than
    one-dimensional Box.
    """
    place = find_data(Path(folder))
    if place is None:
        raise UsageError(f"{folder}: no Minari data set is here; give the folder of one by data.path=FOLDER")
    path = place / DATA_FILE
    metadata = read_json(place) if (place / METADATA_FILE).is_file() else read_metadata(path)
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise UsageError(f"{place}: data format {metadata['data_format']!r} is not supported, only 'hdf5'")
    with open_hdf5(path) as file:
        names = [name for name in file if re.fullmatch(r"episode_\d+", name)]
        names.sort(key=lambda name: int(name.removeprefix("episode_")))
        parts = [_read_episode(file[name], f"{path}: {name}") for name in names]
    if not parts:
        raise UsageError(f"{path}: holds no episode")
    raw = check_arrays({key: _join([part[key] for part in parts], path) for key in parts[0]}, path)
    assert raw.timeouts is not None
    length = np.asarray([len(part["rewards"]) for part in parts])
    start = np.cumsum(length) - length
    episodes = Episodes(start, length, (raw.terminals | raw.timeouts)[start + length - 1])
    return MinariData(
        as_transition(raw.observations, raw.actions, raw.rewards, raw.next_observations, raw.terminals, raw.timeouts),
        returns(raw.rewards, episodes),
        episodes,
        metadata,
        path,
    )


def _read_episode(group: Any, source: str) -> dict[str, np.ndarray]:
    """One episode in D4RL's terms. Raises UsageError for a layout that is not flat."""
    found = {}
    for key in ("observations", *STEP_KEYS):
        item = group.get(key) if isinstance(group, h5py.Group) else None
        if item is None:
            raise UsageError(f"{source}: key '{key}' is missing")
        if isinstance(item, h5py.Group):
            raise UsageError(f"{source}: key '{key}' is a Dict or Tuple space; only Box spaces are supported")
        found[key] = np.atleast_1d(item[()])
    steps = len(found["rewards"])
    for key, rows in [("observations", steps + 1), *((key, steps) for key in STEP_KEYS)]:
        if len(found[key]) != rows or steps == 0:
            raise UsageError(f"{source}: key '{key}' has {len(found[key])} rows, expected {rows} for {steps} steps")
    for key in ("observations", "actions"):
        if found[key].ndim != 2:
            shape = found[key].shape[1:]
            raise UsageError(f"{source}: key '{key}' has entries of shape {shape}; only one-dimensional Box spaces")
    return {
        "observations": found["observations"][:-1],
        "next_observations": found["observations"][1:],
        "actions": found["actions"],
        "rewards": found["rewards"],
        "terminals": found["terminations"],
        "timeouts": found["truncations"],
    }


def _join(parts: list[np.ndarray], path: Path) -> np.ndarray:
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise UsageError(f"{path}: episodes differ in width ({one_line(error)})") from error


def env_of(metadata: dict[str, Any]) -> str | None:
    """Our locomotion environment for the Gymnasium id in a data set's metadata, if there is one."""
    provenance = metadata.get("provenance", {})
    if provenance.get("env") is not None:
        return str(provenance["env"])
    try:
        gymnasium_id = str(json.loads(metadata.get("env_spec") or "{}").get("id", ""))
    except ValueError:
        return None
    return ENVS.get(gymnasium_id.split("/")[-1].split("-v")[0])
