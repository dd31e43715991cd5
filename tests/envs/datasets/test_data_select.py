"""Parts of a data set and joint training: episodes, fraction, best_safe, holdout, also, cost_limit."""

import numpy as np
import pytest

from envs.core import UsageError
from envs.datasets import load
from envs.datasets.files import sha256_of
from envs.datasets.hdf5 import write_d4rl

STEPS = 5
RETURNS = np.array([3.0, 9.0, 1.0, 7.0, 5.0, 8.0, 2.0, 6.0, 4.0, 0.0])
COSTS = np.array([0.0, 5.0, 2.0, 6.0, 5.0, 0.0, 1.0, 4.0, 9.0, 0.0])


def record(costs=True, offset=0.0, episodes=10, obs_dim=3):
    """Whole episodes of 5 steps and two rows of another one; the first observation of a row is its episode."""
    rows = STEPS * episodes + 2
    of, step = np.divmod(np.arange(rows), STEPS)
    obs = np.zeros((rows, obs_dim), np.float32)
    obs[:, 0], obs[:, 1] = of + offset, step
    content = {
        "observations": obs,
        "next_observations": obs + 0.5,
        "actions": np.zeros((rows, 2), np.float32),
        "rewards": np.append(RETURNS[:episodes], 50.0)[of] / STEPS,
        "terminals": np.zeros(rows, bool),
        "timeouts": step == STEPS - 1,
    }
    return content | ({"costs": np.append(COSTS[:episodes], 0.0)[of] * (step == 0)} if costs else {})


@pytest.fixture
def path(tmp_path):
    return write_d4rl(tmp_path / "set.hdf5", record(), {})


def read(path, **keys):
    return load("custom", path=path, normalize=False, **keys)


def episodes(dataset):
    """Rows of each episode that has any."""
    numbers, rows = np.unique(np.asarray(dataset.transitions.obs[:, 0]), return_counts=True)
    return dict(zip(numbers.astype(int).tolist(), rows.tolist()))


def test_everything_by_default(path):
    dataset, info, holdout = read(path)
    assert episodes(dataset) == dict.fromkeys(range(10), 5) | {10: 2}
    np.testing.assert_allclose(info.behaviour_returns, RETURNS, rtol=1e-6)
    assert holdout is None


def test_random_whole_episodes_are_nested(path):
    three, again, six, other = (
        read(path, episodes=count, seed=seed) for count, seed in [(3, 0), (3, 0), (6, 0), (3, 1)]
    )
    drawn = set(episodes(three.dataset))
    assert list(episodes(three.dataset).values()) == [5, 5, 5]
    assert episodes(again.dataset).keys() == drawn < set(episodes(six.dataset))
    assert set(episodes(other.dataset)) != drawn
    np.testing.assert_allclose(three.info.behaviour_returns, RETURNS[sorted(drawn)], rtol=1e-6)
    assert three.info.transitions == 15
    assert three.info.sha256 == (sha256_of(path),)
    assert set(episodes(read(path, episodes=10).dataset)) == set(range(10))  # the unfinished one is not whole


def test_a_share_of_the_transitions(path):
    dataset, info, _ = read(path, fraction=0.25)
    assert info.transitions == 13
    left = [number for number in episodes(dataset) if number < 10]
    np.testing.assert_allclose(info.behaviour_returns, RETURNS[left], rtol=1e-6)
    rows = np.asarray(dataset.transitions.obs[:, :2]) @ [5, 1]
    assert (np.diff(rows) > 0).all()  # each at most once
    assert {*rows} < {*(np.asarray(read(path, fraction=0.5).dataset.transitions.obs[:, :2]) @ [5, 1])}
    assert read(path, fraction=1.0).info.transitions == 52


def test_best_safe_episodes(path):
    # At most 5 of cost: all but 3 and 8; of these 9, 8, 6 are the highest returns.
    dataset, info, _ = read(path, best_safe=3)
    assert episodes(dataset) == {1: 5, 5: 5, 7: 5}
    np.testing.assert_allclose(info.behaviour_returns, [9.0, 8.0, 6.0], rtol=1e-6)
    assert set(episodes(read(path, best_safe=3, cost_limit=2.0).dataset)) == {0, 5, 6}


def test_held_out_episodes_are_the_same_whatever_is_trained_on(path):
    parts = [read(path, holdout=4, **keys) for keys in ({}, {"episodes": 2}, {"best_safe": 2}, {"fraction": 0.2})]
    held = [episodes(part.holdout) for part in parts]
    assert held[1:] == held[:-1]
    assert list(held[0].values()) == [5, 5, 5, 5]
    assert all(not held[0].keys() & episodes(part.dataset).keys() for part in parts)
    assert len(episodes(parts[0].dataset)) == 7  # the unfinished one stays
    assert [len(part.info.behaviour_returns) for part in parts[:3]] == [6, 2, 2]
    assert set(episodes(read(path, holdout=4, seed=1).holdout)) != set(held[0])


def test_held_out_data_are_shaped_as_the_data(path):
    dataset, _, holdout = load("custom", path=path, holdout=3, reward_scale=2.0, reward_shift=1.0)
    plain = read(path, holdout=3)
    assert holdout is not None
    assert plain.holdout is not None
    np.testing.assert_array_equal(holdout.obs_mean, dataset.obs_mean)
    np.testing.assert_allclose(dataset.obs_mean, np.asarray(plain.dataset.transitions.obs).mean(0), rtol=1e-6)
    obs = np.asarray(holdout.transitions.obs) * holdout.obs_std + holdout.obs_mean
    np.testing.assert_allclose(obs, plain.holdout.transitions.obs, atol=1e-5)
    np.testing.assert_allclose(holdout.transitions.reward, 2.0 * plain.holdout.transitions.reward + 1.0, rtol=1e-6)
    np.testing.assert_array_equal(holdout.transitions.cost, plain.holdout.transitions.cost)


