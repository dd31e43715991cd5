"""The report's figures as SVG: the same bytes from the same numbers, colours that a page can set."""

import io
import re
from collections.abc import Callable

import numpy as np
from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats as scipy_stats

from experiments.reporting.analysis import CellResult, TableResult
from experiments.reporting.document import Picture
from experiments.reporting.plan import SCORES
from experiments.reporting.records import Curves

# Told apart by the colour-blind (after Okabe and Ito), on white; page.css has their partners for dark pages.
PALETTE = ("#0072b2", "#d55e00", "#009270", "#a8509a", "#b58900", "#3d9fdc", "#8a5a44", "#6b7785")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))  # for more methods than colours
INK, SOFT, RULE, PAPER = "#1f2328", "#59636e", "#d5dae0", "#ffffff"
_THEME = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)", PAPER: "none"} | {
    colour: f"var(--c{i})" for i, colour in enumerate(PALETTE)
}
_SETTINGS = {
    "svg.fonttype": "none", "svg.hashsalt": "adaptax", "font.family": "sans-serif", "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"], "axes.unicode_minus": True, "axes.edgecolor": SOFT, "axes.labelcolor": INK,
    "axes.titlesize": 10, "axes.titlecolor": INK, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "xtick.color": SOFT, "ytick.color": SOFT, "text.color": INK, "figure.facecolor": PAPER, "axes.facecolor": PAPER,
    "legend.frameon": False, "axes.formatter.limits": (-4, 5), "axes.formatter.useoffset": False,
    "path.simplify": True, "path.simplify_threshold": 0.3, "text.parse_math": False,
}  # fmt: skip
_COLUMNS = 3
styled = style.context(["default", _SETTINGS])  # whatever the user's own matplotlibrc says


class Look:
    """Colour and dash of each method, the same in all figures."""

    def __init__(self, methods: list[str]):
        """In the order of the plan."""
        self.index = {method: i for i, method in enumerate(methods)}

    def __call__(self, method: str) -> dict:
        """What `plot` takes."""
        i = self.index[method]
        return {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i // len(PALETTE) % len(DASHES)]}


@styled
def curves(result: TableResult, records: Curves, look: Look) -> Picture | None:
    """Learning curves, one panel a task; None where no member that counts has one."""
    methods = {cell.cell.method for cell in result.cells if len(_common(cell, records)[0])}
    if not methods:
        return None

    def panel(axes: Axes, task: str) -> None:
        for cell in _cells(result, task):
            updates, scores = _common(cell, records)
            if not len(updates):
                continue
            style = look(cell.cell.method)
            mean, low, high = band(scores)
            marker = "o" if len(updates) == 1 else None
            axes.plot(updates, mean, lw=1.4, marker=marker, ms=3, **style)
            axes.fill_between(updates, low, high, color=style["color"], alpha=0.18, lw=0)
        _levels(axes, result, task, look)
        axes.set_xlabel("updates")
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))

    figure = _panels(result, panel, result.table.metric)
    _legend(figure, result, [m for m in result.table.methods if m in methods], look)
    caption = (
        f"{_title(result)}: learning curves, mean over seeds with its 95 % band (Student's t, point by point; no band "
        "for a single seed) at the evaluations that all counted seeds share."
    )
    return _picture(figure, f"{result.table.name}-curves", caption)


