"""Runs against one another in one game: `python -m experiments.crossplay RUN_DIR RUN_DIR ... in=[ENV,...] out=DIR`.

RUN_DIRs are runs of algo=mra, mra_unimodal, mra_reptile, mra_maddpg or mra_maac: seeds, or several methods. Keys:
    in=[resource-4]             environments of the same game, one population each
    out=DIR                     folder of what is written
    sides=[half,one]            who follows the first run, while all others follow the second: half of the agents (where
                                their number is odd, the smaller half), or one agent
    episodes=256                of each pair
    seed=0                      of the initial states

In a game of several kinds of agents, such as pacmen, sides are `kinds`: the first kind follows the first run, the other
kinds the second. All pairs play, each run with itself too, from the same initial states.

Written to DIR: crossplay.csv, a row for each pair of methods, with 95 % intervals over runs of the first, or over
episodes where there is one pair; pairs.csv, a row for each pair of runs, with intervals over episodes; crossplay.json,
both with their origin; crossplay.png, returns of the first run's agents. `first` and `second` are mean returns of the
agents that follow either run, sums over an episode; `team` is the sum over all agents.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from algos.core import Env
from algos.mra.joint import Seats
from envs import particles
from envs.core import UsageError
from experiments import arguments, entrants
from experiments.cli import guarded, use_compilation_cache
from experiments.entrants import Entrant, alike, kinds_of, returns, slots_of, stacked
from experiments.png import canvas, save
from experiments.reporting.figures import INK, PAPER, styled
from experiments.stats import mean_interval

KEYS = ("in", "out", "sides", "episodes", "seed")
USAGE = (
    "python -m experiments.crossplay RUN_DIR RUN_DIR ... in=[ENV,...] out=DIR [sides=[half,one]] [episodes=256] "
    "[seed=0]"
)
SIDES = ("half", "one")
KINDS = "kinds"
NUMBERS = ("first", "second", "team")
LEGIBLE = 12  # runs: with more of them the picture has no numbers


class Request(NamedTuple):
    """What is to be measured."""

    places: tuple[str, ...]  # environments of one population each
    sides: tuple[str, ...] = SIDES
    episodes: int = 256
    seed: int = 0


class Pair(NamedTuple):
    """Two runs in one game, and what they earn in each episode (episodes,), see NUMBERS."""

    place: str
    sides: str
    a: Entrant
    b: Entrant
    values: dict[str, np.ndarray]

    @property
    def opponent(self) -> str:
        """The second run's method; `itself` where a run plays with itself."""
        return "itself" if self.a.folder == self.b.folder else self.b.method


def parse(args: list[str]) -> tuple[list[Path], Request, Path]:
    """Run directories, what is to be measured, and where to write.

    Raises:
        UsageError: a single run, or one twice; nowhere to write; an unknown key or value.
    """
    folders, given, out = arguments.split(args, KEYS, USAGE)
    if len(folders) < 2:
        raise UsageError(f"{folders[0]} has nobody to play with: name two runs or more")
    numbers = {
        name: arguments.integer(name, given[name], least)
        for name, least in {"episodes": 1, "seed": 0}.items()
        if name in given
    }
    sides = arguments.items("sides", given.get("sides", ",".join(SIDES)), SIDES)
    return folders, Request(arguments.items("in", given["in"]), sides, **numbers), out


