"""Where batches come from: a fixed data set, a ring of the latest transitions, or a ring of the latest frames."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from algos.core import Dataset, Key, Transition, UsageError
from algos.host_memory import on_host, to_device


def sample_dataset(key: Key, dataset: Dataset, batch_size: int) -> Transition:
    """`batch_size` transitions drawn uniformly with replacement."""
    index = jax.random.randint(key, (batch_size,), 0, dataset.transitions.reward.shape[0])
    return jax.tree.map(lambda x: x[index], dataset.transitions)


def shape_reward(batch: Transition, scale: jax.Array | float, shift: jax.Array | float) -> Transition:
    """r <- scale r + shift."""
    return batch._replace(reward=scale * batch.reward + shift)


class ReplayBuffer(NamedTuple):
    """A ring of transitions; when full, the oldest are overwritten."""

    transitions: Transition  # leading axis: capacity
    count: jax.Array  # type: ignore[assignment]  # () int32: transitions ever added, hiding tuple.count


def empty_buffer(capacity: int, obs_dim: int, action_dim: int) -> ReplayBuffer:
    """A buffer of zeros."""
    vector = lambda dim: jnp.zeros((capacity, dim))  # noqa: E731
    scalar = jnp.zeros(capacity)
    transitions = Transition(vector(obs_dim), vector(action_dim), scalar, vector(obs_dim), scalar, scalar)
    return ReplayBuffer(transitions, jnp.zeros((), jnp.int32))


def add(buffer: ReplayBuffer, rows: Transition) -> ReplayBuffer:
    """Append a block of n transitions (leading axis). The capacity must be a multiple of n: no block wraps."""
    capacity = buffer.transitions.reward.shape[0]
    start = buffer.count % capacity
    write = lambda ring, new: jax.lax.dynamic_update_slice_in_dim(ring, new, start, 0)  # noqa: E731
    return ReplayBuffer(jax.tree.map(write, buffer.transitions, rows), buffer.count + rows.reward.shape[0])


def sample_buffer(key: Key, buffer: ReplayBuffer, batch_size: int) -> Transition:
    """`batch_size` transitions drawn uniformly with replacement from those present."""
    size = jnp.minimum(buffer.count, buffer.transitions.reward.shape[0])
    index = jax.random.randint(key, (batch_size,), 0, jnp.maximum(size, 1))
    return jax.tree.map(lambda x: x[index], buffer.transitions)


class NStepBatch(NamedTuple):
    """Transitions over n steps, bootstrapped where they end."""

    obs: jax.Array  # (B, ...)
    action: jax.Array  # (B, action_dim)
    reward: jax.Array  # (B,): R, the discounted sum of n rewards
    discount: jax.Array  # (B,): D, what the value of the next observation is multiplied with
    next_obs: jax.Array  # (B, ...): n steps later


def nstep_return(reward: jax.Array, env_discount: jax.Array, discount: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """R = Σ_k (Π_{j<k} γ d_j) r_k and D = Π_k γ d_k over the last axis (..., n); γ is `discount`.

    The environment's own discount d is 0 where the episode terminated, else 1.
    """
    factor = jnp.cumprod(discount * env_discount, -1)
    before = jnp.concatenate([jnp.ones_like(factor[..., :1]), factor[..., :-1]], -1)
    return (before * reward).sum(-1), factor[..., -1]


@dataclass(frozen=True)
class FrameLayout:
    """What a buffer of frames is for: the shape of its compiled programs."""

    frame: tuple[int, int, int]  # height, width and channels of one frame
    stack: int = 3  # frames of an observation, the newest last
    nstep: int = 3
    running_episode: bool = False  # windows of the episode being played are drawn, too
    dtype: str = "uint8"  # of frames; float32 where they are states: 1 x 1 with as many channels as numbers
    frames_in: str = "device"  # memory of the frames | host; all else of a buffer is on the device


class FrameRow(NamedTuple):
    """What one step of an environment leaves behind: a frame, and how it was reached."""

    frame: jax.Array  # (height, width, channels), of the layout's type
    action: jax.Array  # (action_dim,) that led here; of an episode's first frame it means nothing, as what follows
    reward: jax.Array  # () on the way here
    discount: jax.Array  # () of the environment: 0 where the episode terminated here, else 1
    first: jax.Array  # () bool: of an episode
    last: jax.Array  # () bool: terminated or truncated


class FrameBuffer(NamedTuple):
    """A ring of single frames of one environment; when full, the oldest are overwritten.

    Each frame is kept once. Stacks are rebuilt when a batch is drawn, with an episode's first frame repeated as often
    as needed. A window is a row and the n after it, all of one episode. `starts` lists, oldest first, the rows where
    windows begin, and `rank` tells how many windows begin before a row: so those that are whole are always
    one stretch of the list, and drawing from them is exact.
    """

    frames: jax.Array  # (capacity, height x width x channels), of the layout's type; in the memory it names
    action: jax.Array  # (capacity, action_dim)
    reward: jax.Array  # (capacity,)
    discount: jax.Array  # (capacity,)
    age: jax.Array  # (capacity,) int32: rows since the episode's first
    rank: jax.Array  # (capacity,) int32
    starts: jax.Array  # (capacity,) int32
    count: jax.Array  # type: ignore[assignment]  # () int32: rows ever added, hiding tuple.count
    windows: jax.Array  # () int32: ever completed
    closed: jax.Array  # () int32: windows when the latest episode ended


def frame_buffer_bytes(capacity: int, layout: FrameLayout, action_dim: int) -> int:
    """Memory of a buffer of so many rows."""
    return capacity * (math.prod(layout.frame) * jnp.dtype(layout.dtype).itemsize + 4 * action_dim + 4 * 5) + 3 * 4


def on_frames(function: Callable[..., jax.Array], layout: FrameLayout, *args: jax.Array) -> jax.Array:
    """`function` of arrays, computed where the frames are; its result stays there."""
    return on_host(function, *args) if layout.frames_in == "host" else function(*args)


def empty_frames(capacity: int, layout: FrameLayout, action_dim: int) -> FrameBuffer:
    """A buffer of zeros. Raises UsageError for one that could not hold a window and the frames before it."""
    least = 2 * (layout.stack + layout.nstep)
    if capacity < least:
        raise UsageError(f"algo.static.buffer_capacity={capacity} is less than the {least} frames of a few steps")
    ring = lambda *shape, dtype=jnp.float32: jnp.zeros((capacity, *shape), dtype)  # noqa: E731
    count = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
    size, black = math.prod(layout.frame), jnp.zeros((), layout.dtype)
    frames = on_frames(lambda value: jnp.full((capacity, size), value), layout, black)
    return FrameBuffer(
        frames, ring(action_dim), ring(), ring(),
        ring(dtype=jnp.int32), ring(dtype=jnp.int32), ring(dtype=jnp.int32), count(), count(), count(),
    )  # fmt: skip


def write_row(ring: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """A ring with another row at an index (); with one beyond its end, the ring as it is."""
    return ring.at[index].set(value.astype(ring.dtype), mode="drop")


def add_frame(buffer: FrameBuffer, row: FrameRow, layout: FrameLayout, write: ArrayLike = True) -> FrameBuffer:
    """Append a row, or nothing unless `write`. Its own episode's rows are added without others between them."""
    capacity, write = buffer.reward.shape[0], jnp.asarray(write)
    here, start = buffer.count % capacity, buffer.count - layout.nstep
    age = jnp.where(row.first, 0, buffer.age[(buffer.count - 1) % capacity] + 1)
    complete = write & (age >= layout.nstep)

    def put(ring: jax.Array, index: jax.Array, value: jax.Array, condition: jax.Array) -> jax.Array:
        return write_row(ring, jnp.where(condition, index, capacity), value)

    windows = buffer.windows + complete
    return FrameBuffer(
        frames=on_frames(write_row, layout, buffer.frames, jnp.where(write, here, capacity), row.frame.reshape(-1)),
        action=put(buffer.action, here, row.action, write),
        reward=put(buffer.reward, here, row.reward, write),
        discount=put(buffer.discount, here, row.discount, write),
        age=put(buffer.age, here, age, write),
        rank=put(buffer.rank, start % capacity, buffer.windows, write & (start >= 0)),
        starts=put(buffer.starts, buffer.windows % capacity, start % capacity, complete),
        count=buffer.count + write,
        windows=windows,
        closed=jnp.where(write & row.last, windows, buffer.closed),
    )


