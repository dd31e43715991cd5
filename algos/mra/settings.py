"""Settings of MRA.

The defaults are those recommended here. The original code differs in what `OFFICIAL` lists; what else it sets is the
default.

Two of the methods that MRA is compared with are settings: one game alone is an environment of one population
(env=resource-6), where the task step has one class and teaches nothing; one policy for all games without skills is
`UNIMODAL`.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from jax.tree_util import register_dataclass

from algos.checks import check_choices, check_least
from algos.core import UsageError

CHOICES = {
    "next_action_obs": ("next", "current"),
    "critic_loss": ("sum_td", "per_agent"),
    "baseline": ("none", "value_mean"),
    "graphs": ("stored", "recompute"),
    "relation": ("diversity", "policy"),
    "reward_statistics": ("per_slot", "per_kind"),
    "acting_skills": ("shared", "per_env"),
    "task_labels": ("one", "mixed"),
    "task_predictor_indexing": ("correct", "scrambled"),
}


Settings = TypeVar("Settings")


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members."""

    policy_lr: float = 3e-4
    critic_lr: float = 3e-4
    relation_lr: float = 3e-4
    task_lr: float = 3e-4  # of task encoder and predictor
    l2: float = 3e-4  # added to gradients before Adam's moments, biases too
    discount: float = 0.95  # γ
    reward_scale: float = 30.0  # α': the entropy's weight is 1/α'
    clip_factor: float = 10.0  # critic's and relation network's gradients are clipped at so much per agent
    skill_divisor: float = 4.0  # of the task encoder's logits
    reward_epsilon: float = 1e-6  # added to the rewards' standard deviation; official: 0


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    skills: int = 6  # Z: size of the latent space, one attention head of the relation network each
    resamples: int = 5  # K: skills drawn to estimate how probable an action is under any skill
    envs: int = 12  # played side by side
    batch_size: int = 1024
    buffer_size: int = 200_000  # transitions kept of each game; official: 1,000,000
    cycle_steps: int = 100  # environment steps of a game between two cycles
    cycle_updates: int = 10  # critic and policy steps of a cycle, before one relation and one task step
    # the next action of the TD target is drawn at the next observation | official: current, as is its log-probability
    next_action_obs: str = "next"
    # sum_td (official): squared error of sums over agents, which leaves single values undetermined | per_agent: sum of
    # squared errors, for competitive games
    critic_loss: str = "sum_td"
    # of the policy's gradient: none (official) | value_mean: mean of the critic's outputs under the policy, which are
    # no counterfactual values, as the action taken is an input too
    baseline: str = "none"
    graphs: str = "stored"  # in updates: those acted with (official) | recompute: of the skills acted with
    # what the relation network learns by: diversity, its own step at a cycle's end | policy: the policy's loss, at each
    # update, through recomputed graphs
    relation: str = "diversity"
    discount_entropy: bool = False  # of the TD target; official: the entropy is neither discounted nor masked
    reward_statistics: str = "per_slot"  # rewards are normalised for each agent by itself (official) | per_kind
    acting_skills: str = "shared"  # one draw of skills for all environments played side by side (official) | per_env
    task_labels: str = "one"  # games of a task step: the present one (official) | mixed: all, losses summed
    task_predictor_indexing: str = "correct"  # official: scrambled, graphs of other agents and rows
    mi_include_positive: bool = False  # the relation reward's mean has the graph acted with too: a bound of log(K + 1)
    policy_self_features: bool = False  # the policy sees its own vector too; official: own velocity is invisible
    key_bias: bool = False  # of attention keys: has no effect, but official has it and Adam moves it along rounding

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist, and for sizes below 1."""
        check_choices(self, CHOICES)
        check_least(self, skills=1, resamples=1, envs=1, batch_size=1, cycle_steps=1, cycle_updates=1)
        if self.buffer_size < self.batch_size:
            raise UsageError(
                f"algo.static.buffer_size={self.buffer_size} is less than a batch of {self.batch_size}: set it higher"
            )
        if self.relation == "policy" and self.graphs != "recompute":
            raise UsageError(
                "algo.static.relation=policy learns through recomputed graphs: set algo.static.graphs=recompute"
            )


def adopt(kind: type[Settings], given: Any, **fixed: Any) -> Settings:
    """Settings of this kind with the values that `given`, of another kind, has of the same name, and `fixed` ones."""
    shared = {f.name for f in fields(kind)} & {f.name for f in fields(given)}  # type: ignore[arg-type]
    return kind(**{name: getattr(given, name) for name in shared} | fixed)


UNIMODAL: dict[str, Any] = {"skills": 1, "relation": "policy", "graphs": "recompute"}  # of one policy for all games

OFFICIAL: dict[str, dict[str, Any]] = {  # settings of the original code that are not the defaults
    "static": {
        "next_action_obs": "current",
        "task_predictor_indexing": "scrambled",
        "key_bias": True,
        "buffer_size": 1_000_000,
    },
    "hyper": {"reward_epsilon": 0.0},
}
