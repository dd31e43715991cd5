"""Stage 2: a slot draws its team from its pool, one entity at a time; the manager learns from every pick.

The manager is a discrete soft actor-critic of fixed temperature. A pick's state is the slot's row with what is still
demanded, its reward the slot's reward once covered, less the entity's cost.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos.core import Key, Metrics, Params
from algos.losses import adam, descend, polyak
from algos.task_allocation import nets
from algos.task_allocation.nets import Hyper, Sizes, Static, features


class State(NamedTuple):
    """Everything that the manager learns."""

    actor: Params
    critic: Params
    target_critic: Params
    actor_optim: optax.OptState
    critic_optim: optax.OptState
    table: jax.Array | None  # (N, d): the entities at the last update; None without stale_entities


class Slot(NamedTuple):
    """What one slot selects from. `entities` has the costs of serving this slot, or the prices asked."""

    entities: jax.Array  # (N, d): cost, capabilities, in some environments coordinates
    entity_mask: jax.Array  # (N,) bool
    row: jax.Array  # (d,): reward, demands, in some environments coordinates
    pool: jax.Array  # (N,) bool
    live: jax.Array  # () bool: whether the slot is served at all


class Picks(NamedTuple):
    """Selection steps of one slot, leading axis P; with a further one, those of several slots."""

    row: jax.Array  # (P, d): g
    action: jax.Array  # (P,) int32
    reward: jax.Array  # (P,)
    next_row: jax.Array  # (P, d): g'
    done: jax.Array  # (P,) bool
    pool: jax.Array  # (P, N) bool: p', without the entity picked


class Selection(NamedTuple):
    """How one slot's selection ended. Everything by pick has N rows, those from `length` on are empty."""

    team: jax.Array  # (N,) bool: empty if refused
    picked: jax.Array  # (N,) bool: also those of a refused team
    total: jax.Array  # (): J, zero if refused
    length: jax.Array  # () int32: picks made
    picks: Picks  # zeros in empty rows
    critic_loss: jax.Array  # (N,): of the update after each pick
    actor_loss: jax.Array  # (N,)


class _Carry(NamedTuple):
    state: State
    row: jax.Array
    pool: jax.Array
    done: jax.Array
    result: Selection


def init(key: Key, static: Static, sizes: Sizes, entities: jax.Array | None = None) -> State:
    """Fresh networks. entities (N, d): the table of before the first update, needed for stale_entities."""
    actor_key, critic_key = jax.random.split(key)
    actor, critic = (nets.init_encoders(k, sizes, static.hidden) for k in (actor_key, critic_key))
    return begin(actor, critic, critic, entities if static.stale_entities else None)


def begin(actor: Params, critic: Params, target_critic: Params, table: jax.Array | None) -> State:
    """The state before any update of networks that exist already."""
    return State(actor, critic, target_critic, adam(0.0).init(actor), adam(0.0).init(critic), table)


def policy(
    actor: Params, entities: jax.Array, entity_mask: jax.Array, rows: jax.Array, pool: jax.Array, hyper: Hyper
) -> jax.Array:
    """π (P, N) over entities for slot rows (P, d), zero outside the pools (P, N); uniform for an empty pool."""
    scores = nets.logits(actor, features(entities, entity_mask, hyper), rows * hyper.feature_scale).T
    return nets.masked_softmax(scores, pool, entity_mask)


def q_values(critic: Params, entities: jax.Array, entity_mask: jax.Array, rows: jax.Array, hyper: Hyper) -> jax.Array:
    """Q (P, N) of picking each entity for slot rows (P, d)."""
    return nets.inner_products(critic, features(entities, entity_mask, hyper), rows * hyper.feature_scale).T


