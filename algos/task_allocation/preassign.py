"""Stage 1: every free entity chooses an open slot; a critic of the joint choice learns the decision's return.

Functions of one decision take anything with the fields entities (N, d), slots (T, d'), free (N,), open (T,),
entity_mask (N,) and slot_mask (T,), the last four boolean.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos.core import Key, Loss, Metrics, Params
from algos.losses import adam, descend, polyak
from algos.task_allocation import nets
from algos.task_allocation.nets import Hyper, Sizes, Static, features, mlp

PROBABILITY_BONUS = 0.5  # without AMIX: each chosen probability counts as min(P + 0.5, 1)


class Decision(NamedTuple):
    """A decision as stage 1 learns from it, or a batch of them."""

    entities: jax.Array  # (N, d), as stage 2 left them (Electric rewrites the cost column)
    slots: jax.Array  # (T, d')
    free: jax.Array  # (N,) bool: u
    open: jax.Array  # (T,) bool: w
    entity_mask: jax.Array  # (N,) bool
    slot_mask: jax.Array  # (T,) bool
    assignment: jax.Array  # (N,) int32: the slot chosen, -1 for none
    reward: jax.Array  # (): R, the sum of the slots' returns
    episode: jax.Array  # () int32: consecutive decisions of the same number follow each other


class Buffer(NamedTuple):
    """A ring of decisions; when full, the oldest are overwritten."""

    decisions: Decision  # leading axis: capacity
    added: jax.Array  # () int32: decisions ever added


class State(NamedTuple):
    """Everything that stage 1 learns."""

    actor: Params
    critic: Params
    mixer: Params
    target_critic: Params  # there is no target mixer
    actor_optim: optax.OptState
    critic_optim: optax.OptState  # of (critic, mixer)


def init(key: Key, static: Static, sizes: Sizes) -> State:
    """Fresh networks; the target critic equals the critic."""
    actor_key, critic_key, mixer_key = jax.random.split(key, 3)
    actor = nets.init_encoders(actor_key, sizes, static.hidden)
    rows = sizes.slots * sizes.slot_dim + sizes.entities * sizes.entity_dim
    pairs = sizes.entities * sizes.slots
    if static.critic == "amix":
        critic = nets.init_encoders(critic_key, sizes, static.hidden)
    elif static.critic == "mlp":
        critic = nets.init_mlp(critic_key, rows + pairs, static.hidden, 1)
    else:
        critic = nets.init_mlp(critic_key, rows, static.hidden, pairs)
    return begin(actor, critic, nets.init_mixer(mixer_key, static, sizes), critic)


def begin(actor: Params, critic: Params, mixer: Params, target_critic: Params) -> State:
    """The state before any update of networks that exist already."""
    optims = adam(0.0).init(actor), adam(0.0).init((critic, mixer))
    return State(actor, critic, mixer, target_critic, *optims)


def probabilities(actor: Params, problem: Any, hyper: Hyper) -> jax.Array:
    """P (N, T): of each entity over the slots, zero for closed ones (uniform if all are closed)."""
    scores = nets.logits(actor, entity_features(problem, hyper), slot_features(problem, hyper))
    return nets.masked_softmax(scores, problem.open, problem.slot_mask)


def choose(problem: Any, probs: jax.Array, uniform: jax.Array | None) -> jax.Array:
    """The slot (N,) int32 of each entity, -1 for the busy ones; u (N,) decides, without it the largest probability.

    Nobody is assigned where no slot is open.
    """
    choice = jnp.argmax(probs, -1).astype(jnp.int32) if uniform is None else nets.inverse_cdf(probs, uniform)
    return jnp.where(problem.free & problem.entity_mask & problem.open.any(), choice, -1)


def entity_features(problem: Any, hyper: Hyper) -> jax.Array:
    """What networks see of the entities."""
    return features(problem.entities, problem.entity_mask, hyper)


def slot_features(problem: Any, hyper: Hyper) -> jax.Array:
    """What networks see of the slots."""
    return features(problem.slots, problem.slot_mask, hyper)


def q_values(static: Static, critic: Params, problem: Any, hyper: Hyper) -> jax.Array:
    """Q (N, T) of each entity in each slot; not for critic=mlp, which knows joint choices only."""
    entities, slots = entity_features(problem, hyper), slot_features(problem, hyper)
    if static.critic == "amix":
        return nets.inner_products(critic, entities, slots)
    rows = jnp.concatenate([slots.ravel(), entities.ravel()])
    return mlp(critic, rows).reshape(entities.shape[0], slots.shape[0])


def joint_q(critic: Params, decision: Decision, hyper: Hyper) -> jax.Array:
    """() value of the whole assignment, one network (critic=mlp)."""
    entities, slots = entity_features(decision, hyper), slot_features(decision, hyper)
    chosen = one_hot(decision, slots)
    return mlp(critic, jnp.concatenate([slots.ravel(), entities.ravel(), chosen.ravel()]))[0]


def one_hot(decision: Decision, like: jax.Array) -> jax.Array:
    """A (N, T), zero rows for unassigned entities."""
    return jax.nn.one_hot(decision.assignment, decision.slot_mask.shape[0], dtype=like.dtype)


def mixed(static: Static, mixer: Params, problem: Any, values: jax.Array, hyper: Hyper) -> jax.Array:
    """Qtot () of entities' values (N,); unavailable entities enter as zero rows."""
    entities = features(problem.entities, problem.entity_mask & problem.free, hyper)
    return nets.mix(static, mixer, entities, problem.entity_mask, values)


