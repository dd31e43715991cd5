"""What all commands share: one-line errors with exit status 2, the compilation cache."""

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from envs.core import UsageError

STATUS = 2


def guarded(command: Callable[[], object]) -> int:
    """Run a command; a mistake of the user becomes one line on stderr and status 2, without a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would otherwise print and exit with status 1 itself
    try:
        command()
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return STATUS
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def hydra_job(function: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Decorate a Hydra job, below `hydra.main`: its mistakes become one line, without the line that Hydra adds."""

    @functools.wraps(function)
    def job(config: DictConfig) -> None:
        if status := guarded(lambda: function(config)):
            raise SystemExit(status)

    return job


def one_line(error: Exception) -> str:
    """The message in one line; for an unknown option of a group, with the nearest known ones."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        options = [option for option in error.options if not option.endswith("schema")]
        nearest = difflib.get_close_matches(name, options, 3, 0.4)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(sorted(options)[:12])}"
        if group == "data":
            hint += " For a file of your own: data=custom data.path=FILE"
        return f"{group}={name}: there is no such {group}; {hint}"
    cause = error.__cause__
    while isinstance(cause, (UsageError, HydraException, OmegaConfBaseException)) and str(cause):
        error, cause = cause, cause.__cause__
    text = " ".join(str(error).split())
    key = re.search(r"full_key: (\S+)", text)
    text = re.sub(r"\s*(full_key|object_type|reference_type)[:=].*", "", text)
    return f"{key.group(1)}: {text}" if key and key.group(1) not in text else text


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or the user's cache."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(base / "adaptax" / "xla"))
