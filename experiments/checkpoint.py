"""Checkpoints of one run: orbax, checksums, and a walk back over damaged steps."""

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from envs.core import UsageError
from envs.datasets.files import sha256_of
from experiments.log import write_atomically

_BOOKKEEPING = 2**17  # bytes that a step takes besides its arrays, generously
_MANIFEST = "manifest.json"  # sha256 of every file of a step; written last, so a step without it is not finished


class Checkpoints:
    """The `checkpoints/` folder of a run directory: a pytree of arrays and a JSON note for each saved step."""

    def __init__(self, run_dir: Path, keep: int = 2):
        """Keep the newest `keep` steps."""
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what orbax reports there it also raises
        self.folder = (run_dir / "checkpoints").absolute()
        self.keep = keep
        self._sound: set[int] = set()  # steps whose checksums were right: large files are read once

    def steps(self) -> list[int]:
        """Steps whose saving was finished, newest first (the files may have been damaged since)."""
        if not self.folder.is_dir():
            return []
        finished = [path.parent.name for path in self.folder.glob(f"*/{_MANIFEST}")]
        return sorted((int(name) for name in finished if name.isdigit()), reverse=True)

    def save(self, step: int, state: Any, note: dict[str, Any]) -> None:
        """Write a step, then drop the oldest ones. A finished step of that number is left alone.

        Raises:
            UsageError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        if step in self.steps():
            return
        folder = self.folder / str(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Looked at beforehand, as orbax's threads print what they find wrong besides raising it.
            needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state)) + _BOOKKEEPING
            if shutil.disk_usage(self.folder).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for leftover in self.folder.glob(f"{step}*"):  # of a save that was killed
                if leftover.name == str(step) or leftover.name.startswith(f"{step}.orbax"):
                    shutil.rmtree(leftover)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                items = {"state": ocp.args.StandardSave(state), "note": ocp.args.JsonSave(note)}
                checkpointer.save(folder, ocp.args.Composite(**items))
            write_atomically(folder / _MANIFEST, json.dumps(_digests(folder)).encode())
        except Exception as error:
            text = " ".join(str(error).split())
            if isinstance(error, OSError) or "No space left" in text or os.strerror(errno.EDQUOT) in text:
                reason = os.strerror(errno.ENOSPC) if "No space left" in text else text[:120]
                raise UsageError(
                    f"cannot save step {step} in {self.folder}: {reason}; make room there and run the same command "
                    "again: it goes on from the checkpoint before"
                ) from error
            raise
        for old in self.steps()[self.keep :]:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def restore(self, like: Any, newest: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest undamaged step, not after `newest`: (step, state, note); None if no step was ever saved.

        A damaged step is reported and, once an older one is found, moved to `damaged/`, out of the way of later
        saves.

        Raises:
            UsageError: steps were saved but every one is damaged, or they hold other arrays than `like`.
        """
        steps = [step for step in self.steps() if newest is None or step <= newest]
        damaged: list[tuple[int, str]] = []
        for step in steps:
            if (reason := self._damage(step)) is not None:
                damaged.append((step, reason))
                continue
            for bad, reason in damaged:
                aside = self.folder.parent / "damaged" / str(bad)
                print(f"warning: checkpoint {bad} is damaged ({reason}), moved to {aside}", file=sys.stderr)
                shutil.rmtree(aside, ignore_errors=True)
                shutil.move(self.folder / str(bad), aside)
            return step, *self._read(step, like)
        if steps:
            raise UsageError(
                f"every checkpoint in {self.folder} is damaged ({damaged[0][1]}); run.fresh=true starts another run"
            )
        return None

    def parts(self, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Those of the named fields of the state that the newest undamaged step has, as dictionaries, and its note."""
        if (step := self.newest()) is None:
            return None
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = {"state": ocp.args.StandardRestore(), "note": ocp.args.JsonRestore()}
            restored = checkpointer.restore(self.folder / str(step), ocp.args.Composite(**items))
        return {name: restored.state[name] for name in names if name in restored.state}, restored.note

    def note(self) -> dict[str, Any] | None:
        """The JSON note of the newest undamaged step."""
        step = self.newest()
        return None if step is None else json.loads((self.folder / str(step) / "note" / "metadata").read_text())

    def newest(self) -> int | None:
        """The newest undamaged step; None if there is none."""
        return next((step for step in self.steps() if self._damage(step) is None), None)

    def _damage(self, step: int) -> str | None:
        """What is wrong with a step's files, in a few words."""
        if step in self._sound:
            return None
        folder = self.folder / str(step)
        try:
            expected, found = json.loads((folder / _MANIFEST).read_text()), _digests(folder)
        except (OSError, ValueError) as error:
            return f"{type(error).__name__} in {_MANIFEST}"
        for name, digest in expected.items():
            if found.get(name) != digest:
                return f"{name} {'has changed' if name in found else 'is missing'}"
        self._sound.add(step)
        return None

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
        items = {"state": ocp.args.StandardRestore(abstract), "note": ocp.args.JsonRestore()}
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(self.folder / str(step), ocp.args.Composite(**items))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"checkpoint {self.folder / str(step)} was written by another version of the algorithm (its arrays "
                "differ); use that version, or run.fresh=true to start another run"
            ) from error
        return restored.state, restored.note


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, the manifest apart."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}
