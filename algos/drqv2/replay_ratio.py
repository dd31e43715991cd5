"""How many updates to make at each agent step: a constant replay ratio, or the adaptive rule.

Adaptive Replay Ratio (ICLR 2024, arXiv 2310.07418, section 6): train with a low ratio until the critic's fraction of
active units, Φ, has hardly changed between two checks, then with a high one for good. Everything here is a function of
counters, and asks nothing of the learner but Φ of its updates. In each agent step, in this order:

    state, result = check(state, ended, ...)    ended: the step before was an episode's last
    state, due = grant(state, ...)              so many updates are due now, each followed by `record`
    a step of the environment

Ratios are credits in whole numbers: 1/2, 1/3, ... 1/10 never drift. The updates themselves are made in either of two
ways, with the same result. `masked_updates` has as many slots as could be due: it works inside compiled loops, and
slots that no member needs cost nothing. With `pattern` the host learns what is due in the steps up to the next check
and runs a program with just those updates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from algos.checks import check_choices, check_least
from algos.core import UsageError

UNIT = 2520  # credits of one update, a multiple of 1, 2, ... 10
CHOICES = {"measure": ("window", "instant", "ema"), "check_unit": ("episodes", "agent_steps")}
Update = Callable[[Any, Any], tuple[Any, jax.Array]]  # (learner, inputs) -> (learner, Φ)


def check_number(name: str, value: Any, least: float) -> None:
    """Raise UsageError for a setting of `algo.hyper` that is below its least value or infinite, if it is known."""
    if isinstance(value, int | float) and not least <= value < math.inf:
        raise UsageError(f"algo.hyper.{name}={value} must be at least {least:.4g}")


def check_ratio(name: str, value: Any, slots: int | None = None) -> None:
    """Raise UsageError for a ratio, if it is known, that is not positive or more than the slots can hold."""
    check_number(name, value, 1.0 / UNIT)
    if slots is not None and value > slots:
        raise UsageError(f"algo.hyper.{name}={value} is more than algo.static.max_updates={slots}: set it higher")


@register_dataclass
@dataclass
class RatioHyper:
    """Scalars that may differ between members. Equal ratios are a constant one."""

    low_ratio: float = 0.5  # updates per agent step, rounded to multiples of 1/2520
    high_ratio: float = 2.0  # after the switch
    gap: float = 1e-3  # τ: Φ has settled once it changes no more than this between two checks
    check_interval: float = 50.0  # I, in algo.static's check_unit
    check_window: float = 1.0  # Φ is averaged over so many units before each check; agent steps: 500
    min_steps: float = 0.0  # agent steps before which no switch is made
    ema_rate: float = 0.01  # of the moving average, with measure=ema

    def __post_init__(self) -> None:
        """Raises UsageError for a ratio, interval or window that is not positive, and for a window beyond the interval.

        Traced values are not looked at.
        """
        for name in ("low_ratio", "high_ratio"):
            check_ratio(name, getattr(self, name))
        for name in ("check_interval", "check_window"):
            check_number(name, getattr(self, name), 1)
        window, interval = self.check_window, self.check_interval
        if isinstance(window, int | float) and isinstance(interval, int | float) and window > interval:
            raise UsageError(
                f"algo.hyper.check_window={window} is longer than algo.hyper.check_interval={interval}: set it lower"
            )


@dataclass(unsafe_hash=True)
class RatioStatic:
    """What shapes the compiled program."""

    max_updates: int = 2  # of one agent step: the high ratio, rounded up
    warmup: int = 2000  # agent steps before the first update
    # Φ at a check: window (official), mean over the window before it | instant, of the last update | ema, of all so far
    measure: str = "window"
    check_unit: str = "episodes"  # of interval and window | agent_steps
    strict: bool = False  # the change has to be below the gap, as the paper writes it; official: it may equal it
    require_rise: bool = (
        False  # no switch before Φ has risen by more than the gap, so that a trough is not taken for it
    )

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist and for sizes out of range."""
        check_choices(self, CHOICES)
        check_least(self, max_updates=1, warmup=0)


