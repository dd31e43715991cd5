"""Settings of DrQ-v2. The defaults are those of its medium tasks."""

import math
from dataclasses import dataclass

from jax.tree_util import register_dataclass

from algos.checks import check_choices, check_least
from algos.core import UsageError

PAD = 4  # pixels by which images are padded before they are shifted
CHOICES = {
    "encoder": ("cnn", "identity"), "inject": ("none", "critic", "actor"), "inject_from": ("fresh", "initial_copy"),
    "frames_in": ("device", "host"),
}  # fmt: skip


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members."""

    lr: float = 1e-4  # of encoder, actor and critic; humanoid: 8e-5
    discount: float = 0.99  # γ
    tau: float = 0.01  # step of the target critic
    stddev_start: float = 1.0  # σ of the policy falls from here
    stddev_end: float = 0.1  # to here
    stddev_steps: float = 500_000.0  # in so many agent steps; easy tasks: 100,000, hard ones: 2,000,000
    stddev_clip: float = 0.3  # of the policy's noise within updates
    augment: float = 1.0  # 1: images are shifted at random | 0: they are not
    augment_from: float = 0.0  # only from this agent step on
    augment_until: float = math.inf  # and only before this one
    weight_decay: float = 0.0  # L2: so much of each parameter is added to its gradient; paper: 1e-5
    l2_init_weight: float = 1e-2  # with algo.static.l2_init
    reset_interval: float = 100_000.0  # agent steps, with algo.static.reset: 10 in 2 million frames
    resets: float = math.inf  # no more than so many
    perturb_period: float = 50_000.0  # updates, with algo.static.perturb
    perturb_keep: float = 0.8  # α, of the critic's own parameters
    perturb_fresh: float = 0.2  # β, of fresh ones
    redo_period: float = 1000.0  # updates, with algo.static.redo
    redo_threshold: float = 0.025  # units are recycled up to this score; below 0: none
    inject_at: float = 500_000.0  # agent step, with algo.static.inject: frame 1 million

    def __post_init__(self) -> None:
        """Raises UsageError for a period below 1; traced values are not looked at."""
        for name in ("reset_interval", "perturb_period", "redo_period"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not 1 <= value < math.inf:
                raise UsageError(f"algo.hyper.{name}={value} must be at least 1")


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    batch_size: int = 256  # walker: 512
    feature_dim: int = 50  # width of the trunks; humanoid: 100
    hidden_dim: int = 1024
    encoder: str = "cnn"  # of pixels | identity: for environments seen by their state
    nstep: int = 3  # rewards of a return before it bootstraps; walker: 1
    stack: int = 3  # frames of an observation, as the environment stacks them
    warmup: int = 2000  # agent steps with uniform actions before the first update
    buffer_capacity: int = 1_000_000  # frames: one for each agent step, and one more for each episode
    frames_in: str = "device"  # memory of the replay's frames | host: where they do not fit on the device; same numbers
    running_episode: bool = False  # the episode being played is drawn from, too
    layer_norm: bool = False  # after every convolution and affine layer, before ReLU
    crelu: bool = False  # ReLU of both signs in the critic
    spectral_norm: bool = False  # of the first affine layer of actor and critic
    l2_init: bool = False  # the critic is pulled to its initial parameters
    reset: bool = False  # actor and critic begin anew at intervals
    perturb: bool = False  # shrink & perturb: the critic is mixed with a fresh one at intervals
    redo: bool = False  # dormant units are recycled at intervals
    inject: str = "none"  # plasticity injection: none | critic, into its heads | actor, into its policy
    inject_from: str = "fresh"  # the head injected: fresh | initial_copy, of the head's own initial parameters

    def __post_init__(self) -> None:
        """Raises UsageError for sizes below 1, and for options that are none or do not go together."""
        check_choices(self, CHOICES)
        if self.crelu and self.redo:
            raise UsageError("algo.static.redo finds no dormant units with algo.static.crelu: set one of them to false")
        if self.encoder == "identity" and self.redo:
            raise UsageError(
                "algo.static.redo recycles units of an encoder: set it to false, or algo.static.encoder=cnn"
            )
        check_least(self, batch_size=1, feature_dim=1, hidden_dim=1, nstep=1, stack=1, warmup=0, buffer_capacity=1)

    @property
    def intervenes(self) -> bool:
        """Whether anything is done to the networks besides learning."""
        return self.reset or self.perturb or self.redo or self.inject != "none"
