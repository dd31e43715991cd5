"""The losses of MRA, and how skills and actions are drawn. Losses take the differentiated parameters first.

Sums over agents leave padding out; B is the batch, N the padded population, Z the number of skills.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from algos.core import Loss, Params
from algos.mra.nets import (
    critic_outputs,
    pick,
    policy_logits,
    relation_graph,
    relation_graphs,
    task_log_probs,
    task_logits,
)  # fmt: skip
from algos.mra.observe import Observation
from algos.mra.settings import Hyper, Static

TINY = 1e-20  # keeps the logarithms of uniform draws finite


class Batch(NamedTuple):
    """Transitions of one game. Rewards are normalised already."""

    obs: Observation  # leading axis B
    action: jax.Array  # (B, N) int32
    reward: jax.Array  # (B, N)
    next_obs: Observation  # leading axis B
    terminated: jax.Array  # (B,), 0 or 1
    game: jax.Array  # () int32, index among the training games
    graph: jax.Array | None = None  # (B, N, N), acted with; needed with graphs=stored
    skill: jax.Array | None = None  # (B, N) int32, acted with; needed with graphs=recompute


class Target(NamedTuple):
    """What the critic is regressed to, (B, N), and what it is made of."""

    log_prob: jax.Array  # of the next actions
    next_q: jax.Array
    value: jax.Array


class Networks(NamedTuple):
    """What acts and is held fixed while the relation network is trained."""

    policy: Params
    target_policy: Params


def over_agents(x: jax.Array, obs: Observation) -> jax.Array:
    """Sum over the agents that exist, (..., N) -> (...)."""
    return jnp.where(obs.mask > 0.0, x, 0.0).sum(-1)


def draw_action(logits: jax.Array, noise: jax.Array) -> jax.Array:
    """Actions (...) int32 of logits (..., 5) and standard Gumbel noise of the same shape."""
    return jnp.argmax(jax.lax.stop_gradient(logits) + noise, -1).astype(jnp.int32)


def draw_skill(log_probs: jax.Array, uniform: jax.Array) -> jax.Array:
    """One-hot skills (..., N, Z) of log-probabilities (Z,) and draws in [0, 1) of the result's shape.

    The gradient is that of the softmax of the perturbed logits at temperature 1 (straight-through).
    """
    gumbel = -jnp.log(-jnp.log(uniform + TINY) + TINY)
    soft = jax.nn.softmax(log_probs + gumbel)
    hard = jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1])
    return jax.lax.stop_gradient(hard - soft) + soft


def batch_graphs(relation: Params, batch: Batch, static: Static) -> tuple[jax.Array, jax.Array]:
    """Relation graphs (B, N, N) at the observations and at the next ones; differentiable where recomputed.

    Stored ones are used for both (the original code).
    """
    if static.graphs == "stored":
        assert batch.graph is not None
        return batch.graph, batch.graph
    skill = jax.nn.one_hot(batch.skill, static.skills)
    return relation_graph(relation, batch.obs, skill), relation_graph(relation, batch.next_obs, skill)


def td_target(
    target_policy: Params, target_critic: Params, batch: Batch, graphs: tuple[jax.Array, jax.Array],
    noise: jax.Array, static: Static, hyper: Hyper,
) -> Target:  # fmt: skip
    """y_i = r_i + γ (1 - d) Q̄_i(o', a', G) - log π̄(a'_i) / α', with a' drawn by Gumbel noise (B, N, 5).

    The original code draws a' at the current observation.
    """
    graph, next_graph = graphs
    current = static.next_action_obs == "current"
    logits = policy_logits(target_policy, *((batch.obs, graph) if current else (batch.next_obs, next_graph)))
    action = draw_action(logits, noise)
    log_prob = pick(jax.nn.log_softmax(logits), action)
    next_q = pick(critic_outputs(target_critic, batch.next_obs, action, next_graph), action)
    value = soft_target(batch, next_q, log_prob / hyper.reward_scale, hyper.discount, static.discount_entropy)
    return Target(log_prob, next_q, value)


def soft_target(
    batch: Batch, next_q: jax.Array, entropy: jax.Array, discount: ArrayLike, discount_entropy: bool
) -> jax.Array:
    """r_i + γ (1 - d) Q̄_i - log π̄(a'_i) / α', (B, N), without gradient.

    `entropy` (B, N) is the last term, which is discounted and masked, too, if asked for.
    """
    decay = discount * (1.0 - batch.terminated[:, None])
    value = batch.reward + decay * next_q - (decay * entropy if discount_entropy else entropy)
    return jax.lax.stop_gradient(value)


def critic_loss(critic: Params, batch: Batch, graph: jax.Array, target: jax.Array, static: Static) -> Loss:
    """mean_b (Σ_i Q_i - Σ_i y_i)², or mean_b Σ_i (Q_i - y_i)², for targets (B, N)."""
    q = pick(critic_outputs(critic, batch.obs, batch.action, graph), batch.action)
    if static.critic_loss == "sum_td":
        loss = jnp.square(over_agents(q - target, batch.obs)).mean()
    else:
        loss = over_agents(jnp.square(q - target), batch.obs).mean()
    return loss, {"critic_loss": loss, "q": agent_mean(q, batch.obs), "q_target": agent_mean(target, batch.obs)}


def agent_mean(x: jax.Array, obs: Observation) -> jax.Array:
    """Mean () of (B, N) over all agents that exist."""
    return over_agents(x, obs).sum() / obs.mask.sum()


def policy_loss(
    policy: Params, critic: Params, obs: Observation, graph: jax.Array, noise: jax.Array, static: Static, hyper: Hyper
) -> Loss:
    """mean_b Σ_i log π(a_i) · stop(log π(a_i) / α' - Q_i(o, a, G)), all actions drawn anew by noise (B, N, 5).

    Differentiable with respect to the graph, too, for methods that train the relation network by it.
    """
    log_probs = jax.nn.log_softmax(policy_logits(policy, obs, graph))
    action = draw_action(log_probs, noise)
    outputs = critic_outputs(critic, obs, action, graph)
    centred = static.baseline == "value_mean"
    advantage = advantages(outputs, log_probs) if centred else outputs
    return soft_policy_loss(log_probs, action, advantage, obs, hyper.reward_scale)


def advantages(outputs: jax.Array, log_probs: jax.Array) -> jax.Array:
    """A critic's outputs (..., 5) less their mean under the policy."""
    return outputs - (jnp.exp(log_probs) * outputs).sum(-1, keepdims=True)


def soft_policy_loss(
    log_probs: jax.Array, action: jax.Array, values: jax.Array, obs: Observation, reward_scale: ArrayLike
) -> Loss:
    """mean_b Σ_i log π(a_i) · stop(log π(a_i) / α' - values[a_i]) of all log π (B, N, 5) and actions (B, N)."""
    log_prob, probs = pick(log_probs, action), jnp.exp(log_probs)
    weight = jax.lax.stop_gradient(log_prob / reward_scale - pick(values, action))
    loss = over_agents(log_prob * weight, obs).mean()
    entropy = agent_mean(-(probs * log_probs).sum(-1), obs)
    return loss, {"policy_loss": loss, "policy_entropy": entropy}


class RelationDraws(NamedTuple):
    """Random numbers of one relation step."""

    skill: jax.Array  # (N, Z), uniform
    resample: jax.Array  # (K, N, Z), uniform
    action: jax.Array  # (B, N, 5), standard Gumbel


def relation_loss(
    relation: Params, networks: Networks, obs: Observation, log_probs: jax.Array, draws: RelationDraws, static: Static
) -> Loss:
    """-mean_b Σ_i [log π̄(a_i|G_i) - log mean_k π̄(a_i|G_i^k)]: graphs of other skills make the action less likely.

    log_probs (Z,) are those of the skills. The action is drawn by the online policy, which like the target is fixed.
    As there are only Z graphs of each agent, the cost does not depend on the number of resampled skills.
    """
    skill, others = draw_skill(log_probs, draws.skill), draw_skill(log_probs, draws.resample)
    skill, counts = (jax.lax.stop_gradient(jnp.round(x)) for x in (skill, others.sum(0)))  # (N, Z)
    graphs = relation_graphs(relation, obs)  # (Z, B, N, N)
    graph = jnp.einsum("nz,zbnm->bnm", skill, jax.lax.stop_gradient(graphs))
    action = draw_action(policy_logits(networks.policy, obs, graph), draws.action)
    logits = jax.vmap(policy_logits, (None, None, 0))(networks.target_policy, obs, graphs)
    each = jnp.moveaxis(pick(jax.nn.log_softmax(logits), action), 0, -1)  # (B, N, Z)
    own = (skill * each).sum(-1)
    mixture = log_mean(each, own, counts, static.mi_include_positive)
    reward = over_agents(own - mixture, obs).mean()
    distances = {
        "graph_distance": agent_mean(apart(graphs), obs),
        "action_distance": agent_mean(apart(jax.nn.softmax(logits)), obs),
    }
    return -reward, {"relation_reward": reward} | distances


def apart(distributions: jax.Array) -> jax.Array:
    """Total variation distance (B, N) of each skill's distributions (Z, B, N, D) from the next skill's, their mean."""
    return 0.5 * jnp.abs(distributions - jnp.roll(distributions, 1, 0)).sum(-1).mean(0)


def log_mean(each: jax.Array, own: jax.Array, counts: jax.Array, include_own: bool) -> jax.Array:
    """log of the mean of exp(each) (..., Z) with multiplicities counts (..., Z), of exp(own) (...), too, if asked for.

    Exact where all values are equal: the result is that value.
    """
    highest = jnp.where(counts > 0.0, each, -jnp.inf).max(-1)
    highest = jax.lax.stop_gradient(jnp.maximum(highest, own) if include_own else highest)
    total = (counts * jnp.exp(jnp.where(counts > 0.0, each - highest[..., None], 0.0))).sum(-1)
    number = counts.sum(-1)
    if include_own:
        total, number = total + jnp.exp(own - highest), number + 1.0
    return highest + jnp.log(total / number)


def scramble(graph: jax.Array, obs: Observation) -> jax.Array:
    """The graphs (B, N, N) that the original task predictor gives agents, for a game of n agents.

    It flattens an array of agents by rows as if it were one of rows by agents: row b of agent i gets the graph of
    agent (b n + i) // B in row (b n + i) mod B. What that agent gives its s-th other goes to the s-th other of i.
    """
    size, padded = graph.shape[:2]
    population = obs.mask[0].sum().astype(jnp.int32)
    flat = jnp.arange(size)[:, None] * population + jnp.arange(padded)
    agent, row = jnp.minimum(flat // size, padded - 1), flat % size
    i, j = jnp.arange(padded)[:, None], jnp.arange(padded)
    slot = j - (j > i)
    source = jnp.minimum(slot + (slot >= agent[..., None]), padded - 1)
    return jnp.take_along_axis(graph[row, agent], source, -1) * obs.pairs


def task_loss(
    params: tuple[Params, Params], relation: Params, batch: Batch, uniform: jax.Array, static: Static, hyper: Hyper
) -> Loss:
    """Cross-entropy of the game predicted from graphs and skills, summed over games; (encoder, predictor) learn.

    Fields of the batch, and uniform (G, N, Z), have a leading axis of G games before that of rows.
    """

    def one(obs: Observation, game: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
        encoder, predictor = params
        skill = draw_skill(task_log_probs(encoder, obs.counts[0], hyper.skill_divisor), uniform)
        graph = relation_graph(relation, obs, skill)
        if static.task_predictor_indexing == "scrambled":
            graph = scramble(graph, obs)
        logits = task_logits(predictor, obs, graph, skill)
        labels = jnp.full(logits.shape[0], game)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits.argmax(-1) == game).mean()

    losses, accuracy = jax.vmap(one)(batch.obs, batch.game, uniform)
    return losses.sum(), {"task_loss": losses.sum(), "task_accuracy": accuracy.mean()}
