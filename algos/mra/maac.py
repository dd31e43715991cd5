"""MAAC, multi-actor-attention-critic (Iqbal and Sha, ICML 2019, arXiv 1810.02912), on particle games.

Each agent's critic sees its own state and, by attention with several heads, the encoded states and actions of others;
it gives values of all own actions, so that their mean under the policy is a baseline that leaves the agent's own action
out. Policies are soft: the entropy's weight is 1/α'.

All agents of a kind have one actor and one last part of the critic, everything else is shared by all, so that the
population is data. Episodes, replay and reward normalisation are MRA's, actors those of `maddpg`. What an agent is
encoded from is its own vector, actions included where it is looked at. Unlike the original, inputs are not normalised
by batches: those would mix populations.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass

from algos.checks import check_least
from algos.core import Algorithm, Env, Key, Loss, Metrics, Params, Spec, UsageError
from algos.losses import descend, polyak
from algos.mra import initial, nets, play, settings
from algos.mra.initial import ACTIONS
from algos.mra.learn import Draws, clip, draw_update, rule
from algos.mra.objectives import (
    Batch,
    advantages,
    agent_mean,
    draw_action,
    over_agents,
    soft_policy_loss,
    soft_target,
)  # fmt: skip
from algos.mra.observe import Observation
from algos.mra.replay import Replay, World
from algos.mra.train import Method, assemble, repeat
from algos.nets import affine

ANY_POPULATION = True  # it acts in populations that it did not learn in
check_other = play.check_other


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members: MAAC's, and MRA's where MAAC's are not known."""

    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    l2: float = 3e-4  # MRA's; added to gradients before Adam's moments
    discount: float = 0.99  # γ
    reward_scale: float = 100.0  # α': the entropy's weight is 1/α'
    tau: float = 0.001  # rate of the targets
    clip_factor: float = 10.0  # MRA's; the critic's gradients are clipped at so much per agent
    attention_penalty: float = 1e-3  # ours; weight of squared attention logits in the critic's loss
    reward_epsilon: float = 1e-6  # MRA's; added to the rewards' standard deviation


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program. All but `hidden` and `heads` are MRA's, see `settings.Static`."""

    hidden: int = 128  # width of all layers of the critic
    heads: int = 4  # of its attention
    envs: int = 12
    batch_size: int = 1024
    buffer_size: int = 200_000
    cycle_steps: int = 100
    cycle_updates: int = 10
    discount_entropy: bool = True  # of the TD target, as the paper has it
    reward_statistics: str = "per_slot"
    policy_self_features: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist, sizes below 1, and heads that do not share the width."""
        check_least(self, hidden=1, heads=1)
        if self.hidden % self.heads:
            raise UsageError(
                f"algo.static.hidden={self.hidden} is no multiple of algo.static.heads={self.heads}: set one that is"
            )
        playing(self)


def playing(static: Static) -> settings.Static:
    """The settings of episodes, rings and actors; no graphs are kept."""
    return settings.adopt(settings.Static, static, skills=1, graphs="recompute")


class Learner(NamedTuple):
    """Everything that updates change."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_optim: optax.OptState
    critic_optim: optax.OptState


def entries(static: Static, world: World) -> tuple[Params, Params]:
    """What the networks (actor, critic) are drawn from."""
    size, uniform = static.hidden, initial.uniform
    layer = partial(initial.affine, kernel=uniform, bias=uniform)
    critic = {
        "state": layer(world.width, size),
        "state_action": layer(world.width + ACTIONS, size),
        "query": layer(size, size)["kernel"],  # of all heads, head-major
        "key": layer(size, size)["kernel"],
        "value": layer(size, size),
        "out": initial.mlp((2 * size, size, ACTIONS), uniform, uniform, (world.kinds,)),
    }
    return initial.attentive_policy(playing(static), world.width, world.kinds), critic


def init_learner(key: Key, static: Static, world: World) -> Learner:
    """A learner before its first update; targets are copies."""
    actor, critic = initial.draw(key, entries(static, world))
    start = rule(0.0, 0.0).init
    return Learner(actor, critic, actor, critic, start(actor), start(critic))


def split(x: jax.Array, heads: int) -> jax.Array:
    """(..., N, heads · d) -> (heads, ..., N, d)."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], heads, -1), -2, 0)


class Attention(NamedTuple):
    """How agents look at others: the heads' graphs, and the logits these are of, both (heads, ..., N, N)."""

    graph: jax.Array
    logits: jax.Array


def attend(critic: Params, state: jax.Array, seen: jax.Array, obs: Observation, heads: int) -> Attention:
    """Attention of agents in states (..., N, hidden) over others as they are seen (..., N, hidden)."""
    query, key = (split(x @ critic[name], heads) for name, x in (("query", state), ("key", seen)))
    logits = jnp.einsum("h...id,h...jd->h...ij", query, key)
    return Attention(nets.pair_softmax(logits, obs, query.shape[-1] ** 0.5), logits)


