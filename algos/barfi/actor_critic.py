"""One-step actor-critic with a designer's reward, as BARFI is compared with: added, as a potential, or left out.

One step of both per `delta` episodes, on all of them; then they are dropped.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass

from algos.barfi import objectives
from algos.barfi.common import (
    ACTING,
    OPTIMISERS,
    act,
    block_metrics,
    check_choices,
    check_env,
    clip_each,
    optimiser,
    play_block,
    to_batch,
)  # fmt: skip
from algos.barfi.objectives import TIME_REDUCTIONS, Batch, Form
from algos.barfi.policy import Actor, feature_count, make_actor
from algos.barfi.reinforce import REWARDS
from algos.barfi.replay import Rows
from algos.barfi.rollout import Trajectory
from algos.core import Algorithm, Env, Key, Metrics, Params, Source, Spec
from algos.losses import descend
from algos.nets import affine, init_affine


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the paper's for GridWorld."""

    actor_lr: float = 0.005  # of the policy, and of features that it shares with the critic
    critic_lr: float = 0.005
    discount: float = 0.99
    aux_weight: float = 1.0  # w of the auxiliary reward


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    reward: str = "naive"  # r_p + w r_aux | potential: r_p shaped with w r_aux as the potential | primary: r_p alone
    delta: int = 3  # episodes of one policy, and of a step
    separate_features: bool = False  # where features are learnt: the critic has its own
    optimiser: str = "rmsprop"  # adam
    clip_norm: float | None = None  # of every step, each network by itself
    time_reduction: str = "mean_padded"  # over the horizon | sum
    same_start: bool = False  # every episode of a run starts alike
    acting: str = "most_probable"  # in evaluations: most_probable | sampled, as in training

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist."""
        choices = {"reward": REWARDS, "optimiser": OPTIMISERS, "time_reduction": TIME_REDUCTIONS, "acting": ACTING}
        check_choices(self, choices, ("delta",))


class Nets(NamedTuple):
    """Parameters, or gradients, or optimiser states of the two."""

    policy: Any  # {"body", "head"}
    critic: Any  # {"body", "head"}; the body is empty where the policy's is shared


class State(NamedTuple):
    """Everything that training changes."""

    nets: Nets
    optim: Nets
    start: jax.Array  # () uint32: seeds the reset of every episode where all start alike


def reward_of(batch: Batch, static: Static, hyper: Hyper) -> jax.Array:
    """What the critic predicts the sum of: (B, P)."""
    if static.reward == "potential":
        return objectives.potential_reward(batch, hyper.discount, hyper.aux_weight)
    return objectives.naive_reward(batch, hyper.aux_weight if static.reward == "naive" else 0.0)


def loss(nets: Nets, block: Trajectory, actor: Actor, static: Static, hyper: Hyper) -> jax.Array:
    """The critic's loss and the actor's, added."""
    share = jnp.full(block.mask.shape[0], 1.0 / block.mask.shape[0])
    batch = to_batch(Rows(block, share), actor, nets.policy["body"])
    own = static.separate_features and nets.critic["body"]
    features = actor.features(nets.critic["body"], block.obs) if own else batch.features
    value = affine(nets.critic["head"], features).squeeze(-1)
    errors = objectives.td_errors(reward_of(batch, static, hyper), value, batch.mask, hyper.discount)
    form = Form(actor.policy, time_reduction=static.time_reduction)
    actor_loss = objectives.actor_loss(nets.policy["head"], batch, errors, form)
    return objectives.critic_loss(errors, batch.mask) + actor_loss


def improve(state: State, block: Trajectory, actor: Actor, static: Static, hyper: Hyper) -> State:
    """One joint step, with an optimiser for each of the two."""
    gradient = jax.grad(loss)(state.nets, block, actor, static, hyper)
    after = [
        descend(optimiser(static.optimiser, rate), clip_each(slope, static.clip_norm), optim, params)
        for rate, slope, optim, params in zip((hyper.actor_lr, hyper.critic_lr), gradient, state.optim, state.nets)
    ]
    return State(Nets(*(params for params, _ in after)), Nets(*(optim for _, optim in after)), state.start)


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build the actor-critic for an environment with an auxiliary reward; `updates_per_step` counts episodes.

    Raises UsageError for an environment without an auxiliary reward or without a horizon.
    """
    check_env("barfi_actor_critic", env)
    actor = make_actor(env)
    rule: optax.GradientTransformation = optimiser(static.optimiser, 0.0)

    def init(key: Key, hyper: Hyper) -> State:
        policy_key, critic_key, start_key = jax.random.split(key, 3)
        body_key, head_key = jax.random.split(critic_key)
        critic = {
            "body": actor.init(body_key)["body"] if static.separate_features else {},
            "head": init_affine(head_key, feature_count(env), 1),
        }
        nets = Nets(actor.init(policy_key), critic)
        return State(nets, Nets(*(rule.init(params) for params in nets)), jax.random.bits(start_key))

    def step(key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
        play_key = jax.random.split(key, 3)[0]
        policy = state.nets.policy
        block = play_block(play_key, state.start, env, source, actor, policy, static.delta, static.same_start)
        return improve(state, block, actor, static, hyper), block_metrics(block)

    def act_in(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        params: Params = state.nets.policy
        return act(key, actor, params, obs, static.acting)

    return Algorithm(init, step, act_in, updates_per_step=static.delta)
