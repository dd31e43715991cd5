"""A function of a two-dimensional state as a picture: a learned reward, a value, a visit count."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from envs.core import UsageError
from experiments.png import canvas, save
from experiments.reporting.figures import INK, PAPER

Box = Sequence[Sequence[float]]  # (low, high) of x, then of y


def cells(box: Box, n: int) -> np.ndarray:
    """Centres of n x n cells that cover the box: states (n, n, 2) float32; the first axis is y, from low to high."""
    centres = [low + (high - low) * (np.arange(n) + 0.5) / n for low, high in box]
    return np.stack(np.meshgrid(*centres), axis=-1).astype(np.float32)


def heatmap(
    path: Path,
    values: np.ndarray,
    box: Box,
    title: str,
    marks: Mapping[str, Sequence] | None = None,
    labels: tuple[str, str] = ("x", "y"),
) -> None:
    """Write `values` (n_y, n_x), laid out as `cells` has them, as a PNG.

    Values of both signs get colours that part at zero. `marks` are drawn on top, each under its name: a point (x, y)
    or a region ((x low, x high), (y low, y high)). `labels` are those of the axes.

    Raises:
        UsageError: values that are no matrix, or not all finite.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise UsageError(f"heat map {title!r}: give it a matrix of finite numbers; its shape is {values.shape}")
    figure = canvas(5.2, 4.4)
    axes = figure.add_subplot()
    (left, right), (low, high) = box
    image = axes.imshow(values, origin="lower", extent=(left, right, low, high), aspect="auto", **_colours(values))
    for name, mark in (marks or {}).items():
        _draw_mark(axes, name, np.asarray(mark, float))
    axes.set_title(title, color=INK, fontsize=11)
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(left, right), ylim=(low, high))
    axes.tick_params(labelsize=8, length=3)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=3)
    save(figure, path)


def _colours(values: np.ndarray) -> dict:
    """Sequential for values of one sign, diverging about zero for both."""
    if values.min() < 0.0 < values.max():
        largest = float(np.abs(values).max())
        return {"cmap": "RdBu", "vmin": -largest, "vmax": largest}
    return {"cmap": "viridis"}


def _draw_mark(axes: Axes, name: str, mark: np.ndarray) -> None:
    """A point or a region with its name, legible on any colour."""
    plate: dict[str, Any] = {"boxstyle": "round,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.75}
    text: dict[str, Any] = {"color": INK, "fontsize": 8, "ha": "center", "bbox": plate}
    if mark.ndim == 1:
        axes.plot(*mark, marker="o", ms=6, color=PAPER, mec=INK, mew=1.2)
        axes.annotate(name, (mark[0], mark[1]), (0, 9), textcoords="offset points", **text)
        return
    (left, right), (low, high) = mark
    for colour, width in ((PAPER, 3.0), (INK, 1.2)):
        axes.add_patch(Rectangle((left, low), right - left, high - low, fill=False, edgecolor=colour, linewidth=width))
    axes.annotate(name, ((left + right) / 2, (low + high) / 2), va="center", **text)
