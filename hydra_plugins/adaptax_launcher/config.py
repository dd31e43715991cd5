"""What `hydra/launcher=local|slurm_local|slurm|slurm_preemptible` can be told. Cheap to import: Hydra always does."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class LauncherConf:
    """Where the groups of a sweep run, and what each job asks for. Presets: configs/hydra/launcher."""

    _target_: str = "hydra_plugins.adaptax_launcher.launcher.PackedLauncher"
    cluster: str = "local"  # local: this machine's devices | slurm_local: submitit without a cluster | slurm
    name: str | None = None  # of the sweep's directory; null: the algorithm and a hash of the members
    wait: bool = False  # slurm: whether to return only when all jobs have ended, with their status
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 720
    gpus_per_node: int = 0  # a group uses all devices of its job
    cpus_per_task: int = 1
    mem_gb: int | None = None
    array_parallelism: int = 256  # jobs that run at once
    signal_delay_s: int = 180  # how long before the time limit SLURM warns; it may do so a minute early
    max_num_timeout: int = 20  # how often a job that meets its time limit goes on
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # further lines of sbatch: {requeue: true}
    setup: list[str] = field(default_factory=list)  # shell lines before the job: module load cuda


@dataclass
class SweeperConf:
    """Hydra's own sweeper, which checks a packed sweep by its programs instead of composing every member."""

    _target_: str = "hydra_plugins.adaptax_launcher.launcher.PackedSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/launcher", name="packed_schema", node=LauncherConf, provider="adaptax")
ConfigStore.instance().store(group="hydra/sweeper", name="packed", node=SweeperConf, provider="adaptax")
