"""Settings of BARFI over PPO."""

from dataclasses import dataclass

from jax.tree_util import register_dataclass

from algos import hypergrad
from algos.barfi.common import ACTING, check_choices
from algos.barfi.rewards import PHI2_MODES
from algos.checks import check_least
from algos.core import UsageError

REWARDS = ("learnt", "naive", "potential", "primary")
CURVATURES = ("fisher", "surrogate")


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members."""

    actor_lr: float = 0.02
    reward_lr: float = 0.1  # of phi
    gamma_lr: float = 0.05  # of psi; 0: the discount stays as it starts
    entropy_weight: float = 0.05  # in units of normalised advantages
    clip: float = 0.2  # of the probability ratios
    gae_lambda: float = 0.95
    reward_l2: float = 0.0  # weight of the norms (not squared) of phi
    gamma_l2: float = 0.0  # weight of the discount itself
    damping: float = 1e-3  # at least, taken off the curvature's diagonal: it vanishes where the policy is certain
    margin: float = 0.05  # keeps the damped curvature from 0, see algos.hypergrad.Settings
    aux_weight: float = 1.0  # w of the auxiliary reward
    psi0: float = 4.6  # the learnt discount starts at sigmoid(psi0)
    discount: float = 0.99  # of the true reward


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    reward: str = "learnt"  # BARFI | naive: r_p + w r_aux | potential: r_p shaped with w r_aux | primary: r_p alone
    episodes: int = 64  # of a block, played in parallel
    epochs: int = 4  # passes over a block
    minibatches: int = 4  # of whole episodes, in a pass
    hypergrad: str = "cg"  # neumann, its step found from the curvature | identity | exact
    curvature: str = "fisher"  # surrogate: the Hessian of the inner objective, as in the paper
    loops: int = 10  # the most iterations of cg; terms of the Neumann series less one
    lanczos: int = 8  # products spent on seeing the curvature
    phi_start: str = "random"  # PyTorch's initialisation | primary: r_phi = r_p
    phi2_mode: str = "linear"  # multiplier of r_p: learnt | one, fixed as in the paper
    phi_state_dependent: bool = True  # false: three scalars that start at r_p + w r_aux
    clip_norm: float | None = 0.5  # of every step of the policy, each network by itself
    acting: str = "most_probable"  # in evaluations: most_probable | sampled, as in training

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist or do not go together."""
        choices = {
            "reward": REWARDS, "hypergrad": hypergrad.METHODS, "curvature": CURVATURES, "acting": ACTING,
            "phi_start": ("random", "primary"), "phi2_mode": PHI2_MODES,
        }  # fmt: skip
        check_choices(self, choices, ("epochs", "minibatches", "loops", "lanczos"))
        check_least(self, episodes=2)
        if self.episodes % self.minibatches:
            raise UsageError(
                f"algo.static.episodes={self.episodes} must be a multiple of algo.static.minibatches={self.minibatches}"
            )