def values(critic: Params, obs: Observation, action: jax.Array, heads: int) -> tuple[jax.Array, Attention]:
    """Q_i(o, a_i, a_-i) of all own actions a_i, (..., N, 5), where others act by (..., N).

    An agent's own entry of `action` has no influence on its values.
    """
    relu = jax.nn.leaky_relu
    state = relu(affine(critic["state"], obs.own))
    with_action = jnp.concatenate([obs.own, jax.nn.one_hot(action, ACTIONS)], -1)
    seen = relu(affine(critic["state_action"], with_action))
    attention = attend(critic, state, seen, obs, heads)
    value = split(relu(affine(critic["value"], seen)), heads)
    mixed = jnp.moveaxis(jnp.einsum("h...ij,h...jd->h...id", attention.graph, value), 0, -2)
    both = jnp.concatenate([state, mixed.reshape(state.shape)], -1)

    def last(out: Params) -> jax.Array:
        return affine(out["fc2"], relu(affine(out["fc1"], both)))

    return nets.of_kind(jax.vmap(last)(critic["out"]), obs), attention


def td_target(learner: Learner, batch: Batch, noise: jax.Array, static: Static, hyper: Hyper) -> jax.Array:
    """y_i = r_i + γ (1 - d) (Q̄_i(o', a') - log π̄(a'_i) / α'), (B, N), a' drawn by Gumbel noise (B, N, 5)."""
    log_probs = jax.nn.log_softmax(nets.attentive_logits(learner.target_actor, batch.next_obs))
    action = draw_action(log_probs, noise)
    q, _ = values(learner.target_critic, batch.next_obs, action, static.heads)
    scaled = nets.pick(log_probs, action) / hyper.reward_scale
    return soft_target(batch, nets.pick(q, action), scaled, hyper.discount, static.discount_entropy)


def critic_loss(critic: Params, batch: Batch, target: jax.Array, static: Static, hyper: Hyper) -> Loss:
    """mean_b Σ_i (Q_i - y_i)², and the penalty on mean squared attention logits, summed over heads."""
    outputs, attention = values(critic, batch.obs, batch.action, static.heads)
    q = nets.pick(outputs, batch.action)
    error = over_agents(jnp.square(q - target), batch.obs).mean()
    pairs = batch.obs.pairs
    squares = (jnp.square(attention.logits).sum(0) * pairs).sum(-1) / jnp.maximum(pairs.sum(-1), 1.0)
    loss = error + hyper.attention_penalty * over_agents(squares, batch.obs).mean()
    return loss, {"critic_loss": error, "q": agent_mean(q, batch.obs), "q_target": agent_mean(target, batch.obs)}


def actor_loss(actor: Params, critic: Params, obs: Observation, noise: jax.Array, static: Static, hyper: Hyper) -> Loss:
    """mean_b Σ_i log π(a_i) · stop(log π(a_i) / α' - A_i(o, a)), all actions drawn anew by noise (B, N, 5).

    A_i(o, a) = Q_i(o, a) - Σ_a'_i π(a'_i) Q_i(o, (a'_i, a_-i)), the paper's multi-agent advantage.
    """
    log_probs = jax.nn.log_softmax(nets.attentive_logits(actor, obs))
    action = draw_action(log_probs, noise)
    outputs, _ = values(critic, obs, action, static.heads)
    return soft_policy_loss(log_probs, action, advantages(outputs, log_probs), obs, hyper.reward_scale)


def update(learner: Learner, batch: Batch, draws: Draws, static: Static, hyper: Hyper) -> tuple[Learner, Metrics]:
    """A step of the critic, one of the actors, and one of the targets."""
    target = td_target(learner, batch, draws.next_action, static, hyper)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(learner.critic, batch, target, static, hyper)
    grads, norm = clip(grads, hyper.clip_factor * batch.obs.mask[0].sum())
    critic, critic_optim = descend(rule(hyper.critic_lr, hyper.l2), grads, learner.critic_optim, learner.critic)
    grads, of_actor = jax.grad(actor_loss, has_aux=True)(learner.actor, critic, batch.obs, draws.action, static, hyper)
    actor, actor_optim = descend(rule(hyper.actor_lr, hyper.l2), grads, learner.actor_optim, learner.actor)
    target_actor = polyak(actor, learner.target_actor, hyper.tau)
    target_critic = polyak(critic, learner.target_critic, hyper.tau)
    moved = Learner(actor, critic, target_actor, target_critic, actor_optim, critic_optim)
    return moved, metrics | of_actor | {"critic_grad_norm": norm}


def choose(key: Key, learner: Learner, obs: Observation, skill: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions (..., N), and empty graphs (..., 0, 0), which are not kept. Skills are of no use."""
    logits = nets.attentive_logits(learner.actor, obs)
    return draw_action(logits, jax.random.gumbel(key, logits.shape)), jnp.zeros((*obs.mask.shape[:-1], 0, 0))


def cycle(
    key: Key, learner: Learner, rings: Replay, index: jax.Array, world: World, static: Static, hyper: Hyper
) -> tuple[Learner, Metrics]:
    """The updates on a game that fall due together."""

    def one(key: Key, learner: Learner, batch: Batch) -> tuple[Learner, Metrics]:
        return update(learner, batch, draw_update(key, batch), static, hyper)

    scalars = settings.adopt(settings.Hyper, hyper)
    learner, metrics, _ = repeat(key, learner, rings, index, world, playing(static), scalars, one)
    return learner, metrics


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build MAAC for the populations of a particle game; the `source` of `step` is `env.params`.

    `updates_per_step` counts episodes of each game. Raises UsageError for an environment that is no particle game.
    """
    world = play.world_of("mra_maac", env)
    method = Method(
        lambda key: init_learner(key, static, world),
        lambda key, learner, seen, hyper: jnp.ones((*seen.mask.shape, 1)),
        lambda key, learner, rings, index, hyper: cycle(key, learner, rings, index, world, static, hyper),
        choose,
    )
    return assemble(method, playing(static), spec, env, world)