def whole_windows(buffer: FrameBuffer, layout: FrameLayout) -> tuple[jax.Array, jax.Array]:
    """The windows that may be drawn, as numbers from () up to but without (); the latter is no less."""
    capacity = buffer.reward.shape[0]
    end = buffer.windows if layout.running_episode else buffer.closed
    oldest = jnp.maximum(buffer.count - capacity, 0) + layout.stack - 1  # whose stack is there in any case
    begin = jnp.where(buffer.count <= capacity, 0, buffer.rank[oldest % capacity])
    return jnp.minimum(begin, end), end


def read_windows(buffer: FrameBuffer, windows: jax.Array, layout: FrameLayout, discount: ArrayLike) -> NStepBatch:
    """The batch of windows of these numbers (B,); observations are (B, height, width, stack x channels)."""
    capacity = buffer.reward.shape[0]
    start = buffer.starts[windows % capacity]
    ahead = (start[:, None] + 1 + jnp.arange(layout.nstep)) % capacity  # (B, n): what the n steps led to

    def stacked(row: jax.Array) -> jax.Array:
        back = jnp.minimum(jnp.arange(layout.stack - 1, -1, -1), buffer.age[row][:, None])
        rows = (row[:, None] - back) % capacity
        drawn = on_frames(lambda frames, rows: frames[rows], layout, buffer.frames, rows)
        frames = (to_device(drawn) if layout.frames_in == "host" else drawn).reshape(*back.shape, *layout.frame)
        frames = jnp.moveaxis(frames, 1, 3)  # (B, height, width, stack, channels)
        return frames.reshape(*frames.shape[:3], -1)

    reward, factor = nstep_return(buffer.reward[ahead], buffer.discount[ahead], discount)
    return NStepBatch(stacked(start), buffer.action[ahead[:, 0]], reward, factor, stacked(ahead[:, -1]))


def sample_frames(
    key: Key, buffer: FrameBuffer, batch_size: int, layout: FrameLayout, discount: ArrayLike
) -> NStepBatch:
    """`batch_size` windows drawn uniformly with replacement. Where there is none yet, what comes out means nothing."""
    begin, end = whole_windows(buffer, layout)
    drawn = jax.random.randint(key, (batch_size,), begin, jnp.maximum(end, begin + 1))
    return read_windows(buffer, drawn, layout, discount)