class RatioState(NamedTuple):
    """The counters, each () and of one member."""

    steps: jax.Array  # int32: agent steps begun
    episodes: jax.Array  # int32: ended
    updates: jax.Array  # int32: made
    credit: jax.Array  # int32, below UNIT
    started: jax.Array  # bool: updates have been allowed; only then are there checks
    switched: jax.Array  # bool: the ratio is the high one
    risen: jax.Array  # bool: Φ has risen by more than the gap between two checks
    phi_last: jax.Array  # Φ at the last check, before the first one Φ of the very first update
    phi_sum: jax.Array  # since the window opened
    phi_count: jax.Array  # int32: updates since the window opened
    phi_recent: jax.Array  # of the last update, or its moving average


class Check(NamedTuple):
    """What a check found; where there was none, `made` is false and the numbers mean nothing."""

    made: jax.Array  # () bool
    phi: jax.Array  # () Φ now
    phi_before: jax.Array  # () Φ that it is compared with
    updates: jax.Array  # () int32: that the window had


def init_ratio() -> RatioState:
    """The counters before the first agent step."""
    zero, no, none = jnp.zeros((), jnp.int32), jnp.zeros((), bool), jnp.zeros(())
    return RatioState(zero, zero, zero, zero, no, no, no, none, none, zero, none)


def check_ratios(static: RatioStatic, hyper: RatioHyper) -> None:
    """Raise UsageError where a ratio, which must be known, is more than the slots can hold."""
    for name in ("low_ratio", "high_ratio"):
        check_ratio(name, getattr(hyper, name), static.max_updates)


def whole(x: Any) -> jax.Array:
    """Rounded to int32."""
    return jnp.round(jnp.asarray(x, jnp.float32)).astype(jnp.int32)


def check(state: RatioState, ended: jax.Array, static: RatioStatic, hyper: RatioHyper) -> tuple[RatioState, Check]:
    """Begin an agent step; `ended` () bool: the step before was the last of an episode. The ratio may switch here.

    The window opens `check_window` units before a check and closes with it. Where it saw no update there is no check.
    """
    episodes = state.episodes + ended
    in_episodes = static.check_unit == "episodes"
    position = episodes if in_episodes else state.steps
    event = state.started & (ended if in_episodes else True)
    interval = whole(hyper.check_interval)
    closes = event & (position % interval == 0)
    opens = event & ((position + whole(hyper.check_window)) % interval == 0)

    mean = state.phi_sum / jnp.maximum(state.phi_count, 1)
    phi = mean if static.measure == "window" else state.phi_recent
    made = closes & (state.phi_count > 0)
    change = phi - state.phi_last
    settled = jnp.abs(change) < hyper.gap if static.strict else jnp.abs(change) <= hyper.gap
    allowed = (state.steps >= hyper.min_steps) & (state.risen if static.require_rise else True)
    switch = made & settled & allowed & ~state.switched

    result = Check(made, phi, state.phi_last, state.phi_count)
    fresh = opens | closes
    return state._replace(
        episodes=episodes,
        credit=jnp.where(switch, 0, state.credit),
        switched=state.switched | switch,
        risen=state.risen | (made & (change > hyper.gap)),
        phi_last=jnp.where(made, phi, state.phi_last),
        phi_sum=jnp.where(fresh, 0.0, state.phi_sum),
        phi_count=jnp.where(fresh, 0, state.phi_count),
    ), result


