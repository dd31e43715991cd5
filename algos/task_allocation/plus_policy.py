"""A decision of `task_allocation_plus`: two stages of small networks whose outputs are added to the greedy rule.

Stage 1: entities and slots are compared, all pairs at once, and the slots put in order. Stage 2: slot after slot draws
its team from those who are idle, one by one, by what each gives of the remaining demand per cost, by stage 1's answer
and by that of a network which sees the team so far. Networks that answer 0 leave the greedy rule (`greedy.py`) as it
is. Their inputs are ratios, distances and shares, which mean the same for any number of entities and slots.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Key, Params
from algos.task_allocation import greedy
from algos.task_allocation.greedy import TIE, Progress

LENGTH = 50.0  # unit of distances: half a side of the grid in Material and Electric
FAR = 9.0  # the distance, in this unit, of what is not there
SMALL = 1e-6  # the smallest number of which logarithms and quotients are taken
MOST = 3.0  # the highest value of ratios that have no bound
WIDTHS = {"pair": 10, "order": 9, "pick": 10}  # inputs of the networks


class Outlook(NamedTuple):
    """What a decision knows before anybody is picked."""

    distance: jax.Array  # (N, T) moves to the slot, diagonal ones included; 0 where rows have no coordinates
    closest: jax.Array  # (T,) distance of the closest free entity
    typical_cost: jax.Array  # (T,) mean cost of free entities
    needed: jax.Array  # (T,) how many typical entities the demand asks for
    free: jax.Array  # () share of entities that are free
    open: jax.Array  # () share of slots that are open


def init(key: Key, hidden: int) -> Params:
    """Networks of one hidden layer that answer 0: their output layers are zero."""
    keys = jax.random.split(key, len(WIDTHS))
    return {
        name: {
            "hidden": jax.random.normal(k, (width, hidden)) / width**0.5,
            "bias": jnp.zeros(hidden),
            "output": jnp.zeros(hidden),
        }
        for k, (name, width) in zip(keys, WIDTHS.items())
    }


def network(params: Params, *inputs: jax.Array) -> jax.Array:
    """Inputs, each (...), to an answer (...)."""
    x = jnp.stack(jnp.broadcast_arrays(*inputs), axis=-1)
    return jnp.tanh(x @ params["hidden"] + params["bias"]) @ params["output"]


def decide(params: Params, problem: Any) -> jax.Array:
    """Each entity's slot (N,) int32, -1 for none, of a problem (`envs.allocation.core.Problem`)."""
    outlook = look(problem)
    similarity = compare(params["pair"], problem, outlook)
    order = rank(params["order"], problem, outlook)
    return serve(params, problem, outlook, similarity, order)


def look(problem: Any) -> Outlook:
    """Distances and means over free entities; padding takes no part in them."""
    coordinates = slice(1 + problem.demand.shape[1], None)
    gap = jnp.abs(problem.entities[:, None, coordinates] - problem.slots[:, coordinates])
    distance = jnp.max(gap, axis=-1, initial=0.0) / LENGTH
    free = problem.free.astype(problem.cost.dtype)
    count = jnp.maximum(free.sum(), 1)
    return Outlook(
        distance=distance,
        closest=jnp.min(jnp.where(problem.free[:, None], distance, FAR), axis=0),
        typical_cost=free @ problem.cost / count,
        needed=problem.demand.sum(1) / _positive(free @ problem.capability.sum(1) / count),
        free=free.sum() / jnp.maximum(problem.entity_mask.sum(), 1),
        open=problem.open.sum() / jnp.maximum(problem.slot_mask.sum(), 1),
    )


def compare(params: Params, problem: Any, outlook: Outlook) -> jax.Array:
    """Stage 1: how well entities and slots suit each other (N, T)."""
    useful = jnp.minimum(problem.capability[:, None], problem.demand).sum(-1)
    nearest = jnp.min(jnp.where(problem.open, outlook.distance, FAR), axis=1, keepdims=True)
    return network(
        params,
        outlook.distance,
        outlook.distance - nearest,
        outlook.distance - outlook.closest,
        _log(useful / _positive(problem.demand.sum(1))),
        useful / _positive(problem.capability.sum(1, keepdims=True)),
        jnp.all(problem.capability[:, None] >= problem.demand, axis=-1),
        _log(problem.cost) - _log(outlook.typical_cost),
        jnp.minimum(problem.cost / _positive(problem.reward), MOST),
        outlook.free,
        outlook.open,
    )


def rank(params: Params, problem: Any, outlook: Outlook) -> jax.Array:
    """The slots (T,) in the order in which they are served, the open ones first: by reward and by the network."""
    value, total = _log(problem.reward), problem.demand.sum(1)
    mean_value = jnp.sum(value * problem.open) / jnp.maximum(problem.open.sum(), 1)
    free = problem.free.astype(problem.cost.dtype)
    answer = network(
        params,
        value - mean_value,
        _log(problem.reward / _positive(outlook.typical_cost * outlook.needed)),
        _log(outlook.needed),
        problem.demand.max(1) / _positive(total),
        jnp.minimum(jnp.min(free @ problem.capability / _positive(problem.demand), axis=1), MOST),
        outlook.closest,
        free @ outlook.distance / jnp.maximum(free.sum(), 1),
        outlook.free,
        outlook.open,
    )
    return jnp.argsort(jnp.where(problem.open, -(value + answer), jnp.inf), stable=True)


def serve(params: Params, problem: Any, outlook: Outlook, similarity: jax.Array, order: jax.Array) -> jax.Array:
    """Stage 2: teams for the slots in `order` (T,); returns the assignment (N,) int32."""

    def choose(slot: jax.Array, now: Progress, idle: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = similarity[:, slot] + suitability(params["pick"], problem, outlook, slot, now)
        scores = jnp.where(idle, scores, -jnp.inf)
        best = jnp.argmax(scores >= jnp.max(scores) - TIE)
        return best, scores[best] > -jnp.inf

    return greedy.serve(problem, order, choose)


def suitability(params: Params, problem: Any, outlook: Outlook, slot: jax.Array, now: Progress) -> jax.Array:
    """Logarithm of the greedy rule's points plus the network's answer, (N,); -inf for those of no use."""
    demanded = jnp.maximum(problem.demand[slot] - now.total, 0)
    useful = jnp.minimum(problem.capability, demanded).sum(1)
    share = useful / _positive(demanded.sum())
    cost, distance = problem.cost[:, slot], outlook.distance[:, slot]
    farthest = jnp.max(jnp.where(now.team, distance, 0))
    spent = jnp.sum(jnp.where(now.team, cost, 0))
    answer = network(
        params,
        share,
        _log(share),
        useful / _positive(problem.capability.sum(1)),
        jnp.all(problem.capability >= demanded, axis=1),
        demanded.sum() / _positive(problem.demand[slot].sum()),
        _log(cost) - _log(outlook.typical_cost[slot]),
        jnp.minimum((spent + cost) / _positive(problem.reward[slot]), MOST),
        distance,
        farthest,
        jnp.maximum(distance - farthest, 0),
    )
    return jnp.where(useful > 0, _log(useful) - _log(cost) + answer, -jnp.inf)


def _positive(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, SMALL)


def _log(x: jax.Array) -> jax.Array:
    return jnp.log(_positive(x))