def td_target(
    critic: Params,
    static: Static,
    state: State,
    entities: jax.Array,
    entity_mask: jax.Array,
    picks: Picks,
    hyper: Hyper,
) -> jax.Array:
    """y (P,) = r + γ (1 - done) (Σ π' Q(g') + 0.01 H(π')), with the gradient that `static.td_target` leaves it."""
    probs = policy(state.actor, entities, entity_mask, picks.next_row, picks.pool, hyper)
    judge = state.target_critic if static.td_target == "target_stopgrad" else critic
    q = q_values(judge, entities, entity_mask, picks.next_row, hyper)
    value = (probs * q).sum(-1) + hyper.entropy_weight * nets.entropy(probs)
    target = hyper.reward_scale * picks.reward + hyper.discount * jnp.where(picks.done, 0.0, value)
    return target if static.td_target == "online_residual" else jax.lax.stop_gradient(target)


def critic_losses(
    critic: Params,
    static: Static,
    state: State,
    entities: jax.Array,
    entity_mask: jax.Array,
    picks: Picks,
    hyper: Hyper,
) -> jax.Array:
    """(y - Q(g)_a)² of each pick, (P,)."""
    target = td_target(critic, static, state, entities, entity_mask, picks, hyper)
    q = q_values(critic, entities, entity_mask, picks.row, hyper)
    return jnp.square(target - jnp.take_along_axis(q, picks.action[:, None], -1)[:, 0])


def actor_losses(
    actor: Params, target_critic: Params, entities: jax.Array, entity_mask: jax.Array, picks: Picks, hyper: Hyper
) -> jax.Array:
    """-0.01 H(π) - Σ π Qbar(g) of each pick, (P,); π over the pool of before the pick."""
    before = picks.pool | jax.nn.one_hot(picks.action, picks.pool.shape[-1], dtype=bool)
    probs = policy(actor, entities, entity_mask, picks.row, before, hyper)
    q = q_values(target_critic, entities, entity_mask, picks.row, hyper)
    return -hyper.entropy_weight * nets.entropy(probs) - (probs * q).sum(-1)


def learn(
    static: Static, state: State, entities: jax.Array, entity_mask: jax.Array, picks: Picks, weight: jax.Array,
    hyper: Hyper,
) -> tuple[State, Metrics]:  # fmt: skip
    """One update of critic, actor and target critic on the picks (S, P, ...) of S slots.

    entities: (S, N, d), the table of each slot. weight: (S, P), what each pick counts; they sum to one.
    """

    def critic_loss(critic: Params) -> jax.Array:
        each = jax.vmap(lambda e, p: critic_losses(critic, static, state, e, entity_mask, p, hyper))
        return (weight * each(entities, picks)).sum()

    def actor_loss(actor: Params) -> jax.Array:
        each = jax.vmap(lambda e, p: actor_losses(actor, state.target_critic, e, entity_mask, p, hyper))
        return (weight * each(entities, picks)).sum()

    loss, grads = jax.value_and_grad(critic_loss)(state.critic)
    critic, critic_optim = descend(adam(hyper.critic_lr), grads, state.critic_optim, state.critic)
    metrics = {"manager_critic_loss": loss}
    loss, grads = jax.value_and_grad(actor_loss)(state.actor)
    actor, actor_optim = descend(adam(hyper.actor_lr), grads, state.actor_optim, state.actor)
    target_critic = polyak(critic, state.target_critic, hyper.tau)
    table = None if state.table is None else entities[-1]
    return State(actor, critic, target_critic, actor_optim, critic_optim, table), metrics | {"manager_actor_loss": loss}


def learn_decision(
    static: Static, state: State, entities: jax.Array, entity_mask: jax.Array, selections: Selection, hyper: Hyper
) -> tuple[State, Metrics]:
    """`decision_updates` updates on all picks of a decision (manager_update=per_decision); none if there are none.

    entities: (T, N, d), the table of each slot; selections: leading axis T.
    """
    valid = jnp.arange(entities.shape[1]) < selections.length[:, None]
    weight = valid / jnp.maximum(valid.sum(), 1).astype(entities.dtype)

    def update(state: State, _: None) -> tuple[State, Metrics]:
        return learn(static, state, entities, entity_mask, selections.picks, weight, hyper)

    after, metrics = jax.lax.scan(update, state, None, static.decision_updates)
    kept = jax.tree.map(lambda new, old: jnp.where(valid.any(), new, old), after, state)
    return kept, jax.tree.map(lambda x: x.mean(), metrics)


