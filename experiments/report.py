"""Compare finished runs: `python -m experiments.report DIR [out=FOLDER]`.

Reads every run below DIR, groups them by data, algorithm and configuration, and writes a table of scores with 95 %
intervals over seeds (report.md, report.csv) and learning curves (curves.png).
"""

import difflib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from envs.core import UsageError
from experiments import results
from experiments.cli import guarded
from experiments.log import MetricsFile, write_atomically
from experiments.stats import mean_interval

SCORES = {"last": "last evaluation", "mean_of_last_ten": "mean of last ten", "best": "best"}


@dataclass
class Run:
    """One finished run."""

    folder: Path
    result: dict[str, Any]

    @property
    def group(self) -> tuple[str, str, str]:
        """Data, algorithm and configuration: what seeds are averaged over."""
        return self.result["data"], self.result["algo"], self.result["config"]


def find_runs(root: Path) -> tuple[list[Run], list[Path]]:
    """Finished runs below `root`, and the folders of unfinished ones.

    Raises:
        UsageError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; give the folder that holds the runs, e.g. runs")
    folders = sorted(path.parent.parent for path in root.rglob(".hydra/config.yaml") if ".old" not in str(path))
    found = [(folder, results.read(folder)) for folder in folders]
    runs = [Run(folder, result) for folder, result in found if result is not None]
    if not runs:
        raise UsageError(f"{root}: no finished run below it; train first, e.g. python -m experiments.train")
    return runs, [folder for folder, result in found if result is None]


def table(runs: list[Run]) -> pd.DataFrame:
    """One row per group: number of seeds, behaviour policy's score, each kind of score with its interval."""
    rows = []
    for group in sorted({run.group for run in runs}):
        members = [run.result for run in runs if run.group == group]
        row: dict[str, Any] = {"data": group[0], "algo": group[1], "config": group[2], "seeds": len(members)}
        row["updates"] = members[0]["updates"]
        row["behaviour"] = members[0]["behaviour_score"]
        row["diverged"] = sum(member["diverged_at"] is not None for member in members)
        for kind in SCORES:
            values = np.array([member["score"][kind] for member in members])
            row[kind], row[f"{kind}_low"], row[f"{kind}_high"] = mean_interval(values)
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame, runs: list[Run], unfinished: list[Path]) -> str:
    """The table for people, with the origin of the numbers below it."""
    first = runs[0].result
    lines = [f"# {first['score_is'][0].upper()}{first['score_is'][1:]}: mean over seeds [95 % interval]", ""]
    lines += ["| data | algorithm | seeds | updates | " + " | ".join(SCORES.values()) + " | behaviour policy |"]
    lines += ["|---|---|---|---|" + "---|" * (len(SCORES) + 1)]
    for row in frame.to_dict("records"):
        cells = [row["data"], row["algo"], str(row["seeds"]), f"{row['updates']:,}"]
        cells += [f"{row[kind]:.1f} [{row[f'{kind}_low']:.1f}, {row[f'{kind}_high']:.1f}]" for kind in SCORES]
        cells += ["not known" if pd.isna(row["behaviour"]) else f"{row['behaviour']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Intervals are Student-t over seeds; a single seed has none (nan).", "", "![curves](curves.png)", ""]
    if diverged := [run for run in runs if run.result["diverged_at"] is not None]:
        lines += ["Diverged: " + ", ".join(f"{r.folder.name} of {r.group[1]}" for r in diverged), ""]
    if unfinished:
        lines += [f"Not finished, so not counted: {len(unfinished)} runs.", ""]
    lines += [f"- {name}: {value}" for name, value in _origin(runs).items()]
    return "\n".join(lines) + "\n"


def _origin(runs: list[Run]) -> dict[str, str]:
    """Device, commit, versions and data checksums of all runs."""

    def distinct(values: list[Any]) -> str:
        return "; ".join(sorted({json.dumps(value).strip('"') for value in values}))

    results_ = [run.result for run in runs]
    return {
        "device": distinct([result["device"] for result in results_]),
        "commit": distinct([result["git"] for result in results_]),
        "versions": distinct([", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results_]),
        "data sha256": distinct([checksum for result in results_ for checksum in result["data_sha256"]]),
    }


def curves(runs: list[Run]) -> bytes:
    """Mean score against updates with the range over seeds, one panel per data set, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data = sorted({run.group[0] for run in runs})
    figure = Figure(figsize=(6 * len(data), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(data), squeeze=False)[0], data):
        for group in sorted({run.group for run in runs if run.group[0] == name}):
            members = [MetricsFile(run.folder).rows() for run in runs if run.group == group]
            updates = [row["update"] for row in members[0]]
            scores = np.array([[row["score"] for row in rows] for rows in members])
            line = axes.plot(updates, scores.mean(0), marker=".", label=f"{group[1]} ({len(members)} seeds)")[0]
            axes.fill_between(updates, scores.min(0), scores.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
        behaviour = next(run.result["behaviour_score"] for run in runs if run.group[0] == name)
        if behaviour is not None:
            axes.axhline(behaviour, linestyle="--", color="grey", label="behaviour policy")
        axes.set(xlabel="updates", ylabel=runs[0].result["score_is"], title=name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def report(root: Path, out: Path) -> str:
    """Write the three files; the Markdown text."""
    runs, unfinished = find_runs(root)
    frame = table(runs)
    text = markdown(frame, runs, unfinished)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "curves.png", curves(runs))
    write_atomically(out / "report.csv", frame.to_csv(index=False).encode())
    write_atomically(out / "report.md", text.encode())
    return text


def main() -> None:
    """Read the command line."""
    places = [arg for arg in sys.argv[1:] if "=" not in arg]
    options = dict(arg.split("=", 1) for arg in sys.argv[1:] if "=" in arg)
    if {"--help", "-h"} & set(places):
        print(__doc__)
        return
    if len(places) != 1:
        raise UsageError("usage: python -m experiments.report DIR [out=FOLDER]")
    if unknown := sorted(set(options) - {"out"}):
        nearest = difflib.get_close_matches(unknown[0], ["out"], 1, 0.0)
        raise UsageError(f"unknown key {unknown[0]}; did you mean {nearest[0]}?")
    root = Path(places[0])
    out = Path(options.get("out", root))
    print(report(root, out))
    print(f"written: {out / 'report.md'}, {out / 'report.csv'}, {out / 'curves.png'}")


if __name__ == "__main__":
    sys.exit(guarded(main))
