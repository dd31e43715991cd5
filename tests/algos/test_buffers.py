"""The ring of frames: against a list that forgets nothing, and n-step returns by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from algos import buffers
from algos.buffers import FrameBuffer, FrameLayout, FrameRow, NStepBatch
from algos.core import UsageError

pytestmark = pytest.mark.usefixtures("quick_compilation")
SHAPE = (2, 3, 2)
LENGTHS = (5, 2, 3, 7, 4, 9, 3, 6)  # agent steps of episodes; the last one goes on
GAMMA = 0.9


def story(seed: int = 0) -> Any:
    """A FrameRow of NumPy arrays: the rows of all episodes one after the other; frames are random."""
    rng = np.random.default_rng(seed)
    rows = sum(length + 1 for length in LENGTHS)
    ends = np.cumsum([length + 1 for length in LENGTHS])
    last = np.isin(np.arange(rows) + 1, ends[:-1])
    rows_of: Any = FrameRow  # of arrays that may be indexed without compiling anything
    return rows_of(
        rng.integers(0, 256, (rows, *SHAPE), dtype=np.uint8), np.float32(rng.standard_normal((rows, 2))),
        np.float32(rng.standard_normal(rows)), np.float32(np.where(last & (rng.uniform(size=rows) < 0.5), 0.0, 1.0)),
        np.concatenate([[True], last[:-1]]), last,
    )  # fmt: skip


def snapshots(layout: FrameLayout, capacity: int) -> FrameBuffer:
    """The buffer after each row of the story, on a leading axis."""

    def body(buffer: FrameBuffer, row: FrameRow) -> tuple[FrameBuffer, FrameBuffer]:
        buffer = buffers.add_frame(buffer, row, layout)
        return buffer, buffer

    empty = buffers.empty_frames(capacity, layout, 2)
    return jax.jit(lambda rows: jax.lax.scan(body, empty, rows)[1])(jax.tree.map(jnp.asarray, story()))


def expected(count: int, layout: FrameLayout, capacity: int) -> list[int]:
    """Rows where a window begins, of the first `count` rows."""
    first, last = story().first[:count], story().last[:count]
    closed = count if layout.running_episode else np.flatnonzero(last)[-1] + 1 if last.any() else 0
    low = max(count - capacity + layout.stack - 1, 0) if count > capacity else 0
    whole = lambda s: s + layout.nstep < closed and not first[s + 1 : s + layout.nstep + 1].any()  # noqa: E731
    return [s for s in range(low, count) if whole(s)]


def window(s: int, layout: FrameLayout) -> tuple[Any, ...]:
    """Observation, action, return, discount and next observation of the window that begins at a row."""
    rows, first = story(), story().first

    def stack(row: int) -> np.ndarray:
        begin = max(i for i in range(row + 1) if first[i])
        return np.concatenate([rows.frame[max(row - k, begin)] for k in range(layout.stack - 1, -1, -1)], -1)

    total, factor = 0.0, 1.0
    for i in range(s + 1, s + layout.nstep + 1):
        total += factor * rows.reward[i]
        factor *= GAMMA * rows.discount[i]
    return stack(s), rows.action[s + 1], np.float32(total), np.float32(factor), stack(s + layout.nstep)


@pytest.mark.parametrize(
    "layout", [FrameLayout(SHAPE, stack=3, nstep=3), FrameLayout(SHAPE, stack=2, nstep=1, running_episode=True)]
)
@pytest.mark.parametrize("capacity", [14, 100])
def test_windows_are_those_of_a_list_that_forgets_nothing(layout: FrameLayout, capacity: int) -> None:
    every = snapshots(layout, capacity)
    bounds = jax.vmap(lambda b: buffers.whole_windows(b, layout))(every)
    read = jax.jit(lambda buffer, windows: buffers.read_windows(buffer, windows, layout, GAMMA))
    compared = 0
    for count in range(1, len(story().first) + 1):
        begin, end = (int(x[count - 1]) for x in bounds)
        starts = expected(count, layout, capacity)
        assert end - begin == len(starts)
        if count % 3 == 0 and starts:
            buffer = jax.tree.map(lambda x: x[count - 1], every)  # noqa: B023
            batch = read(buffer, begin + jnp.arange(40) % len(starts))
            ours = [jax.tree.map(lambda x: x[i], batch) for i in range(min(len(starts), 40))]  # noqa: B023
            for s, row in zip(starts, ours, strict=False):
                for x, y in zip(row, window(s, layout), strict=True):
                    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
            compared += len(ours)
    assert compared > 40


def test_rows_not_written_leave_everything_as_it_is() -> None:
    layout = FrameLayout(SHAPE)
    before = jax.tree.map(lambda x: x[11], snapshots(layout, 14))
    row = jax.tree.map(lambda x: jnp.asarray(x[12]), story())
    after = buffers.add_frame(before, row, layout, write=False)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_draws_are_uniform_over_whole_windows() -> None:
    layout = FrameLayout(SHAPE, stack=3, nstep=3)
    buffer = jax.tree.map(lambda x: x[-1], snapshots(layout, 30))
    starts = expected(len(story().first), layout, 30)
    batch = jax.jit(lambda key: buffers.sample_frames(key, buffer, 4000, layout, GAMMA))(jax.random.key(0))
    actions = story().action[np.array(starts) + 1]
    which = np.abs(np.asarray(batch.action)[:, None] - actions).sum(-1).argmin(-1)
    np.testing.assert_array_equal(batch.action, actions[which])
    assert stats.chisquare(np.bincount(which, minlength=len(starts))).pvalue > 1e-3


def test_nothing_to_draw_yet_is_no_error() -> None:
    layout = FrameLayout(SHAPE)
    batch = buffers.sample_frames(jax.random.key(0), buffers.empty_frames(20, layout, 2), 4, layout, GAMMA)
    assert isinstance(batch, NStepBatch)
    assert batch.obs.shape == batch.next_obs.shape == (4, 2, 3, 6)


def test_returns_by_hand() -> None:
    ones = jnp.ones((5, 3))
    reward, discount = buffers.nstep_return(ones, ones, 0.99)
    np.testing.assert_allclose(reward, 2.9701, rtol=1e-6)
    np.testing.assert_allclose(discount, 0.970299, rtol=1e-6)
    one, factor = buffers.nstep_return(jnp.array([[2.0]]), jnp.array([[0.5]]), 0.99)
    np.testing.assert_allclose([one[0], factor[0]], [2.0, 0.495])
    # what comes after a terminal step does not count
    ended = buffers.nstep_return(jnp.array([1.0, 2.0, 100.0]), jnp.array([1.0, 0.0, 1.0]), 0.5)
    np.testing.assert_allclose(ended, [2.0, 0.0])


def test_memory_is_told_before_it_is_taken() -> None:
    layout = FrameLayout(SHAPE)
    buffer = buffers.empty_frames(50, layout, 2)
    assert buffers.frame_buffer_bytes(50, layout, 2) == sum(x.nbytes for x in jax.tree.leaves(buffer))
    paper = buffers.frame_buffer_bytes(1_000_000, FrameLayout((84, 84, 3)), 6)
    assert math.isclose(paper, 21.2e9, rel_tol=0.01)


def test_too_small_a_buffer_is_refused() -> None:
    with pytest.raises(UsageError, match="buffer_capacity=11 is less than the 12"):
        buffers.empty_frames(11, FrameLayout(SHAPE), 2)
