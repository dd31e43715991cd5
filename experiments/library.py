"""A library of PSEC's skills on disk: one frozen base, and increments of it that are added and never changed.

    LIB/base/           the base policy, once
    LIB/skills/NAME/    the factors of one skill, its scale, and the critics of its run

Both are read like run directories: `start=[LIB/skills/NAME, ...]` composes skills, `start=[LIB/base]` trains another.
"""

import difflib
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from algos.psec.nets import init_skill
from envs.core import UsageError
from experiments import provenance
from experiments.checkpoint import Checkpoints

BASE = "../../base"  # from the folder of a skill
FIELDS = ("base", "lora", "scale", "critics")  # of a run's state
KEPT = (  # of a run's note: where and how its policy acts
    "config", "data_sha256", "obs_mean", "obs_std", "obs_dim", "action_dim", "max_action", "env", "reference",
    "top_score", "cost_limit", "diverged_at",
)  # fmt: skip


def notes(lib: Path) -> dict[str, dict[str, Any] | None]:
    """What is known of each skill, by name and in the order of addition; None for a damaged one, at the end.

    Raises:
        UsageError: `lib` is no library.
    """
    found = {name: Checkpoints(lib / "skills" / name).note() for name in names(lib)}
    return dict(sorted(found.items(), key=lambda item: item[1]["skill"]["added"] if item[1] else "~"))


def names(lib: Path) -> list[str]:
    """The skills of a library, by name.

    Raises:
        UsageError: `lib` is no library.
    """
    check_library(lib)
    if not (lib / "base").is_dir():
        raise UsageError(f"{lib}: there is no library; python -m experiments.skills add {lib} RUN_DIR name=NAME")
    folder = lib / "skills"
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def read(lib: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a skill, with those of the base, and its note; all checked.

    Raises:
        UsageError: there is no such skill, or it is damaged.
    """
    folder, known = lib / "skills" / name, names(lib)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
        raise UsageError(f"{lib} has no skill {name}; {hint}")
    found = Checkpoints(folder).parts(FIELDS)
    if found is None:
        raise UsageError(f"{folder} is damaged: restore it from a copy")
    return with_base(folder, *found), found[1]


def read_base(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The base of a library, {"base": ...}, and its note.

    Raises:
        UsageError: it is missing or damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no base; a skill works only inside of its library")
    found = Checkpoints(folder).parts(("base",))
    if found is None or provenance.tree_sha256(found[0]) != found[1]["base"]["sha256"]:
        raise UsageError(f"{folder} is damaged: restore it from a copy")
    return found


def is_skill(note: dict[str, Any]) -> bool:
    """Whether a checkpoint's note is that of a skill in a library."""
    return "skill" in note


def refuse_part(folder: Path, note: dict[str, Any]) -> None:
    """Raise UsageError if the checkpoint in `folder`, which has this note, is a library's skill or base."""
    if "base" in note:
        raise UsageError(
            f"{folder} belongs to a library of skills and is no run: begin from it by start=[{folder}], or make a run "
            "of it by python -m experiments.skills merge"
        )


def with_base(folder: Path, part: dict[str, Any], note: dict[str, Any]) -> dict[str, Any]:
    """Arrays read from a skill's folder and those of its library's base, as a run of the skill would hold them.

    Raises:
        UsageError: the base is missing, damaged or another one, or the factors are not those that the note tells of.
    """
    base, theirs = read_base(folder / note["base"]["place"])
    if (digest := theirs["base"]["sha256"]) != (own := note["base"]["sha256"]):
        raise UsageError(
            f"{folder} is a skill of base {short(own)}, but beside it is base {short(digest)}: put it into its library"
        )
    if "lora" in part:
        check_arrays(folder, part, base["base"], note["skill"]["rank"])
    return base | part


def check_arrays(folder: Path, part: dict[str, Any], base: Any, rank: int) -> None:
    """Raise UsageError unless factors and scale are those of one skill of this rank on this base."""
    like = jax.eval_shape(lambda tree: init_skill(jax.random.key(0), tree, rank, rank), base)
    expected = jax.tree.map(lambda x: (1, *x.shape), like)
    found = jax.tree.map(np.shape, part["lora"])
    if expected != found or np.shape(part["scale"]) != (1,):
        width = np.shape(part["lora"]["trunk"]["out"]["A"])[-1]
        what = f"rank {width}" if width != rank else "other shapes"
        raise UsageError(f"{folder} is noted as one skill of rank {rank} of its base, but its factors have {what}")


def check_library(lib: Path) -> None:
    """Raise UsageError if `lib` exists and is something else; one that was killed while it was made is empty."""
    if lib.exists() and not lib.is_dir():
        raise UsageError(f"{lib} is a file: name the folder of a library")
    if lib.is_dir() and not (lib / "base").is_dir() and any(path.name[0] != "." for path in lib.iterdir()):
        raise UsageError(f"{lib} is no library of skills (it has no base/): name one, or a new folder")


def kept(note: dict[str, Any]) -> dict[str, Any]:
    """What a library keeps of a run's note, which has fewer entries where an earlier version wrote it."""
    return {name: note[name] for name in KEPT if name in note}


def short(digest: str) -> str:
    """The first digits of a checksum: enough to tell bases apart."""
    return digest[:12]


def place(target: Path, step: int, state: Any, note: dict[str, Any]) -> None:
    """Save a checkpoint in a new folder that appears whole, or not at all."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    Checkpoints(temporary).save(step, state, note)
    os.rename(temporary, target)
