"""Send the populations of a paper's plan to a cluster, as the jobs of a sweep."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments import provenance
from hydra_plugins.adaptax_launcher.config import LauncherConf
from slurm import pack, submit, sweep
from slurm.pack import Overrides


def send(options: LauncherConf, root: Path, command: str, groups: list[list[Overrides]], left: list[int]) -> int:
    """Submit the groups `left` (indices) that are not queued or running yet; the exit status.

    The sweep's directory is ROOT/sweeps/HASH: `python -m slurm.status` shows how it goes.

    Raises:
        UsageError: the cluster refuses the jobs or does not answer.
    """
    mark = pack.fingerprint(member for group in groups for member in group)
    folder = (root / "sweeps" / mark).absolute()
    if (folder / sweep.PLAN).exists():
        plan = sweep.read_plan(folder)
    else:
        sources = OmegaConf.to_container(HydraConfig.get().runtime.config_sources)
        compose = {"config_name": "config", "job_name": "train", "sources": sources, "overrides": []}
        plan = sweep.new_plan(command, options.cluster, compose, groups, provenance.versions())
    running = submit.running(folder, plan, left)
    plan["launcher"] = options.cluster
    sweep.write(folder / sweep.PLAN, plan)
    return submit.submit(folder, plan, [index for index in left if index not in running], options)
