from pathlib import Path

import numpy as np
import pytest

from envs.core import UsageError
from envs.datasets.d4rl import Raw, qlearning, sequence
from envs.datasets.episodes import bounds, episode_returns
from envs.datasets.mixed import mix, mix_indices

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "a2pr" / "d4rl_conversion.npz")
CASES = sorted({tuple(key.split("/")[:2]) for key in GOLDEN if not key.startswith("raw/")})


def golden_raw(case):
    raw = {key: GOLDEN[f"raw/{key}"] for key in Raw._fields if f"raw/{key}" in GOLDEN}
    return Raw(**(raw | {"timeouts": None} if case.startswith("no_timeouts") else raw))


def test_golden_file_holds_both_forms():
    assert {form for form, _ in CASES} == {"qlearning", "sequence"}


@pytest.mark.parametrize("case", [case for form, case in CASES if form == "qlearning"])
def test_qlearning_equals_golden(case):
    at_end = case.endswith("terminate_on_end")
    raw, steps = golden_raw(case), int(GOLDEN["raw/max_episode_steps"])
    data, index = qlearning(raw, steps, terminate_on_end=at_end)
    want = {key: GOLDEN[f"qlearning/{case}/{key}"] for key in ("observations", "actions", "rewards")}
    np.testing.assert_array_equal(index, GOLDEN[f"qlearning/{case}/source_index"])
    np.testing.assert_array_equal(data.obs, want["observations"])
    np.testing.assert_array_equal(data.action, want["actions"])
    np.testing.assert_array_equal(data.reward, want["rewards"])
    np.testing.assert_array_equal(data.next_obs, GOLDEN[f"qlearning/{case}/next_observations"])
    np.testing.assert_array_equal(data.terminated, GOLDEN[f"qlearning/{case}/terminals"])
    assert index.dtype == np.int32
    assert {field.dtype for field in data if field is not None} == {np.dtype(np.float32)}
    assert bool(data.truncated.any()) == at_end


@pytest.mark.parametrize("case", [case for form, case in CASES if form == "sequence"])
def test_sequence_equals_golden(case):
    start, length = sequence(golden_raw(case), int(GOLDEN["raw/max_episode_steps"]))
    for found, key in [(start, "episode_start"), (length, "episode_length")]:
        np.testing.assert_array_equal(found, GOLDEN[f"sequence/{case}/{key}"])
        assert found.dtype == np.int32


def small(terminals, timeouts=None):
    rows = len(terminals)
    column = np.arange(rows, dtype=np.float32)
    flags = None if timeouts is None else np.asarray(timeouts, bool)
    return Raw(column[:, None], -column[:, None], column, np.asarray(terminals, bool), flags)


def test_terminated_and_truncated_stay_apart():
    raw = small([0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0])
    kept, index = qlearning(raw, None)
    assert index.tolist() == [0, 1, 2, 4]
    assert kept.terminated.tolist() == [0, 1, 0, 0]
    assert kept.truncated.tolist() == [0, 0, 0, 0]
    everything, _ = qlearning(raw, None, terminate_on_end=True)
    assert everything.terminated.tolist() == [0, 1, 0, 0, 0]
    assert everything.truncated.tolist() == [0, 0, 0, 1, 0]


def test_counter_starts_at_one_after_a_terminal_row():
    raw = small([0, 1, 0, 0, 0, 0, 0, 0])
    _, index = qlearning(raw, max_episode_steps=4)
    # After the terminal row 1 the counter stands at 1, so row 4 and not row 5 is the fourth.
    assert index.tolist() == [0, 1, 2, 3, 5, 6]
    start, length = sequence(raw, max_episode_steps=4)
    assert (start.tolist(), length.tolist()) == ([0, 2, 5], [2, 3, 3])


def test_conversion_refuses_what_it_cannot_do():
    with pytest.raises(UsageError, match="time limit is not known"):
        qlearning(small([0, 0, 1]), None)
    with pytest.raises(UsageError, match="no transition"):
        qlearning(small([1]), 10)


def test_episodes_are_counted_cleanly():
    raw = small([0, 1, 0, 0, 0, 0, 0, 0])
    episodes = bounds(raw, max_episode_steps=4)
    assert episodes.start.tolist() == [0, 2, 6]
    assert episodes.length.tolist() == [2, 4, 2]
    assert episodes.complete.tolist() == [True, True, False]
    assert episode_returns(raw, 4).tolist() == [1.0, 14.0]
    assert episode_returns(small([0, 0])).tolist() == []


def test_episodes_with_timeouts_ignore_the_count():
    raw = small([0, 1, 0, 0, 0], [0, 0, 0, 0, 1])
    assert bounds(raw, max_episode_steps=2).length.tolist() == [2, 3]
    assert bounds(raw, split_at_terminals=False).length.tolist() == [5]
    assert episode_returns(raw).tolist() == [1.0, 9.0]


def two_sources():
    """Good rows are numbered from 0, bad ones from 1000; both break off in the middle of an episode."""
    good = small(np.arange(103) % 10 == 9, np.zeros(103))
    bad = small(np.zeros(58), np.arange(58) % 7 == 6)
    return good, bad._replace(observations=bad.observations + 1000, rewards=bad.rewards + 1000)


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.1, 0.25, 0.5])
def test_mixture_has_the_sizes_of_the_recipe(ratio):
    good, bad = two_sources()
    from_good, from_bad = mix_indices(bounds(good), bounds(bad), 103, ratio, seed=3)
    target = int(ratio * 103)
    assert target < len(from_good) <= target + 10
    assert 103 - len(from_good) < len(from_bad) <= 103 - len(from_good) + 7


def test_mixture_copies_whole_episodes():
    good, bad = two_sources()
    mixture = mix(good, bad, 0.25, seed=5)
    rewards = mixture.rewards.astype(int)
    assert set(np.flatnonzero(np.diff(rewards) != 1)) <= set(np.flatnonzero(mixture.terminals | mixture.timeouts))
    assert np.all(np.diff((rewards >= 1000).astype(int)) >= 0)  # good first
    np.testing.assert_array_equal(mixture.observations[:, 0], mixture.rewards)
    # A broken-off episode, if drawn, ends with a timeout, so no transition leads into the next one.
    data, _ = qlearning(mixture, None)
    leads_on = data.terminated == 0
    np.testing.assert_array_equal(data.next_obs[leads_on, 0], data.obs[leads_on, 0] + 1)


def test_mixture_is_a_function_of_the_seed():
    good, bad = two_sources()
    one, same, other = (mix(good, bad, 0.1, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(getattr(one, key), getattr(same, key)) for key in ("rewards", "timeouts"))
    assert not np.array_equal(one.rewards, other.rewards)


def test_mixture_may_consist_of_good_episodes_alone():
    good = small([0] * 9 + [1], np.zeros(10))
    from_good, from_bad = mix_indices(bounds(good), bounds(small([0, 1])), 5, 0.5, seed=0)
    assert (len(from_good), len(from_bad)) == (10, 0)
