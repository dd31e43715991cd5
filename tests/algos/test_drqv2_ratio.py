"""The replay ratio: when updates fall, when the adaptive rule switches, and that both ways of making them agree."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import UsageError
from algos.drqv2 import replay_ratio
from algos.drqv2.replay_ratio import RatioHyper, RatioState, RatioStatic

pytestmark = pytest.mark.usefixtures("quick_compilation")
EPISODE = 10
STATIC = RatioStatic(warmup=20)


class Trace(NamedTuple):
    """One entry for each agent step."""

    due: jax.Array
    check: replay_ratio.Check
    switched: jax.Array


@partial(jax.jit, static_argnums=(1, 3, 4))
def _play(phi: jax.Array, static: RatioStatic, hyper: RatioHyper, steps: int, episode: int) -> Trace:
    def body(state: RatioState, t: jax.Array) -> tuple[RatioState, Trace]:
        state, check = replay_ratio.check(state, (t > 0) & (t % episode == 0), static, hyper)
        state, due = replay_ratio.grant(state, static, hyper)
        given = lambda made: (phi[t], made)  # noqa: E731
        _, state = replay_ratio.masked_updates(lambda x, y: (x, y[0]), None, state, due, given, static, hyper)
        return state, Trace(due, check, state.switched)

    return jax.lax.scan(body, replay_ratio.init_ratio(), jnp.arange(steps))[1]


def play(phi: Any, static: RatioStatic = STATIC, episode: int = EPISODE, **hyper: float) -> Trace:
    """Episodes of one length, checked every second; updates made at step t have Φ = phi[t]. Ratios are 1/2 and 2."""
    phi = jnp.asarray(phi, jnp.float32)
    trace = _play(phi, static, RatioHyper(**{"check_interval": 2, "gap": 2.0**-10} | hyper), len(phi), episode)
    return jax.tree.map(np.asarray, trace)


def switch_step(trace: Trace) -> int | None:
    """The first agent step with the high ratio."""
    at = np.flatnonzero(trace.switched)
    return int(at[0]) if len(at) else None


@pytest.mark.parametrize(("ratio", "period"), [(0.25, [1, 0, 0, 0]), (0.5, [1, 0]), (1.0, [1]), (2.0, [2]), (4.0, [4])])
def test_constant_ratios_fall_on_multiples_of_their_period(ratio: float, period: list[int]) -> None:
    for warmup in (8, 9, 11):
        static = RatioStatic(warmup=warmup, max_updates=4)
        due = play(np.full(40, 0.5), static, low_ratio=ratio, high_ratio=ratio, check_interval=1000).due
        every = np.resize(period, 40)  # in step with the agent steps, not with the end of the warm-up
        np.testing.assert_array_equal(due, np.where(np.arange(40) >= warmup, every, 0))


@pytest.mark.parametrize("ratio", [0.1, 1 / 3, 0.7, 1.5, 2.9])
def test_fractions_do_not_drift(ratio: float) -> None:
    static = RatioStatic(warmup=0, max_updates=3)
    due = play(np.full(3000, 0.5), static, low_ratio=ratio, high_ratio=ratio, check_interval=1000).due
    assert np.abs(due.cumsum() - (np.arange(3000) + 1) * ratio).max() <= 1.0
    assert due.sum() == round(3000 * ratio)
    assert due.max() - due.min() == 1


def test_constant_phi_switches_at_the_first_check_and_doubles_from_there() -> None:
    trace = play(np.full(200, 0.4375))
    # Two episodes end in the warm-up's last step: the first check is at the fourth.
    assert switch_step(trace) == 40
    steps = np.arange(200)
    np.testing.assert_array_equal(trace.due, np.where(steps < 20, 0, np.where(steps < 40, steps % 2 == 0, 2)))
    assert trace.due.sum() == (40 - 20) / 2 + 2 * (200 - 40)


def test_a_change_equal_to_the_gap_counts_as_settled_unless_strict() -> None:
    phi = np.full(100, 0.5)
    phi[21:] += 2.0**-10  # exact in binary, as are the means
    assert switch_step(play(phi)) == 40
    strict = play(phi, RatioStatic(warmup=20, strict=True))
    assert switch_step(strict) == 60
    assert list(strict.check.phi[[40, 60]]) == [0.5 + 2.0**-10] * 2
    assert strict.check.phi_before[40] == 0.5


def test_a_steady_decline_never_switches() -> None:
    assert switch_step(play(0.6 - 2.0**-12 * np.arange(1000))) is None


def test_nothing_switches_back() -> None:
    phi = np.where(np.arange(400) < 60, 0.5, 0.5 - 0.001 * np.arange(400))
    trace = play(phi)
    assert switch_step(trace) == 40
    assert (trace.due[40:] == 2).all()
    assert trace.check.made[60::20].all()  # checks go on


def test_only_the_window_before_a_check_is_averaged() -> None:
    phi = np.arange(100) / 128.0
    trace = play(phi, check_window=1)
    assert trace.check.phi[40] == phi[30:40:2].mean()
    assert trace.check.updates[40] == 5
    assert trace.check.phi_before[40] == phi[20]  # of the very first update
    wide = play(phi, check_interval=4, check_window=2)
    assert wide.check.phi[40] == phi[20:40:2].mean()
    every = play(phi, check_interval=1)  # the window is all of the last episode
    assert every.check.phi[40] == phi[30:40:2].mean()


def test_measures_of_single_updates() -> None:
    phi = np.arange(100) / 128.0
    assert play(phi, RatioStatic(warmup=20, measure="instant")).check.phi[40] == phi[38]
    average = phi[20]
    for value in phi[20:40:2]:
        average += 0.25 * (value - average)
    smooth = play(phi, RatioStatic(warmup=20, measure="ema"), ema_rate=0.25)
    np.testing.assert_allclose(smooth.check.phi[40], average, rtol=1e-6)


def test_checks_by_agent_steps() -> None:
    phi = np.arange(100) / 128.0
    static = RatioStatic(warmup=20, check_unit="agent_steps")
    trace = play(phi, static, episode=7, check_interval=16, check_window=6)
    np.testing.assert_array_equal(np.flatnonzero(trace.check.made), [32, 48, 64, 80, 96])
    assert trace.check.phi[48] == phi[42:48:2].mean()


def test_a_window_without_updates_is_no_check() -> None:
    trace = play(np.full(60, 0.5), episode=1, low_ratio=0.5)
    assert not trace.check.made[20:].all()
    assert (trace.check.updates[trace.check.made] == 1).all()


def test_a_trough_is_not_taken_for_a_recovery() -> None:
    phi = np.interp(np.arange(300), [0, 60, 120, 200, 300], [0.5, 0.4, 0.4, 0.45, 0.45])
    assert switch_step(play(phi)) == 100
    risen = play(phi, RatioStatic(warmup=20, require_rise=True))
    assert switch_step(risen) == 240


def test_no_switch_before_its_time() -> None:
    assert switch_step(play(np.full(200, 0.5), min_steps=90)) == 100


Toy = tuple[jax.Array, jax.Array]


def toy_update(learner: Toy, inputs: jax.Array) -> tuple[Toy, jax.Array]:
    """Mixes the parameters so that number, order and randomness of updates all matter; Φ settles slowly."""
    weights, seen = learner
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), inputs), weights.shape)
    weights = jnp.tanh(weights @ weights.T * 0.3 + 0.1 * noise)
    phi = 0.5 + 0.1 * jnp.exp(-inputs / 20.0) + 1e-4 * weights[0, 0]
    return (weights, seen + 1.0), phi


def toy_start() -> Toy:
    return jnp.linspace(-1.0, 1.0, 16).reshape(4, 4), jnp.zeros(())


def toy_step(learner: Toy) -> Toy:
    """A step of an environment that the learner sees."""
    return learner[0] * 0.99 + 0.01, learner[1]


def run_masked(lengths: list[int], static: RatioStatic, hyper: RatioHyper) -> tuple[Toy, RatioState]:
    """All steps in one compiled loop, with slots."""
    ended = np.zeros(sum(lengths), bool)
    ended[np.cumsum(lengths)[:-1]] = True

    def body(carry: tuple[Toy, RatioState], ended: jax.Array) -> tuple[tuple[Toy, RatioState], None]:
        learner, state = carry
        state, _ = replay_ratio.check(state, ended, static, hyper)
        state, due = replay_ratio.grant(state, static, hyper)
        learner, state = replay_ratio.masked_updates(toy_update, learner, state, due, lambda made: made, static, hyper)
        return (toy_step(learner), state), None

    start = (toy_start(), replay_ratio.init_ratio())
    return jax.jit(lambda ended: jax.lax.scan(body, start, ended)[0])(jnp.asarray(ended))


def run_segments(lengths: list[int], static: RatioStatic, hyper: RatioHyper) -> tuple[Toy, RatioState, set[Any]]:
    """Episode by episode; the host asks for the pattern and runs a program with just those updates."""
    programs: dict[tuple[int, ...], Any] = {}

    def segment(due: tuple[int, ...], learner: Toy, state: RatioState) -> tuple[Toy, RatioState]:
        for count in due:
            state, _ = replay_ratio.grant(state, static, hyper)
            for _ in range(count):
                learner, phi = toy_update(learner, state.updates)
                state = replay_ratio.record(state, phi, static, hyper)
            learner = toy_step(learner)
        return learner, state

    look = jax.jit(lambda state, ended: replay_ratio.check(state, ended, static, hyper)[0])
    learner, state = toy_start(), replay_ratio.init_ratio()
    for number, length in enumerate(lengths):
        state = look(state, jnp.asarray(number > 0))
        due = replay_ratio.pattern(state, length, static, hyper)
        programs.setdefault(due, jax.jit(partial(segment, due)))
        learner, state = programs[due](learner, state)
    return learner, state, set(programs)


def assert_agree(ours: Any, others: Any) -> None:
    """Counters to the bit, numbers but for the rounding of programs compiled differently."""

    def check(x: jax.Array, y: jax.Array) -> None:
        close = partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)
        (close if x.dtype == jnp.float32 else np.testing.assert_array_equal)(x, y)

    jax.tree.map(check, ours, others)


@pytest.mark.parametrize(
    ("length", "low", "high", "strict"), [(4, 0.5, 2.0, False), (5, 0.5, 2.0, True), (3, 1 / 3, 1.5, False)]
)
def test_slots_and_segments_agree(length: int, low: float, high: float, strict: bool) -> None:
    static = RatioStatic(warmup=5, max_updates=2, strict=strict)
    hyper = RatioHyper(low_ratio=low, high_ratio=high, gap=0.01, check_interval=3)
    lengths = [length] * (120 // length)
    learner, state = run_masked(lengths, static, hyper)
    other, other_state, programs = run_segments(lengths, static, hyper)
    assert bool(state.switched)
    assert int(state.updates) > 60
    assert float(learner[1]) == int(state.updates)
    assert len(programs) <= 7
    assert_agree((learner, state), (other, other_state))


def test_episodes_of_any_length_agree() -> None:
    static = RatioStatic(warmup=4)
    hyper = RatioHyper(gap=0.01, check_interval=4)
    lengths = [2, 3, 3, 2, 2, 3, 2, 2, 2, 3, 3, 3] * 2
    learner, state = run_masked(lengths, static, hyper)
    other, other_state, _ = run_segments(lengths, static, hyper)
    assert_agree((learner, state), (other, other_state))


def test_a_low_member_beside_a_switched_one_is_as_beside_a_low_one() -> None:
    hyper = RatioHyper(check_interval=1000)
    low, high = replay_ratio.init_ratio(), replay_ratio.init_ratio()._replace(switched=jnp.asarray(True))
    together = jax.tree.map(lambda x, y: jnp.stack([x, y]), low, high)
    alike = jax.tree.map(lambda x: jnp.stack([x, x]), low)
    start = jax.tree.map(lambda x: jnp.stack([x, 2.0 * x]), toy_start())

    def member(learner: Toy, state: RatioState) -> tuple[Toy, RatioState]:
        static = RatioStatic(warmup=0)

        def body(carry: tuple[Toy, RatioState], _: None) -> tuple[tuple[Toy, RatioState], None]:
            state, due = replay_ratio.grant(carry[1], static, hyper)
            return replay_ratio.masked_updates(toy_update, carry[0], state, due, lambda made: made, static, hyper), None

        return jax.lax.scan(body, (learner, state), length=7)[0]

    run = jax.jit(jax.vmap(member))
    mixed, plain = run(start, together), run(start, alike)
    first = partial(jax.tree.map, lambda x: x[0])
    jax.tree.map(np.testing.assert_array_equal, first(mixed), first(plain))
    assert list(mixed[1].updates) == [4, 14]
    alone = jax.jit(member)(toy_start(), low)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), first(mixed), alone)


@pytest.mark.parametrize(("active", "calls"), [([False, False, False], 0), ([False, True, False], 3)])
def test_a_slot_that_no_member_needs_is_not_computed(active: list[bool], calls: int) -> None:
    seen = []

    def update(carry: jax.Array, inputs: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(float(x)), carry)
        return carry + inputs

    run = jax.jit(jax.vmap(replay_ratio.when(update), in_axes=(0, 0, None)))
    out = run(jnp.array(active), jnp.arange(3.0), jnp.float32(10.0))
    jax.effects_barrier()
    np.testing.assert_array_equal(out, np.arange(3.0) + 10.0 * np.array(active))
    assert len(seen) == calls


def test_a_slot_may_be_active_for_all_members_alike() -> None:
    run = jax.vmap(replay_ratio.when(lambda x, y: x * y), in_axes=(None, 0, 0))
    out = run(jnp.asarray(True), jnp.arange(3.0), jnp.arange(3.0))
    np.testing.assert_array_equal(out, [0.0, 1.0, 4.0])


@pytest.mark.parametrize(
    ("name", "value"), [("low_ratio", 0.0), ("high_ratio", -1.0), ("check_interval", 0), ("check_window", 0)]
)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"algo\.hyper\.{name}={value} must be at least"):
        RatioHyper(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("measure", "mean"), ("check_unit", "frames"), ("max_updates", 0)])
def test_settings_that_do_not_exist_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"algo\.static\.{name}"):
        RatioStatic(**{name: value})


def test_a_ratio_beyond_the_slots_is_refused() -> None:
    replay_ratio.check_ratios(RatioStatic(max_updates=4), RatioHyper(high_ratio=4.0))
    with pytest.raises(UsageError, match="high_ratio=4.0 is more than algo.static.max_updates=2"):
        replay_ratio.check_ratios(RatioStatic(), RatioHyper(high_ratio=4.0))
