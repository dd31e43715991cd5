"""The networks of MRA as pure functions of nested dictionaries of arrays, kernels (in, out): `y = x @ kernel + bias`.

All blocks but one are affine, ReLU, affine (`fc1`, `fc2`). Graphs are (..., N, N): rows sum to one, and are zero on the
diagonal, for padded agents and towards them. Policies and the critic's last layer have a leading axis of H kinds.

What is computed for every pair of agents is kept small. The first layer on o_ij splits into a part of j and one of i,
as i enters by its position only. The second layer is linear, so weighted sums over j and inner products with a query
are taken before it. This is exact up to rounding and several times faster.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from algos.core import Params
from algos.mra.initial import ACTIONS, KEY_WIDTH
from algos.mra.observe import POSITION, REST, Observation
from algos.nets import affine

DIVISOR = 8.0  # of attention logits, √(2·32); the relation network's too, though its keys have 16 entries
COUNT_SCALE = 10.0  # of the task encoder's input
MASKED = -1e9


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """Map (..., in) to (..., out) with a ReLU between."""
    return affine(params["fc2"], jax.nn.relu(affine(params["fc1"], x)))


def pair_hidden(fc1: Params, obs: Observation) -> jax.Array:
    """ReLU of a first layer on every o_ij, (..., N, N, width), without the o_ij."""
    kernel = fc1["kernel"]  # rows: offset, velocity, rest; those of `own` are velocity, position, rest
    rows = jnp.concatenate([kernel[2:4], kernel[:2], kernel[REST]])
    of_j = obs.own @ rows + fc1["bias"]
    of_i = obs.own[..., POSITION] @ kernel[:2]
    return jax.nn.relu(of_j[..., None, :, :] - of_i[..., :, None, :])


def pair_softmax(logits: jax.Array, obs: Observation, divisor: float = DIVISOR) -> jax.Array:
    """A graph (..., N, N) of attention logits before the division; rows without others are zero."""
    pairs = obs.pairs
    return jax.nn.softmax(jnp.where(pairs > 0.0, logits / divisor, MASKED)) * pairs


def attention(query: jax.Array, other_proj: Params, hidden: jax.Array, obs: Observation) -> jax.Array:
    """softmax_j(q_i · k_ij / 8) of queries (..., N, d) and keys k_ij = fc2(hidden_ij)."""
    last = other_proj["fc2"]
    logits = jnp.einsum("...id,...ijd->...ij", query @ last["kernel"].T, hidden)
    if "bias" in last:
        logits += (query @ last["bias"])[..., None]
    return pair_softmax(logits, obs)


def aggregate(value_net: Params, graph: jax.Array, hidden: jax.Array) -> jax.Array:
    """e_i = Σ_j G_ij value_net(o_ij), (..., N, 64), of the first layer's outputs (..., N, N, 32)."""
    last = value_net["fc2"]
    mixed = jnp.einsum("...ij,...ijd->...id", graph, hidden)
    return mixed @ last["kernel"] + graph.sum(-1)[..., None] * last["bias"]


def of_kind(stacked: jax.Array, obs: Observation) -> jax.Array:
    """Each agent's entry of its kind: (H, ..., N, d) -> (..., N, d), zero where padding."""
    return jnp.einsum("h...nd,...nh->...nd", stacked, obs.kind)


def skill_queries(relation: Params, obs: Observation) -> jax.Array:
    """q_i of every skill, (..., N, Z, 16)."""
    flat = mlp(relation["self_proj"], obs.own)
    return flat.reshape(*flat.shape[:-1], -1, KEY_WIDTH)


def relation_graph(relation: Params, obs: Observation, skill: jax.Array) -> jax.Array:
    """G (..., N, N) of skills (..., N, Z), whose leading axes broadcast; an agent's own skill weighs both sides.

    Differentiable with respect to the skills, which weigh queries and keys each.
    """
    query = jnp.einsum("...nz,...nzd->...nd", skill, skill_queries(relation, obs))
    weighted = skill[..., :, None] * query[..., None, :]  # of an inner product with the keys of all skills in a row
    weighted = weighted.reshape(*query.shape[:-1], -1)
    other_proj = relation["other_proj"]
    return attention(weighted, other_proj, pair_hidden(other_proj["fc1"], obs), obs)


