"""Instances drawn at random, ours: numbers of the published tables' kind, for training and held out from it.

Held-out instances differ in what entities and tasks are like (their ranges meet those of training only partly), not
only in the draw. A drawing function is (key, ranges, sizes) -> Instance: pure, so it can be vmapped over keys and, in
one program, over ranges; `sizes` are padded maxima, `ranges` say how many are real.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.allocation import almighty, electric, material, rbf
from envs.allocation.core import Tables
from envs.allocation.instances import Sizes
from envs.core import EnvState, Key, UsageError

Range = Any  # (low, high), both included

QUEUE = 30  # tasks of a queue by default, as published
MEAN_SKILLS = {"rbf": 5.3, "material": 12.5}  # capability per dimension of a typical entity
SLACK = 1e-3  # keeps a uniform draw times a count below the count in float32


class Ranges(NamedTuple):
    """Of RBF, Material and Electric. Numbers, or arrays with the same leading axes for many at once."""

    entities: Range  # how many
    slots: Range
    tasks: Range
    strength: Range  # RBF: each capability; Material: cost, a fifth of the capabilities' sum; Electric: power
    price: Range  # RBF: cost per capability; Electric: coefficient of transmission; Material: unused
    team: Range  # RBF, Material: a task's demand, in typical entities; Electric: unused
    pay: Range  # reward per demand


class Skills(NamedTuple):
    """Of Almighty."""

    entities: Range
    slots: Range
    generalists: Range  # share of entities with all skills
    large: Range  # share of tasks that ask for all skills
    pay: Range  # reward of a small task, per skill
    large_pay: Range  # reward of a large one, per skill


class Episode(NamedTuple):
    """State of an environment that draws an instance at each reset."""

    state: EnvState
    instance: Any


def sizes_for(kind: str, entities: int, slots: int) -> Sizes:
    """Sizes with the default queue. Raises UsageError for none of either, and in Electric for too few nodes."""
    if entities < 1 or slots < 1:
        raise UsageError(f"{entities} entities, {slots} slots: an instance needs at least one of each")
    if kind == "electric" and entities <= slots:
        raise UsageError(f"{entities} nodes for {slots} slots leave nobody to supply; generate more nodes than slots")
    return Sizes(entities, slots, slots if kind == "almighty" else QUEUE)


def check(kind: str, ranges: Any, sizes: Sizes) -> None:
    """Raise UsageError for ranges that are negative, upside down, or count more than `sizes` or fewer than one."""
    for name, pair in ranges._asdict().items():
        low, high = (np.asarray(bound) for bound in pair)
        if np.any(low < 0) or np.any(low > high):
            raise UsageError(f"{name}={low}..{high}: a range goes from a number >= 0 to one that is not smaller")
        most = sizes._asdict().get(name)
        if most is not None and (np.any(low < 1) or np.any(high > most)):
            raise UsageError(f"{name}={low}..{high}: need 1 to {most}, the padded maximum; or raise sizes.{name}")
    if kind == "electric" and sizes.entities <= sizes.slots:
        sizes_for(kind, sizes.entities, sizes.slots)


def draw_rbf(key: Key, ranges: Ranges, sizes: Sizes) -> rbf.Instance:
    """Whole capabilities, small ones more often, as published; cost to a tenth; whole demands, rounded rewards."""
    keys = iter(jax.random.split(key, 8))
    counts = _counts(next(keys), ranges, sizes)
    low, high = ranges.strength
    skewed = jax.random.uniform(next(keys), (sizes.entities, 3)) ** 3
    capability = jnp.floor(low + (high - low + 1 - SLACK) * skewed)
    price = _uniform(next(keys), ranges.price, (sizes.entities,))
    cost = jnp.maximum(jnp.round(10 * price * capability.sum(axis=1)), 1) / 10
    demand, reward = _coalitions(next(keys), ranges, sizes, MEAN_SKILLS["rbf"])
    side = 7
    place = jax.random.randint(next(keys), (sizes.tasks,), 1, side * side)  # not (0, 0)
    entities = jnp.concatenate([cost[:, None], capability], axis=1)
    queue = jnp.concatenate([reward[:, None], demand], axis=1)
    tables = _tables(entities, queue, counts, sizes, rbf.DECAY, rbf.HORIZON)
    cells = jnp.stack([place // side, place % side], axis=1)
    return rbf.Instance(tables, cells, jnp.int32(side))


def draw_material(key: Key, ranges: Ranges, sizes: Sizes) -> material.Instance:
    """Trucks by the published recipe: the capabilities of one that costs k sum to 5 k; any whole positions."""
    keys = iter(jax.random.split(key, 8))
    counts = _counts(next(keys), ranges, sizes)
    cost = _whole(next(keys), ranges.strength, (sizes.entities,))
    first = _whole(next(keys), (1, 5 * cost - 4), cost.shape)
    second = _whole(next(keys), (1, jnp.maximum(5 * cost - first - 3, 1)), cost.shape)
    rows = jnp.stack([cost, first, second, 5 * cost - first - second], axis=1)
    demand, reward = _coalitions(next(keys), ranges, sizes, MEAN_SKILLS["material"])
    side = 100
    parked = jax.random.randint(next(keys), (sizes.entities, 2), 0, side)
    place = jax.random.randint(next(keys), (sizes.tasks,), 1, side * side)  # not (0, 0)
    cells = jnp.stack([place // side, place % side], axis=1)
    entities = jnp.concatenate([rows, parked], axis=1)
    queue = jnp.concatenate([reward[:, None], demand, cells], axis=1)
    return material.Instance(_tables(entities, queue, counts, sizes, 1.0, material.HORIZON), jnp.int32(side))


def draw_electric(key: Key, ranges: Ranges, sizes: Sizes) -> electric.Instance:
    """Whole power and places 10..98; tasks come from each node in turn, in an order that is drawn."""
    keys = iter(jax.random.split(key, 8))
    counts = _counts(next(keys), ranges, sizes)
    power = _whole(next(keys), ranges.strength, (sizes.entities,))
    value = power * _uniform(next(keys), ranges.pay, power.shape)
    places = _whole(next(keys), (10, 98), (sizes.entities, 2))
    nodes = jnp.concatenate([value[:, None], power[:, None], places], axis=1)
    lots = jnp.where(jnp.arange(sizes.entities) < counts[0], jax.random.uniform(next(keys), power.shape), 2)
    source = jnp.argsort(lots)[jnp.arange(sizes.tasks) % counts[0]].astype(jnp.int32)  # padding sorts last
    tables = _tables(nodes, nodes[source], counts, sizes, electric.DECAY, electric.HORIZON)
    kappa = jnp.where(tables.entity_mask, _uniform(next(keys), ranges.price, power.shape), 0)
    return electric.Instance(tables, source, kappa)


def draw_almighty(key: Key, ranges: Skills, sizes: Sizes, skills: int = 8) -> almighty.Instance:
    """Entities of cost 1 with one skill or all; tasks that ask for one skill or all."""
    keys = iter(jax.random.split(key, 8))
    full = ranges._asdict() | {"tasks": (sizes.tasks, sizes.tasks)}
    counts = _counts(next(keys), Ranges(*(full.get(name, (0, 0)) for name in Ranges._fields)), sizes)
    counts = (counts[0], counts[1], counts[1])
    able = _one_or_all(next(keys), ranges.generalists, (sizes.entities, skills))
    wanted = _one_or_all(next(keys), ranges.large, (sizes.tasks, skills))
    size = wanted.sum(axis=1)
    small, large = (_uniform(next(keys), pair, size.shape) for pair in (ranges.pay, ranges.large_pay))
    reward = jnp.round(size * jnp.where(size > 1, large, small))
    entities = jnp.concatenate([jnp.ones((sizes.entities, 1)), able], axis=1)
    queue = jnp.concatenate([reward[:, None], wanted], axis=1)
    return almighty.Instance(_tables(entities, queue, counts, sizes, 1.0, almighty.HORIZON))


def _counts(key: Key, ranges: Ranges, sizes: Sizes) -> tuple[jax.Array, ...]:
    keys = jax.random.split(key, 3)
    return tuple(
        _whole(k, getattr(ranges, name), ()).astype(jnp.int32) for k, name in zip(keys, sizes._fields)
    )  # fmt: skip


def _uniform(key: Key, pair: Range, shape: tuple[int, ...]) -> jax.Array:
    low, high = pair
    return low + (high - low) * jax.random.uniform(key, shape)


def _whole(key: Key, pair: Range, shape: tuple[int, ...]) -> jax.Array:
    low, high = pair
    return jnp.floor(low + (high - low + 1 - SLACK) * jax.random.uniform(key, shape))


def _one_or_all(key: Key, share: Range, shape: tuple[int, int]) -> jax.Array:
    """Rows of ones, a `share` of them, or with a single one."""
    which, chance, lot = jax.random.split(key, 3)
    one = jax.nn.one_hot(jax.random.randint(which, shape[:1], 0, shape[1]), shape[1])
    every = jax.random.uniform(lot, (shape[0], 1)) < _uniform(chance, share, ())
    return jnp.where(every, 1.0, one)


def _coalitions(key: Key, ranges: Ranges, sizes: Sizes, typical: float) -> tuple[jax.Array, jax.Array]:
    """Demands (Q, 3) that ask for `ranges.team` typical entities, unevenly over dimensions, and rewards (Q,)."""
    size_key, uneven_key, pay_key = jax.random.split(key, 3)
    team = _uniform(size_key, ranges.team, (sizes.tasks, 1))
    uneven = jax.random.uniform(uneven_key, (sizes.tasks, 3), minval=0.5, maxval=1.5)
    demand = jnp.clip(jnp.round(team * typical * uneven), 1, 150)
    reward = jnp.round(demand.sum(axis=1) * _uniform(pay_key, ranges.pay, (sizes.tasks,)))
    return demand, jnp.maximum(reward, 1)


def _tables(
    entities: jax.Array, queue: jax.Array, counts: tuple[jax.Array, ...], sizes: Sizes, decay: float, horizon: int
) -> Tables:
    """Rows behind the counts become padding."""
    many, slots, tasks = counts
    entity_mask = jnp.arange(sizes.entities) < many
    queued = jnp.arange(sizes.tasks) < tasks
    return Tables(
        entities=jnp.where(entity_mask[:, None], entities, 0),
        entity_mask=entity_mask,
        slot_mask=jnp.arange(sizes.slots) < slots,
        queue=jnp.where(queued[:, None], queue, 0),
        queue_length=tasks,
        decay=jnp.asarray(np.float64(decay)),
        horizon=jnp.int32(horizon),
    )


def _exactly(sizes: Sizes) -> tuple[Range, Range, Range]:
    return (sizes.entities,) * 2, (sizes.slots,) * 2, (sizes.tasks,) * 2


def _team(sizes: Sizes, low: float, high: float) -> Range:
    """Demands in shares of the crowd, at least an entity."""
    return max(1.0, low * sizes.entities), max(2.0, high * sizes.entities)


DRAW: dict[str, Callable[..., Any]] = {
    "rbf": draw_rbf, "material": draw_material, "electric": draw_electric, "almighty": draw_almighty,
}  # fmt: skip
RANGES: dict[tuple[str, str], Callable[[Sizes], Any]] = {
    ("rbf", "train"): lambda s: Ranges(*_exactly(s), (1, 12), (0.015, 0.03), _team(s, 0.02, 0.2), (0.03, 0.05)),
    ("rbf", "heldout"): lambda s: Ranges(*_exactly(s), (3, 18), (0.01, 0.04), _team(s, 0.04, 0.3), (0.035, 0.065)),
    ("material", "train"): lambda s: Ranges(*_exactly(s), (1, 10), (0, 0), _team(s, 0.01, 0.07), (0.3, 0.4)),
    ("material", "heldout"): lambda s: Ranges(*_exactly(s), (5, 14), (0, 0), _team(s, 0.02, 0.1), (0.35, 0.5)),
    ("electric", "train"): lambda s: Ranges(*_exactly(s), (12, 80), (0.02, 0.05), (0, 0), (0.06, 0.12)),
    ("electric", "heldout"): lambda s: Ranges(*_exactly(s), (40, 140), (0.03, 0.06), (0, 0), (0.05, 0.1)),
    ("almighty", "train"): lambda s: Skills(*_exactly(s)[:2], (0.0, 0.1), (0.05, 0.2), (3, 3), (2.5, 2.5)),
    ("almighty", "heldout"): lambda s: Skills(*_exactly(s)[:2], (0.1, 0.25), (0.2, 0.4), (2, 4), (1.5, 3)),
}
