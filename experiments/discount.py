"""A learnt discount mends off-policy learning: `python -m experiments.discount out=DIR [seeds=20] [outer=exact]`.

A policy is learnt from the episodes of another one, which mostly walks away from the reward, without importance ratios
(`algos.barfi.objectives.inner_objective`). But for its small regularisers the maximum takes each action in proportion
to the returns that followed it in the records. At the environment's own discount these hardly differ between a step
towards the reward and one away from it, and the learner imitates; a lower discount sets them apart. BARFI's outer
problem finds such a discount by itself, with the implicit hypergradient. The reward stays the true one.

The environment is `envs.shaped.chain`, where the return of a policy is computed and not estimated. The inner problem is
solved to rounding, by Newton's method, and the Hessian inverted exactly. `outer` says what the outer gradient is of:

    exact      the return itself: no noise but that of the records
    sampled    BARFI's outer objective on fresh episodes of the current policy, as many as are recorded

Written to DIR: discount.csv, a row per seed; curves.csv, a row per seed and outer step; discount.png. Returns are with
the environment's discount of 0.99.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from algos import hypergrad
from algos.barfi.objectives import Batch, Form, inner_objective, outer_objective, softmax_policy
from algos.barfi.rewards import Omega
from algos.barfi.rollout import rollout
from algos.core import Key
from envs.core import UsageError
from envs.shaped import chain
from experiments import provenance, stats
from experiments.cli import guarded, use_compilation_cache
from experiments.log import write_atomically
from experiments.png import canvas, save
from experiments.reporting.figures import PALETTE, SOFT, styled

DISCOUNT = 0.99  # of the return that counts; the learnt discount starts there
EPISODES = 200
P_LEFT = 0.7  # of the policy that was recorded
ENTROPY, THETA_L2 = 1e-3, 1e-4  # of the inner objective
OUTER_STEPS, OUTER_SIZE = 40, 0.3  # steps by the sign of the hypergradient of psi
NEWTON_STEPS, TOLERANCE = 50, 1e-8  # of the inner solver; on the norm of the gradient
OUTER = ("exact", "sampled")

ENV = chain.make()
FORM = Form(softmax_policy(lambda theta, features: features @ theta))  # theta (7, 2): logits
TRUE_REWARD = {"weight": jnp.zeros((3, chain.STATES)), "bias": jnp.array([0.0, 1.0, 0.0])}  # phi for which r_phi = r_p
BEHAVIOUR = jnp.tile(jnp.log(jnp.array([P_LEFT, 1.0 - P_LEFT])), (chain.STATES, 1))
OPTIMUM = jnp.tile(jnp.array([-jnp.inf, 0.0]), (chain.STATES, 1))  # always to the right


class Course(NamedTuple):
    """What happened over (seeds, outer steps + 1); before the first step the discount is the fixed one."""

    discount: jax.Array
    value: jax.Array  # return of the policy that is learnt with it
    gradient: jax.Array  # norm of the inner objective's gradient there


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: Path
    seeds: int = 20
    outer: str = "exact"


def value(theta: jax.Array) -> jax.Array:
    """Return of softmax(theta) with the environment's discount."""
    return chain.expected_return(jax.nn.softmax(theta), DISCOUNT)


