"""What a run leaves behind while it goes: metrics.csv, TensorBoard, Weights & Biases, the progress display."""

import contextlib
import csv
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs.core import UsageError


class MetricsFile:
    """`metrics.csv` of one run: one row per evaluation, the same bytes however often the run was interrupted."""

    def __init__(self, run_dir: Path):
        """The file appears with its first row."""
        self.path = run_dir / "metrics.csv"

    def rows(self) -> list[dict[str, float]]:
        """All complete rows."""
        if not self.path.exists():
            return []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a kill may have torn the last line
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(whole))]

    def rewind(self, update: int) -> None:
        """Drop the rows after `update`, which are about to be computed again."""
        rows = [row for row in self.rows() if row["update"] <= update]
        self.path.unlink(missing_ok=True)
        for row in rows:
            self.append(row)

    def append(self, row: dict[str, float]) -> None:
        """Add a row and flush it."""
        new = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(row)
            writer.writerow([_text(value) for value in row.values()])


def _text(value: float) -> str:
    """Integers without a point, other numbers with all digits of a float32."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else f"{value:.9g}"


class Trackers:
    """The optional trackers of one run: TensorBoard and Weights & Biases."""

    def __init__(self, run_dir: Path, tensorboard: bool, wandb_project: str | None, config: dict[str, Any]):
        """Open those asked for.

        Raises:
            UsageError: the package is not installed.
        """
        self.tensorboard: Any = None
        self.wandb: Any = None
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                raise UsageError("run.tensorboard=true needs: pip install 'adaptax[tensorboard]'") from None
            self.tensorboard = SummaryWriter(str(run_dir / "tensorboard"))
        if wandb_project:
            try:
                import wandb
            except ImportError:
                raise UsageError("run.wandb=PROJECT needs: pip install 'adaptax[wandb]'") from None
            name = "-".join(run_dir.parts[-4:])
            self.wandb = wandb.init(
                project=wandb_project,
                name=name,
                id=name,
                resume="allow",
                config=config,
                dir=run_dir,
                reinit="create_new",
            )

    def log(self, update: int, row: dict[str, float]) -> None:
        """Send one row."""
        values = {key: value for key, value in row.items() if key != "update"}
        if self.tensorboard is not None:
            for key, value in values.items():
                self.tensorboard.add_scalar(key, value, update)
        if self.wandb is not None:
            self.wandb.log(values, step=update)

    def close(self) -> None:
        """Flush and finish."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


class Display:
    """Progress of a population: a bar on a terminal, one line per evaluation elsewhere."""

    def __init__(self, title: str, total: int, done: int):
        """`total` and `done` are updates per member."""
        self.title, self.total, self.begun_at, self.first = title, total, time.monotonic(), done
        self.score = "no score yet"
        console = Console(file=sys.stderr)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[score]}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task(title, total=total, completed=done, rate="", score=self.score)

    def __enter__(self) -> "Display":
        """Show the bar."""
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()

    def advance(self, done: int) -> None:
        """After a chunk."""
        self.bar.update(self.task, completed=done, rate=f"{self.rate(done):,.0f} updates/s", score=self.score)

    def evaluated(self, done: int, scores: list[float]) -> None:
        """After an evaluation: mean and range of the members' scores."""
        mean = sum(scores) / len(scores)
        self.score = f"score {mean:.1f}" + (f" ({min(scores):.1f} to {max(scores):.1f})" if len(scores) > 1 else "")
        self.advance(done)
        if self.bar.disable:
            left = (self.total - done) / max(self.rate(done), 1e-9)
            clock = f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}"
            line = (
                f"{self.title}  {done:,}/{self.total:,}  {self.score}  {self.rate(done):,.0f} updates/s  {clock} left"
            )
            print(line, file=sys.stderr, flush=True)

    def rate(self, done: int) -> float:
        """Updates per second of each member, evaluation included."""
        return (done - self.first) / max(time.monotonic() - self.begun_at, 1e-9)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, that takes its place once written and on the disk."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    yield temporary
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