def first_side(env: Env, sides: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Which agents follow the first run, (n,) bool, by the name of the sides; those that are the same only once.

    Agents keep their slots, the first side has the first ones.
    """
    kinds = kinds_of(env)
    if kinds.max() > 0:
        return {KINDS: kinds == 0}
    sizes = {"half": len(kinds) // 2, "one": 1}
    kept = {sizes[name]: name for name in reversed(sides)}  # of two alike, the one that was named first
    return {name: np.arange(len(kinds)) < sizes[name] for name in sides if kept[sizes[name]] == name}


def measure(runs: list[Entrant], place: str, request: Request) -> list[Pair]:
    """All pairs of runs in one population."""
    env, found = particles.make(place), []
    groups = alike(runs, env)
    for sides, mine in first_side(env, request.sides).items():
        for a in runs:
            for group in groups:
                found += _against(a, [runs[i] for i in group], place, sides, mine, request)
    return found


def _against(
    a: Entrant, others: list[Entrant], place: str, sides: str, mine: np.ndarray, request: Request
) -> list[Pair]:
    """A run with others of the same shapes."""
    env = particles.make(place)
    who = np.zeros((len(others), 2, slots_of(env)), np.float32)
    who[:, 0, : len(mine)], who[:, 1, : len(mine)] = mine, ~mine
    networks = stacked([a.networks(env)] * len(others)), stacked([b.networks(env) for b in others])
    forms = a.form, others[0].form
    each = returns(place, forms, Seats(networks, jnp.asarray(who)), request.episodes, request.seed)[..., : len(mine)]
    earned = {"first": each[..., mine].mean(-1), "second": each[..., ~mine].mean(-1), "team": each.sum(-1)}
    return [Pair(place, sides, a, b, {name: x[i] for name, x in earned.items()}) for i, b in enumerate(others)]


def pairs_table(pairs: list[Pair]) -> pd.DataFrame:
    """A row for each pair of runs; intervals over episodes."""
    rows = []
    for pair in pairs:
        row: dict[str, Any] = {"environment": pair.place, "sides": pair.sides}
        for name, run in {"first": pair.a, "second": pair.b}.items():
            row |= {f"{name}_method": run.method, f"{name}_seed": run.seed, f"{name}_run": str(run.folder)}
        rows.append(row | _intervals(pair.values))
    return pd.DataFrame(rows)


def _intervals(samples: dict[str, np.ndarray]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, values in samples.items():
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(values)))
    return found


def methods_table(pairs: list[Pair]) -> pd.DataFrame:
    """A row for each pair of methods: means over pairs of different runs, and each run with itself.

    A run of the first method counts by its mean over runs of the second; intervals are over the former.
    """
    cases: dict[tuple[str, str, str, str], dict[Path, list[Pair]]] = {}
    for pair in pairs:
        case = cases.setdefault((pair.place, pair.sides, pair.a.method, pair.opponent), {})
        case.setdefault(pair.a.folder, []).append(pair)
    rows = []
    for (place, sides, first, second), by_run in cases.items():
        every = [pair for found in by_run.values() for pair in found]
        over = "episodes" if len(every) == 1 else "runs"
        samples = every[0].values if over == "episodes" else {
            name: np.array([np.mean([pair.values[name] for pair in found]) for found in by_run.values()])
            for name in NUMBERS
        }  # fmt: skip
        case_of = {"environment": place, "sides": sides, "first_method": first, "second_method": second}
        rows.append(case_of | {"pairs": len(every), "interval_over": over} | _intervals(samples))
    return pd.DataFrame(rows)


def lines(rows: pd.DataFrame) -> list[str]:
    """What is printed: returns of both sides with their intervals."""
    return [
        f"{row['environment']}  {row['sides']:5}  {row['first_method']} with {row['second_method']}:  "
        + ", ".join(f"{name} {row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]" for name in NUMBERS)
        for row in rows.to_dict("records")
    ]


@styled
def picture(pairs: list[Pair], runs: list[Entrant]) -> Figure:
    """Mean return of the first run's agents: a panel for each population and sides."""
    panels = list(dict.fromkeys((pair.place, pair.sides) for pair in pairs))
    width = 1.6 + 0.55 * min(len(runs), 2 * LEGIBLE)
    figure = canvas((width + 0.8) * len(panels), width)
    several = len({run.method for run in runs}) > 1
    names = [f"{run.method}, {run.seed}" if several else str(run.seed) for run in runs]
    for axes, (place, sides) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        found = {
            (pair.a.folder, pair.b.folder): pair.values["first"].mean()
            for pair in pairs
            if (pair.place, pair.sides) == (place, sides)
        }
        draw(axes, np.array([[found[a.folder, b.folder] for b in runs] for a in runs]), names)
        axes.set_title(f"{place}, {sides}", loc="left")
        axes.set(xlabel="others follow run", ylabel=f"return of those who follow run ({sides})")
    return figure


def draw(axes: Axes, values: np.ndarray, names: list[str]) -> None:
    """A matrix with its numbers."""
    image = axes.imshow(values, cmap="viridis")
    axes.grid(False)
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(len(names)), names)
    middle = (values.min() + values.max()) / 2.0
    for (i, j), value in np.ndenumerate(values) if len(names) <= LEGIBLE else ():
        axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7, color=INK if value > middle else PAPER)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    bar.outline.set_visible(False)


def main(args: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return
    folders, request, out = parse(args)
    runs = entrants.load(folders)
    entrants.check(runs, request.places)
    use_compilation_cache()
    pairs = [pair for place in request.places for pair in measure(runs, place, request)]
    rows = methods_table(pairs)
    entrants.write(out, "crossplay", request, folders, {"crossplay": rows, "pairs": pairs_table(pairs)})
    save(picture(pairs, runs), out / "crossplay.png")
    print("\n".join([*lines(rows), f"written: {out}"]))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
