"""Send the populations of a paper's plan to a cluster, as the jobs of a sweep.

Jobs do not wait for one another: a population whose stages have not finished is not sent yet.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments import provenance
from experiments.work import Work
from hydra_plugins.adaptax_launcher.config import LauncherConf
from slurm import pack, submit, sweep


def send(options: LauncherConf, root: Path, command: str, work: list[Work], todo: list[Work]) -> int:
    """Submit what is left of `todo`, a part of `work`, and neither queued nor running yet; the exit status.

    What begins from unfinished runs is left for another call, and said to be. The sweep's directory is
    ROOT/sweeps/HASH: `python -m slurm.status` shows how it goes.

    Raises:
        UsageError: the cluster refuses the jobs or does not answer.
    """
    groups = [one.overrides for one in work]
    unfinished = [index for index, one in enumerate(work) if one in todo and one.left]
    left = [index for index in unfinished if work[index].ready]
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
    status = submit.submit(folder, plan, [index for index in left if index not in running], options)
    if waiting := len(unfinished) - len(left):
        print(
            f"{waiting} populations begin from runs that had not finished: give the same command again once they have"
        )
    return status
