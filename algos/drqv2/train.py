"""DrQ-v2 (Yarats et al., ICLR 2022, arXiv 2107.09645), online, with a constant replay ratio.

The loop is that of Adaptive Replay Ratio, with a ratio that never changes: `run.updates` counts agent steps.
"""

from dataclasses import dataclass

from jax.tree_util import register_dataclass

from algos.adaptive_rr.loop import Loop, LoopStatic, State, make_algorithm
from algos.checks import check_least
from algos.core import Algorithm, Env, Spec
from algos.drqv2 import settings
from algos.drqv2.learner import make_learner
from algos.drqv2.replay_ratio import RatioHyper, check_ratio

__all__ = ["Hyper", "State", "Static", "check_settings", "make"]


@register_dataclass
@dataclass
class Hyper(settings.Hyper):
    """Scalars that may differ between members."""

    replay_ratio: float = 0.5  # updates per agent step, rounded to multiples of 1/2520

    def __post_init__(self) -> None:
        """Raises UsageError for numbers out of range; traced values are not looked at."""
        super().__post_init__()
        check_ratio("replay_ratio", self.replay_ratio)


@dataclass(unsafe_hash=True)
class Static(settings.Static):
    """What shapes the compiled program."""

    max_updates: int = 2  # of one agent step: the ratio, rounded up
    priming: int = 0  # heavy priming: so many updates at once when the warm-up ends
    prefetch: int = 0  # batches drawn ahead: an update learns from the one drawn so many updates before

    def __post_init__(self) -> None:
        """Raises UsageError for sizes out of range."""
        super().__post_init__()
        check_least(self, max_updates=1, priming=0, prefetch=0)


def check_settings(static: Static, hyper: Hyper) -> None:
    """Raise UsageError for a ratio that needs more updates in an agent step than there are slots for."""
    check_ratio("replay_ratio", hyper.replay_ratio, static.max_updates)


def constant(hyper: Hyper) -> RatioHyper:
    """The rule that keeps the ratio: no change is small enough for a switch."""
    return RatioHyper(low_ratio=hyper.replay_ratio, high_ratio=hyper.replay_ratio, gap=-1.0)


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build DrQ-v2 for an environment; the `source` of `step` is `env.params`.

    Raises UsageError for an environment without pixels unless the encoder is the identity, and for sizes that do not
    fit it.
    """
    ratio = LoopStatic(
        max_updates=static.max_updates, warmup=static.warmup, priming=static.priming, prefetch=static.prefetch
    )
    return make_algorithm(Loop(make_learner(static, env), env, ratio, constant))