def play(key: Key, theta: jax.Array) -> Batch:
    """Episodes of softmax(theta)."""

    def choose(key: Key, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        action = jax.random.categorical(key, obs @ theta)
        return action, jax.nn.one_hot(action, 2), jax.nn.softmax(obs @ theta)[action]

    def episode(key: Key) -> Any:
        reset_key, key = jax.random.split(key)
        return rollout(reset_key, key, ENV, ENV.params, choose)

    rows = jax.vmap(episode)(jax.random.split(key, EPISODES))
    return Batch(rows.obs, rows.action, rows.beta, rows.reward, rows.auxiliary, rows.mask)


def inner(theta: jax.Array, psi: jax.Array, batch: Batch) -> jax.Array:
    """What the learner maximises, with the true reward and the discount sigmoid(psi)."""
    return inner_objective(theta, Omega(TRUE_REWARD, psi), batch, FORM, entropy=ENTROPY, theta_l2=THETA_L2)


def solve(theta: jax.Array, psi: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The theta (7, 2) that maximises the inner objective, and the norm of the gradient there.

    Newton's method with backtracking. The entropy alone can bend upwards; along such directions the step is that of
    the eigenvalue's size. There is one maximum: returns are not negative.
    """
    start, unravel = ravel_pytree(theta)
    objective = lambda x: inner(unravel(x), psi, batch)  # noqa: E731
    gradient, hessian = jax.grad(objective), jax.hessian(objective)

    def step(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, slope, count = carry
        values, vectors = jnp.linalg.eigh(hessian(x))
        move = vectors @ ((vectors.T @ slope) / jnp.maximum(jnp.abs(values), THETA_L2))
        now = objective(x)
        least = now - 4.0 * jnp.finfo(x.dtype).eps * jnp.abs(now)  # the same but for rounding
        worse = lambda size: (objective(x + size * move) < least) & (size > 1e-3)  # noqa: E731
        x = x + jax.lax.while_loop(worse, lambda size: size / 2.0, jnp.ones((), x.dtype)) * move
        return x, gradient(x), count + 1

    going = lambda carry: (jnp.linalg.norm(carry[1]) > TOLERANCE) & (carry[2] < NEWTON_STEPS)  # noqa: E731
    x, slope, _ = jax.lax.while_loop(going, step, (start, gradient(start), jnp.int32(0)))
    return unravel(x), jnp.linalg.norm(slope)


def learn(seed: jax.Array, outer: str) -> Course:
    """One seed: record, then solve the inner problem and move the discount, in turns."""
    record_key, outer_key = jax.random.split(jax.random.key(seed))
    batch = play(record_key, BEHAVIOUR)

    def policy_gradient(key: Key, theta: jax.Array) -> jax.Array:
        if outer == "exact":
            return jax.grad(value)(theta)
        return jax.grad(outer_objective)(theta, play(key, theta), FORM, discount=DISCOUNT)

    def step(carry: tuple[jax.Array, jax.Array], key: Key) -> tuple[tuple[jax.Array, jax.Array], Course]:
        theta, psi = carry
        theta, gradient = solve(theta, psi, batch)
        direction, _ = hypergrad.implicit(
            lambda theta, psi: inner(theta, psi, batch), theta, psi, policy_gradient(key, theta),
            hypergrad.Settings("exact", lanczos=0),
        )  # fmt: skip
        found = Course(jax.nn.sigmoid(psi), value(theta), gradient)
        return (theta, psi + OUTER_SIZE * jnp.sign(direction)), found

    psi = jnp.log(DISCOUNT / (1.0 - DISCOUNT))
    return jax.lax.scan(step, (jnp.zeros_like(BEHAVIOUR), psi), jax.random.split(outer_key, OUTER_STEPS + 1))[1]


def study(seeds: int, outer: str = "exact") -> Course:
    """Seeds 0, 1, ... side by side, in one program."""
    with jax.default_matmul_precision("highest"):  # accelerators would round to 8 or 11 bits: no solving to rounding
        return jax.device_get(jax.jit(jax.vmap(lambda seed: learn(seed, outer)))(jnp.arange(seeds)))


def references() -> dict[str, float]:
    """Returns of the recorded policy and of the best there is."""
    return {"behaviour": float(value(BEHAVIOUR)), "optimum": float(value(OPTIMUM))}


def table(course: Course, outer: str) -> pd.DataFrame:
    """A row per seed: its returns, where the discount ended, and the origin of the numbers."""
    origin = provenance.describe()
    columns = {
        "seed": np.arange(len(course.value)),
        "outer": outer,
        "outer_steps": OUTER_STEPS,
        "fixed": course.value[:, 0],
        "learned": course.value[:, -1],
        "learned_discount": course.discount[:, -1],
        "largest_inner_gradient": course.gradient.max(1),
        "device": origin["device"],
        "git": origin["git"],
    }
    return pd.DataFrame(columns | references() | origin["versions"])


def curves(course: Course) -> pd.DataFrame:
    """A row per seed and number of outer steps made."""
    seeds, steps = np.indices(course.value.shape)
    columns = {"seed": seeds, "outer_step": steps, "discount": course.discount, "return": course.value}
    return pd.DataFrame({name: x.reshape(-1) for name, x in columns.items()})


@styled
def picture(course: Course) -> Figure:
    """Left the discount of every seed over the outer steps, right the returns with the intervals of their means."""
    figure = canvas(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    left.plot(course.discount.T, color=PALETTE[0], lw=0.8, alpha=0.35)
    left.plot(course.discount.mean(0), color=PALETTE[0], lw=1.8)
    left.set(xlabel="outer steps", ylabel="learnt discount")
    left.set_title("every seed, and their mean", loc="left")
    rows = {f"fixed at {DISCOUNT}": course.value[:, 0], "learnt": course.value[:, -1]}
    for x, (values, colour) in enumerate(zip(rows.values(), (PALETTE[1], PALETTE[0])), 1):
        _seeds_and_mean(right, x, values, colour)
    for x, level in zip((0, 3), references().values()):
        right.plot([x - 0.3, x + 0.3], [level, level], color=SOFT, lw=1.8)
    right.set_xticks(range(4), ["behaviour", *rows, "optimum"])
    right.set(ylabel=f"return (discount {DISCOUNT})", ylim=(0.0, 1.0))
    right.set_title("every seed, and the mean with its 95 % interval", loc="left")
    return figure


def _seeds_and_mean(axes: Axes, x: float, values: jax.Array, colour: str) -> None:
    axes.plot(np.linspace(x - 0.2, x + 0.2, len(values)), values, "o", ms=3.6, color=colour, alpha=0.5, mew=0)
    mean = stats.mean_interval(values)
    axes.plot([x - 0.3, x + 0.3], [mean.value] * 2, lw=1.8, color=colour)
    axes.plot([x, x], [mean.low, mean.high], lw=3.0, color=colour)


def summary(course: Course) -> str:
    """The returns, and whether the learnt discount is the better one."""
    fixed, learned, discount = course.value[:, 0], course.value[:, -1], course.discount[:, -1]
    paired = stats.paired_difference(learned, fixed)
    difference = paired.difference
    verdict = "holds" if difference.low > 0.0 else "does not hold" if difference.high < 0.0 else "is open"
    levels = [
        *(f"{name} {level:.3f}" for name, level in references().items()),
        f"fixed discount {_shown(stats.mean_interval(fixed))}",
        f"learnt {_shown(stats.mean_interval(learned))}",
    ]
    return (
        f"return: {'; '.join(levels)}\n"
        f"learnt discount {_shown(stats.mean_interval(discount))}, from {DISCOUNT}; it fell on "
        f"{(discount < course.discount[:, 0]).sum()} of {paired.n} seeds\n"
        f"learnt - fixed {_shown(difference)}, above 0 on {paired.wins} of {paired.n} seeds: 'learnt > fixed' {verdict}"
    )


def _shown(interval: stats.Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def parse(args: list[str]) -> Options:
    """The options in `out=DIR seeds=20 outer=exact`.

    Raises:
        UsageError: no folder or one that is a file, another key, a value that does not exist.
    """
    given = dict(arg.split("=", 1) for arg in args if "=" in arg)
    if len(given) != len(args) or set(given) - {"out", "seeds", "outer"} or not given.get("out"):
        raise UsageError(
            f"not understood: {' '.join(args)}; use python -m experiments.discount out=DIR [seeds=20] [outer=exact]"
        )
    seeds, outer, out = given.get("seeds", str(Options.seeds)), given.get("outer", Options.outer), Path(given["out"])
    if not seeds.isdecimal() or int(seeds) < 1:
        raise UsageError(f"seeds={seeds} must be a whole number, 1 or more")
    if outer not in OUTER:
        raise UsageError(f"outer={outer} must be one of {', '.join(OUTER)}")
    if file := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise UsageError(f"out={out}: {file} is a file; name a folder")
    return Options(out, int(seeds), outer)


def main(args: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return
    options = parse(args)
    use_compilation_cache()
    course = study(options.seeds, options.outer)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, frame in {"discount": table(course, options.outer), "curves": curves(course)}.items():
        text = frame.to_csv(index=False, lineterminator="\n", float_format="%.9g")
        write_atomically(options.out / f"{name}.csv", text.encode())
    save(picture(course), options.out / "discount.png")
    print(f"{summary(course)}\nwritten: {options.out}")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
