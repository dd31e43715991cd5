"""Hydra's launcher for packed sweeps: plan, print the plan, submit what is unfinished.

This module is imported whenever Hydra starts, so that what needs JAX or submitit is imported where it is used.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.adaptax_launcher.config import LauncherConf


class PackedLauncher(Launcher):
    """Members that differ only in seed and hyperparameters train in one job."""

    def __init__(self, **options: Any) -> None:
        plain: dict[str, Any] = {}
        for key, value in options.items():
            plain[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        self.options = LauncherConf(**plain)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        self.config, self.loader = config, hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Plan the sweep and submit it; results are in the members' run directories.

        Raises:
            UsageError: a member that cannot be, a sweep directory that cannot be written, a job that is refused.
            SystemExit: it was waited for the jobs, and members failed (status 1) or were interrupted (75).
        """
        from slurm.launch import launch

        setup_globals()
        status = launch(self.config, self.loader, self.options, job_overrides)
        if status:
            raise SystemExit(status)
        return [JobReturn(list(overrides), status=JobStatus.COMPLETED) for overrides in job_overrides]


class PackedSweeper(BasicSweeper):
    """The basic sweeper; a packed sweep is checked by its launcher, since composing 100,000 members takes hours."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep.

        Raises:
            UsageError: its directory cannot be written.
        """
        from envs.core import UsageError

        folder = Path(self.config.hydra.sweep.dir)  # type: ignore[union-attr]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "permission denied")
        except OSError as error:
            raise UsageError(f"hydra.sweep.dir={folder} cannot be written: {error.strerror}; choose another") from None
        return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose every member, unless the launcher looks at them itself."""
        if not isinstance(self.launcher, PackedLauncher):
            super().validate_batch_is_legal(batch)
