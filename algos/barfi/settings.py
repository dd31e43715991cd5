"""Settings of BARFI, and its timetable: what happens after which episode.

The defaults are those of the paper's code for GridWorld; where it sweeps, one of the values it tries.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from algos.barfi.common import ACTING, OPTIMISERS, check_choices
from algos.barfi.objectives import TIME_REDUCTIONS
from algos.barfi.rewards import PHI2_MODES
from algos.checks import check_least
from algos.core import UsageError

NAIVE_EPISODES = 2  # of the step on r_p + r_aux
CHOICES = {
    "schedule": ("gridworld", "mountaincar", "halfcheetah"),
    "hypergrad": ("neumann", "identity", "cg", "exact", "unrolled", "none"),
    "neumann_step": ("given", "auto"),
    "hessian": ("full", "fisher_plus"),
    "phi_start": ("random", "primary"),
    "phi2_mode": PHI2_MODES,
    "time_reduction": TIME_REDUCTIONS,
    "optimiser": OPTIMISERS,
    "acting": ACTING,
}


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members."""

    actor_lr: float = 0.005
    reward_lr: float = 0.005  # of φ
    gamma_lr: float = 0.005  # of ψ; 0: the discount stays as it starts
    entropy_weight: float = 0.25  # of the inner objective
    reward_l2: float = 0.0  # weight of the norms (not squared) of φ
    gamma_l2: float = 4.0  # weight of the discount itself
    neumann_alpha: float = 5e-4  # step of the Neumann series; not looked at with algo.static.neumann_step=auto
    damping: float = 0.0  # taken off the diagonal of the Hessian
    aux_weight: float = 1.0  # w of the auxiliary reward
    psi0: float = 4.6  # the learnt discount starts at sigmoid(psi0)
    discount: float = 0.99  # of the true reward, in the outer objective
    theta_l2: float = 0.0  # weight of half the squared norm of the policy's head, in the inner objective

    def __post_init__(self) -> None:
        """Raises UsageError for a Neumann step that is not positive; traced values are not looked at."""
        if isinstance(self.neumann_alpha, int | float) and self.neumann_alpha <= 0.0:
            raise UsageError(f"algo.hyper.neumann_alpha={self.neumann_alpha} must be positive, e.g. 5e-4")


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    # when naive, inner and outer steps are made: gridworld (also CartPole) | mountaincar | halfcheetah, see `timetable`
    schedule: str = "gridworld"
    delta: int = 3  # episodes of one policy; training goes in blocks of so many
    inner_mul: int = 5  # inner steps per episode
    first_mul: int = 150  # more inner steps, once, after as many episodes
    hess_mul: int = 15  # the Hessian is taken on so many batches of older episodes
    batch_size: int = 1  # episodes of an inner step
    buffer_size: int = 1000  # episodes kept
    on_set_extra: int = 0  # the paper's code has 1: an episode of the policy before among the newest
    # neumann | identity (first-order) | cg | exact | unrolled: through the inner steps | none: the reward stays
    hypergrad: str = "neumann"
    loops: int = 5  # K of the Neumann series, K + 1 terms; the most iterations of cg
    neumann_step: str = "given"  # given: hyper.neumann_alpha | auto: 1/|lambda|, of the largest curvature seen
    lanczos: int = 8  # Hessian products spent on seeing the curvature; 0: divergence goes unseen
    compare: int = 0  # iterations of conjugate gradients that the hypergradient is compared with
    hessian: str = "full"  # fisher_plus: of positive returns and without entropy, never indefinite
    phi_start: str = "random"  # PyTorch's initialisation | primary: r_φ = r_p
    phi2_mode: str = "one"  # multiplier of r_p: fixed at one | linear, learnt
    phi_state_dependent: bool = True  # false: φ are three scalars and start at r_p + w r_aux
    optimiser: str = "rmsprop"  # of everything; adam
    clip_norm: float | None = None  # of every optimiser step, each network by itself
    running_baselines: bool = False  # taken off the returns
    time_reduction: str = "mean_padded"  # over the horizon | sum
    importance_clip: float | None = None  # largest importance ratio of old episodes; null: no ratios, as in the paper
    same_start: bool = False  # every episode of a run starts alike, as the paper's HalfCheetah
    acting: str = "most_probable"  # in evaluations: most_probable | sampled, as in training

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist or do not go together."""
        check_choices(self, CHOICES, ("delta", "inner_mul", "hess_mul", "batch_size", "buffer_size"))
        check_least(self, first_mul=0, on_set_extra=0, loops=0, lanczos=0, compare=0)
        needed = max(self.delta + self.on_set_extra, NAIVE_EPISODES)
        if self.buffer_size < needed:
            raise UsageError(f"algo.static.buffer_size={self.buffer_size} is less than the {needed} newest episodes")
        if self.neumann_step == "auto" and self.lanczos == 0:
            raise UsageError("algo.static.neumann_step=auto needs the curvature: set algo.static.lanczos, e.g. 8")
        if self.phi_start == "primary" and not self.phi_state_dependent:
            raise UsageError(
                "algo.static.phi_start=primary is of a reward that depends on the state: set one of the two"
            )

    @property
    def steps(self) -> int:
        """N: inner steps of a block."""
        return self.delta * self.inner_mul

    @property
    def first_block(self) -> int:
        """Episodes played when the first block ends that is followed by inner steps."""
        return self.delta * ((self.first_mul + self.inner_mul) // self.delta + 1)


class Plan(NamedTuple):
    """How many steps of each kind follow a block, in this order. Each is () int32."""

    outer: jax.Array
    naive: jax.Array  # on r_p + w r_aux
    inner: jax.Array  # on the learnt reward


def timetable(static: Static, episodes: jax.Array) -> Plan:
    """What is done once `episodes` () have been played, a multiple of delta.

    Until more than first_mul + inner_mul have been played there is one naive step after each block (in HalfCheetah
    none). Then come first_mul + N inner steps (in MountainCar none yet), and from the next block on one outer step and
    N inner steps. Unrolled outer steps contain the inner ones; they begin after inner_mul episodes.
    """
    of = lambda flag, size=1: jnp.where(flag, size, 0).astype(jnp.int32)  # noqa: E731
    if static.hypergrad == "unrolled":
        return Plan(of(episodes > static.inner_mul), of(episodes < 0), of(episodes < 0))
    first, later = episodes == static.first_block, episodes > static.first_block
    opening = 0 if static.schedule == "mountaincar" else static.steps + static.first_mul
    return Plan(
        outer=of(later & (static.hypergrad != "none")),
        naive=of(~later & (static.schedule != "halfcheetah")),
        inner=of(first, opening) + of(later, static.steps),
    )
