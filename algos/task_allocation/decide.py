"""A whole decision: who serves which open slot, and what both stages learn from it.

Stage 1 lets every free entity choose an open slot; stage 2 serves the slots one after the other, each from those who
chose it. In the variants without stage 1 the slots draw from one pool, in the order of their numbers or a random one.
A `problem` is anything with the fields entities (N, d), slots (T, d'), free (N,), open (T,), cost (N, T),
demand (T, m), entity_mask (N,) and slot_mask (T,); padding is neither free nor open.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Key, Metrics
from algos.task_allocation import manager, preassign, worker
from algos.task_allocation.nets import Hyper, Sizes, Static


class Stage1(NamedTuple):
    """What chooses slots, and the decisions that it learns from."""

    networks: preassign.State
    buffer: preassign.Buffer


class State(NamedTuple):
    """Everything that learns, and what it learns from."""

    stage1: Stage1 | None  # None in the variants without it
    manager: manager.State
    episode: jax.Array  # () int32, for stage1_bootstrap: the caller adds one where an episode ends
    workers: worker.State | None = None  # of variant=selfish


class Draws(NamedTuple):
    """The chance in one decision. Where uniforms are None, the most probable choice is made."""

    assignment: jax.Array | None  # (N,) uniforms: each entity's choice of a slot
    picks: jax.Array | None  # (T, N) or longer, uniforms: the picks of each slot in turn
    order: jax.Array  # (T,) int32: slots as they are served
    replay: jax.Array | None  # (batch_size,) int32: rows of the buffer, this decision included; None: stage 1 rests
    prices: jax.Array | None = None  # (T, N) standard normal: the noise of the prices that slots are asked


class Result(NamedTuple):
    """What a decision came to."""

    allocation: jax.Array  # (T, N) bool: the new teams; slots that were not open have none
    assignment: jax.Array | None  # (N,) int32: what stage 1 chose, -1 for none; None without stage 1
    served: jax.Array  # (T,) bool: slots that stage 2 went through
    picks: jax.Array  # (T,) int32: how many picks each slot made, those of refused teams included
    total: jax.Array  # () R: the sum of the slots' returns
    critic_loss: jax.Array  # (T, N) of the manager after each pick; zeros if it did not learn then
    actor_loss: jax.Array  # (T, N)
    updated: jax.Array  # () bool: whether stage 1 learnt
    metrics: Metrics  # of the decision's updates, zeros where there were none


class _Served(NamedTuple):
    """What stage 2 leaves, leading axis: slots as they were served."""

    entities: jax.Array  # (T, N, d): the table that each slot selected from
    selection: manager.Selection
    metrics: Metrics  # of the workers


def init(key: Key, static: Static, problem: Any, hyper: Hyper) -> State:
    """Fresh networks and an empty buffer for problems of this one's sizes and dtype."""
    stage1_key, manager_key, worker_key = jax.random.split(key, 3)
    entities, slots = problem.cost.shape
    sizes = Sizes(entities, slots, problem.entities.shape[-1], problem.slots.shape[-1])
    stage1 = preassign.init(stage1_key, static, sizes) if static.preassigns else None
    workers = worker.init(worker_key, static, sizes, hyper) if static.variant == "selfish" else None
    state = begin(static, stage1, manager.init(manager_key, static, sizes, problem.entities), problem)
    return state._replace(workers=workers)


def begin(static: Static, stage1: preassign.State | None, stage2: manager.State, problem: Any) -> State:
    """The state before the first decision of stages that exist already; the buffer is empty."""
    episode = jnp.zeros((), jnp.int32)
    if stage1 is None:
        return State(None, stage2, episode)
    nobody = jnp.full(problem.free.shape, -1, jnp.int32)
    example = _remember(problem, problem.entities, nobody, jnp.zeros((), problem.slots.dtype), episode)
    return State(Stage1(stage1, preassign.empty_buffer(static.buffer_size, example)), stage2, episode)


def draw(key: Key, static: Static, state: State, problem: Any, *, sampled: bool = True, learning: bool = True) -> Draws:
    """The chance of the next decision, which has to be of this state; not `sampled`: most probable choices."""
    entities, slots = problem.cost.shape
    assignment_key, picks_key, order_key, replay_key, price_key = jax.random.split(key, 5)
    dtype = problem.entities.dtype
    order = jnp.arange(slots, dtype=jnp.int32)
    if static.variant == "random_order":
        order = jax.random.permutation(order_key, order)
    replay = None
    if learning and state.stage1 is not None:
        buffer = state.stage1.buffer
        one_more = buffer._replace(added=buffer.added + 1)
        replay = preassign.sample(replay_key, static, one_more)
    if not sampled:
        return Draws(None, None, order, replay)
    assignment = jax.random.uniform(assignment_key, (entities,), dtype)
    picks = jax.random.uniform(picks_key, (slots, entities), dtype)
    prices = None if state.workers is None else jax.random.normal(price_key, (slots, entities), dtype)
    return Draws(assignment, picks, order, replay, prices)


