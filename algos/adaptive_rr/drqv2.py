"""Adaptive Replay Ratio over DrQ-v2, as in the paper: 1/2, and 2 once the critic's active units have settled.

`run.updates` counts agent steps.
"""

from dataclasses import dataclass

from jax.tree_util import register_dataclass

from algos.adaptive_rr.loop import Loop, LoopStatic, State, make_algorithm
from algos.core import Algorithm, Env, Spec
from algos.drqv2 import settings
from algos.drqv2.interventions import check_measurable
from algos.drqv2.learner import make_learner
from algos.drqv2.replay_ratio import RatioHyper, check_ratios

__all__ = ["Hyper", "State", "Static", "check_settings", "make"]


@register_dataclass
@dataclass
class Hyper(settings.Hyper, RatioHyper):
    """Scalars that may differ between members: DrQ-v2's and the rule's."""

    def __post_init__(self) -> None:
        """Raises UsageError for numbers out of range; traced values are not looked at."""
        settings.Hyper.__post_init__(self)
        RatioHyper.__post_init__(self)


@dataclass(unsafe_hash=True)
class Static(settings.Static, LoopStatic):
    """What shapes the compiled program: DrQ-v2's and the loop's."""

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist and for sizes out of range."""
        settings.Static.__post_init__(self)
        LoopStatic.__post_init__(self)
        check_measurable(self)


def check_settings(static: Static, hyper: Hyper) -> None:
    """Raise UsageError for a ratio that needs more updates in an agent step than there are slots for."""
    check_ratios(static, hyper)


def make_loop(static: Static, env: Env) -> Loop:
    """What `make` builds the algorithm of; raises UsageError likewise."""
    return Loop(make_learner(static, env), env, static, lambda hyper: hyper)


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build it for an environment; the `source` of `step` is `env.params`.

    Raises UsageError for an environment without pixels unless the encoder is the identity, and for sizes that do not
    fit it.
    """
    return make_algorithm(make_loop(static, env))
