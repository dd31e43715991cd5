"""The steps of MRA: pure functions (learner, batch, draws, static, hyper) -> (learner, metrics).

A cycle is several `update`s, each a step of the critic and one of the policy, then one `meta_step`: a step of the
relation network (unless it learns with the policy), hard copies to the targets, a step of task encoder and predictor.
The population is in masks only,
so that batches of different games go through one compiled program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from algos.core import Key, Loss, Metrics, Params
from algos.losses import descend, scale_by_adam
from algos.mra.initial import ACTIONS, init_params
from algos.mra.nets import task_log_probs
from algos.mra.objectives import (
    Batch,
    Networks,
    RelationDraws,
    batch_graphs,
    critic_loss,
    policy_loss,
    relation_loss,
    task_loss,
    td_target,
)  # fmt: skip
from algos.mra.settings import Hyper, Static


class Optim(NamedTuple):
    """One optimiser state per trained part, shared by all games."""

    policy: optax.OptState
    critic: optax.OptState
    relation: optax.OptState
    task: optax.OptState  # of (encoder, predictor)


class Learner(NamedTuple):
    """Everything that the steps change."""

    policy: Params
    critic: Params
    relation_net: Params
    task_encoder: Params
    task_predictor: Params
    target_policy: Params
    target_critic: Params
    optim: Optim


class Draws(NamedTuple):
    """Random numbers of one update: standard Gumbel noise."""

    next_action: jax.Array  # (B, N, 5), for the critic's target
    action: jax.Array  # (B, N, 5), for the policy's step


class MetaDraws(NamedTuple):
    """Random numbers of one meta step."""

    relation: RelationDraws
    task: jax.Array  # (1, N, Z), uniform


def begin(params: Params) -> Learner:
    """A learner before its first step, of the networks of `init_params`; targets are copies."""
    start = rule(0.0, 0.0).init
    task = (params["task_encoder"], params["task_predictor"])
    optim = Optim(start(params["policy"]), start(params["critic"]), start(params["relation_net"]), start(task))
    return Learner(**params, target_policy=params["policy"], target_critic=params["critic"], optim=optim)


def init_learner(key: Key, static: Static, width: int, kinds: int, games: int) -> Learner:
    """A fresh learner, for vectors of `width` entries, H kinds of agents and so many training games."""
    return begin(init_params(key, static, width, kinds, games))


def rule(learning_rate: ArrayLike, l2: ArrayLike) -> optax.GradientTransformation:
    """Adam with coupled L2: decay enters the moments, as in PyTorch's `weight_decay`."""
    return optax.chain(optax.add_decayed_weights(l2), scale_by_adam(), optax.scale_by_learning_rate(learning_rate))


def clip(grads: Params, largest: ArrayLike) -> tuple[Params, jax.Array]:
    """(gradients scaled down to a global norm of `largest` as PyTorch does it, their norm before)."""
    norm = optax.tree.norm(grads)
    scale = jnp.minimum(1.0, largest / (norm + 1e-6))
    return jax.tree.map(lambda x: scale * x, grads), norm


def clip_norm(batch: Batch, hyper: Hyper) -> jax.Array:
    """The largest norm () of gradients: it grows with the population."""
    return hyper.clip_factor * batch.obs.mask[0].sum()


def critic_step(
    learner: Learner, batch: Batch, noise: jax.Array, static: Static, hyper: Hyper
) -> tuple[Learner, Metrics]:
    """One step of the critic; noise (B, N, 5), standard Gumbel, draws the next actions."""
    graphs = batch_graphs(learner.relation_net, batch, static)
    target = td_target(learner.target_policy, learner.target_critic, batch, graphs, noise, static, hyper)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(learner.critic, batch, graphs[0], target.value, static)
    grads, norm = clip(grads, clip_norm(batch, hyper))
    critic, optim = descend(rule(hyper.critic_lr, hyper.l2), grads, learner.optim.critic, learner.critic)
    moved = learner._replace(critic=critic, optim=learner.optim._replace(critic=optim))
    return moved, metrics | {"critic_grad_norm": norm}


def policy_step(
    learner: Learner, batch: Batch, noise: jax.Array, static: Static, hyper: Hyper
) -> tuple[Learner, Metrics]:
    """One step of the policy against the critic as it is; noise (B, N, 5), standard Gumbel, draws the actions."""
    if static.relation == "policy":
        return joint_step(learner, batch, noise, static, hyper)
    graph, _ = batch_graphs(learner.relation_net, batch, static)
    grads, metrics = jax.grad(policy_loss, has_aux=True)(
        learner.policy, learner.critic, batch.obs, graph, noise, static, hyper
    )
    policy, optim = descend(rule(hyper.policy_lr, hyper.l2), grads, learner.optim.policy, learner.policy)
    return learner._replace(policy=policy, optim=learner.optim._replace(policy=optim)), metrics


