from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.core import Spec, UsageError
from envs.datasets import check_spec, load, normalized_score, sources
from envs.datasets.d4rl import qlearning, read_hdf5
from envs.datasets.files import sha256_of
from envs.datasets.hdf5 import write_d4rl


@pytest.fixture
def path(tmp_path, arrays):
    return write_d4rl(tmp_path / "set.hdf5", arrays, {"command": "none"})


def test_arrays_and_info(path, arrays):
    dataset, info, _ = load("hopper-medium-v2", path=path)
    want, _ = qlearning(read_hdf5(path), 1000)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(dataset))
    obs = want.obs
    mean, std = obs.mean(axis=0), obs.std(axis=0) + 1e-3
    np.testing.assert_allclose(dataset.obs_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(dataset.obs_std, std, rtol=1e-6)
    np.testing.assert_allclose(dataset.transitions.obs, (obs - mean) / std, atol=1e-5)
    np.testing.assert_allclose(dataset.transitions.next_obs, (want.next_obs - mean) / std, atol=1e-5)
    for field in ("action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(dataset.transitions, field), getattr(want, field))
    assert (info.name, info.env, info.max_episode_steps) == ("hopper-medium-v2", "hopper", 1000)
    assert (info.obs_dim, info.action_dim, info.transitions) == (11, 3, 54)
    assert info.paths == (str(path),)
    assert info.sha256 == (sha256_of(path),)
    assert info.metadata == {"command": "none"}
    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"])
    returns = [part.sum() for part in np.split(arrays["rewards"].astype(np.float64), ends[:-1] + 1)]
    np.testing.assert_allclose(info.behaviour_returns, returns)
    assert info.behaviour_score() == pytest.approx(normalized_score("hopper-medium-v2", returns).mean())


def test_normalisation_can_be_turned_off(path, arrays):
    transitions = load("hopper-medium-v2", path=path).dataset.transitions
    np.testing.assert_allclose(np.mean(transitions.obs, axis=0), 0.0, atol=1e-5)
    plain = load("hopper-medium-v2", path=path, normalize=False).dataset
    np.testing.assert_array_equal(plain.obs_mean, 0.0)
    np.testing.assert_array_equal(plain.obs_std, 1.0)
    kept = ~arrays["timeouts"][:-1]
    np.testing.assert_array_equal(plain.transitions.obs, arrays["observations"][:-1][kept])


def test_constant_coordinates_stay_finite(tmp_path, arrays):
    arrays["observations"][:, 2] = 4.0
    path = write_d4rl(tmp_path / "set.hdf5", arrays, {})
    dataset = load("hopper-medium-v2", path=path).dataset
    assert float(dataset.obs_std[2]) == pytest.approx(1e-3)
    np.testing.assert_array_equal(dataset.transitions.obs[:, 2], 0.0)


def test_reward_options(path):
    plain = np.asarray(load("hopper-medium-v2", path=path).dataset.transitions.reward)
    shaped = load("hopper-medium-v2", path=path, reward_scale=100, reward_shift=-2)
    np.testing.assert_allclose(shaped.dataset.transitions.reward, 100 * plain - 2, rtol=1e-6)
    assert (shaped.info.reward_scale, shaped.info.reward_shift) == (100.0, -2.0)


def antmaze(folder, record):
    """Three trajectories of 20 rows; the first succeeds and goes on at the goal."""
    arrays = record(rows=60, obs_dim=29, action_dim=8, episode=20)
    arrays["rewards"] = (np.isin(np.arange(60), [15, 16, 17])).astype(np.float32)
    arrays["terminals"] = arrays["rewards"] == 1
    return write_d4rl(folder / "antmaze.hdf5", arrays, {})


def test_antmaze_defaults_and_success_rate(tmp_path, make_arrays):
    path = antmaze(tmp_path, make_arrays)
    dataset, info, _ = load("antmaze-umaze-v2", path=path)
    assert set(np.unique(dataset.transitions.reward)) == {-1.0, 0.0}
    assert (info.normalize, info.env, info.max_episode_steps) == (False, None, 700)
    assert info.behaviour_returns.tolist() == [1.0, 0.0, 0.0]
    assert info.behaviour_score() == pytest.approx(100 / 3)
    scaled = load("antmaze-umaze-v2", path=path, reward_scale=100, normalize=True)
    assert set(np.unique(scaled.dataset.transitions.reward)) == {-1.0, 99.0}
    assert scaled.info.normalize


def test_mixture_from_a_folder(tmp_path, make_arrays):
    write_d4rl(tmp_path / "hopper_expert-v2.hdf5", make_arrays(rows=200, seed=1), {})
    write_d4rl(tmp_path / "hopper_random-v2.hdf5", make_arrays(rows=95, seed=2), {})
    name = "hopper-random-expert-0.1-v2"
    one, same, other = (load(name, path=tmp_path, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.dataset.transitions.obs, same.dataset.transitions.obs)
    assert one.info.reference == (-20.272305, 3234.3)
    assert one.info.metadata == {"ratio": 0.1, "seed": 4}
    assert len(one.info.sha256) == 2
    assert float(other.dataset.transitions.obs[0, 0]) != float(one.dataset.transitions.obs[0, 0])
    write_d4rl(tmp_path / "hopper_random-v2.hdf5", make_arrays(obs_dim=5), {}, overwrite=True)
    with pytest.raises(UsageError, match=r"differ in .*dimensions"):
        load(name, path=tmp_path)


def test_named_file_in_the_cache_and_in_a_folder(tmp_path, arrays, monkeypatch):
    cached = write_d4rl(tmp_path / "cache" / "hopper_medium-v2.hdf5", arrays, {})
    assert load("hopper-medium-v2").info.paths == (str(cached),)
    assert load("hopper-medium-v2", path=tmp_path / "cache").info.paths == (str(cached),)
    assert load("hopper-medium-v2", cache_dir=tmp_path / "cache").info.sha256 == (sha256_of(cached),)
    with pytest.raises(UsageError, match=r"hopper_expert-v2\.hdf5: no such file"):
        load("hopper-expert-v2", path=tmp_path / "cache")


def test_file_of_ones_own_names_its_environment(tmp_path, arrays):
    metadata = {"env": "hopper", "dataset": "hopper-medium-v2", "max_episode_steps": 10}
    path = write_d4rl(tmp_path / "own.hdf5", arrays, metadata)
    for name in (None, "custom"):
        info = load(name, path=path).info
        assert (info.name, info.env, info.max_episode_steps) == ("custom", "hopper", 10)
        assert info.reference == (-20.272305, 3234.3)
    bare = load(None, path=write_d4rl(tmp_path / "bare.hdf5", arrays, {})).info
    assert (bare.env, bare.reference, bare.behaviour_score()) == (None, None, None)


def test_embedded_data_set(tmp_path, arrays, monkeypatch):
    metadata = {"env": "hopper", "dataset": "hopper-medium-v2", "max_episode_steps": 10}
    path = write_d4rl(tmp_path / "embedded.hdf5", arrays, metadata)
    monkeypatch.setattr(sources, "EMBEDDED", path)
    info = load("embedded").info
    assert (info.name, info.env, info.max_episode_steps) == ("embedded", "hopper", 10)
    assert info.reference == (-20.272305, 3234.3)
    assert Path(info.paths[0]) == path


def test_file_without_timeouts_needs_a_time_limit(tmp_path, arrays):
    del arrays["timeouts"]
    limited = write_d4rl(tmp_path / "limited.hdf5", arrays, {"max_episode_steps": 10})
    # Terminal rows are 5 and 35; the counter starts at 1 after a terminal row and at 0 after a dropped one.
    kept = 59 - len([14, 24, 34] + [44, 54])
    assert load(None, path=limited).info.transitions == kept
    unlimited = write_d4rl(tmp_path / "unlimited.hdf5", arrays, {})
    with pytest.raises(UsageError, match=r"unlimited\.hdf5: key 'timeouts' is missing.*max_episode_steps"):
        load(None, path=unlimited)
    assert load("hopper-medium-v2", path=unlimited).info.transitions == 59


def test_wrong_dimensions_name_both(path):
    loaded = load("hopper-medium-v2", path=path)
    check_spec(loaded, Spec(11, 3))
    with pytest.raises(UsageError, match=r"hopper-medium-v2: observations have 11 dimensions, 17 are needed"):
        check_spec(loaded, Spec(17, 3))
    with pytest.raises(UsageError, match="actions have 3 dimensions, 6 are needed"):
        load("hopper-medium-v2", path=path, obs_dim=11, action_dim=6)


def test_unknown_names_and_missing_paths(tmp_path, path):
    with pytest.raises(UsageError, match="did you mean hopper-medium-v2"):
        load("hopper-medum-v2", path=path)
    with pytest.raises(UsageError, match=r"needs its file: data\.path=FILE"):
        load("custom")
    with pytest.raises(UsageError, match="no such file"):
        load("hopper-medium-v2", path=tmp_path / "none.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file.create_group("episode_0")
    with pytest.raises(UsageError, match="this is a Minari file"):
        load(None, path=tmp_path / "other.hdf5")


def test_pointmix_is_generated_from_its_seed():
    first, again, other = (load("pointmix-random-expert-0.1", seed=seed) for seed in (0, 0, 1))
    assert first.info.sha256 == again.info.sha256 != other.info.sha256
    assert (first.info.env, first.info.paths, first.info.transitions) == ("pointmix", (), 21_000)
    assert first.info.behaviour_returns.shape == (700,)
    np.testing.assert_array_equal(first.dataset.obs_std, 1.0)
    rewards = np.asarray(first.dataset.transitions.reward, np.float64)
    assert first.info.behaviour_returns.sum() == pytest.approx(rewards.sum())


def test_pointmix_has_no_file_to_look_for(tmp_path):
    with pytest.raises(UsageError, match="leave data.path out"):
        load("pointmix-random-expert-0.1", path=tmp_path)
