"""MADDPG (arXiv 1706.02275) with attention over other agents, on particle games.

Every agent has an actor and a centralised critic of its own. Both are MRA's networks with an attention of their own in
place of the relation graph. Actors learn by the critic's gradient through straight-through Gumbel-softmax actions,
critics by their own agent's temporal difference, without entropy. Episodes, replay and reward normalisation are MRA's.

An agent is its slot: in another population there would be agents that nobody has trained, and in games of several
populations the last slots learn in the larger ones only. With `share=true` all agents of a kind have one actor, and all
agents one critic. Each critic looks at all pairs, so that without sharing an update of N agents costs N times as much.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from algos.core import Algorithm, Env, Key, Loss, Metrics, Params, Spec
from algos.losses import descend, polyak
from algos.mra import initial, nets, play, settings
from algos.mra.initial import ACTIONS
from algos.mra.learn import rule
from algos.mra.objectives import Batch, agent_mean, draw_action, draw_skill, over_agents
from algos.mra.observe import Observation
from algos.mra.replay import Replay, World
from algos.mra.train import Method, assemble, repeat
from algos.nets import affine

check_other = play.check_other


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members."""

    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    l2: float = 3e-4  # added to gradients before Adam's moments
    discount: float = 0.95
    tau: float = 0.01  # rate of the targets
    reward_epsilon: float = 1e-6  # added to the rewards' standard deviation


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program. All but `share` are MRA's, see `settings.Static`."""

    share: bool = False  # one actor for all agents of a kind, and one critic
    envs: int = 12
    batch_size: int = 1024
    buffer_size: int = 200_000
    cycle_steps: int = 100
    cycle_updates: int = 10
    reward_statistics: str = "per_slot"
    policy_self_features: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist, and for sizes below 1."""
        playing(self)


def playing(static: Static) -> settings.Static:
    """The settings of episodes, rings and networks; no graphs are kept."""
    return settings.adopt(settings.Static, static, skills=1, graphs="recompute")


class Learner(NamedTuple):
    """Everything that updates change. Leading axis of all arrays: U owners of parameters, N agents or 1 for all."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_optim: optax.OptState
    critic_optim: optax.OptState


class Draws(NamedTuple):
    """Random numbers of an update."""

    next_action: jax.Array  # (B, N, 5), standard Gumbel
    action: jax.Array  # (B, N, 5), uniform


def entries(static: Static, world: World) -> tuple[Params, Params]:
    """What the networks (actor, critic) of one owner are drawn from."""
    shape, width, kinds = playing(static), world.width, world.kinds
    return initial.attentive_policy(shape, width, kinds), initial.critic(shape, width, kinds)


def init_learner(key: Key, static: Static, world: World) -> Learner:
    """A learner before its first update; targets are copies."""
    keys = jax.random.split(key, 1 if static.share else world.agents)
    actor, critic = jax.vmap(lambda key: initial.draw(key, entries(static, world)))(keys)
    start = jax.vmap(rule(0.0, 0.0).init)
    return Learner(actor, critic, actor, critic, start(actor), start(critic))


def served(actors: Params, agents: int) -> jax.Array:
    """(U, N): 1 where an owner's parameters are those of an agent."""
    owners = jax.tree.leaves(actors)[0].shape[0]
    return jnp.ones((1, agents)) if owners == 1 else jnp.eye(agents)


def all_logits(actors: Params, obs: Observation, mine: jax.Array) -> jax.Array:
    """Logits (..., N, 5) of every agent by its own owner's actor; mine (U, N)."""
    logits = jax.lax.map(lambda actor: nets.attentive_logits(actor, obs), actors)
    return jnp.einsum("un,u...na->...na", mine, logits)


def values(critic: Params, obs: Observation, own: jax.Array, others: jax.Array) -> jax.Array:
    """Q_i(o, a_i, a_-i), (..., N), by one owner's critic, of one-hot actions (..., N, 5).

    Where agent i is itself, its action is that in `own`; where it is one of the others of agent j, that in `others`.
    """
    graph = nets.critic_attention(critic, obs)
    value_net = critic["value_net"]
    seen = nets.aggregate(value_net, graph, nets.pair_hidden(value_net["fc1"], obs))
    mine, theirs = (jnp.concatenate([seen, action], -1) for action in (own, others))
    context = nets.mlp(critic["mix_value"], mine) + graph @ nets.mlp(critic["mix_value"], theirs)
    both = jnp.concatenate([context, nets.mlp(critic["self_value"], mine)], -1)
    outputs = nets.of_kind(jax.vmap(affine, (0, None))(critic["out"], both), obs)
    return (outputs * own).sum(-1)


def critic_loss(critic: Params, batch: Batch, target: jax.Array, mine: jax.Array) -> Loss:
    """mean_b Σ_i (Q_i - y_i)² over an owner's agents; target (B, N), mine (N,)."""
    taken = jax.nn.one_hot(batch.action, ACTIONS)
    q = values(critic, batch.obs, taken, taken)
    loss = over_agents(mine * jnp.square(q - target), batch.obs).mean()
    return loss, {"critic_loss": loss, "q": agent_mean(mine * q, batch.obs)}


