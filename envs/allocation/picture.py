"""One picture of an allocation environment: entities, tasks, teams. Drawn with Pillow alone."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.allocation.core import Problem

SCALE = 2  # drawn larger and shrunk, for smooth edges
MAP, PANEL, HEADER, FOOTER = 520, 344, 44, 12  # sums are multiples of 16, for MP4
INK, PALE, LINE, PAPER, BUSY = "#1f2933", "#c5ccd3", "#e4e7eb", "#ffffff", "#717d8a"
_TEAMS = "in their team's colour, light grey: free, dark grey:"
KEYS = {
    "rbf": f"dots: entities {_TEAMS} busy      bars: share of each demand that a team meets, dark: has arrived",
    "material": f"dots: trucks {_TEAMS} busy      bars: share of each demand that a team meets, dark: has arrived",
    "electric": f"dots: nodes {_TEAMS} cannot supply      bars: share of the demand that a team meets",
    "almighty": "strips: what entities can (left) and what tasks ask for (right), in the colour of the team",
}
# Okabe and Ito's colours, told apart by the colour-blind, then darker ones.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c564b", "#4d4d4d")


class Frame(NamedTuple):
    """One step: the decision's problem and what was made of it."""

    kind: str
    problem: Problem  # before the step
    place: np.ndarray | None  # (N, 2) of entities after the step, in [0, 1]
    task_place: np.ndarray | None  # (T, 2)
    team: np.ndarray  # (T, N) bool
    arrived: np.ndarray  # (T, N) bool, members who are where the task is
    completed: np.ndarray  # (T,) bool
    side: int


