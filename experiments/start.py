"""Runs that begin from what other runs learnt: `start=[RUN_DIR, ...]`, see `algos.core.Algorithm`."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from envs.core import UsageError
from experiments import library
from experiments.checkpoint import Checkpoints
from experiments.config import Config, algo_module
from experiments.provenance import tree_sha256


@dataclass(frozen=True)
class Start:
    """What a member begins from: a dictionary of arrays for each earlier run, and where each was read."""

    parts: tuple[dict[str, Any], ...] = ()
    places: tuple[str, ...] = ()

    @functools.cached_property
    def description(self) -> list[dict[str, Any]]:
        """For a checkpoint's note: places, checksums and shapes."""
        return [
            {"place": place, "sha256": tree_sha256(part), "shapes": to_shapes(part)}
            for place, part in zip(self.places, self.parts)
        ]


def place(path: str, seed: int) -> Path:
    """The run directory of a member: `path` itself, or its folder for the member's seed."""
    folder = Path(path)
    below = folder / f"seed{seed}"
    return below if below.is_dir() else folder


def check(config: Config) -> tuple[str, ...]:
    """The fields that an algorithm begins from, of the runs in `start`; none for those that begin from nothing.

    Raises:
        UsageError: `start` is missing or superfluous.
    """
    name, module = config.algo.name, algo_module(config.algo.name)
    wanted = getattr(module, "START", ())
    if config.start and not wanted:
        raise UsageError(f"algo={name} begins from nothing: leave start={config.start} out")
    if wanted and not config.start:
        raise UsageError(f"algo={name} begins from trained runs: set start=[RUN_DIR], {module.START_FROM}")
    return wanted


def load(config: Config) -> Start:
    """Read what the member of this configuration begins from; nothing for algorithms that begin from nothing.

    Raises:
        UsageError: `start` is missing, superfluous, names no trained run, or what it names does not fit.
    """
    wanted, module = check(config), algo_module(config.algo.name)
    if not wanted:
        return Start()
    found = [_read(place(path, config.seed), wanted) for path in config.start]
    for folder, part, _ in found:
        if not part:
            raise UsageError(f"start={folder}: that run holds no {' or '.join(wanted)}; {module.START_FROM}")
    places = tuple(str(folder) for folder, _, _ in found)
    parts = tuple(part for _, part, _ in found)
    module.check_start(config.algo, places, parts, [note["config"]["algo"] for _, _, note in found])
    return Start(parts, places)


def _read(folder: Path, wanted: tuple[str, ...]) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    checkpoints = Checkpoints(folder)
    found = checkpoints.parts(wanted)
    if found is None and checkpoints.steps():
        raise UsageError(f"start={folder}: every checkpoint there is damaged; restore it from a copy, or train anew")
    if found is None:
        raise UsageError(f"start={folder}: no checkpoint is there; name a run directory, or the folder of its seeds")
    part, note = found
    if library.is_skill(note):
        part = library.with_base(folder, part, note)
    return folder, part, note


def to_shapes(tree: Any) -> Any:
    """Nested dictionaries and lists of arrays, with shapes and types in their place, for JSON."""
    if isinstance(tree, dict):
        return {key: to_shapes(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_shapes(value) for value in tree]
    return None if tree is None else f"{tree.dtype}{list(tree.shape)}"


def from_shapes(shapes: Any) -> Any:
    """The other way round, to arrays without content."""
    if isinstance(shapes, dict):
        return {key: from_shapes(value) for key, value in shapes.items()}
    if isinstance(shapes, list):
        return [from_shapes(value) for value in shapes]
    if shapes is None:
        return None
    dtype, _, sizes = shapes.partition("[")
    return jax.ShapeDtypeStruct(tuple(json.loads(f"[{sizes}")), jnp.dtype(dtype))
