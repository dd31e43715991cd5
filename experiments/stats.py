"""Statistics over seeds and tasks: means, aggregates, comparisons, each with its confidence interval.

`samples` is a sequence over tasks of (n_task,) scores, one per seed; tasks may differ in their number of seeds. A
(tasks, seeds) matrix is one too. Aggregates and the stratified bootstrap are those of Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021), under their names there.

Everything random takes an integer seed: the same seed gives the same bytes. An interval has nan bounds where it
cannot be known: with one seed, or, for a bootstrap, with one seed in any of its tasks. A ValueError in one line
refuses empty and non-finite scores, so leave diverged runs out and say so; only `mean_interval` carries a nan on.

Which interval: Student's for a mean of few seeds, the bootstrap for aggregates over several tasks. The percentile
bootstrap is too narrow for few seeds. How often its 95 % interval held the truth, measured on 5,000 sets of normal
scores with 2,000 replicates each (Student's interval of the same scores' mean: 94 to 96 %):

    tasks x seeds       1 x 5   1 x 10   1 x 20   10 x 3   10 x 5   10 x 10
    interquartile mean   91 %     94 %     95 %     88 %     92 %      93 %
    mean                 85 %     91 %     94 %     88 %     91 %      92 %
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

BLOCK = 1 << 16  # scores in a block of replicates: half a megabyte, so that a block's work stays in the cache

Samples = Sequence[ArrayLike] | np.ndarray  # over tasks, of (n_task,) scores
Statistic = Callable[[list[np.ndarray]], np.ndarray]  # [(replicates, n_task)] over tasks -> (replicates, ...)


class Interval(NamedTuple):
    """An estimate and its confidence interval; the bounds are nan where there is none."""

    value: float
    low: float
    high: float


class Profile(NamedTuple):
    """A performance profile (thresholds,) and the bounds of its pointwise confidence band."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Paired(NamedTuple):
    """A comparison on the same seeds: mean difference, and on how many of the n seeds each side is ahead."""

    difference: Interval
    wins: int
    losses: int
    n: int


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of (n,) values and its Student-t confidence interval; all nan if a value is not finite.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    array = np.asarray(values, np.float64)
    _check_confidence(confidence)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values have shape {array.shape}; give at least one, in one dimension")
    if not np.isfinite(array).all():
        return Interval(np.nan, np.nan, np.nan)
    variance = array.var(ddof=1) / len(array) if len(array) > 1 else np.nan
    return _student(float(array.mean()), float(variance), len(array) - 1, confidence)