class _Canvas:
    """A drawing in points, whatever the scale."""

    def __init__(self) -> None:
        size = ((MAP + PANEL) * SCALE, (HEADER + MAP + FOOTER) * SCALE)
        self.image = Image.new("RGB", size, PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int = 13, fill: str = INK, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((x * SCALE, y * SCALE), text, fill, font, anchor)

    def haloed(self, x: float, y: float, text: str, fill: str) -> None:
        """A text that stays legible over lines and dots."""
        font = ImageFont.load_default(13 * SCALE)
        self._draw.text((x * SCALE, y * SCALE), text, fill, font, "lm", stroke_width=2 * SCALE, stroke_fill=PAPER)

    def box(self, x: float, y: float, w: float, h: float, fill: str | None, edge: str | None = None) -> None:
        corners = [x * SCALE, y * SCALE, (x + w) * SCALE, (y + h) * SCALE]
        self._draw.rounded_rectangle(corners, 3 * SCALE, fill, edge, SCALE * (2 if edge else 0))

    def dot(self, x: float, y: float, r: float, fill: str | None) -> None:
        corners = [(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE]
        self._draw.ellipse(corners, fill)

    def line(self, x0: float, y0: float, x1: float, y1: float, fill: str, width: float = 1.0) -> None:
        ends = [x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE]
        self._draw.line(ends, fill, round(width * SCALE))

    def finished(self) -> Image.Image:
        return self.image.reduce(SCALE)


def picture(frame: Frame, title: str) -> Image.Image:
    """Draw one step under a title: the map, or in Almighty the skills, and beside it what each slot asks for."""
    canvas = _Canvas()
    canvas.text(16, HEADER / 2, title, 16)
    canvas.text(16, MAP + HEADER - 10, KEYS[frame.kind], 12, BUSY)
    if frame.kind == "almighty":
        _draw_skills(canvas, frame)
    else:
        _draw_map(canvas, frame)
    _draw_panel(canvas, frame)
    return canvas.finished()


def _colour(slot: int) -> str:
    return COLOURS[slot % len(COLOURS)]


def _tint(colour: str, share: float = 0.35) -> str:
    """The colour mixed with white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)


def _slot_of(frame: Frame) -> np.ndarray:
    """The last team that each entity is in (N,), -1 for none."""
    numbers = np.arange(len(frame.team))[:, None]
    return np.where(frame.team, numbers, -1).max(axis=0)


def _draw_map(canvas: _Canvas, frame: Frame) -> None:
    assert frame.place is not None
    assert frame.task_place is not None
    left, top, side = 16, HEADER, MAP - 32
    canvas.box(left, top, side, side, "#fafbfc")
    if frame.kind == "rbf":
        for i in range(frame.side + 1):
            at = i * side / frame.side
            canvas.line(left + at, top, left + at, top + side, LINE)
            canvas.line(left, top + at, left + side, top + at, LINE)
    # The first coordinate is a row on RBF's grid and x elsewhere.
    turn = (lambda p: p[:, ::-1]) if frame.kind == "rbf" else (lambda p: np.stack([p[:, 0], 1 - p[:, 1]], axis=1))
    margin = 0 if frame.kind == "rbf" else 12
    place, tasks = (turn(p) * (side - 2 * margin) + margin + (left, top) for p in (frame.place, frame.task_place))
    where = _spread(place, side / frame.side) if frame.kind == "rbf" else place
    filled = [int(slot) for slot in np.flatnonzero((frame.problem.slots != 0).any(axis=1))]
    for slot in filled:
        _draw_task(canvas, frame, slot, tasks[slot], where)
    slot_of = _slot_of(frame)
    strength = np.asarray(frame.problem.capability).sum(axis=1)
    radius = 2.2 + (6 if frame.kind == "electric" else 2.4) * strength / np.max(strength)
    for i in map(int, np.flatnonzero(frame.problem.entity_mask)):
        fill = _colour(slot_of[i]) if slot_of[i] >= 0 else (PALE if frame.problem.free[i] else BUSY)
        canvas.dot(float(where[i, 0]), float(where[i, 1]), float(radius[i]), fill)
    right = -_half(frame) + 5 if frame.kind == "rbf" else _half(frame) + 4
    for slot in filled:
        canvas.haloed(tasks[slot, 0] + right, tasks[slot, 1] - _half(frame) + 9, str(slot + 1), _colour(slot))


def _half(frame: Frame) -> float:
    """Half the side of a task's box: on RBF's grid nearly a cell."""
    return (MAP - 32) / 2 / frame.side - 2 if frame.kind == "rbf" else 10


def _draw_task(canvas: _Canvas, frame: Frame, slot: int, at: np.ndarray, entities: np.ndarray) -> None:
    colour, half = _colour(slot), _half(frame)
    x, y = float(at[0]), float(at[1])
    if frame.kind != "rbf":
        for i in np.flatnonzero(frame.team[slot]):
            canvas.line(float(entities[i, 0]), float(entities[i, 1]), x, y, _tint(colour, 0.6), 1.5)
    fill = _tint(colour, 0.45 if frame.completed[slot] else 0.15)
    canvas.box(x - half, y - half, 2 * half, 2 * half, fill, colour)


def _spread(place: np.ndarray, cell_side: float) -> np.ndarray:
    """Entities of one cell side by side in it, instead of one above the other."""
    out = place.copy()
    for cell in np.unique(place.round(3), axis=0):
        here = np.flatnonzero((place.round(3) == cell).all(axis=1))
        across = int(np.ceil(np.sqrt(len(here))))
        pitch = min(10.0, 0.84 * cell_side / across)
        for k, i in enumerate(here):
            out[i] += ((np.array([k % across, k // across])) - (across - 1) / 2) * pitch
    return out


def _draw_panel(canvas: _Canvas, frame: Frame) -> None:
    """What every slot pays and asks for, and how far its team gets: dark has arrived, light is on the way."""
    height = _row_height(frame)
    for slot in range(int(frame.problem.slot_mask.sum())):
        x, y = MAP + 8, HEADER + slot * height
        row, colour = frame.problem.slots[slot], _colour(slot)
        if not row.any():
            canvas.text(x, y + 12, f"{slot + 1}   empty", 13, BUSY)
            continue
        canvas.dot(x + 8, y + 12, 9, colour)
        canvas.text(x + 8, y + 12, str(slot + 1), 11, PAPER, "mm")
        members = int(frame.team[slot].sum())
        state = "done" if frame.completed[slot] else (f"{members} in its team" if members else "waiting")
        canvas.text(x + 26, y + 12, f"pays {row[0]:.3g}", 13)
        canvas.text(x + PANEL - 28, y + 12, state, 13, colour if members else BUSY, "rm")
        if frame.kind != "almighty" and height > 42:
            _draw_bars(canvas, frame, slot, x + 26, y + 26, PANEL - 54, height - 36)


def _row_height(frame: Frame) -> float:
    """Of a slot in the panel."""
    return min(96.0, (MAP - 24) / int(frame.problem.slot_mask.sum()))


def _draw_bars(canvas: _Canvas, frame: Frame, slot: int, x: float, y: float, w: float, h: float) -> None:
    demand = frame.problem.demand[slot]
    asked = np.flatnonzero(demand > 0)
    thick = min(12.0, h / max(len(asked), 1))
    for k, dimension in enumerate(asked):
        top, size = y + k * thick, max(thick - 3, 1.0)
        canvas.box(x, top, w, size, LINE)
        for who, share in ((frame.team[slot], 0.35), (frame.arrived[slot], 1.0)):
            reach = float(frame.problem.capability[who, dimension].sum() / demand[dimension])
            if reach > 0:
                canvas.box(x, top, max(w * min(reach, 1.0), size), size, _tint(_colour(slot), share))


def _draw_skills(canvas: _Canvas, frame: Frame) -> None:
    """Entities on the left, tasks on the right, each a strip of its skills; lines are teams, dark skills covered."""
    problem = frame.problem
    count, slots = int(problem.entity_mask.sum()), int(problem.slot_mask.sum())
    pitch, height = (MAP - 32) / count, _row_height(frame)
    slot_of = _slot_of(frame)
    for j in range(slots):
        y, colour = HEADER + j * height + 12, _colour(j)
        for member in map(int, np.flatnonzero(frame.team[j])):
            canvas.line(152, HEADER + (member + 0.5) * pitch, 352, y, _tint(colour, 0.7), 1.5)
        covered = np.asarray(problem.capability)[frame.team[j]].sum(axis=0)
        strip = np.asarray(problem.demand[j])
        _draw_strip(canvas, strip > 0, 358, y, height, _tint(colour))
        _draw_strip(canvas, (strip > 0) & (covered >= strip), 358, y, height, colour, None)
    for i in range(count):
        grey = PALE if problem.free[i] else BUSY
        colour = _colour(int(slot_of[i])) if slot_of[i] >= 0 else grey
        _draw_strip(canvas, np.asarray(problem.capability[i]) > 0, 20, HEADER + (i + 0.5) * pitch, pitch, colour)


def _draw_strip(
    canvas: _Canvas, skills: np.ndarray, x: float, y: float, room: float, colour: str, blank: str | None = "#f1f3f5"
) -> None:
    """Skills (m,) bool as a row of squares around the height y, no higher than the room for it."""
    width, height = 128 / len(skills), min(12.0, max(room - 3, 1.0))
    for k, skill in enumerate(skills):
        canvas.box(x + k * width, y - height / 2, width - 3, height, colour if skill else blank)
