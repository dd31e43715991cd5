"""Programs without slots that are not needed find what the loop with slots finds, to the bit."""

import jax
import jax.numpy as jnp
import pytest

from algos.adaptive_rr import sac, segments
from algos.drqv2.replay_ratio import RatioHyper, RatioStatic, init_ratio
from tests.algos import toy


@pytest.mark.parametrize(
    ("due", "expected"),
    [
        ((0, 0, 0, 0), (((0,), 4),)),
        ((0, 0, 1, 0, 1, 0, 1), (((0,), 2), ((1, 0), 2), ((1,), 1))),
        ((2, 2, 2), (((2,), 3),)),
        ((2, 1, 2, 1), (((2, 1), 2),)),
        ((1, 0, 0), (((1, 0, 0), 1),)),
        ((0, 1, 0, 0, 1, 0), (((0,), 1), ((1, 0, 0), 1), ((1, 0), 1))),
    ],
)
def test_patterns_become_loops(due, expected):
    found = segments.blocks(due)
    assert sum((block * repeats for block, repeats in found), ()) == due
    if due != (0, 1, 0, 0, 1, 0):
        assert found == expected


def test_steps_to_the_next_check():
    state = init_ratio()._replace(steps=jnp.int32(70), episodes=jnp.int32(2))
    hyper = RatioHyper(check_interval=4.0)
    assert segments.steps_to_check(state, RatioStatic(), hyper, 30) == 50
    assert (
        segments.steps_to_check(state, RatioStatic(check_unit="agent_steps"), RatioHyper(check_interval=40.0), 30) == 10
    )


def test_segments_and_slots_agree_to_the_bit():
    static = sac.Static(hidden=(8, 8), batch_size=8, buffer_capacity=90, warmup=40)
    loop, algo = sac.make_loop(static, toy.SPEC, toy.ENV), sac.make(static, toy.SPEC, toy.ENV)
    hyper, key, steps = sac.Hyper(gap=1.0, check_interval=2.0), jax.random.key(1), 4 * toy.ENV.horizon

    @jax.jit
    def slots(state):
        body = lambda state, t: algo.step(jax.random.fold_in(key, t), state, toy.ENV.params, hyper)  # noqa: E731
        return jax.lax.scan(body, state, jnp.arange(steps))[0]

    start = jax.jit(algo.init)(jax.random.key(0), hyper)
    expected = slots(start)
    assert expected.ratio.switched
    assert int(expected.ratio.updates) == 10 + 2 * 60

    state, advance, moments = start, segments.make_segments(loop), []
    while (left := steps - int(state.ratio.steps)) > 0:
        state = advance(key, state, toy.ENV.params, hyper, left)
        moments.append(int(state.ratio.steps))
    assert moments == [60, 120]
    toy.assert_equal(state, expected)