@styled
def strips(result: TableResult, look: Look) -> Picture | None:
    """Every seed's score, one panel a task; None where no member counts."""
    if not any(cell.counted for cell in result.cells):
        return None
    methods, kind = result.table.methods, result.table.score

    def panel(axes: Axes, task: str) -> None:
        for cell in _cells(result, task):
            row, style, values = methods.index(cell.cell.method), look(cell.cell.method), cell.values(kind)
            if len(values):
                jitter = row + 0.22 * (np.arange(len(values)) - (len(values) - 1) / 2) / max(len(values) - 1, 1)
                axes.plot(values, jitter, "o", ms=3.6, color=style["color"], alpha=0.75, mew=0)
                mean = cell.scores[kind].mean
                axes.plot([mean.value] * 2, [row - 0.3, row + 0.3], lw=1.8, color=style["color"])
                axes.plot([mean.low, mean.high], [row, row], lw=1.0, color=style["color"])
            if cell.published is not None and cell.published.value is not None:
                axes.plot(cell.published.value, row, "D", ms=4.5, mfc="none", color=INK, mew=1.0)
        if (behaviour := _behaviour(result, task)) is not None:
            axes.axvline(behaviour, color=SOFT, lw=1.0, linestyle=":")
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_xlabel(result.table.metric)

    figure = _panels(result, panel, "", height=max(1.3, 0.27 * len(methods) + 0.8), share=True)
    handles = [
        Line2D([], [], ls="", marker="o", ms=3.6, color=SOFT, label="one seed"),
        Line2D([], [], color=SOFT, lw=1.8, ls="", marker="|", ms=9, mew=1.8, label="mean, with its 95 % interval"),
    ]
    if any(cell.published and cell.published.value is not None for cell in result.cells):
        handles.append(Line2D([], [], ls="", marker="D", ms=4.5, mfc="none", color=INK, label="published mean"))
    if any(cell.behaviour is not None for cell in result.cells):
        handles.append(Line2D([], [], color=SOFT, lw=1.0, ls=":", label="behaviour policy"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return _picture(
        figure, f"{result.table.name}-seeds", f"{_title(result)}: {SCORES[kind]} of every seed that counts."
    )


@styled
def profiles(result: TableResult, look: Look) -> Picture | None:
    """Performance profiles of a table of several tasks; None where no method has all of them."""
    if not result.profiles:
        return None
    figure = _figure(7.4, 3.6)
    axes = figure.add_subplot()
    for method, profile in result.profiles.items():
        style = look(method)
        axes.plot(result.thresholds, profile.value, lw=1.5, label=method, **style)
        axes.fill_between(result.thresholds, profile.low, profile.high, color=style["color"], alpha=0.15, lw=0)
    side, better = ("below", "left") if result.table.lower_is_better else ("above", "right")
    axes.set(xlabel=f"threshold ({result.table.metric})", ylabel=f"share of runs {side} it", ylim=(-0.02, 1.02))
    figure.legend(loc="outside right upper")
    caption = (
        f"{_title(result)}: performance profiles over {len(result.table.tasks)} tasks, {SCORES[result.table.score]}, "
        f"with 95 % bootstrap bands (stratified by task, point by point). Higher and further {better} is better."
    )
    return _picture(figure, f"{result.table.name}-profile", caption)


def band(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of (n, evaluations) scores and Student's 95 % interval of each evaluation; no width for n = 1."""
    mean = scores.mean(0)
    if len(scores) < 2:
        return mean, mean, mean
    half = scipy_stats.t.ppf(0.975, len(scores) - 1) * scores.std(0, ddof=1) / np.sqrt(len(scores))
    return mean, mean - half, mean + half


def _common(cell: CellResult, records: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Updates (evaluations,) that all counted members with a curve share, and their scores (n, evaluations)."""
    keys = [member.key for member in cell.counted if member.key in records]
    if not keys:
        return np.zeros(0), np.zeros((0, 0))
    updates = records[keys[0]][0]
    for key in keys[1:]:
        if not np.array_equal(updates, records[key][0]):
            updates = np.intersect1d(updates, records[key][0])
    scores = np.array([records[key][1][np.searchsorted(records[key][0], updates)] for key in keys])
    finite = np.isfinite(scores).all(0)
    return updates[finite], scores[:, finite]


def _cells(result: TableResult, task: str) -> list[CellResult]:
    return [cell for cell in result.cells if cell.cell.task == task]


def _behaviour(result: TableResult, task: str) -> float | None:
    return next((cell.behaviour for cell in _cells(result, task) if cell.behaviour is not None), None)


def _levels(axes: Axes, result: TableResult, task: str, look: Look) -> None:
    """Reference lines: the behaviour policy and what was published for each method."""
    if (behaviour := _behaviour(result, task)) is not None:
        axes.axhline(behaviour, color=SOFT, lw=1.0, linestyle=":")
    for cell in _cells(result, task):
        if cell.published is not None and cell.published.value is not None:
            axes.axhline(cell.published.value, color=look(cell.cell.method)["color"], lw=1.0, ls=(0, (6, 3)), alpha=0.8)


def _legend(figure: Figure, result: TableResult, methods: list[str], look: Look) -> None:
    handles = [Line2D([], [], lw=1.6, label=method, **look(method)) for method in methods]
    if any(cell.behaviour is not None for cell in result.cells):
        handles.append(Line2D([], [], color=SOFT, lw=1.0, ls=":", label="behaviour policy"))
    if any(cell.published and cell.published.value is not None for cell in result.cells):
        label = "published mean (method's colour)"
        handles.append(Line2D([], [], color=SOFT, lw=1.0, ls=(0, (6, 3)), label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))


def _panels(
    result: TableResult, panel: Callable[[Axes, str], None], label: str, height: float = 2.5, share: bool = False
) -> Figure:
    """One panel a task."""
    tasks = result.table.tasks
    columns = 2 if len(tasks) == 4 else min(_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = _figure({1: 5.2, 2: 8.0, 3: 10.6}[columns], height * rows + 0.5)
    every = figure.subplots(rows, columns, squeeze=False, sharey=share)
    for axes, task in zip(every.flat, tasks):
        panel(axes, task)
        axes.set_title(task, loc="left")
    for axes in every.flat[len(tasks) :]:
        axes.remove()
    for axes in every[:, 0]:
        axes.set_ylabel(label)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _title(result: TableResult) -> str:
    return result.table.title or result.table.name


def _picture(figure: Figure, name: str, caption: str) -> Picture:
    """Drawn once: with its light colours, and with the variables of the page in their place."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    light = re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.S)
    themed = light[light.index("<svg") :]
    for colour, variable in _THEME.items():
        themed = themed.replace(colour, variable)
    label = caption.split(":")[0].replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    themed = themed.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    slug = re.sub(r"[^\w.-]+", "-", name)
    return Picture(slug, light, themed, caption)
