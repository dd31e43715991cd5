"""Active units over training: `python -m experiments.plasticity LABEL=FOLDER [LABEL=FOLDER ...] out=FILE.png`.

FOLDER is a run of algo=drqv2, adaptive_rr or adaptive_rr_sac, or holds such runs as seed0, seed1, ...: one colour each.
The fraction of active units (FAU) of each network, the updates made in an agent step, and the return are drawn against
agent steps: a thin line for each seed, a thick one for their mean. A dotted line stands where a seed's replay ratio
switched, in the middle between the evaluations that it lies between. What is drawn is the mean since the evaluation
before (metrics.csv); the return is of evaluations. Points before the first update have no FAU and are left out.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from envs.core import UsageError
from experiments.cli import guarded
from experiments.log import MetricsFile
from experiments.png import canvas, save
from experiments.reporting.figures import PALETTE, styled

PANELS = {
    "fau_encoder": "FAU of the encoder",
    "fau_actor": "FAU of the actor",
    "fau_critic": "FAU of the critic",
    "updates": "Updates per agent step",
    "return_mean": "Return",
}
USAGE = "use python -m experiments.plasticity LABEL=FOLDER [LABEL=FOLDER ...] out=FILE.png"


def read_runs(folder: Path) -> list[pd.DataFrame]:
    """The rows of metrics.csv of every seed in a folder, with `update` as index.

    Raises UsageError where there is none, or one that measures no active units.
    """
    found = [folder] if (folder / "metrics.csv").exists() else sorted(folder.glob("seed*"))
    runs = [(place, MetricsFile(place).rows()) for place in found]
    tables = [(place, pd.DataFrame(rows).set_index("update")) for place, rows in runs if rows]
    if not tables:
        raise UsageError(f"{folder} holds no runs: name a run directory, or the folder of its seeds")
    for place, table in tables:
        if "fau_critic" not in table:
            raise UsageError(
                f"{place} measures no active units: choose runs of algo=drqv2, adaptive_rr, adaptive_rr_sac"
            )
    return [table for _, table in tables]


def curve(run: pd.DataFrame, name: str) -> pd.Series:
    """A column over agent steps, without what was measured before the first update."""
    return run[name][run.fau_critic > 0] if name.startswith("fau_") else run[name]


def switch_point(run: pd.DataFrame) -> float | None:
    """The agent step at which the ratio switched, None if it never did; `switched` is a share of each interval."""
    after = np.flatnonzero(run.switched.to_numpy() > 0)
    if not len(after):
        return None
    ends = run.index.to_numpy()
    begin = ends[after[0] - 1] if after[0] else 0.0
    return float(ends[after[0]] - run.switched.iloc[after[0]] * (ends[after[0]] - begin))


def draw_panel(axes: Axes, groups: dict[str, list[pd.DataFrame]], name: str) -> None:
    """One metric of all groups."""
    for (label, runs), colour in zip(groups.items(), PALETTE * (1 + len(groups) // len(PALETTE))):
        lines = [curve(run, name) for run in runs if name in run]
        for line in lines:
            axes.plot(line.index, line, color=colour, lw=0.6, alpha=0.6)
        if lines:
            mean = pd.concat(lines, axis=1).dropna().mean(axis=1)
            axes.plot(mean.index, mean, color=colour, lw=1.8, label=label)
        for point in filter(None, map(switch_point, runs)):
            axes.axvline(point, color=colour, lw=0.8, linestyle=":")
    axes.set_title(PANELS[name], loc="left")
    axes.set_xlabel("agent steps")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


@styled
def draw(groups: dict[str, list[pd.DataFrame]], path: Path) -> None:
    """All panels side by side; networks that no group has are left out."""
    names = [name for name in PANELS if any(name in run for runs in groups.values() for run in runs)]
    figure = canvas(2.7 * len(names), 2.7)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        draw_panel(axes, groups, name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(groups))
    save(figure, path)


def main(args: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return
    named = dict(arg.split("=", 1) for arg in args if "=" in arg)
    out = named.pop("out", None)
    if not named or out is None or any("=" not in arg for arg in args):
        raise UsageError(f"not understood: {' '.join(args)}; {USAGE}")
    groups = {label: read_runs(Path(folder)) for label, folder in named.items()}
    draw(groups, Path(out))
    for label, runs in groups.items():
        points = [switch_point(run) for run in runs]
        said = ", ".join("never" if point is None else f"{point:,.0f}" for point in points)
        print(f"{label}: {len(runs)} runs, switched at agent steps {said}")
    print(f"written: {out}")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
