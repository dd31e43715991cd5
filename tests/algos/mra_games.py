"""Small games for tests of MRA: scenes, batches and draws, with and without padded agents."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.mra.learn import Draws, Learner, MetaDraws, begin, init_params
from algos.mra.objectives import Batch, RelationDraws
from algos.mra.observe import Observation, observe
from algos.mra.settings import Static

SIZE, LANDMARKS, GAMES = 5, 2, 3  # rows of a batch, landmarks, training games
STATIC = Static(skills=3, resamples=2, batch_size=SIZE)
EVERY_SWITCH = Static(
    skills=3, resamples=2, batch_size=SIZE, critic_loss="per_agent", baseline="value_mean", graphs="recompute",
    discount_entropy=True, mi_include_positive=True, policy_self_features=True, key_bias=True,
)  # fmt: skip


class Scene(NamedTuple):
    position: jax.Array
    velocity: jax.Array
    landmark: jax.Array
    size: jax.Array
    mask: jax.Array
    kind: jax.Array


def width(kinds: int, landmarks: int = LANDMARKS) -> int:
    """W of observations."""
    return 4 + 3 * landmarks + (kinds if kinds > 1 else 0)


def padded(x: Any, garbage: float, slots: int, *axes: int) -> jax.Array:
    """x with garbage in new entries at the end of these axes."""
    grow = [(0, slots - x.shape[a] if a in [axis % x.ndim for axis in axes] else 0) for a in range(x.ndim)]
    return jnp.asarray(np.pad(np.asarray(x), grow, constant_values=garbage))


def draw_obs(
    seed: int, n: int, slots: int, kinds: int = 1, rows: int = SIZE, landmarks: int = LANDMARKS
) -> Observation:
    """Observations of n agents in so many slots; what padded slots hold is far off."""
    draw = np.random.default_rng(seed)
    points = lambda *shape: draw.uniform(-1.0, 1.0, (rows, *shape)).astype(np.float32)  # noqa: E731
    kind = np.broadcast_to(np.arange(n, dtype=np.float32) % kinds, (rows, n))
    scene = Scene(
        padded(points(n, 2), 50.0, slots, 1), padded(points(n, 2), np.nan, slots, 1), jnp.asarray(points(landmarks, 2)),
        jnp.full((rows, landmarks), 0.2), padded(np.ones((rows, n), np.float32), 0.0, slots, 1),
        padded(kind, 1.0, slots, 1),
    )  # fmt: skip
    return observe(scene, kinds)


def draw_batch(n: int, slots: int, kinds: int = 1, seed: int = 0) -> Batch:
    """A batch of a game of n agents in so many slots."""
    draw = np.random.default_rng(seed + 100)
    weights = draw.uniform(0.1, 1.0, (SIZE, n, n)) * (1.0 - np.eye(n))
    graph = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return Batch(
        draw_obs(seed, n, slots, kinds), padded(draw.integers(0, 5, (SIZE, n)).astype(np.int32), 3, slots, 1),
        padded(draw.normal(size=(SIZE, n)).astype(np.float32), 1e3, slots, 1), draw_obs(seed + 1, n, slots, kinds),
        jnp.asarray([0.0, 1.0, 0.0, 0.0, 0.0]), jnp.asarray(1), padded(graph, 0.0, slots, 1, 2),
        padded(draw.integers(0, 3, (SIZE, n)).astype(np.int32), 2, slots, 1),
    )  # fmt: skip


def draw_numbers(n: int, slots: int, static: Static, seed: int = 0) -> tuple[Draws, MetaDraws]:
    """Random numbers of an update and of a meta step."""
    draw = np.random.default_rng(seed + 200)
    uniform = lambda *lead: padded(draw.uniform(size=(*lead, n, static.skills)), 0.9, slots, -2)  # noqa: E731
    gumbel = lambda: padded(draw.gumbel(size=(SIZE, n, 5)).astype(np.float32), 0.0, slots, 1)  # noqa: E731
    return Draws(gumbel(), gumbel()), MetaDraws(
        RelationDraws(uniform(), uniform(static.resamples), gumbel()), uniform(1)
    )


def filled(shapes: Any, seed: int, scale: float = 0.5) -> Any:
    """Parameters of these shapes, drawn without a program to compile."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(draw.uniform(-scale, scale, x.shape), x.dtype), shapes)


def fresh(static: Static, kinds: int = 1, seed: int = 0, landmarks: int = LANDMARKS) -> Learner:
    """A learner with targets of their own."""
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), static, width(kinds, landmarks), kinds, GAMES))
    params, others = filled(shapes, seed), filled(shapes, seed + 1)
    return begin(params)._replace(target_policy=others["policy"], target_critic=others["critic"])