def grant(state: RatioState, static: RatioStatic, hyper: RatioHyper) -> tuple[RatioState, jax.Array]:
    """The number of updates due in this agent step, () int32; none during the warm-up.

    A ratio of 1/2 falls on even agent steps, whenever the warm-up ends: credit starts as if it had grown since step 0.
    """
    eligible = state.steps >= static.warmup
    growth = whole(jnp.where(state.switched, hyper.high_ratio, hyper.low_ratio) * UNIT)
    since_zero = (state.steps - 1) % UNIT * growth % UNIT
    credit = jnp.where(state.started, state.credit, since_zero) + growth
    due = jnp.where(eligible, credit // UNIT, 0)
    credit = jnp.where(eligible, credit - due * UNIT, state.credit)
    return state._replace(steps=state.steps + 1, credit=credit, started=state.started | eligible), due


def record(state: RatioState, phi: jax.Array, static: RatioStatic, hyper: RatioHyper) -> RatioState:
    """Count an update with critic's FAU `phi` (). The very first one is what the first check compares with."""
    first = state.updates == 0
    rate = jnp.where(first, 1.0, hyper.ema_rate) if static.measure == "ema" else 1.0
    return state._replace(
        updates=state.updates + 1,
        phi_last=jnp.where(first, phi, state.phi_last),
        phi_sum=state.phi_sum + phi,
        phi_count=state.phi_count + 1,
        phi_recent=(1.0 - rate) * state.phi_recent + rate * phi,
    )


def when(function: Callable[[Any, Any], Any]) -> Callable[[jax.Array, Any, Any], Any]:
    """(active, carry, inputs) -> function(carry, inputs) where active () holds, else the carry.

    Under `vmap` a branch would become a selection after both sides are computed for every member. Here it stays a
    branch, on whether any member is active. The function may use nothing that depends on the member but its arguments.
    """

    def apply(active: jax.Array, carry: Any, inputs: Any) -> Any:
        # The rule below sees leaves only: trees of flags could not be made of classes that check their fields.
        leaves, carry_tree = jax.tree.flatten(carry)
        given, inputs_tree = jax.tree.flatten(inputs)

        def flat(leaves: list[jax.Array], given: list[jax.Array]) -> list[jax.Array]:
            new = function(jax.tree.unflatten(carry_tree, leaves), jax.tree.unflatten(inputs_tree, given))
            return jax.tree.leaves(new)

        return jax.tree.unflatten(carry_tree, _branch(flat)(active, leaves, given))

    return apply


def _branch(function: Callable[[list, list], list]) -> Callable[[jax.Array, list, list], list]:
    """`when` of lists of arrays."""

    def keep(carry: list, given: list) -> list:
        return carry

    @jax.custom_batching.custom_vmap
    def apply(active: jax.Array, carry: list, given: list) -> list:
        return jax.lax.cond(active, function, keep, carry, given)

    @apply.def_vmap
    def _batched(size: int, batched: list, active: jax.Array, carry: list, given: list) -> tuple[list, list]:
        _, carry_batched, given_batched = batched
        spread = lambda x, own: x if own else jnp.broadcast_to(x, (size, *jnp.shape(x)))  # noqa: E731
        active = jnp.broadcast_to(active, (size,))
        carry = [spread(x, own) for x, own in zip(carry, carry_batched, strict=True)]
        axes = [0 if own else None for own in given_batched]

        def some(carry: list, given: list) -> list:
            pairs = zip(jax.vmap(function, (0, axes))(carry, given), carry, strict=True)
            return [jnp.where(active.reshape(size, *[1] * (old.ndim - 1)), new, old) for new, old in pairs]

        return jax.lax.cond(active.any(), some, keep, carry, given), [True] * len(carry)

    return apply


def masked_updates(
    update: Update, learner: Any, state: RatioState, due: jax.Array, inputs: Any, static: RatioStatic, hyper: RatioHyper
) -> tuple[Any, RatioState]:
    """The `due` updates of an agent step in `max_updates` slots; slots beyond leave every number as it is.

    `inputs` is a function of the number of updates made so far, so that random draws do not depend on the slots. It
    is called in every slot, active or not, and its result is an argument of `update`, which has to be pure.
    """

    def slot(carry: Any, given: Any) -> Any:
        (learner, state), (inputs, hyper) = carry, given
        learner, phi = update(learner, inputs)
        return learner, record(state, phi, static, hyper)

    def body(carry: Any, j: jax.Array) -> tuple[Any, None]:
        return when(slot)(j < due, carry, (inputs(carry[1].updates), hyper)), None

    return jax.lax.scan(body, (learner, state), jnp.arange(static.max_updates))[0]


def pattern(state: RatioState, length: int, static: RatioStatic, hyper: RatioHyper) -> tuple[int, ...]:
    """How many updates are due in each of the next `length` agent steps, if there is no switch in between.

    For the host, as the shape of a program: `state` is of one member, known, and after `check`.
    """

    return tuple(int(due) for due in np.asarray(_grants(state, hyper, static, length)))


@partial(jax.jit, static_argnames=("static", "length"))
def _grants(state: RatioState, hyper: RatioHyper, static: RatioStatic, length: int) -> jax.Array:
    """What `grant` gives in each of `length` steps."""
    return jax.lax.scan(lambda state, _: grant(state, static, hyper), state, length=length)[1]