def total_q(static: Static, critic: Params, mixer: Params, decision: Decision, hyper: Hyper) -> jax.Array:
    """() value of the decision that was made."""
    if static.critic == "mlp":
        return joint_q(critic, decision, hyper)
    q = q_values(static, critic, decision, hyper)
    return mixed(static, mixer, decision, (one_hot(decision, q) * q).sum(-1), hyper)


def critic_loss(
    params: tuple[Params, Params], static: Static, batch: Decision, target: jax.Array, hyper: Hyper
) -> Loss:
    """Mean squared error of Qtot of (critic, mixer) on a batch, target (batch,)."""
    q = jax.vmap(lambda decision: total_q(static, *params, decision, hyper))(batch)
    error = target - q
    if static.critic == "mlp" and static.broadcast_bug:
        error = target[:, None] - q
    loss = jnp.square(error).mean()
    return loss, {"preassign_critic_loss": loss, "preassign_q": q.mean()}


def policy_entropy(static: Static, probs: jax.Array, problem: Any) -> jax.Array:
    """What the actor is rewarded for, (), of P (N, T).

    The official one, -Σ log(P + 1e-8), is smallest at the uniform distribution: it rewards peaked policies.
    """
    if static.entropy == "none":
        return jnp.zeros((), probs.dtype)
    real = problem.entity_mask[:, None] & problem.slot_mask
    terms = jnp.log(probs + nets.EPSILON) * (probs if static.entropy == "shannon" else 1.0)
    return -jnp.where(real, terms, 0.0).sum()


def actor_objective(
    actor: Params, static: Static, target_critic: Params, mixer: Params, decision: Decision, hyper: Hyper
) -> tuple[jax.Array, jax.Array]:
    """Entropy and value, (), of one decision under the current policy; the action is the stored one."""
    probs = probabilities(actor, decision, hyper)
    chosen = one_hot(decision, probs)
    if static.critic == "mlp":
        each = (jnp.minimum(probs + PROBABILITY_BONUS, 1.0) * chosen).sum(-1)
        joint = jnp.where(decision.assignment >= 0, each, 1.0).prod()
        weight = 0.0 if static.entropy == "none" else 1.0
        return weight * nets.entropy(joint[None]), joint * joint_q(target_critic, decision, hyper)
    q = q_values(static, target_critic, decision, hyper)
    value = mixed(static, mixer, decision, (probs * q * chosen).sum(-1), hyper)
    return policy_entropy(static, probs, decision), value


def actor_loss(
    actor: Params, static: Static, target_critic: Params, mixer: Params, batch: Decision, hyper: Hyper
) -> Loss:
    """mean(-0.01 E - V) on a batch; the target critic and the online mixer judge."""
    entropies, values = jax.vmap(lambda x: actor_objective(actor, static, target_critic, mixer, x, hyper))(batch)
    loss = (-hyper.entropy_weight * entropies - values).mean()
    return loss, {"preassign_actor_loss": loss, "preassign_entropy": entropies.mean()}


