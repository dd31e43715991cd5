"""Train: `python -m experiments.train algo=a2pr data=hopper-medium-v2 seed=0`."""

import sys

import hydra
from omegaconf import DictConfig

from experiments import config as schema
from experiments.cli import guarded, hydra_job, use_compilation_cache
from experiments.loop import train

schema.register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
@hydra_job
def run(config: DictConfig) -> None:
    """One Hydra job: a seed, or a population of seeds."""
    use_compilation_cache()
    members = schema.members(schema.to_config(config))
    for member, result in zip(members, train(members)):
        score = result["score"]
        print(
            f"{schema.run_dir(member)}: {result['score_is']} {score['last']:.1f} (best {score['best']:.1f}, mean of "
            f"last ten {score['mean_of_last_ten']:.1f}" + (", diverged)" if result["diverged_at"] else ")")
        )


if __name__ == "__main__":
    sys.exit(guarded(run))
