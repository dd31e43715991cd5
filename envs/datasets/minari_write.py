"""Writing a data set in Minari's layout, so that `minari.load_dataset` reads it."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.core import UsageError
from envs.datasets import scores
from envs.datasets.episodes import bounds
from envs.datasets.files import one_line
from envs.datasets.hdf5 import Raw, check_arrays
from envs.datasets.minari import DATA_FILE

FORMAT_VERSION = "0.5.3"  # of Minari, whose layout this is; it refuses versions that it does not know


def write_minari(
    root: str | Path,
    dataset_id: str,
    arrays: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write flat arrays (see `hdf5.Raw`; `next_observations` needed) as `root/dataset_id`; returns that
    folder.

    Each episode ends with a terminal or timeout row; a trailing unfinished one is kept and marked as
    truncated, as Minari's own collector does. `metadata` (JSON-able values) is kept as `provenance` in
    `metadata.json`; where its `dataset` is a data set of D4RL's, the reference returns are Minari's
    `ref_min_score` and `ref_max_score`.
    Raises UsageError: a malformed id, bad arrays, an existing data set without `overwrite`, a folder not
    writable.
    """
    if not re.fullmatch(r"(?:[-\w]+/)*[-\w]+-v\d+", dataset_id):
        raise UsageError(f"Minari id {dataset_id!r} is malformed; write it like mujoco/hopper/medium-v0")
    folder = Path(root) / dataset_id
    raw = check_arrays(arrays, folder)
    if raw.next_observations is None:
        raise UsageError(f"{folder}: key 'next_observations' is missing; Minari keeps each episode's last observation")
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder}: exists already and is not overwritten; delete it or write elsewhere")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        (temporary / "data").mkdir(parents=True)
        episodes = _write_episodes(temporary / "data" / DATA_FILE, raw)
        content = _metadata(dataset_id, raw, episodes, metadata)
        content["dataset_size"] = round((temporary / "data" / DATA_FILE).stat().st_size / 1e6, 1)
        (temporary / "data" / "metadata.json").write_text(json.dumps(content))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({one_line(error)}); mend that or write elsewhere") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_episodes(path: Path, raw: Raw) -> int:
    """Write the groups `episode_<i>`; returns how many."""
    assert raw.next_observations is not None
    episodes = bounds(raw)
    timeouts = np.zeros(len(raw.rewards), bool) if raw.timeouts is None else raw.timeouts.copy()
    timeouts[-1] |= not raw.terminals[-1]
    with h5py.File(path, "w", track_order=True) as file:
        for number, (start, length) in enumerate(zip(episodes.start, episodes.length)):
            rows, end = slice(start, start + length), start + length - 1
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": int(length)})
            last = raw.next_observations[end : end + 1]
            group.create_dataset("observations", data=np.concatenate([raw.observations[rows], last]))
            group.create_dataset("actions", data=raw.actions[rows])
            group.create_dataset("rewards", data=raw.rewards[rows])
            group.create_dataset("terminations", data=raw.terminals[rows])
            group.create_dataset("truncations", data=timeouts[rows])
    return len(episodes.start)


def _metadata(dataset_id: str, raw: Raw, episodes: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    content = {
        "dataset_id": dataset_id,
        "minari_version": FORMAT_VERSION,
        "data_format": "hdf5",
        "total_episodes": episodes,
        "total_steps": len(raw.rewards),
        "observation_space": _box(raw.observations.shape[1], float("inf")),
        "action_space": _box(raw.actions.shape[1], 1.0),
        "provenance": dict(provenance),
    }
    if provenance.get("dataset") in scores.table():
        low, high = scores.reference(provenance["dataset"])
        content |= {"ref_min_score": low, "ref_max_score": high}
    return content


def _box(width: int, bound: float) -> str:
    """A Box space from -bound to bound, serialised as Minari does."""
    low, high = [-bound] * width, [bound] * width
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [width], "low": low, "high": high})
