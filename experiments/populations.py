"""MRA in other populations: `python -m experiments.populations RUN_DIR ... in=[ENV,...] out=DIR [key=value ...]`.

RUN_DIRs are runs of algo=mra or mra_reptile, usually several seeds of one configuration. Keys:
    in=[resource-2,resource-9]  environments of the same game, one population each
    out=DIR                     folder of what is written
    episodes=512                of each measurement
    adapt=[0,120,600]           after so many episodes of adaptation; 0: none
    skills=[prior,best_of_Z]    how agents get their skills: each by itself, as the task encoder expects in that
                                population; or all the same one, that which is best in 64 other episodes
    seed=0                      of the initial states

What adapts: `all` networks but the task encoder, or `latent_only`: a table of how probable skills are. For comparison
an untrained learner, which then learns from scratch by `all`; the random player; the one that goes to the nearest
landmark, where there is one kind of agents. How much skills differ is measured in scenes that the learner comes to:
mean total variation distances between actions, and between graphs, of two skills, and the relation reward.

Written to DIR: populations.csv, a row per measurement, with 95 % intervals over runs, or over episodes where there is
one run; runs.csv, a row per measurement and run; populations.png. Returns are the team's sum over an episode;
everything else is a mean per step, `agent_reward` also over agents.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import arguments, provenance
from experiments import population_study as study
from experiments.cli import guarded, use_compilation_cache
from experiments.log import write_atomically
from experiments.png import canvas, save
from experiments.population_study import Case, Request, Result, Run
from experiments.reporting.figures import PALETTE, SOFT, styled
from experiments.stats import mean_interval

KEYS = ("in", "out", "episodes", "adapt", "skills", "seed")
USAGE = (
    "python -m experiments.populations RUN_DIR ... in=[ENV,...] out=DIR [episodes=512] [adapt=[0,120]] "
    "[skills=[prior]] [seed=0]"
)
LINES = {  # of the picture: (learner, variant, skills), shown as
    ("trained", "all", "prior"): "trained",
    ("trained", "all", "best_of_Z"): "trained, best skill",
    ("trained", "latent_only", "prior"): "trained, skills adapt only",
    ("untrained", "all", "prior"): "untrained",
}
LEVELS = {"random": ":", "nearest": "--"}
COLUMNS = 3


def parse(args: list[str]) -> tuple[list[Path], Request, Path]:
    """Run directories, what is to be measured, and where to write.

    Raises:
        UsageError: nothing to measure, or something twice; nowhere to write; an unknown key or value.
    """
    folders, given, out = arguments.split(args, KEYS, USAGE)
    episodes = arguments.integer("episodes", given.get("episodes", str(Request.episodes)), 1)
    seed = arguments.integer("seed", given.get("seed", str(Request.seed)))
    adapt = tuple(sorted(set(arguments.integers("adapt", given.get("adapt", "0")))))
    skills = arguments.items("skills", given.get("skills", ",".join(study.SKILLS)), study.SKILLS)
    return folders, Request(arguments.items("in", given["in"]), episodes, adapt, skills, seed), out


def measure(runs: list[Run], request: Request) -> dict[Case, list[tuple[Run | None, Result]]]:
    """All measurements: of each case one for every run, or one of no run for controllers."""
    found: dict[Case, list[tuple[Run | None, Result]]] = {}
    for place in request.places:
        for result in study.controllers(place, request):
            found[result.case] = [(None, result)]
        for run in runs:
            for result in study.Study(run, place, request).results():
                found.setdefault(result.case, []).append((run, result))
    return found


def by_run(found: dict[Case, list[tuple[Run | None, Result]]]) -> pd.DataFrame:
    """A row per case and run: means over episodes."""
    rows = []
    for case, results in found.items():
        for run, result in results:
            whose = {"run": run and str(run.folder), "run_seed": run and run.seed}
            means = {name: values.mean() for name, values in result.values.items()}
            rows.append(whose | named(case) | means | result.numbers)
    return pd.DataFrame(rows)


def named(case: Case) -> dict[str, Any]:
    """A case as columns."""
    return {"environment" if name == "place" else name: value for name, value in case._asdict().items()}


def table(found: dict[Case, list[tuple[Run | None, Result]]], request: Request) -> pd.DataFrame:
    """A row per case: means, their intervals, and the origin of the numbers."""
    origin = provenance.describe()
    rows = []
    for case, results in found.items():
        over = "runs" if len(results) > 1 else "episodes"
        row = named(case) | {"runs": len(results), "episodes": request.episodes, "interval_over": over}
        for name, values in results[0][1].values.items():
            samples = [result.values[name].mean() for _, result in results] if over == "runs" else values
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(samples)))
        for name in results[0][1].numbers:
            if name != "best_skill":  # the number of a run's own skill
                row[name] = float(np.mean([result.numbers[name] for _, result in results]))
        rows.append(row | {"seed": request.seed, "device": origin["device"], "git": origin["git"]} | origin["versions"])
    return pd.DataFrame(rows)


def lines(rows: pd.DataFrame) -> list[str]:
    """What is printed: each measurement with its interval."""
    shown = [("environment", "learner", "adapts", "episodes", "skills", "agent reward", "return", "occupied")]
    for row in rows.to_dict("records"):
        numbers = (_interval(row, name) for name in ("agent_reward", "return", "occupied"))
        adapts = (row["adapted"], str(row["adapt_episodes"])) if row["adapt_episodes"] else ("", "")
        shown.append((row["environment"], row["learner"], *adapts, row["skills"], *numbers))
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in shown]


def _interval(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def difference_lines(rows: pd.DataFrame) -> list[str]:
    """How much skills differ, in a line for each measurement of the trained learner as it is."""
    kept = rows[(rows.learner == "trained") & (rows.adapt_episodes == 0) & (rows.skills == "prior")]
    return [
        f"{row['environment']}: two skills differ by {row['action_distance']:.4f} in actions, "
        f"{row['graph_distance']:.4f} in graphs; relation reward {row['relation_reward']:.5f}"
        for row in kept.to_dict("records")
    ]


@styled
def picture(rows: pd.DataFrame) -> Figure:
    """Mean reward per agent and step over episodes of adaptation, a panel for each environment."""
    places = list(dict.fromkeys(rows.environment))
    across = min(len(places), COLUMNS)
    down = -(-len(places) // across)
    figure = canvas(3.2 * across + 0.6, 2.7 * down + 0.7)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    ticks = sorted(set(rows.adapt_episodes[~rows.learner.isin(LEVELS)]))
    for axes, place in zip(panels, places):
        draw(axes, rows[rows.environment == place], ticks)
        axes.set_title(place, loc="left")
        axes.set_xticks(range(len(ticks)), [f"{tick:,}" for tick in ticks])
        axes.set(xlabel="episodes of adaptation", ylabel="reward per agent and step", xlim=(-0.4, len(ticks) - 0.6))
    for axes in panels[len(places) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=across)
    return figure


def draw(axes: Axes, rows: pd.DataFrame, ticks: list[int]) -> None:
    """The lines of one environment, and the controllers as levels."""
    for i, ((learner, variant, skills), label) in enumerate(LINES.items()):
        start = rows.adapted == "none"
        kept = rows[(rows.learner == learner) & (rows.skills == skills) & ((rows.adapted == variant) | start)]
        if kept.empty:
            continue
        x = np.array([ticks.index(count) for count in kept.adapt_episodes]) + 0.06 * (i - 1.5)
        spread = np.abs(kept[["agent_reward_low", "agent_reward_high"]].to_numpy().T - kept.agent_reward.to_numpy())
        axes.errorbar(x, kept.agent_reward, spread, label=label, color=PALETTE[i], marker="o", ms=3.5, lw=1.4)
    for name, dash in LEVELS.items():
        for level in rows.agent_reward[rows.learner == name]:
            axes.axhline(level, color=SOFT, ls=dash, lw=1.2, label=name)


def main(args: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return
    folders, request, out = parse(args)
    runs = [study.load(folder) for folder in folders]
    study.check(runs, request)
    use_compilation_cache()
    found = measure(runs, request)
    rows = table(found, request)
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in {"populations": rows, "runs": by_run(found)}.items():
        text = frame.to_csv(index=False, lineterminator="\n", float_format="%.9g")
        write_atomically(out / f"{name}.csv", text.encode())
    save(picture(rows), out / "populations.png")
    print("\n".join([*lines(rows), *difference_lines(rows), f"written: {out}"]))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
