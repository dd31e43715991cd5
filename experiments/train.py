"""Train: `python -m experiments.train algo=a2pr data=hopper-medium-v2 seed=0`."""

import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments import config as schema
from experiments import rundir
from experiments.cli import guarded, hydra_job, use_compilation_cache
from experiments.loop import train

schema.register()


def show(member: schema.Config, result: dict[str, Any]) -> None:
    """Print a finished member's scores in one line."""
    score = result["score"]
    print(
        f"{schema.run_dir(member)}: {result['score_is']} {score['last']:.1f} (best {score['best']:.1f}, mean of "
        f"last ten {score['mean_of_last_ten']:.1f}" + (", diverged)" if result["diverged_at"] else ")")
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
@hydra_job
def run(config: DictConfig) -> None:
    """One Hydra job: a seed, or a population of seeds."""
    use_compilation_cache()
    members = schema.members(schema.to_config(config))
    asked = HydraConfig.instance().cfg
    assert asked is not None
    jobs = {schema.run_dir(member): rundir.job_of(asked, member.seed) for member in members}
    for member, result in zip(members, train(members, jobs=jobs)):
        show(member, result)


if __name__ == "__main__":
    sys.exit(guarded(run))