def iqm(values: ArrayLike, axis: int | None = None) -> np.float64 | np.ndarray:
    """Interquartile mean over an axis, or over all values: a 25 % trimmed mean.

    floor(n / 4) values are left out at either end and the others weigh the same, as in `scipy.stats.trim_mean` and
    so in the field's published numbers; of fewer than four values it is the mean.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    array = _finite(values, "values")
    array = array.reshape(-1) if axis is None else np.moveaxis(array, axis, -1)
    return _trimmed(array)


def bootstrap(
    statistic: Statistic, samples: Samples, seed: int, replicates: int = 2000, confidence: float = 0.95
) -> Interval:
    """Percentile interval of a statistic under the stratified bootstrap: seeds resampled within tasks.

    `statistic` maps a list over tasks of (replicates, n_task) scores to (replicates,) values, each from its own row.
    It is called on blocks of rows, which bounds memory and leaves the numbers as they are.

    Raises:
        ValueError: no tasks, a task without scores or with some that are not finite; a number of replicates below 1
            or a confidence outside (0, 1); a statistic that returns another shape.
        TypeError: a seed that is no integer.
    """
    tasks = _tasks(samples, "samples")
    value, low, high = _percentiles(statistic, tasks, seed, replicates, confidence)
    if value.ndim:
        raise ValueError(f"the statistic has {value.shape} values for each replicate; it must have one")
    return Interval(float(value), float(low), float(high))


def iqm_interval(samples: Samples, seed: int, replicates: int = 2000, confidence: float = 0.95) -> Interval:
    """`iqm` of the runs of all tasks together; a task with more seeds weighs more. Raises as `bootstrap` does."""
    return bootstrap(lambda drawn: _trimmed(np.concatenate(drawn, -1)), samples, seed, replicates, confidence)


def optimality_gap(samples: Samples, target: float) -> float:
    """By how much runs fall short of `target`: the mean of max(target - score, 0).

    In the scores' unit; lower is better. Tasks weigh the same whatever their number of seeds.

    Raises:
        ValueError: a target that is not finite; no tasks, or a task without scores or with some that are not finite.
    """
    return float(_gap(float(_finite(target, "target")))(_rows(_tasks(samples, "samples")))[0])


def optimality_gap_interval(
    samples: Samples, target: float, seed: int, replicates: int = 2000, confidence: float = 0.95
) -> Interval:
    """`optimality_gap` with its bootstrap interval. Raises as both do."""
    return bootstrap(_gap(float(_finite(target, "target"))), samples, seed, replicates, confidence)


def performance_profile(samples: Samples, thresholds: ArrayLike) -> np.ndarray:
    """Share of runs that score above each of (m,) thresholds, as (m,); tasks weigh the same.

    Raises:
        ValueError: no thresholds or tasks, a task without scores, or something that is not finite.
    """
    return _above(_vector(thresholds, "thresholds"))(_rows(_tasks(samples, "samples")))[0]


def performance_profile_band(
    samples: Samples, thresholds: ArrayLike, seed: int, replicates: int = 2000, confidence: float = 0.95
) -> Profile:
    """`performance_profile` with the bootstrap interval of each point, not of the whole curve at once.

    Raises as `performance_profile` and `bootstrap` do.
    """
    limits = _vector(thresholds, "thresholds")
    tasks = _tasks(samples, "samples")
    return Profile(*_percentiles(_above(limits), tasks, seed, replicates, confidence, booleans=len(limits)))


def probability_of_improvement(x: Samples, y: Samples) -> float:
    """P(X > Y) + P(X = Y) / 2 of a run of x and one of y on the same task, averaged over tasks.

    For one task it is the Mann-Whitney U of x divided by n_x n_y.

    Raises:
        ValueError: x and y differ in their number of tasks; no tasks, a task without scores, or some not finite.
    """
    return float(_improvement(_rows(_both(x, y)))[0])


def probability_of_improvement_interval(
    x: Samples, y: Samples, seed: int, replicates: int = 2000, confidence: float = 0.95
) -> Interval:
    """`probability_of_improvement` with its bootstrap interval; x and y are resampled independently.

    Where every run of one side is ahead on every task, all replicates are equal and the interval has no width: the
    bootstrap cannot see beyond its samples. Raises as `probability_of_improvement` and `bootstrap` do.
    """
    tasks = _both(x, y)
    largest = max(len(scores) for scores in tasks)
    value, low, high = _percentiles(_improvement, tasks, seed, replicates, confidence, booleans=largest)
    return Interval(float(value), float(low), float(high))


def paired_difference(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Paired:
    """Mean of x - y over (n,) seeds with Student's interval; x and y hold the same seeds in the same order.

    Raises:
        ValueError: x and y differ in length, are empty or hold something not finite; a confidence outside (0, 1).
    """
    first, second = _vector(x, "x"), _vector(y, "y")
    if len(first) != len(second):
        raise ValueError(f"x has {len(first)} seeds and y {len(second)}; a paired difference needs the same seeds")
    wins, losses = int((first > second).sum()), int((first < second).sum())
    return Paired(mean_interval(first - second, confidence), wins, losses, len(first))


def difference_to_published(
    values: ArrayLike, mean: float, std: float | None, n: int | None, slack: float = 0.0, confidence: float = 0.95
) -> Interval:
    """Mean of our (n_ours,) values minus a published mean, with Welch's interval; nan bounds for one value.

    Args:
        values: our scores, one per seed.
        mean: the published mean.
        std: the published standard deviation over seeds (not the standard error).
        n: the published number of seeds. If it or `std` is None, the published mean is taken as exact, which makes
            the interval too narrow: say so beside it.
        slack: added to the interval at either end, e.g. 0.05 for a mean published with one decimal.
        confidence: of the interval.

    Raises:
        ValueError: no values, something not finite, std or slack below 0, n below 2, or a confidence outside (0, 1).
    """
    ours = _vector(values, "values")
    spread, seeds = (0.0, 2) if std is None or n is None else (std, n)  # without spread, any n gives the same
    if not (np.isfinite([mean, spread, slack]).all() and min(spread, slack) >= 0 and seeds >= 2):
        raise ValueError(
            f"published mean {mean}, std {std}, n {n}, slack {slack}: give finite numbers, std and slack not below 0 "
            "and n above 1, or None for what is not published"
        )
    _check_confidence(confidence)
    difference = float(ours.mean()) - mean
    if len(ours) == 1:
        return Interval(difference, np.nan, np.nan)
    parts = np.array([ours.var(ddof=1) / len(ours), spread**2 / seeds])
    # Welch-Satterthwaite, of shares that sum to 1, so that tiny variances cannot underflow when squared
    shares = parts / parts.sum() if parts.any() else np.array([1.0, 0.0])
    degrees = 1 / (shares**2 / [len(ours) - 1, seeds - 1]).sum()
    value, low, high = _student(difference, float(parts.sum()), float(degrees), confidence)
    return Interval(value, low - slack, high + slack)


def _student(value: float, variance: float, degrees: float, confidence: float) -> Interval:
    """Interval of an estimate from its squared standard error; nan bounds if that is nan."""
    half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * float(np.sqrt(variance))
    return Interval(value, value - half, value + half)


def _percentiles(
    statistic: Statistic, tasks: list[np.ndarray], seed: int, replicates: int, confidence: float, booleans: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The statistic of the samples themselves and the two percentiles of its replicates.

    `booleans`: how many of them the statistic makes of each score.
    """
    _check_confidence(confidence)
    if replicates < 1:
        raise ValueError(f"{replicates} replicates; draw at least 1")
    root = np.random.SeedSequence(operator.index(seed))
    value = np.asarray(statistic(_rows(tasks)))
    if value.shape[:1] != (1,):
        raise ValueError(f"the statistic has shape {value.shape} for one replicate; it must have one row for each")
    if min(len(scores) for scores in tasks) == 1:
        unknown = np.full_like(value[0], np.nan)
        return value[0], unknown, unknown
    rows = max(1, BLOCK // (sum(len(scores) for scores in tasks) * (1 + booleans // 8)))
    drawn = np.concatenate(list(_replicates(statistic, tasks, root, replicates, rows)))
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    return value[0], low, high


def _replicates(
    statistic: Statistic, tasks: list[np.ndarray], root: np.random.SeedSequence, replicates: int, rows: int
) -> Iterator[np.ndarray]:
    """The statistic of resampled tasks, in blocks of up to `rows` replicates."""
    # one stream a task: what it draws depends neither on how many rows are drawn at a time nor on other tasks
    streams = [np.random.default_rng(child) for child in root.spawn(len(tasks))]
    for start in range(0, replicates, rows):
        size = min(rows, replicates - start)
        picks = [rng.integers(len(scores), size=(size, len(scores))) for rng, scores in zip(streams, tasks)]
        yield statistic([scores[pick] for scores, pick in zip(tasks, picks)])


def _trimmed(values: np.ndarray) -> np.ndarray:
    """25 % trimmed mean over the last axis. Sorting, not partitioning, fixes the order of the sum."""
    cut = values.shape[-1] // 4
    return np.sort(values, -1)[..., cut : values.shape[-1] - cut].mean(-1)


def _gap(target: float) -> Statistic:
    return lambda drawn: _over_tasks([np.maximum(target - scores, 0).mean(-1) for scores in drawn])


def _above(thresholds: np.ndarray) -> Statistic:
    return lambda drawn: _over_tasks([(scores[..., None] > thresholds).mean(1) for scores in drawn])


def _improvement(drawn: list[np.ndarray]) -> np.ndarray:
    """Probability of improvement of the first half of the list over the second."""
    half = len(drawn) // 2
    pairs = [(x[:, :, None], y[:, None, :]) for x, y in zip(drawn[:half], drawn[half:])]
    return _over_tasks([((x > y).mean((1, 2)) + (x >= y).mean((1, 2))) / 2 for x, y in pairs])


def _over_tasks(values: list[np.ndarray]) -> np.ndarray:
    """Mean over the list, summed in its order whatever the arrays' shape."""
    return np.asarray(sum(values[1:], values[0]) / len(values))


def _rows(tasks: list[np.ndarray]) -> list[np.ndarray]:
    """The samples as one replicate."""
    return [scores[None] for scores in tasks]


def _both(x: Samples, y: Samples) -> list[np.ndarray]:
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} tasks and y {len(y)}; give the scores of both on the same tasks")
    return _tasks(x, "x") + _tasks(y, "y")


def _tasks(samples: Samples, name: str) -> list[np.ndarray]:
    if not len(samples):
        raise ValueError(f"{name} has no tasks; give at least one task's scores")
    return [_vector(scores, f"{name}[{index}]") for index, scores in enumerate(samples)]


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    array = _finite(values, name)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; give a one-dimensional array")
    return array


def _finite(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError(f"{name} is empty; give at least one number")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{name}: {bad} of {array.size} numbers not finite; leave diverged or missing runs out")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: give a number between 0 and 1, e.g. 0.95")
