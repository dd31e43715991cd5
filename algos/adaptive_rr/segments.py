"""The replay loop with the host in charge: programs that make exactly the updates due up to the next check.

Between two checks it is known when updates are due. So the host asks `replay_ratio.pattern`, runs a program of that
shape, and looks at the counters again. There are few patterns, one for each ratio and place in an interval, and each is
compiled once. Results are those of `loop.py` to the bit. This is the form for simulators that live on the host, for
members grouped by their ratio, and for machines on which branches are dear.
"""

from collections.abc import Callable
from functools import cache

import jax

from algos.adaptive_rr.loop import Loop, State, agent_step
from algos.core import Hyper, Key, Source
from algos.drqv2.replay_ratio import RatioHyper, RatioState, RatioStatic, pattern

Segment = Callable[[Key, State, Source, Hyper, int], State]  # (root key, state, source, settings, agent steps at most)
Block = tuple[tuple[int, ...], int]  # updates due in each of a few agent steps, and how often this repeats


def steps_to_check(state: RatioState, static: RatioStatic, hyper: RatioHyper, horizon: int) -> int:
    """Agent steps up to the next moment at which a check may be made, where all episodes have `horizon` steps."""
    interval, steps = round(float(hyper.check_interval)), int(state.steps)
    if static.check_unit == "agent_steps":
        return interval - steps % interval
    episodes = interval - int(state.episodes) % interval
    return episodes * horizon - (steps - int(state.episodes) * horizon)


def blocks(due: tuple[int, ...]) -> tuple[Block, ...]:
    """A pattern as loops: the agent steps without updates before the first, then the shortest period, then a rest."""
    waiting = next((i for i, count in enumerate(due) if count), len(due))
    rest = due[waiting:]
    found: list[Block] = [((0,), waiting)]
    if rest:
        period = next(n for n in range(1, len(rest) + 1) if rest[n:] == rest[:-n])
        whole = len(rest) // period
        found += [(rest[:period], whole), (rest[whole * period :], 1)]
    return tuple((block, repeats) for block, repeats in found if block and repeats)


def make_segments(loop: Loop) -> Segment:
    """A function that advances one member to its next check, or by fewer agent steps if it is told so.

    Episodes have to end at the environment's horizon, never before it, or checks count agent steps.
    """

    @cache
    def program(due: tuple[int, ...]) -> Callable[[Key, State, Source, Hyper], State]:
        def run(key: Key, state: State, source: Source, hyper: Hyper) -> State:
            for block, repeats in blocks(due):

                def body(state: State, _: None, block: tuple[int, ...] = block) -> tuple[State, None]:
                    for slots in block:
                        step_key = jax.random.fold_in(key, state.ratio.steps)
                        state, _metrics = agent_step(loop, slots, step_key, state, source, hyper)
                    return state, None

                state, _ = jax.lax.scan(body, state, length=repeats)
            return state

        return jax.jit(run, donate_argnums=1)

    def advance(key: Key, state: State, source: Source, hyper: Hyper, most: int) -> State:
        rule = loop.rule(hyper)
        length = min(most, steps_to_check(state.ratio, loop.static, rule, loop.env.horizon))
        return program(pattern(state.ratio, length, loop.static, rule))(key, state, source, hyper)

    return advance
