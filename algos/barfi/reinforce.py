"""REINFORCE with a designer's reward, as BARFI is compared with: added, as a potential, or left out.

The paper's code takes one step per `delta` episodes, on the newest alone (`data=newest`). Next to BARFI's 15 inner
steps that is little: `data=all` uses every episode, `data=replay` makes as many steps as BARFI, from the same ring.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass

from algos.barfi.common import (
    ACTING,
    OPTIMISERS,
    act,
    ascend,
    block_metrics,
    check_choices,
    check_env,
    clip_each,
    optimiser,
    play_block,
    running_mean,
    to_batch,
)  # fmt: skip
from algos.barfi.objectives import TIME_REDUCTIONS, Batch, Form, naive_returns, potential_returns, reinforce_loss
from algos.barfi.policy import Actor, make_actor
from algos.barfi.replay import Ring, Rows, draw, empty_ring, newest, push
from algos.core import Algorithm, Env, Key, Metrics, Params, Source, Spec

REWARDS = ("naive", "potential", "primary")
BASELINE_RATE = 0.01


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the paper's for GridWorld."""

    actor_lr: float = 0.005
    entropy_weight: float = 0.25
    discount: float = 0.99
    aux_weight: float = 1.0  # w of the auxiliary reward


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    reward: str = "naive"  # r_p + w r_aux | potential: r_p shaped with w r_aux as the potential | primary: r_p alone
    data: str = "newest"  # one step per block on its last episode | all: on all its episodes | replay: as BARFI's
    delta: int = 3  # episodes of one policy
    inner_mul: int = 5  # with data=replay: steps per episode
    batch_size: int = 1  # with data=replay: episodes of a step
    buffer_size: int = 1000  # with data=replay: episodes kept
    optimiser: str = "rmsprop"  # adam
    clip_norm: float | None = None  # of every step, head and features each by itself
    running_baseline: bool = False  # taken off the returns
    time_reduction: str = "mean_padded"  # over the horizon | sum
    same_start: bool = False  # every episode of a run starts alike
    acting: str = "most_probable"  # in evaluations: most_probable | sampled, as in training

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist."""
        choices = {
            "reward": REWARDS, "data": ("newest", "all", "replay"), "optimiser": OPTIMISERS,
            "time_reduction": TIME_REDUCTIONS, "acting": ACTING,
        }  # fmt: skip
        check_choices(self, choices, ("delta", "inner_mul", "batch_size", "buffer_size"))


class Learner(NamedTuple):
    """What the steps change."""

    policy: Params  # {"body", "head"}
    optim: optax.OptState
    baseline: tuple[jax.Array, jax.Array]  # value, and whether (0 or 1) there is one


class State(NamedTuple):
    """Everything that training changes."""

    learner: Learner
    ring: Ring
    start: jax.Array  # () uint32: seeds the reset of every episode where all start alike


def returns_of(batch: Batch, static: Static, hyper: Hyper) -> jax.Array:
    """What weighs log π: (B, P)."""
    if static.reward == "potential":
        return potential_returns(batch, hyper.discount, hyper.aux_weight)
    return naive_returns(batch, hyper.discount, hyper.aux_weight if static.reward == "naive" else 0.0)


def improve(learner: Learner, rows: Rows, actor: Actor, static: Static, hyper: Hyper) -> Learner:
    """One step of the policy."""
    form = Form(actor.policy, time_reduction=static.time_reduction)

    def value(policy: Params) -> tuple[jax.Array, jax.Array]:
        batch = to_batch(rows, actor, policy["body"])
        returns = returns_of(batch, static, hyper)
        weight = returns - learner.baseline[0]
        return -reinforce_loss(policy["head"], batch, weight, form, entropy=hyper.entropy_weight), returns

    gradient, returns = jax.grad(value, has_aux=True)(learner.policy)
    rule = optimiser(static.optimiser, hyper.actor_lr)
    policy, optim = ascend(rule, clip_each(gradient, static.clip_norm), learner.optim, learner.policy)
    baseline = running_mean(learner.baseline, returns, BASELINE_RATE) if static.running_baseline else learner.baseline
    return Learner(policy, optim, baseline)


def improve_on_block(
    key: Key, learner: Learner, ring: Ring, actor: Actor, static: Static, hyper: Hyper
) -> Learner:  # fmt: skip
    """The steps that follow a block: one, or as many as BARFI makes."""
    if static.data != "replay":
        return improve(learner, newest(ring, 1 if static.data == "newest" else static.delta), actor, static, hyper)

    def one(i: jax.Array, learner: Learner) -> Learner:
        return improve(learner, draw(jax.random.fold_in(key, i), ring, static.batch_size), actor, static, hyper)

    return jax.lax.fori_loop(0, static.delta * static.inner_mul, one, learner)


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build REINFORCE for an environment with an auxiliary reward; `updates_per_step` counts episodes.

    Raises UsageError for an environment without an auxiliary reward or without a horizon.
    """
    check_env("barfi_reinforce", env)
    actor = make_actor(env)
    capacity = max(static.buffer_size, static.delta) if static.data == "replay" else static.delta

    def play(key: Key, start: jax.Array, policy: Params, source: Source) -> Any:
        return play_block(key, start, env, source, actor, policy, static.delta, static.same_start)

    def init(key: Key, hyper: Hyper) -> State:
        policy_key, _, start_key = jax.random.split(key, 3)  # as BARFI does: equal seeds give equal policies
        policy, start = actor.init(policy_key), jax.random.bits(start_key)
        block = jax.eval_shape(play, key, start, policy, env.params)
        learner = Learner(policy, optimiser(static.optimiser, 0.0).init(policy), (jnp.zeros(()), jnp.zeros(())))
        return State(learner, empty_ring(capacity, block), start)

    def step(key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
        play_key, _, improve_key = jax.random.split(key, 3)
        block = play(play_key, state.start, state.learner.policy, source)
        ring = push(state.ring, block)
        learner = improve_on_block(improve_key, state.learner, ring, actor, static, hyper)
        return State(learner, ring, state.start), block_metrics(block)

    def act_in(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return act(key, actor, state.learner.policy, obs, static.acting)

    return Algorithm(init, step, act_in, updates_per_step=static.delta)
