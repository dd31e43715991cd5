"""Statistics against closed forms, published worked examples, scipy, and the coverage they promise."""

import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats

from experiments import stats

# Student (1908), hours of sleep gained by ten patients under two drugs
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
# Darwin's maize, heights in inches of 15 pairs, as Fisher analysed them
CROSSED = [23.5, 12, 21, 22, 19.125, 21.5, 22.125, 20.375, 18.25, 21.625, 23.25, 21, 22.125, 23, 12]
SELFED = [17.375, 20.375, 20, 20, 18.375, 18.625, 18.625, 15.25, 16.5, 18, 16.25, 18, 12.75, 15.5, 18]

UNEQUAL = [[1.0, 2.0, 3.0, 4.0], [0.0, 5.0]]  # two tasks, four seeds and two
BANDS: dict[str, Callable[[int], tuple]] = {
    "iqm": lambda seed: stats.iqm_interval(scores(3, 4, 5), seed, 500),
    "gap": lambda seed: stats.optimality_gap_interval(scores(3, 4, 5), 0.5, seed, 500),
    "profile": lambda seed: stats.performance_profile_band(scores(3, 4, 5), [-1.0, 0.0, 0.3], seed, 500),
    "improvement": lambda seed: stats.probability_of_improvement_interval(
        scores(3, 4, 5), scores(6, 2, 9), seed, 500
    ),
}  # fmt: skip


def scores(*seeds: int) -> list[np.ndarray]:
    """Normal scores of tasks with these numbers of seeds."""
    rng = np.random.default_rng(sum(seeds))
    return [rng.normal(index, 1.0, n) for index, n in enumerate(seeds)]


def mean(drawn: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(drawn, -1).mean(-1)


def raw(result: tuple) -> bytes:
    return b"".join(np.asarray(part).tobytes() for part in result)


def test_student_interval_of_the_sleep_data() -> None:
    assert stats.mean_interval(SLEEP_1) == pytest.approx((0.75, -0.5297804, 2.0297804), abs=1e-7)
    low, high = scipy_stats.ttest_1samp(SLEEP_2, 0.0).confidence_interval(0.8)
    assert stats.mean_interval(SLEEP_2, 0.8) == pytest.approx((2.33, low, high))


def test_paired_differences_as_published() -> None:
    sleep = stats.paired_difference(SLEEP_2, SLEEP_1)
    assert sleep.difference == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-7)
    assert sleep[1:] == (9, 0, 10)  # one tie
    maize = stats.paired_difference(CROSSED, SELFED)
    assert maize.difference == pytest.approx((2.616667, 0.003899, 5.229434), abs=1e-6)
    assert maize[1:] == (13, 2, 15)
    low, high = scipy_stats.ttest_rel(CROSSED, SELFED).confidence_interval(0.9)
    assert stats.paired_difference(CROSSED, SELFED, 0.9).difference[1:] == pytest.approx((low, high))


def test_difference_to_published_is_welch() -> None:
    there = (float(np.mean(SLEEP_2)), float(np.std(SLEEP_2, ddof=1)), 10)
    published = stats.difference_to_published(SLEEP_1, *there)
    assert published == pytest.approx((-1.58, -3.3654832, 0.2054832), abs=1e-7)
    ours = SLEEP_1[:4]
    low, high = scipy_stats.ttest_ind(ours, SLEEP_2, equal_var=False).confidence_interval(0.9)
    value = np.mean(ours) - there[0]
    assert stats.difference_to_published(ours, *there, confidence=0.9) == pytest.approx((value, low, high))
    wider = stats.difference_to_published(ours, *there, slack=0.25, confidence=0.9)
    assert wider == pytest.approx((value, low - 0.25, high + 0.25))


def test_published_mean_without_spread_is_taken_as_exact() -> None:
    shifted = np.array(stats.mean_interval(SLEEP_1)) - 2.0
    assert stats.difference_to_published(SLEEP_1, 2.0, None, None) == pytest.approx(shifted)
    assert stats.difference_to_published(SLEEP_1, 2.0, None, 5) == pytest.approx(shifted)
    assert stats.difference_to_published(SLEEP_1, 2.0, 1.0, None) == pytest.approx(shifted)