def actor_loss(actor: Params, critic: Params, batch: Batch, uniform: jax.Array, mine: jax.Array) -> Loss:
    """-mean_b Σ_i Q_i(o, a_i, a_-i) over an owner's agents, a_i ~ π_i anew by uniform (B, N, 5), others as replayed."""
    log_probs = jax.nn.log_softmax(nets.attentive_logits(actor, batch.obs))
    action = draw_skill(log_probs, uniform)  # straight-through, at temperature 1
    q = values(critic, batch.obs, action, jax.nn.one_hot(batch.action, ACTIONS))
    loss = -over_agents(mine * q, batch.obs).mean()
    entropy = agent_mean(-mine * (jnp.exp(log_probs) * log_probs).sum(-1), batch.obs)
    return loss, {"policy_loss": loss, "policy_entropy": entropy}


def step_owners(
    loss: Callable[..., Loss], learning_rate: ArrayLike, l2: ArrayLike, present: jax.Array, trained: tuple[Params, Any],
    *given: Any,
) -> tuple[tuple[Params, Any], Metrics]:  # fmt: skip
    """A step of every owner's (parameters, optimiser state) by loss(parameters, *its own share of `given`).

    Owners that have no agent in the game, present (U,) 0, stay as they are. Metrics are summed over owners.
    """

    def one(inputs: tuple) -> tuple[tuple[Params, Any], Metrics]:
        here, (params, optim), *own = inputs
        grads, metrics = jax.grad(loss, has_aux=True)(params, *own)
        new, new_optim = descend(rule(learning_rate, l2), grads, optim, params)
        return jax.tree.map(lambda x, y: jnp.where(here > 0.0, x, y), (new, new_optim), (params, optim)), metrics

    # One after the other: all at once would need the memory of U updates.
    trained, metrics = jax.lax.map(one, (present, trained, *given))
    return trained, jax.tree.map(lambda x: x.sum(0), metrics)


def update(learner: Learner, batch: Batch, draws: Draws, hyper: Hyper) -> tuple[Learner, Metrics]:
    """A step of all critics, one of all actors, and one of the targets."""
    mine = served(learner.actor, batch.action.shape[-1])
    present = (mine * batch.obs.mask[0]).max(-1)
    logits = all_logits(learner.target_actor, batch.next_obs, mine)
    next_action = jax.nn.one_hot(draw_action(logits, draws.next_action), ACTIONS)
    decay = hyper.discount * (1.0 - batch.terminated[:, None])

    def of_critic(critic: Params, target_critic: Params, mine: jax.Array) -> Loss:
        target = batch.reward + decay * values(target_critic, batch.next_obs, next_action, next_action)
        return critic_loss(critic, batch, jax.lax.stop_gradient(target), mine)

    def of_actor(actor: Params, critic: Params, mine: jax.Array) -> Loss:
        return actor_loss(actor, critic, batch, draws.action, mine)

    critics, actors = (learner.critic, learner.critic_optim), (learner.actor, learner.actor_optim)
    critics, metrics = step_owners(of_critic, hyper.critic_lr, hyper.l2, present, critics, learner.target_critic, mine)
    actors, of_actors = step_owners(of_actor, hyper.actor_lr, hyper.l2, present, actors, critics[0], mine)
    target_actor = polyak(actors[0], learner.target_actor, hyper.tau)
    target_critic = polyak(critics[0], learner.target_critic, hyper.tau)
    moved = Learner(actors[0], critics[0], target_actor, target_critic, actors[1], critics[1])
    return moved, metrics | of_actors


def choose(key: Key, learner: Learner, obs: Observation, skill: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions (..., N), and empty graphs (..., 0, 0), which are not kept. Skills are of no use."""
    logits = all_logits(learner.actor, obs, served(learner.actor, obs.mask.shape[-1]))
    return draw_action(logits, jax.random.gumbel(key, logits.shape)), jnp.zeros((*obs.mask.shape[:-1], 0, 0))


def cycle(
    key: Key, learner: Learner, rings: Replay, index: jax.Array, world: World, static: Static, hyper: Hyper
) -> tuple[Learner, Metrics]:
    """The updates on a game that fall due together."""

    def one(key: Key, learner: Learner, batch: Batch) -> tuple[Learner, Metrics]:
        next_key, action_key = jax.random.split(key)
        shape = (*batch.action.shape, ACTIONS)
        draws = Draws(jax.random.gumbel(next_key, shape), jax.random.uniform(action_key, shape))
        return update(learner, batch, draws, hyper)

    scalars = settings.adopt(settings.Hyper, hyper)
    learner, metrics, _ = repeat(key, learner, rings, index, world, playing(static), scalars, one)
    return learner, metrics


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build MADDPG for a particle game; the `source` of `step` is `env.params`.

    `updates_per_step` counts episodes of each game. Raises UsageError for an environment that is no particle game.
    """
    world = play.world_of("mra_maddpg", env)
    method = Method(
        lambda key: init_learner(key, static, world),
        lambda key, learner, seen, hyper: jnp.ones((*seen.mask.shape, 1)),
        lambda key, learner, rings, index, hyper: cycle(key, learner, rings, index, world, static, hyper),
        choose,
    )
    return assemble(method, playing(static), spec, env, world)
