"""Every data set that has a name: D4RL's 147, mixtures built from them, DSRL's 38, generated ones, the embedded one."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from envs.datasets import dsrl, scores
from envs.datasets.generated import RATIOS, TABLE, Generated

FILES = Path(__file__).with_name("d4rl_files.csv")  # time limit and address of each, as D4RL registers them
EMBEDDED = Path(__file__).with_name("embedded.hdf5")
SERVERS = (
    "https://rail.eecs.berkeley.edu/datasets/offline_rl",
    "http://rail.eecs.berkeley.edu/datasets/offline_rl",
)
ROBOTS = ("ant", "halfcheetah", "hopper", "walker2d")
MIXED_RATIOS = RATIOS


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before its file is read."""

    name: str
    env: str | None = None  # our locomotion environment that it belongs to
    max_episode_steps: int | None = None
    file: str | None = None  # name in the cache
    urls: tuple[str, ...] = ()
    reference: scores.Reference | None = None
    top_score: float = scores.TOP_SCORE  # of the upper reference return
    normalize: bool = True  # defaults: load() takes others
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    goal: bool = False  # AntMaze: trajectories go on after a success, the score is the share of successes
    parts: tuple[str, str] | None = None  # of a mixture: the good and the random data set
    ratio: float = 0.0  # of a mixture: share of good rows
    costs: bool = False  # DSRL: a file without costs is refused
    generated: Generated | None = None  # made when asked for, no file


@cache
def registry() -> dict[str, DatasetInfo]:
    """All known data sets by name."""
    with FILES.open(newline="") as file:
        known = {row["dataset"]: _d4rl(row) for row in csv.DictReader(file)}
    levels = [(robot, level) for robot in ROBOTS for level in ("medium", "expert")]
    mixtures = [_mixture(robot, level, ratio) for robot, level in levels for ratio in MIXED_RATIOS]
    safe = [_dsrl(task) for task in dsrl.tasks().values()]
    made = [_generated(name, recipe) for name, recipe in TABLE.items()]
    return known | {info.name: info for info in [*mixtures, *safe, *made, DatasetInfo("embedded")]}


def lookup(name: str) -> DatasetInfo:
    """The entry of a name. Raises UsageError that suggests the nearest names."""
    if name not in registry():
        mend = "; for a file of your own data.name=custom data.path=FILE, for Minari data.name=minari:ID"
        raise scores.unknown(name, registry(), mend)
    return registry()[name]


def _d4rl(row: dict[str, str]) -> DatasetInfo:
    name, path = row["dataset"], row["path"]
    robot = re.fullmatch(rf"({'|'.join(ROBOTS)})-(?:random|medium|expert|full)(?:-\w+)*-v\d", name)
    goal = name.startswith("antmaze-")
    return DatasetInfo(
        name=name,
        env=robot.group(1) if robot else None,
        max_episode_steps=int(row["max_episode_steps"]),
        file=Path(path).name,
        urls=tuple(f"{server}/{path}" for server in SERVERS),
        reference=scores.reference(name),
        normalize=not goal,
        # AntMaze rewards are 0 or 1; most methods train on r - 1, some scale by 100 or 10000 first.
        reward_shift=-1.0 if goal else 0.0,
        goal=goal,
    )


def _mixture(robot: str, level: str, ratio: str) -> DatasetInfo:
    good = f"{robot}-{level}-v2"
    return DatasetInfo(
        name=f"{robot}-random-{level}-{ratio}-v2",
        env=robot,
        max_episode_steps=1000,
        reference=scores.reference(good),
        parts=(good, f"{robot}-random-v2"),
        ratio=float(ratio),
    )


def _dsrl(task: dsrl.Task) -> DatasetInfo:
    return DatasetInfo(
        name=task.dataset,
        env=task.env,
        max_episode_steps=task.max_episode_steps,
        file=task.file,
        urls=tuple(f"{server}/{task.file}" for server in dsrl.SERVERS),
        reference=task.reference,
        top_score=dsrl.TOP_SCORE,
        normalize=False,
        reward_scale=task.reward_scale,
        costs=True,
    )


def _generated(name: str, recipe: Generated) -> DatasetInfo:
    return DatasetInfo(name, recipe.env, recipe.steps, normalize=False, generated=recipe)


def files(entry: DatasetInfo) -> list[DatasetInfo]:
    """The entries whose files a data set is read from: itself, the parts of a mixture, or none."""
    if entry.parts is not None:
        return [lookup(part) for part in entry.parts]
    return [entry] if entry.file is not None else []