def test_iqm() -> None:
    assert stats.iqm(np.random.default_rng(0).permutation(100)) == 49.5
    assert stats.iqm([5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6]) == 6.5  # Wikipedia's example
    assert stats.iqm([100, 1, 2, 3, 4]) == 3.0
    symmetric = scipy_stats.norm(3.0, 2.0).ppf(np.arange(1, 200) / 200)
    assert stats.iqm(symmetric) == pytest.approx(symmetric.mean()) == pytest.approx(3.0)
    for n in range(1, 13):
        matrix = np.random.default_rng(n).normal(size=(n, 3))
        assert stats.iqm(matrix) == pytest.approx(scipy_stats.trim_mean(matrix, 0.25, axis=None))
        np.testing.assert_allclose(stats.iqm(matrix, axis=0), scipy_stats.trim_mean(matrix, 0.25, axis=0))


def test_optimality_gap() -> None:
    # short of 3.5 by 2.5, 1.5, 0.5, 0 on the one task and by 3.5, 0 on the other
    assert stats.optimality_gap(UNEQUAL, 3.5) == pytest.approx((4.5 / 4 + 3.5 / 2) / 2)
    assert stats.optimality_gap(UNEQUAL, 0.0) == 0.0


def test_performance_profile() -> None:
    np.testing.assert_allclose(
        stats.performance_profile(UNEQUAL, [-1.0, 0.0, 2.0, 2.5, 5.0]), [1.0, 0.75, 0.5, 0.5, 0.0]
    )
    profile = stats.performance_profile_band(UNEQUAL, [-1.0, 2.0, 5.0], seed=0)
    np.testing.assert_allclose(profile.value, [1.0, 0.5, 0.0])
    np.testing.assert_allclose(profile.low[[0, 2]], [1.0, 0.0])
    assert profile.low[1] < 0.5 < profile.high[1]


def test_probability_of_improvement() -> None:
    # Aesop's six tortoises and six hares in the order of arrival: U = 11 and 25 of 36 (Wikipedia)
    order = np.array(list("THHHHHTTTTTH"))
    tortoises, hares = -np.flatnonzero(order == "T"), -np.flatnonzero(order == "H")
    assert stats.probability_of_improvement([tortoises], [hares]) == pytest.approx(11 / 36)
    # 1 > 0, 1 = 1, 2 > 0, 2 > 1 on the one task; a sure loss on the other
    assert stats.probability_of_improvement([[1, 2], [0]], [[0, 1], [1, 2, 3]]) == pytest.approx((3.5 / 4 + 0) / 2)
    x, y = np.random.default_rng(0).integers(4, size=(2, 30))
    expected = scipy_stats.mannwhitneyu(x, y[:20]).statistic / 600
    assert stats.probability_of_improvement([x], [y[:20]]) == pytest.approx(expected)


def test_values_of_the_intervals_are_the_estimates() -> None:
    x, y = scores(3, 4, 5), scores(6, 2, 9)
    assert stats.iqm_interval(x, 0).value == pytest.approx(stats.iqm(np.concatenate(x)))
    assert stats.optimality_gap_interval(x, 0.5, 0).value == stats.optimality_gap(x, 0.5)
    interval = stats.probability_of_improvement_interval(x, y, 0)
    assert interval.low < interval.value == stats.probability_of_improvement(x, y) < interval.high


def test_bootstrap_follows_the_exact_distribution() -> None:
    """The mean of n seeds of 0 or 1 is binomial under resampling: its quantiles are known."""
    ones, n = 12, 40
    interval = stats.bootstrap(mean, [[1.0] * ones + [0.0] * (n - ones)], seed=0, replicates=20_000, confidence=0.9)
    exact = scipy_stats.binom(n, ones / n).ppf([0.05, 0.95]) / n
    assert interval == pytest.approx((ones / n, *exact), abs=1e-12)


def test_bootstrap_resamples_within_tasks() -> None:
    """Tasks far apart but without spread of their own leave nothing to resample."""
    interval = stats.bootstrap(mean, [[0.0] * 5, [1000.0] * 3], seed=0)
    assert interval == (375.0, 375.0, 375.0)