def decide(
    static: Static, state: State, problem: Any, draws: Draws, hyper: Hyper, learning: bool = True
) -> tuple[State, Result]:
    """New teams for the open slots; nothing happens where there are none. Without `learning` the state stays.

    Teams whose return is not positive are refused: their entities stay idle until the next decision.
    """
    assignment = None
    if state.stage1 is not None:
        probs = preassign.probabilities(state.stage1.networks.actor, problem, hyper)
        assignment = preassign.choose(problem, probs, draws.assignment)
    live = _live(static, problem)
    stage2, workers, entities, served = _serve(static, state, problem, assignment, live, draws, hyper, learning)
    metrics: Metrics = {}
    if learning and static.manager_update == "per_decision":
        stage2, metrics = manager.learn_decision(
            static, stage2, served.entities, problem.entity_mask, served.selection, hyper
        )
    selection = jax.tree.map(lambda x: x[jnp.argsort(draws.order)], served.selection)
    if learning and static.manager_update == "per_step":
        metrics = _mean_losses(selection)
    metrics |= {name: x.mean() for name, x in served.metrics.items()}
    total = selection.total.sum()
    stage1, updated = state.stage1, jnp.zeros((), bool)
    if learning and stage1 is not None and assignment is not None:
        decision = _remember(problem, entities, assignment, total, state.episode)
        stage1, updated, more = _learn_stage1(static, stage1, decision, draws.replay, hyper)
        metrics = metrics | more
    result = Result(
        selection.team, assignment, live, selection.length, total, selection.critic_loss, selection.actor_loss,
        updated, metrics,
    )  # fmt: skip
    return State(stage1, stage2, state.episode, workers), result


def _live(static: Static, problem: Any) -> jax.Array:
    """Slots (T,) that are served. An empty slot never has a team under way: nobody earns anything in it."""
    if static.preassigns or not static.serve_empty:
        return problem.open
    return (problem.open | ~(problem.slots != 0).any(-1)) & problem.slot_mask


def _serve(
    static: Static, state: State, problem: Any, assignment: jax.Array | None, live: jax.Array, draws: Draws,
    hyper: Hyper, learning: bool,
) -> tuple[manager.State, worker.State | None, jax.Array, _Served]:  # fmt: skip
    """Stage 2: manager, workers, and the entities (N, d) with the costs of the slots that they were last asked for."""

    def serve(carry: tuple, j: jax.Array) -> tuple[tuple, _Served]:
        state, workers, entities, pool = carry
        mine = (pool if assignment is None else assignment == j) & live[j]
        asked = jnp.where(mine, problem.cost[:, j], entities[:, 0])
        entities = entities.at[:, 0].set(asked)
        seen = entities
        metrics: Metrics = {}
        if workers is not None:
            noise = jnp.zeros_like(asked) if draws.prices is None else draws.prices[j]
            workers, prices = worker.request(workers, problem.slots[j], mine, noise, hyper)
            seen = entities.at[:, 0].set(jnp.where(mine, prices, asked))
        slot = manager.Slot(seen, problem.entity_mask, problem.slots[j], mine, live[j])
        uniform = None if draws.picks is None else draws.picks[j]
        demands = problem.demand.shape[-1]
        state, selection = manager.select(static, state, slot, uniform, demands, hyper, learning)
        if workers is not None and learning:
            workers, metrics = worker.learn(workers, problem.slots[j], mine, prices, selection.team, hyper)
        if assignment is None:
            pool = manager.remaining(static, pool, selection)
        return (state, workers, entities, pool), _Served(seen, selection, metrics)

    begun = (state.manager, state.workers, problem.entities, problem.free & problem.entity_mask)
    (stage2, workers, entities, _), served = jax.lax.scan(serve, begun, draws.order)
    return stage2, workers if learning else state.workers, entities, served


def _mean_losses(selection: manager.Selection) -> Metrics:
    """The manager's losses, averaged over the decision's picks."""
    count = jnp.maximum(selection.length.sum(), 1)
    losses = {"manager_critic_loss": selection.critic_loss, "manager_actor_loss": selection.actor_loss}
    return {name: loss.sum() / count for name, loss in losses.items()}


def _remember(
    problem: Any, entities: jax.Array, assignment: jax.Array, reward: jax.Array, episode: jax.Array
) -> preassign.Decision:
    return preassign.Decision(
        entities, problem.slots, problem.free, problem.open, problem.entity_mask, problem.slot_mask, assignment,
        reward, episode,
    )  # fmt: skip


def _learn_stage1(
    static: Static, stage1: Stage1, decision: preassign.Decision, replay: jax.Array | None, hyper: Hyper
) -> tuple[Stage1, jax.Array, Metrics]:
    """Keep the decision, if one was made, and update the networks once enough of them are held."""
    made = decision.open.any()
    buffer = preassign.add(stage1.buffer, decision, made)
    if replay is None:
        return Stage1(stage1.networks, buffer), jnp.zeros((), bool), {}

    def update(networks: preassign.State) -> tuple[preassign.State, Metrics]:
        following = preassign.successors(buffer, replay) if static.stage1_bootstrap else None
        return preassign.learn(static, networks, preassign.take(buffer, replay), hyper, following)

    _, shapes = jax.eval_shape(update, stage1.networks)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    when = made & (preassign.held(buffer) > static.start_size)
    networks, metrics = jax.lax.cond(when, update, lambda networks: (networks, none), stage1.networks)
    return Stage1(networks, buffer), when, metrics