def next_value(static: Static, state: State, problem: Any, hyper: Hyper) -> jax.Array:
    """() value of a decision not yet made: Qtot of every free entity's best open slot, by the target critic."""
    q = q_values(static, state.target_critic, problem, hyper)
    best = jnp.where(problem.open & problem.slot_mask, q, -jnp.inf).max(-1)
    values = jnp.where(problem.free & problem.entity_mask & problem.open.any(), best, 0.0)
    return mixed(static, state.mixer, problem, values, hyper)


def learn(
    static: Static, state: State, batch: Decision, hyper: Hyper, following: tuple[Decision, jax.Array] | None = None
) -> tuple[State, Metrics]:
    """One update: critic and mixer, the actor with the updated mixer, the target critic.

    following: with stage1_bootstrap, the next decisions and whether (batch,) there are any in the same episode.
    """
    target = hyper.reward_scale * batch.reward
    if static.stage1_bootstrap and following is not None:
        values = jax.vmap(lambda problem: next_value(static, state, problem, hyper))(following[0])
        target = target + hyper.discount * jnp.where(following[1], values, 0.0)
    grads, metrics = jax.grad(critic_loss, has_aux=True)((state.critic, state.mixer), static, batch, target, hyper)
    (critic, mixer), critic_optim = descend(
        adam(hyper.critic_lr), grads, state.critic_optim, (state.critic, state.mixer)
    )
    grads, more = jax.grad(actor_loss, has_aux=True)(state.actor, static, state.target_critic, mixer, batch, hyper)
    actor, actor_optim = descend(adam(hyper.actor_lr), grads, state.actor_optim, state.actor)
    target_critic = polyak(critic, state.target_critic, hyper.tau)
    return State(actor, critic, mixer, target_critic, actor_optim, critic_optim), metrics | more


def empty_buffer(capacity: int, example: Decision) -> Buffer:
    """A ring of zeros for decisions like the example."""
    zeros = jax.tree.map(lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.asarray(x).dtype), example)
    return Buffer(zeros, jnp.zeros((), jnp.int32))


def add(buffer: Buffer, decision: Decision, when: jax.Array | bool = True) -> Buffer:
    """Append a decision, or leave the buffer as it is where `when` () is false."""
    capacity = buffer.decisions.reward.shape[0]
    index = jnp.where(when, buffer.added % capacity, capacity)  # beyond the end: dropped
    ring = jax.tree.map(lambda x, new: x.at[index].set(new, mode="drop"), buffer.decisions, decision)
    return Buffer(ring, buffer.added + jnp.asarray(when, jnp.int32))


def held(buffer: Buffer) -> jax.Array:
    """() int32: decisions in the buffer."""
    return jnp.minimum(buffer.added, buffer.decisions.reward.shape[0])


def sample(key: Key, static: Static, buffer: Buffer) -> jax.Array:
    """Indices (batch_size,) of different decisions, uniformly; with stage1_bootstrap not the newest.

    The buffer has to hold more than `static.start_size` decisions.
    """
    capacity = buffer.decisions.reward.shape[0]
    rows = jnp.arange(capacity)
    valid = rows < held(buffer)
    if static.stage1_bootstrap:
        valid &= rows != (buffer.added - 1) % capacity
    return jax.lax.top_k(jnp.where(valid, jax.random.uniform(key, (capacity,)), -1.0), static.batch_size)[1]


def take(buffer: Buffer, index: jax.Array) -> Decision:
    """The decisions at index (batch,)."""
    return jax.tree.map(lambda x: x[index], buffer.decisions)


def successors(buffer: Buffer, index: jax.Array) -> tuple[Decision, jax.Array]:
    """The decisions that came after those at index (batch,), and whether (batch,) they are of the same episode."""
    capacity = buffer.decisions.reward.shape[0]
    after = take(buffer, (index + 1) % capacity)
    newest = index == (buffer.added - 1) % capacity
    return after, (after.episode == buffer.decisions.episode[index]) & ~newest