@pytest.mark.parametrize("name", BANDS)
def test_same_seed_same_bytes_whatever_the_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = raw(BANDS[name](7))
    assert raw(BANDS[name](7)) == expected
    assert raw(BANDS[name](8)) != expected
    for block in [1, 777, 10_000_000]:
        monkeypatch.setattr(stats, "BLOCK", block)
        assert raw(BANDS[name](7)) == expected


def test_memory_does_not_grow_with_the_replicates() -> None:
    samples = np.random.default_rng(0).normal(size=(10, 10))
    tracemalloc.start()
    stats.iqm_interval(samples, seed=0, replicates=50_000)
    stats.probability_of_improvement_interval(samples, samples, seed=0, replicates=5_000)
    stats.performance_profile_band(samples, np.linspace(-2, 2, 2000), seed=0, replicates=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6  # the scores of 50,000 replicates alone are 40 MB


def coverage(interval: Callable[[np.random.Generator, int], stats.Interval], truth: float, repeats: int) -> float:
    """How often the interval of random data holds the truth."""
    rng = np.random.default_rng(0)
    intervals = [interval(rng, index) for index in range(repeats)]
    return float(np.mean([low <= truth <= high for _, low, high in intervals]))


def test_coverage_of_student_and_welch() -> None:
    def paired(rng: np.random.Generator, _: int) -> stats.Interval:
        common = rng.normal(0.0, 9.0, 5)
        return stats.paired_difference(common + rng.normal(1.0, 1.0, 5), common).difference

    def welch(rng: np.random.Generator, _: int) -> stats.Interval:
        there = rng.normal(1.0, 3.0, 10)
        return stats.difference_to_published(rng.normal(3.0, 1.0, 5), there.mean(), there.std(ddof=1), 10)

    # of 3,000, the standard error is 0.4 points; a 90 % interval is twelve of them away
    assert coverage(paired, 1.0, 3000) == pytest.approx(0.95, abs=0.015)
    assert coverage(welch, 2.0, 3000) == pytest.approx(0.95, abs=0.015)


def test_coverage_of_the_bootstrap_is_what_the_module_says() -> None:
    def bootstrapped(statistic: stats.Statistic, *shape: int) -> Callable:
        return lambda rng, index: stats.bootstrap(statistic, rng.normal(size=shape), index, 1000)

    def pooled_iqm(rng: np.random.Generator, index: int) -> stats.Interval:
        return stats.iqm_interval(rng.normal(size=(10, 10)), index, 1000)

    # of 2,000, the standard error is 0.5 to 0.8 points; 90 % intervals would hold 0.88 and 0.78
    assert coverage(pooled_iqm, 0.0, 2000) == pytest.approx(0.93, abs=0.02)
    assert coverage(bootstrapped(mean, 1, 5), 0.0, 2000) == pytest.approx(0.85, abs=0.025)


def test_without_variance_the_interval_has_no_width() -> None:
    assert stats.mean_interval([2.0] * 4) == (2.0, 2.0, 2.0)
    assert stats.iqm_interval([[2.0] * 4, [2.0] * 5], 0) == (2.0, 2.0, 2.0)
    assert stats.paired_difference([3.0] * 4, [2.0] * 4) == ((1.0, 1.0, 1.0), 4, 0, 4)
    assert stats.difference_to_published([3.0] * 4, 2.0, 0.0, 5, slack=0.5) == (1.0, 0.5, 1.5)
    assert stats.probability_of_improvement_interval([[2.0] * 3], [[2.0] * 4], 0) == (0.5, 0.5, 0.5)


def test_one_seed_has_no_interval() -> None:
    nan = float("nan")
    assert stats.mean_interval([2.0]) == pytest.approx((2.0, nan, nan), nan_ok=True)
    assert stats.paired_difference([2.0], [3.0]).difference == pytest.approx((-1.0, nan, nan), nan_ok=True)
    published = stats.difference_to_published([2.0], 3.0, 1.0, 5, slack=1.0)
    assert published == pytest.approx((-1.0, nan, nan), nan_ok=True)
    assert stats.iqm_interval([[1.0, 3.0], [5.0]], 0) == pytest.approx((3.0, nan, nan), nan_ok=True)
    band = stats.performance_profile_band([[2.0]], [1.0, 3.0], 0)
    np.testing.assert_array_equal(band, [[1.0, 0.0], [nan, nan], [nan, nan]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_mean_interval_carries_a_nan_on(bad: float) -> None:
    assert np.isnan(stats.mean_interval([1.0, bad, 2.0])).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stats.mean_interval([]), "at least one"),
        (lambda: stats.mean_interval([1.0, 2.0], confidence=95), "between 0 and 1"),
        (lambda: stats.iqm([]), "values is empty"),
        (lambda: stats.iqm([1.0, np.nan]), "1 of 2 numbers not finite"),
        (lambda: stats.iqm_interval([], 0), "no tasks"),
        (lambda: stats.iqm_interval([[1.0], []], 0), r"samples\[1\] is empty"),
        (lambda: stats.iqm_interval([[1.0], [np.inf]], 0), r"samples\[1\]: 1 of 1 numbers not finite"),
        (lambda: stats.iqm_interval([1.0, 2.0], 0), r"samples\[0\] has shape \(\)"),
        (lambda: stats.iqm_interval(UNEQUAL, 0, replicates=0), "0 replicates"),
        (lambda: stats.iqm_interval(UNEQUAL, 0, confidence=1.0), "between 0 and 1"),
        (lambda: stats.iqm_interval(UNEQUAL, -1), "non-negative"),
        (lambda: stats.bootstrap(lambda drawn: drawn[0].mean(), UNEQUAL, 0), r"shape \(\)"),
        (lambda: stats.bootstrap(lambda drawn: drawn[0], UNEQUAL, 0), r"\(4,\) values for each replicate"),
        (lambda: stats.optimality_gap(UNEQUAL, np.nan), "target"),
        (lambda: stats.optimality_gap_interval(UNEQUAL, np.nan, 0), "target"),
        (lambda: stats.performance_profile(UNEQUAL, []), "thresholds is empty"),
        (lambda: stats.performance_profile_band(UNEQUAL, [[1.0]], 0), "thresholds has shape"),
        (lambda: stats.probability_of_improvement(UNEQUAL, UNEQUAL[:1]), "x has 2 tasks and y 1"),
        (lambda: stats.probability_of_improvement_interval(UNEQUAL, [[1.0], []], 0), r"y\[1\] is empty"),
        (lambda: stats.paired_difference([1.0, 2.0], [1.0]), "x has 2 seeds and y 1"),
        (lambda: stats.paired_difference([1.0, np.nan], [1.0, 2.0]), "x: 1 of 2"),
        (lambda: stats.difference_to_published([], 1.0, 1.0, 5), "values is empty"),
        (lambda: stats.difference_to_published([1.0], np.nan, None, None), "published mean nan"),
        (lambda: stats.difference_to_published([1.0], 1.0, np.nan, 5), "std nan"),
        (lambda: stats.difference_to_published([1.0], 1.0, -1.0, 5), "std -1"),
        (lambda: stats.difference_to_published([1.0], 1.0, 1.0, 1), "n 1"),
        (lambda: stats.difference_to_published([1.0], 1.0, 1.0, 5, slack=-1.0), "slack -1"),
        (lambda: stats.difference_to_published([1.0], 1.0, 1.0, 5, confidence=0.0), "between 0 and 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [None, 1.5])
def test_seed_must_be_an_integer(seed: object) -> None:
    with pytest.raises(TypeError, match="integer"):
        stats.iqm_interval(UNEQUAL, seed)  # type: ignore[arg-type]


def test_another_process_gives_the_same_bytes_and_needs_no_jax() -> None:
    code = """
import sys
from experiments import stats
print(stats.iqm_interval([[1.0, 2.5, 3.0, 4.0], [0.0, 5.0]], 3), "jax" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"{stats.iqm_interval([[1.0, 2.5, 3.0, 4.0], [0.0, 5.0]], 3)} False"