def pick(slot: Slot, row: jax.Array, pool: jax.Array, action: jax.Array, demands: int) -> Picks:
    """What picking an entity () does to the slot's row (d,) and pool (N,); one pick without leading axis.

    Columns 1 ... demands are met by the entity's; the slot is done when they are zero or the pool is empty.
    """
    chosen = slot.entities[action]
    columns = slice(1, 1 + demands)
    next_row = row.at[columns].set(jnp.maximum(row[columns] - chosen[columns], 0.0))
    next_pool = pool.at[action].set(False)
    covered = (next_row[columns] == 0).all()
    reward = jnp.where(covered, row[0], 0.0) - chosen[0]
    return Picks(row, action, reward, next_row, covered | ~next_pool.any(), next_pool)


def select(
    static: Static, state: State, slot: Slot, uniform: jax.Array | None, demands: int, hyper: Hyper, learning: bool
) -> tuple[State, Selection]:
    """The selection of one slot, with an update after each pick if `learning` and manager_update=per_step.

    uniform: (N,) or longer, what decides each pick in turn; without it the most probable entity is picked.
    demands: the number of columns of demand; with cover_coords all columns but the first have to be covered.
    """
    size = slot.pool.shape[0]
    demands = slot.row.shape[0] - 1 if static.cover_coords else demands
    per_step = learning and static.manager_update == "per_step"

    def step(carry: _Carry) -> _Carry:
        state, row, pool, _, result = carry
        seen = state.table if learning and state.table is not None else slot.entities
        probs = policy(state.actor, seen, slot.entity_mask, row[None], pool[None], hyper)[0]
        i = result.length
        action = jnp.argmax(probs).astype(jnp.int32) if uniform is None else nets.inverse_cdf(probs, uniform[i])
        picked = pick(slot, row, pool, action, demands)
        critic_loss, actor_loss = result.critic_loss, result.actor_loss
        if per_step:
            one = jax.tree.map(lambda x: x[None, None], picked)
            weight = jnp.ones((1, 1), row.dtype)
            state, metrics = learn(static, state, slot.entities[None], slot.entity_mask, one, weight, hyper)
            critic_loss = critic_loss.at[i].set(metrics["manager_critic_loss"])
            actor_loss = actor_loss.at[i].set(metrics["manager_actor_loss"])
        chosen = result.picked.at[action].set(True)
        picks = jax.tree.map(lambda ring, x: ring.at[i].set(x), result.picks, picked)
        result = Selection(chosen, chosen, result.total + picked.reward, i + 1, picks, critic_loss, actor_loss)
        return _Carry(state, picked.next_row, picked.pool, picked.done, result)

    pool = slot.pool & slot.entity_mask
    done = ~slot.live if static.empty_pool == "official" else ~(slot.live & pool.any())
    # A pool that never shrinks (networks that have diverged) must not keep the loop going: no more than N picks.
    begun = _Carry(state, slot.row, pool, done, _nothing(slot))
    ended = jax.lax.while_loop(lambda carry: ~carry.done & (carry.result.length < size), step, begun)
    return ended.state, _refuse(ended.result)


def _nothing(slot: Slot) -> Selection:
    size, dtype = slot.pool.shape[0], slot.row.dtype
    zeros, none = jnp.zeros(size, dtype), jnp.zeros(size, bool)
    rows = jnp.zeros((size, *slot.row.shape), dtype)
    picks = Picks(rows, jnp.zeros(size, jnp.int32), zeros, rows, none, jnp.zeros((size, size), bool))
    return Selection(none, none, jnp.zeros((), dtype), jnp.zeros((), jnp.int32), picks, zeros, zeros)


def _refuse(result: Selection) -> Selection:
    worth = result.total > 0
    return result._replace(team=result.picked & worth, total=jnp.where(worth, result.total, 0.0))


def remaining(static: Static, pool: jax.Array, selection: Selection) -> jax.Array:
    """The pool (N,) after a slot was served, where slots draw from one pool (no stage 1)."""
    return pool & ~(selection.team if static.return_refused else selection.picked)
