"""Run directories: created once, never mixed, never overwritten."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from envs.core import UsageError
from experiments import library
from experiments.checkpoint import Checkpoints
from experiments.config import Config, as_dict, fingerprint, fingerprint_of
from experiments.log import write_atomically

CONFIG = Path(".hydra") / "config.yaml"

# What Hydra's node says of the launcher and not of the run: a member's record is the same however it was launched.
_LAUNCHING = {
    "": ("launcher", "sweeper", "sweep", "run", "mode", "help", "hydra_help"),
    "job": ("id", "num", "override_dirname"),
    "runtime": ("output_dir",),
    "runtime.choices": ("hydra/launcher", "hydra/sweeper"),
}


@dataclass(frozen=True)
class Job:
    """How Hydra was asked for a member."""

    overrides: list[str]
    hydra: dict[str, Any]  # Hydra's own configuration, resolved, without what differs by launcher


def job_of(config: Any, seed: int) -> Job:
    """The record of one member of a Hydra job, whose composed configuration `config` still has its `hydra` node."""
    node: Any = OmegaConf.to_container(config.hydra, resolve=True)
    for path, names in _LAUNCHING.items():
        part = node
        for key in path.split(".") if path else ():
            part = part[key]
        for name in names:
            part.pop(name, None)
    named = [text.lstrip("+~").split("=", 1)[0] for text in node["overrides"]["task"]]
    overrides = [f"seed={seed}" if key == "seed" else text for key, text in zip(named, node["overrides"]["task"])]
    node["overrides"] = {"hydra": without_launching(node["overrides"]["hydra"]), "task": overrides}
    return Job(overrides, {"hydra": node})


def without_launching(overrides: list[str]) -> list[str]:
    """Hydra's own overrides, without those of launcher, sweeper and mode."""
    launching = ("hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweep", "hydra.mode")
    return [text for text in overrides if not text.lstrip("+~").startswith(launching)]


def check(folder: Path, config: Config, data_sha256: list[str], checkpoints: Checkpoints) -> None:
    """Whether `folder` may hold this run: it is new, or holds an unfinished or finished part of the same run.

    Raises:
        UsageError: it holds another run, a checkpoint of another configuration, or was trained on other data; or it
            belongs to a library of skills.
    """
    note = checkpoints.note()
    if note is not None:
        library.refuse_part(folder, note)
    if config.run.fresh:
        return
    mend = "choose another run.dir, or run.fresh=true to set the old run aside"
    saved = read_config(folder)
    if saved is not None and (fingerprint_of(saved), saved["seed"]) != (fingerprint(config), config.seed):
        raise UsageError(f"{folder} holds a run of another configuration ({CONFIG}); {mend}")
    if saved is None and note is None and folder.is_dir() and set(_names(folder)) - {".lock"}:
        raise UsageError(f"{folder} exists and is no run of ours; {mend}")
    if note is None:
        return
    if (fingerprint_of(note["config"]), note["config"]["seed"]) != (fingerprint(config), config.seed):
        raise UsageError(f"the checkpoints in {folder} are of another configuration; {mend}")
    if note["data_sha256"] != data_sha256:
        raise UsageError(f"{folder} was trained on a data file with another checksum; restore that file, or {mend}")


def begin(folder: Path, config: Config, job: Job | None = None) -> None:
    """Record the configuration and, where Hydra asked for the run, its overrides, the way Hydra lays out a job."""
    files: dict[str, Any] = {"config.yaml": as_dict(config)}
    if job is not None:
        files |= {"overrides.yaml": job.overrides, "hydra.yaml": job.hydra}
    for name, content in files.items():
        path = (folder / CONFIG).with_name(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, yaml.safe_dump(content, sort_keys=False).encode())


def set_aside(folder: Path) -> None:
    """Rename an existing run to NAME.old1, NAME.old2, ...; nothing is lost."""
    if folder.is_dir() and set(_names(folder)) - {".lock"}:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        shutil.move(folder, aside)


def read_config(folder: Path) -> dict | None:
    """The configuration recorded in a run directory; None if there is none."""
    try:
        return yaml.safe_load((folder / CONFIG).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def locked(folders: list[Path]) -> Iterator[None]:
    """Hold the run directories while training, against a second process.

    Raises:
        UsageError: another process is training there, or one cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(folder / ".lock", "w"))
            except OSError as error:
                reason = f"{folder} cannot be written: {error.strerror}"
                raise UsageError(f"{reason}; choose another run.root or run.dir") from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"another process is training in {folder}; wait for it or stop it") from None
        yield


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
