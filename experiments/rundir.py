"""Run directories: created once, never mixed, never overwritten."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from envs.core import UsageError
from experiments.checkpoint import Checkpoints
from experiments.config import Config, as_dict, fingerprint, fingerprint_of
from experiments.log import write_atomically

CONFIG = Path(".hydra") / "config.yaml"


def check(folder: Path, config: Config, data_sha256: list[str], checkpoints: Checkpoints) -> None:
    """Whether `folder` may hold this run: it is new, or holds an unfinished or finished part of the same run.

    Raises:
        UsageError: it holds another run, a checkpoint of another configuration, or was trained on other data.
    """
    if config.run.fresh:
        return
    mend = "choose another run.dir, or run.fresh=true to set the old run aside"
    saved = read_config(folder)
    if saved is not None and (fingerprint_of(saved), saved["seed"]) != (fingerprint(config), config.seed):
        raise UsageError(f"{folder} holds a run of another configuration ({CONFIG}); {mend}")
    note = checkpoints.note()
    if saved is None and note is None and folder.is_dir() and set(_names(folder)) - {".lock"}:
        raise UsageError(f"{folder} exists and is no run of ours; {mend}")
    if note is None:
        return
    if (fingerprint_of(note["config"]), note["config"]["seed"]) != (fingerprint(config), config.seed):
        raise UsageError(f"the checkpoints in {folder} are of another configuration; {mend}")
    if note["data_sha256"] != data_sha256:
        raise UsageError(f"{folder} was trained on a data file with another checksum; restore that file, or {mend}")


def begin(folder: Path, config: Config) -> None:
    """Record the configuration, the way Hydra lays out a job."""
    if not (folder / CONFIG).exists():
        (folder / CONFIG).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, yaml.safe_dump(as_dict(config), sort_keys=False).encode())


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
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def locked(folders: list[Path]) -> Iterator[None]:
    """Hold the run directories while training, against a second process.

    Raises:
        UsageError: another process is training there.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / ".lock", "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"another process is training in {folder}; wait for it or stop it") from None
        yield


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