def joint_step(
    learner: Learner, batch: Batch, noise: jax.Array, static: Static, hyper: Hyper
) -> tuple[Learner, Metrics]:
    """`policy_step` that moves the relation network too, by the same loss with its own rate and clipped as ever."""

    def loss(params: tuple[Params, Params]) -> Loss:
        policy, net = params
        graph, _ = batch_graphs(net, batch, static)
        return policy_loss(policy, learner.critic, batch.obs, graph, noise, static, hyper)

    (grads, of_net), metrics = jax.grad(loss, has_aux=True)((learner.policy, learner.relation_net))
    of_net, norm = clip(of_net, clip_norm(batch, hyper))
    optims = learner.optim
    policy, of_policy = descend(rule(hyper.policy_lr, hyper.l2), grads, optims.policy, learner.policy)
    net, of_relation = descend(rule(hyper.relation_lr, hyper.l2), of_net, optims.relation, learner.relation_net)
    moved = learner._replace(policy=policy, relation_net=net)
    moved = moved._replace(optim=optims._replace(policy=of_policy, relation=of_relation))
    return moved, metrics | {"relation_grad_norm": norm}


def relation_step(
    learner: Learner, batch: Batch, draws: RelationDraws, static: Static, hyper: Hyper
) -> tuple[Learner, Metrics]:
    """One step of the relation network alone."""
    log_probs = task_log_probs(learner.task_encoder, batch.obs.counts[0], hyper.skill_divisor)
    grads, metrics = jax.grad(relation_loss, has_aux=True)(
        learner.relation_net, Networks(learner.policy, learner.target_policy), batch.obs, log_probs, draws, static
    )
    grads, norm = clip(grads, clip_norm(batch, hyper))
    net, optim = descend(rule(hyper.relation_lr, hyper.l2), grads, learner.optim.relation, learner.relation_net)
    moved = learner._replace(relation_net=net, optim=learner.optim._replace(relation=optim))
    return moved, metrics | {"relation_grad_norm": norm}


def task_step(
    learner: Learner, batch: Batch, uniform: jax.Array, static: Static, hyper: Hyper
) -> tuple[Learner, Metrics]:
    """One step of task encoder and predictor on G games, the leading axis of the batch and of uniform (G, N, Z)."""
    params = (learner.task_encoder, learner.task_predictor)
    grads, metrics = jax.grad(task_loss, has_aux=True)(params, learner.relation_net, batch, uniform, static, hyper)
    params, optim = descend(rule(hyper.task_lr, hyper.l2), grads, learner.optim.task, params)
    moved = learner._replace(task_encoder=params[0], task_predictor=params[1])
    return moved._replace(optim=learner.optim._replace(task=optim)), metrics


def copy_targets(learner: Learner) -> Learner:
    """Policy and critic become the targets."""
    return learner._replace(target_policy=learner.policy, target_critic=learner.critic)


def update(learner: Learner, batch: Batch, draws: Draws, static: Static, hyper: Hyper) -> tuple[Learner, Metrics]:
    """A step of the critic, then one of the policy."""
    learner, of_critic = critic_step(learner, batch, draws.next_action, static, hyper)
    learner, of_policy = policy_step(learner, batch, draws.action, static, hyper)
    return learner, of_critic | of_policy


def meta_step(
    learner: Learner, batch: Batch, draws: MetaDraws, static: Static, hyper: Hyper, labelled: Batch | None = None
) -> tuple[Learner, Metrics]:
    """What ends a cycle: relation step, targets, task step.

    The task step is on `labelled`, whose fields and draws have a leading axis of games, or on the batch itself.
    """
    of_relation: Metrics = {}
    if static.relation == "diversity":
        learner, of_relation = relation_step(learner, batch, draws.relation, static, hyper)
    labelled = jax.tree.map(lambda x: x[None], batch) if labelled is None else labelled
    learner, of_task = task_step(copy_targets(learner), labelled, draws.task, static, hyper)
    return learner, of_relation | of_task


def draw_update(key: Key, batch: Batch) -> Draws:
    """Random numbers of one `update` on a batch."""
    shape = (*batch.action.shape, ACTIONS)
    return Draws(*(jax.random.gumbel(k, shape) for k in jax.random.split(key)))


def draw_meta(key: Key, batch: Batch, static: Static, games: int = 1) -> MetaDraws:
    """Random numbers of one `meta_step` whose task step sees so many games."""
    keys = jax.random.split(key, 4)
    size, agents = batch.action.shape
    relation = RelationDraws(
        skill=jax.random.uniform(keys[0], (agents, static.skills)),
        resample=jax.random.uniform(keys[1], (static.resamples, agents, static.skills)),
        action=jax.random.gumbel(keys[2], (size, agents, ACTIONS)),
    )
    return MetaDraws(relation, jax.random.uniform(keys[3], (games, agents, static.skills)))
