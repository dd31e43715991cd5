"""Replay in the host's memory gives the numbers of replay on the device; batches drawn ahead are those drawn before."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import buffers, runner
from algos.adaptive_rr import drqv2, segments
from algos.adaptive_rr.loop import Loop, LoopStatic, agent_step, init, make_algorithm, parts
from algos.buffers import FrameBuffer, FrameLayout, FrameRow, NStepBatch
from algos.core import UsageError
from algos.drqv2.learner import make_learner
from algos.drqv2.replay_ratio import RatioHyper
from algos.host_memory import DEVICE, HOST, memory_space
from algos.off_policy import Learner
from tests.algos import toy

pytestmark = pytest.mark.usefixtures("quick_compilation")
WARMUP, STEPS, MOST = toy.ENV.horizon, 80, 150
HYPER = drqv2.Hyper(low_ratio=0.5, high_ratio=0.5)


def recording(learner: Learner) -> Learner:
    """A method with the replay of another, whose agent is a list of what each update was given."""

    def update(key: Any, agent: Any, batch: Any, steps: Any, updates: Any, hyper: Any) -> tuple[Any, Any]:
        given = {"batch": batch, "noise": jax.random.uniform(key)}
        return jax.tree.map(lambda seen, x: seen.at[updates].set(x), agent, given), {"fau_critic": jnp.zeros(())}

    batch = jax.eval_shape(lambda: learner.sample(jax.random.key(0), learner.empty(), HYPER))
    given = {"batch": batch, "noise": jax.ShapeDtypeStruct((), jnp.float32)}
    return learner._replace(
        init=lambda key, hyper: jax.tree.map(lambda x: jnp.zeros((MOST, *x.shape), x.dtype), given),
        explore=lambda key, agent, obs, steps, hyper: jax.random.uniform(key, (toy.SPEC.action_dim,), minval=-1.0),
        update=update,
    )


@pytest.mark.parametrize(("how", "prefetch"), [("map", 0), ("vmap", 2)])
def test_batches_do_not_depend_on_the_memory(how: str, prefetch: int) -> None:
    ends = []
    for place in ("device", "host"):
        static = drqv2.Static(batch_size=4, encoder="identity", stack=1, buffer_capacity=70, frames_in=place)
        ratio = LoopStatic(warmup=WARMUP, prefetch=prefetch)
        loop = Loop(recording(make_learner(static, toy.ENV)), toy.ENV, ratio, lambda hyper: hyper)
        population, _ = toy.train(make_algorithm(loop), HYPER, toy.ENV.params, STEPS, how=how)
        buffer, ahead = parts(population.state.buffer)
        assert memory_space(buffer.frames) == (HOST if place == "host" else DEVICE)
        others = population.state._replace(buffer=(buffer[1:], ahead))
        assert {memory_space(x) for x in jax.tree.leaves(others)} == {DEVICE}
        np.testing.assert_array_equal(population.state.ratio.updates, (STEPS - WARMUP) // 2)
        ends.append(population.state)
    toy.assert_equal(*ends)
    assert len(np.unique(ends[0].agent["batch"].obs[:, : (STEPS - WARMUP) // 2])) > 30


def test_one_member_keeps_its_frames_in_place() -> None:
    """A chunk writes in the very memory that it is given, with no room for another copy."""
    rows, layout = 100_000, FrameLayout((6, 6, 3), stack=2, nstep=2, running_episode=True, frames_in="host")
    row = FrameRow(jnp.ones((6, 6, 3), jnp.uint8), jnp.ones(2), *jnp.ones(2), *jnp.zeros(2, bool))

    def member(buffer: FrameBuffer, key: jax.Array) -> tuple[FrameBuffer, NStepBatch]:
        def body(buffer: FrameBuffer, key: jax.Array) -> tuple[FrameBuffer, NStepBatch]:
            buffer = buffers.add_frame(buffer, row, layout)
            return buffer, buffers.sample_frames(key, buffer, 4, layout, 0.9)

        return jax.lax.scan(body, buffer, jax.random.split(key, 3))

    chunk = jax.jit(lambda buffer, keys: runner.in_turn(member, buffer, keys), donate_argnums=0)
    full = jax.jit(lambda: jax.tree.map(lambda x: x[None], buffers.empty_frames(rows, layout, 2)))()
    compiled = chunk.lower(full, jax.random.split(jax.random.key(0), 1)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= buffers.frame_buffer_bytes(rows, layout, 2) > 108 * rows
    assert memory.temp_size_in_bytes < 10 * rows
    after, batch = compiled(full, jax.random.split(jax.random.key(0), 1))
    assert full.frames.is_deleted()
    assert memory_space(after.frames) == HOST
    assert memory_space(batch.obs) == DEVICE
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(after.frames)[0].any(1)), range(3))


def counting() -> Learner:
    """A replay that counts its rows, and whose batches tell by that when they were drawn."""
    zeros = lambda agent, obs, hyper: jnp.zeros(toy.SPEC.action_dim)  # noqa: E731
    replay = Learner(
        init=lambda key, hyper: None,
        explore=lambda key, agent, obs, steps, hyper: zeros(agent, obs, hyper),
        act=zeros,
        empty=lambda: jnp.zeros(()),
        begin=lambda buffer, obs, write: buffer,
        add=lambda buffer, step, write: buffer + write,
        ready=lambda buffer: buffer > 0,
        sample=lambda key, buffer, hyper: {"rows": buffer, "draw": jax.random.uniform(key)},
        update=lambda key, agent, batch, steps, updates, hyper: (agent, {}),
    )
    return recording(replay)


def make_loop(priming: int, prefetch: int = 0) -> Loop:
    return Loop(counting(), toy.ENV, LoopStatic(warmup=10, priming=priming, prefetch=prefetch), lambda hyper: hyper)


def play(loop: Loop, ratio: Any) -> Any:
    """The state after 60 agent steps at a constant ratio."""

    @jax.jit
    def run(hyper: RatioHyper) -> Any:
        def body(state: Any, t: jax.Array) -> tuple[Any, None]:
            key = jax.random.fold_in(jax.random.key(1), t)
            return agent_step(loop, loop.static.max_updates, key, state, toy.ENV.params, hyper)[0], None

        return jax.lax.scan(body, init(loop, jax.random.key(0), hyper), jnp.arange(60))[0]

    return run(RatioHyper(low_ratio=ratio, high_ratio=ratio, gap=-1.0))


@pytest.mark.parametrize(("ratio", "priming"), [(0.5, 0), (2.0, 7)])
def test_an_update_learns_from_the_batch_drawn_before(ratio: float, priming: int) -> None:
    at_once, ahead = play(make_loop(priming), ratio), play(make_loop(priming, prefetch=3), ratio)
    made = int(at_once.ratio.updates)
    assert made == 50 * ratio + priming == int(ahead.ratio.updates)
    drawn, learnt = (jax.tree.map(np.asarray, state.agent["batch"]) for state in (at_once, ahead))
    for name in ("rows", "draw"):
        np.testing.assert_array_equal(learnt[name][3:made], drawn[name][: made - 3])
    np.testing.assert_array_equal(ahead.agent["noise"], at_once.agent["noise"])
    np.testing.assert_array_equal(learnt["rows"][:3], 10.0)  # all that there were at the first update
    assert len(np.unique(learnt["draw"][:made])) == made
    waiting, places = parts(ahead.buffer)[1], np.arange(made - 3, made) % 3
    np.testing.assert_array_equal(waiting["draw"][places], drawn["draw"][made - 3 : made])
    assert parts(at_once.buffer)[1] is None


def test_segments_and_members_side_by_side_draw_ahead_likewise() -> None:
    loop, hyper = make_loop(priming=4, prefetch=2), RatioHyper(low_ratio=0.5, high_ratio=0.5, gap=-1.0)
    expected, advance = play(loop, 0.5), segments.make_segments(loop)
    state = jax.jit(lambda: init(loop, jax.random.key(0), hyper))()
    while (left := 60 - int(state.ratio.steps)) > 0:
        state = advance(jax.random.key(1), state, toy.ENV.params, hyper, left)
    toy.assert_equal(state, expected)
    both = jax.vmap(lambda ratio: play(loop, ratio))(jnp.array([2.0, 0.5]))
    toy.assert_equal(jax.tree.map(lambda x: x[1], both), expected)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^algo\.static\.frames_in=disk must be one of device, host$"):
        drqv2.Static(frames_in="disk")
    with pytest.raises(UsageError, match=r"^algo\.static\.prefetch is at least 0, not -1$"):
        drqv2.Static(prefetch=-1)
