"""Pictures of particle games: landmarks, agents, and whom each attends to most. Drawn with Pillow alone."""

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.core import UsageError
from envs.particles.core import Scene
from envs.particles.game import Game

FRAMES_PER_SECOND = 5.0
SIDE, HEADER = 480, 32  # pixels; multiples of 16, for MP4
SCALE = 2  # drawn larger and shrunk, for smooth edges
MARGIN = 0.12  # of the plane around what is farthest out
INK, PAPER, PLANE, EDGE = "#1f2933", "#ffffff", "#f4f5f7", "#c5ccd3"
EMPTY, TAKEN, LINE = "#d9dee3", "#f0d58a", "#8a5a83"  # landmarks, relations
KINDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's colours, told apart by the colour-blind


def draw(
    game: Game, scene: Scene, title: str = "", graph: np.ndarray | None = None, reach: float | None = None
) -> np.ndarray:
    """One scene as a picture (512, 480, 3) uint8. Landmarks that agents touch are yellow.

    graph: (N, N) weights; a wedge, the broader the larger, points from each agent to the largest in its row.
    reach: largest coordinate in the picture; by default whatever shows everybody.
    """
    seen: Any = jax.tree.map(np.asarray, scene)
    reach = _reach(seen) if reach is None else reach
    image = Image.new("RGB", (SIDE * SCALE, (HEADER + SIDE) * SCALE), PAPER)
    pen = ImageDraw.Draw(image)
    _draw_header(pen, game, title)
    scale = SIDE * SCALE / (2 * (reach + MARGIN))

    def place(point: np.ndarray) -> np.ndarray:
        return np.array([SIDE / 2, HEADER + SIDE / 2]) * SCALE + scale * point * [1, -1]

    def disc(point: np.ndarray, radius: float, fill: str, edge: str | None = None) -> None:
        corners = np.concatenate([place(point) - scale * radius, place(point) + scale * radius])
        pen.ellipse([float(x) for x in corners], fill, edge, SCALE)

    square = np.concatenate([place(np.array([-1, 1])), place(np.array([1, -1]))])
    pen.rectangle([float(x) for x in square], PLANE, EDGE)
    real = np.flatnonzero(seen.mask > 0)
    radius = np.asarray(game.dynamics.radius)[seen.kind.astype(int)]
    for point, size in sorted(zip(seen.landmark, seen.size), key=lambda each: -each[1]):
        gap = np.linalg.norm(seen.position[real] - point, axis=1) - radius[real]
        disc(point, float(size), TAKEN if (gap < size).any() else EMPTY, EDGE)
    for i, j, weight in _strongest(real, graph):
        base, tip = place(seen.position[i]), place(seen.position[j])
        across = np.array([base[1] - tip[1], tip[0] - base[0]]) / max(float(np.linalg.norm(tip - base)), 1e-9)
        half = SCALE * (0.5 + 3.0 * weight) * across
        pen.polygon([float(x) for x in np.concatenate([base + half, base - half, tip])], LINE)
    for i in real:
        disc(seen.position[i], float(radius[i]), KINDS[int(seen.kind[i]) % len(KINDS)], PAPER)
    return np.asarray(image.reduce(SCALE))


def film(game: Game, scenes: Scene, rewards: Any = None, graphs: Any = None) -> np.ndarray:
    """The pictures (T, 512, 480, 3) uint8 of scenes with leading axis T, all of the same part of the plane.

    rewards: (T,), or (T - 1,) of the steps between; their sum so far is told. graphs: (T, N, N) or (T - 1, N, N).
    Raises UsageError where these numbers do not fit.
    """
    seen: Any = jax.tree.map(np.asarray, scenes)
    count, reach = len(seen.mask), _reach(seen)
    for told, x in (("rewards", rewards), ("graphs", graphs)):
        if x is not None and len(x) not in (count - 1, count):
            raise UsageError(f"{len(x)} {told} do not fit {count} scenes; give one for each scene or each step")
    earned = None if rewards is None else np.cumsum(rewards)
    if earned is not None and len(earned) < count:
        earned = np.concatenate([[0.0], earned])  # nothing before the first step
    pictures = []
    for t in range(count):
        title = f"step {t}" if earned is None else f"step {t}    team reward {earned[t]:.1f}"
        graph = None if graphs is None else np.asarray(graphs[min(t, len(graphs) - 1)])
        pictures.append(draw(game, jax.tree.map(itemgetter(t), seen), title, graph, reach))
    return np.stack(pictures)


def _reach(scene: Any) -> float:
    """The largest coordinate of agents and of landmarks' borders, at least 1."""
    shown = np.where(scene.mask[..., None] > 0, scene.position, 0.0)
    return max(1.0, float(np.abs(shown).max()), float((np.abs(scene.landmark) + scene.size[..., None]).max()))


def _strongest(real: np.ndarray, graph: np.ndarray | None) -> Iterator[tuple[np.intp, np.intp, float]]:
    """Each agent, the one it attends to most, and how much."""
    if graph is None:
        return
    for i in real:
        others = real[real != i]
        j = others[np.argmax(graph[i, others])]
        yield i, j, float(np.clip(graph[i, j], 0.0, 1.0))


def _draw_header(pen: ImageDraw.ImageDraw, game: Game, title: str) -> None:
    """The title, and where there are several kinds, their colours."""
    font = ImageFont.load_default(14 * SCALE)
    middle, right = HEADER * SCALE // 2, (SIDE - 8) * SCALE
    pen.text((8 * SCALE, middle), f"{game.name}    {title}", INK, font, "lm")
    for kind in reversed(range(len(game.kinds)) if len(game.kinds) > 1 else ()):
        pen.text((right, middle), game.kinds[kind], KINDS[kind % len(KINDS)], font, "rm")
        right -= round(pen.textlength(game.kinds[kind], font)) + 12 * SCALE
