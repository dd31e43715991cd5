"""result.json and curve.png: what a finished run says of itself."""

import contextlib
import datetime
import io
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import provenance
from experiments.config import Config, fingerprint
from experiments.log import MetricsFile, write_atomically
from experiments.task import Task

RESULT = "result.json"
LIVES = ".lives"  # a line for each process that trained the run


@dataclass
class Speed:
    """Where the time of this process went, for one population."""

    origin: dict[str, Any]  # versions, device and commit when it started
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    updates: int = 0

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Count the compilation of a chunk."""
        begun = time.monotonic()
        yield
        self.compile_seconds += time.monotonic() - begun

    @contextlib.contextmanager
    def training(self, updates: int) -> Iterator[None]:
        """Count a chunk."""
        begun = time.monotonic()
        yield
        self.train_seconds += time.monotonic() - begun
        self.updates += updates

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count an evaluation."""
        begun = time.monotonic()
        yield
        self.eval_seconds += time.monotonic() - begun


def read(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run; None if it has not finished."""
    try:
        return json.loads((folder / RESULT).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def begin_life(folder: Path, update: int) -> None:
    """Note on the disk that a process begins to train the run, which has `update` updates now."""
    job = os.environ.get("SLURM_JOB_ID", "-")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with open(folder / LIVES, "a") as file:
        file.write(f"{now} update={update} host={platform.node()} job={job}\n")


def lives(folder: Path) -> int:
    """How many processes have trained the run."""
    try:
        return (folder / LIVES).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def write(
    folder: Path, config: Config, task: Task, state: Any, speed: Speed, diverged_at: int | None
) -> dict[str, Any]:
    """Draw the curve, then write the result, last and whole: its presence says that the run has finished."""
    rows = MetricsFile(folder).rows()
    scores = [row["score"] for row in rows]
    result = {
        "algo": config.algo.name,
        "data": task.name,
        "env": task.env_name,
        "seed": config.seed,
        "config": fingerprint(config),
        "updates": config.run.updates,
        "score": {"last": scores[-1], "best": max(scores), "mean_of_last_ten": float(np.mean(scores[-10:]))},
        "return": rows[-1]["return_mean"],
        "score_is": task.score_is,
        "behaviour_score": behaviour_score(task),
        "diverged_at": diverged_at,
        "lives": lives(folder),
        "parameters_sha256": provenance.tree_sha256(state),
        "data_sha256": task.data_sha256,
        "updates_per_second": speed.updates / speed.train_seconds if speed.updates else None,
        "compile_seconds": speed.compile_seconds,
        "eval_seconds": speed.eval_seconds,
        "peak_memory_bytes": provenance.peak_memory(),
        **speed.origin,
    }
    write_atomically(folder / "curve.png", _curve(rows, result))
    write_atomically(folder / RESULT, json.dumps(result, indent=1).encode())
    return result


def behaviour_score(task: Task) -> float | None:
    """Mean score of the episodes in the data."""
    if task.data is None or not len(task.data.behaviour_returns):
        return None
    return task.score(float(np.mean(task.data.behaviour_returns)))


def _curve(rows: list[dict[str, float]], result: dict[str, Any]) -> bytes:
    """Score against updates, with the behaviour policy's score where known, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([row["update"] for row in rows], [row["score"] for row in rows], marker=".", label=result["algo"])
    if result["behaviour_score"] is not None:
        axes.axhline(result["behaviour_score"], linestyle="--", color="grey", label="behaviour policy")
    axes.set(xlabel="updates", ylabel=result["score_is"], title=f"{result['data']}, seed {result['seed']}")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