def test_other_data_sets_are_appended(tmp_path, path):
    other = write_d4rl(tmp_path / "other.hdf5", record(offset=100.0, episodes=4), {})
    dataset, info, _ = load("custom", path=path, episodes=2, also=[str(other)], reward_scale=3.0)
    assert info.transitions == 10 + 22
    assert info.paths == (str(path), str(other))
    assert info.sha256 == (sha256_of(path), sha256_of(other))
    np.testing.assert_allclose(info.behaviour_returns[2:], RETURNS[:4], rtol=1e-6)
    np.testing.assert_allclose(dataset.transitions.reward[10:30], 3.0 * np.repeat(RETURNS[:4], 5) / 5, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(dataset.transitions.obs).mean(0), 0.0, atol=1e-5)  # joint statistics
    np.testing.assert_array_equal(np.asarray(dataset.transitions.cost)[10:30:5], COSTS[:4])


def test_generated_data_have_parts_too():
    name, more = "pointmix-random-expert-0.1", "pointmix-random-expert-0.5"
    whole = load(name)
    part = load(name, episodes=10, holdout=5, also=[more])
    assert part.info.transitions == 10 * 30 + 21_000
    assert part.holdout is not None
    assert part.holdout.transitions.reward.shape == (150,)
    assert part.info.sha256 == whole.info.sha256 + load(more).info.sha256
    sums = np.asarray(part.dataset.transitions.reward[:300], np.float64).reshape(10, 30).sum(1)
    np.testing.assert_allclose(part.info.behaviour_returns[:10], sums)
    assert np.isin(part.info.behaviour_returns[:10], whole.info.behaviour_returns).all()


def test_d4rl_rows_follow_their_episodes(tmp_path):
    # Without costs the rows that the time limit ended are dropped: 4 of 5 are left of each episode.
    path = write_d4rl(tmp_path / "plain.hdf5", record(costs=False), {})
    dataset, info, holdout = read(path, episodes=3, holdout=2)
    assert list(episodes(dataset).values()) == [4, 4, 4]
    assert list(episodes(holdout).values()) == [4, 4]
    np.testing.assert_allclose(info.behaviour_returns, RETURNS[sorted(episodes(dataset))], rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"episodes": 11}, r"data\.episodes=11: custom has 10 to choose from"),
        ({"episodes": 7, "holdout": 4}, r"data\.episodes=7: custom has 6 to choose from"),
        ({"episodes": 0}, r"data\.episodes=0 must be at least 1"),
        ({"fraction": 0.0}, r"data\.fraction=0\.0 must be more than 0 and at most 1"),
        ({"fraction": 1.5}, r"data\.fraction=1\.5 must be more than 0 and at most 1"),
        ({"fraction": float("nan")}, r"data\.fraction=nan must be"),
        ({"fraction": 0.001}, r"data\.fraction=0\.001 of custom's 52 transitions is none"),
        ({"best_safe": 9}, r"data\.best_safe=9: 8 episodes of custom have a cost of at most 5"),
        ({"best_safe": 0}, r"data\.best_safe=0 must be at least 1"),
        ({"holdout": 10}, r"data\.holdout=10 leaves nothing to train on: custom has 10 whole episodes"),
        ({"holdout": -1}, r"data\.holdout=-1 must be at least 0"),
        ({"seed": -1}, r"data\.seed=-1 must be at least 0"),
        ({"cost_limit": 0.0}, r"data\.cost_limit=0\.0 must be more than 0"),
        ({"also": ["hopper-medum-v2"]}, "did you mean hopper-medium-v2"),
        ({"also": ["pointmix-random-expert-0.1"]}, r"data\.also: .* dimensions \(2, 2\), custom has \(3, 2\)"),
    ],
)
def test_what_cannot_be_is_refused(path, keys, message):
    with pytest.raises(UsageError, match=message):
        read(path, **keys)


def test_costs_are_needed_or_common(tmp_path, path):
    plain = write_d4rl(tmp_path / "plain.hdf5", record(costs=False), {})
    with pytest.raises(UsageError, match=r"data\.best_safe=2: custom has no costs"):
        read(plain, best_safe=2)
    with pytest.raises(UsageError, match=rf"data\.also: custom has costs and {plain} has none"):
        read(path, also=[str(plain)])
    with pytest.raises(UsageError, match=rf"data\.also: {path} has costs and custom has none"):
        read(plain, also=[str(path)])


def test_returns_lie_as_far_apart_as_asked() -> None:
    plain = load("pointmix-random-expert-0.1")
    returns = plain.info.behaviour_returns
    scaled = load("pointmix-random-expert-0.1", reward_range=1000.0, episodes=5)
    assert scaled.info.reward_scale == pytest.approx(1000.0 / (returns.max() - returns.min()))
    with pytest.raises(UsageError, match="reward_range=-1.0 needs to be positive"):
        load("pointmix-random-expert-0.1", reward_range=-1.0)
    with pytest.raises(UsageError, match="exclude each other"):
        load("pointmix-random-expert-0.1", reward_range=1.0, reward_scale=2.0)