def relation_graphs(relation: Params, obs: Observation) -> jax.Array:
    """What `relation_graph` gives where all agents have skill 0, 1, ...: (Z, ..., N, N)."""
    queries = jnp.moveaxis(skill_queries(relation, obs), -2, 0)
    first, last = relation["other_proj"]["fc1"], relation["other_proj"]["fc2"]

    def per_skill(flat: jax.Array) -> jax.Array:
        return jnp.moveaxis(flat.reshape(*flat.shape[:-1], -1, KEY_WIDTH), -2, 0)

    keys = {"fc2": jax.tree.map(per_skill, last)}
    return jax.vmap(attention, (0, 0, None, None))(queries, keys, pair_hidden(first, obs), obs)


def policy_embedding(policy: Params, obs: Observation, graph: jax.Array) -> jax.Array:
    """e_i of each kind's policy, (H, ..., N, 64)."""
    return jax.vmap(lambda net: aggregate(net, graph, pair_hidden(net["fc1"], obs)))(policy["value_net"])


def policy_logits(policy: Params, obs: Observation, graph: jax.Array) -> jax.Array:
    """Logits (..., N, 5) of every agent's actions under a graph (..., N, N), by the policy of its kind."""
    seen = policy_embedding(policy, obs, graph)
    if policy["action_head"]["fc1"]["kernel"].shape[1] > seen.shape[-1]:
        own = jnp.broadcast_to(obs.own, (*seen.shape[:-1], obs.own.shape[-1]))
        seen = jnp.concatenate([seen, own], -1)
    return of_kind(jax.vmap(mlp)(policy["action_head"], seen), obs)


def critic_attention(critic: Params, obs: Observation) -> jax.Array:
    """The critic's own graph W, (..., N, N)."""
    other_proj = critic["other_proj"]
    return attention(mlp(critic["self_proj"], obs.own), other_proj, pair_hidden(other_proj["fc1"], obs), obs)


def critic_embedding(critic: Params, obs: Observation) -> jax.Array:
    """e_i (..., N, 64) under the critic's own graph."""
    value_net = critic["value_net"]
    return aggregate(value_net, critic_attention(critic, obs), pair_hidden(value_net["fc1"], obs))


def attentive_logits(actor: Params, obs: Observation) -> jax.Array:
    """Logits (..., N, 5) of a policy under a graph of its own, made like the critic's."""
    return policy_logits(actor, obs, critic_attention(actor, obs))


def critic_outputs(critic: Params, obs: Observation, action: jax.Array, graph: jax.Array) -> jax.Array:
    """All outputs (..., N, 5) for actions (..., N) and a relation graph.

    The actions taken are an input of every output: those not taken are no values of other actions.
    """
    taken = jax.nn.one_hot(action, ACTIONS)
    x = jnp.concatenate([critic_embedding(critic, obs), taken], -1)
    mixed = mlp(critic["mix_value"], x)
    context = mixed + graph @ mixed
    both = jnp.concatenate([context, mlp(critic["self_value"], x)], -1)
    return of_kind(jax.vmap(affine, (0, None))(critic["out"], both), obs)


def pick(values: jax.Array, action: jax.Array) -> jax.Array:
    """The entries (...) of the actions (...) in (..., 5)."""
    return (values * jax.nn.one_hot(action, ACTIONS)).sum(-1)


def task_log_probs(encoder: Params, counts: jax.Array, divisor: ArrayLike) -> jax.Array:
    """log p(z | m), (..., Z), of a game's numbers of agents of each kind (..., H)."""
    return jax.nn.log_softmax(mlp(encoder, counts / COUNT_SCALE) / divisor)


def task_logits(predictor: Params, obs: Observation, graph: jax.Array, skill: jax.Array) -> jax.Array:
    """Logits (..., T) of the game that graphs (..., N, N) and skills (..., N, Z) come from."""
    value_net = predictor["value_net"]
    seen = aggregate(value_net, graph, pair_hidden(value_net["fc1"], obs))
    skill = jnp.broadcast_to(skill, (*seen.shape[:-1], skill.shape[-1]))
    logits = mlp(predictor["head"], jnp.concatenate([seen, skill], -1))
    return (logits * obs.mask[..., None]).sum(-2)
