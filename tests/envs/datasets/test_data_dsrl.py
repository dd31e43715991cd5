"""DSRL: its table, its file layout and its scores."""

import h5py
import jax
import numpy as np
import pytest

from envs.core import UsageError
from envs.datasets import dsrl, load, normalized_cost, normalized_return
from envs.datasets.hdf5 import write_d4rl
from envs.datasets.registry import lookup

ENDS = [9, 24, 29]  # a terminal row, a timeout, and one that is both; rows 30 to 33 are broken off


def arrays(column=False):
    """34 rows as DSRL's collectors record them: float flags, costs in {0, 1}, true successors."""
    rng = np.random.default_rng(3)
    row, rows = np.arange(34), 34
    shape = (rows, 1) if column else (rows,)
    return {
        "observations": rng.normal(size=(rows, 8)),
        "next_observations": rng.normal(size=(rows, 8)),
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "rewards": rng.normal(size=rows).reshape(shape),
        "costs": (rng.random(rows) < 0.4).astype(np.float64).reshape(shape),
        "terminals": np.isin(row, [9, 29]).astype(np.float64).reshape(shape),
        "timeouts": np.isin(row, [24, 29]).astype(np.float64).reshape(shape),
    }


def written(path, content, **attributes):
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file.create_dataset(key, data=value)
        file.attrs.update(attributes)
    return path


@pytest.mark.parametrize("column", [False, True])
def test_every_row_is_a_transition(tmp_path, column):
    content = arrays()
    path = written(tmp_path / "set.hdf5", arrays(column))
    dataset, info, holdout = load("OfflineCarCircle-v0", path=path, reward_scale=1.0)
    rows = dataset.transitions
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(dataset))
    for field, key in [
        ("obs", "observations"),
        ("next_obs", "next_observations"),
        ("action", "actions"),
        ("reward", "rewards"),
        ("cost", "costs"),
        ("terminated", "terminals"),
        ("truncated", "timeouts"),
    ]:
        np.testing.assert_array_equal(getattr(rows, field), content[key].astype(np.float32), err_msg=field)
    parts = np.split(content["rewards"].astype(np.float32).astype(np.float64), np.add(ENDS, 1))[:-1]
    np.testing.assert_allclose(info.behaviour_returns, [part.sum() for part in parts])
    assert (info.transitions, info.obs_dim, info.action_dim, info.max_episode_steps) == (34, 8, 2, 300)
    assert holdout is None


def test_defaults_of_a_named_task(tmp_path):
    content = arrays()
    dataset, info, _ = load("OfflineCarCircle-v0", path=written(tmp_path / "set.hdf5", content))
    low, high = 3.484419822692871, 534.3060913085938
    assert info.reference == (low, high)
    assert info.reward_scale == pytest.approx(300 / (high - low))
    assert (info.reward_shift, info.normalize, info.env) == (0.0, False, None)
    np.testing.assert_allclose(dataset.transitions.reward, content["rewards"] * 300 / (high - low), rtol=1e-5)
    np.testing.assert_array_equal(dataset.transitions.cost, content["costs"])
    assert info.behaviour_score() == pytest.approx((info.behaviour_returns.mean() - low) / (high - low))


def test_table_of_tasks():
    tasks = dsrl.tasks()
    assert len(tasks) == len({task.file for task in tasks.values()}) == 38
    steps = {task.max_episode_steps for task in tasks.values()}
    assert steps == {100, 200, 300, 500, 1000}
    for name, task in tasks.items():
        assert task.reference[0] < task.reference[1]
        assert task.costs[0] < task.costs[1]
        # A file is named after its task, its largest cost (a bin's upper end) and its number of trajectories.
        stem, _, most, count = task.file.removesuffix(".hdf5").rsplit("-", 3)
        assert stem.replace("Safety", "Offline").replace("SafeMetaDrive", "OfflineMetadrive") in name
        assert task.costs[1] <= int(most) + 0.02
        assert int(count) > 600
        info = lookup(name)
        assert info.urls == tuple(f"{server}/{task.file}" for server in dsrl.SERVERS)
        assert (info.costs, info.normalize, info.reference) == (True, False, task.reference)


def test_only_velocity_tasks_have_an_environment():
    assert {name: task.env for name, task in dsrl.tasks().items() if task.env} == {
        "OfflineAntVelocityGymnasium-v1": "safe-ant",
        "OfflineHalfCheetahVelocityGymnasium-v1": "safe-halfcheetah",
        "OfflineHopperVelocityGymnasium-v1": "safe-hopper",
        "OfflineWalker2dVelocityGymnasium-v1": "safe-walker2d",
    }


@pytest.mark.parametrize("name", sorted(dsrl.tasks()))
def test_references_are_0_and_1(name):
    np.testing.assert_allclose(normalized_return(name, dsrl.tasks()[name].reference), [0.0, 1.0], atol=1e-12)


def test_known_scores():
    assert normalized_return("OfflineCarCircle-v0", 268.895) == pytest.approx(0.5, abs=1e-6)
    assert normalized_cost([10.0, 25.0, 0.0], 10.0).tolist() == [1.0, 2.5, 0.0]
    assert normalized_cost([0.0, 3.0], 0.0).tolist() == [1.0, 4.0]
    with pytest.raises(UsageError, match=r"cost limit -1\.0 must not be negative"):
        normalized_cost(3.0, -1.0)
    with pytest.raises(UsageError, match="did you mean OfflineCarCircle-v0"):
        normalized_return("OfflineCarCirkle-v0", 1.0)


def test_file_of_ones_own_with_costs(tmp_path):
    name, horizon = "OfflineHopperVelocityGymnasium-v1", 20
    path = written(tmp_path / "own.hdf5", arrays(), env="safe-hopper", dataset=name, max_episode_steps=horizon)
    dataset, info, _ = load("custom", path=path)
    assert (info.env, info.max_episode_steps, info.reward_scale, info.normalize) == ("safe-hopper", 20, 1.0, True)
    assert info.reference == dsrl.tasks()[name].reference
    low, high = info.reference
    assert info.behaviour_score() == pytest.approx((info.behaviour_returns.mean() - low) / (high - low))
    np.testing.assert_array_equal(dataset.transitions.cost, arrays()["costs"])


def test_data_without_costs_have_none(tmp_path):
    content = arrays()
    del content["costs"]
    path = written(tmp_path / "set.hdf5", content)
    assert load("custom", path=path).dataset.transitions.cost is None
    with pytest.raises(UsageError, match=r"set\.hdf5 has no `costs`: OfflineCarCircle-v0 .* data\.name=custom"):
        load("OfflineCarCircle-v0", path=path)


@pytest.mark.parametrize("key", ["next_observations", "timeouts"])
def test_costs_need_the_rest_of_the_layout(tmp_path, key):
    content = arrays()
    del content[key]
    with pytest.raises(UsageError, match=rf"set\.hdf5: key '{key}' is missing; DSRL's layout"):
        load("custom", path=written(tmp_path / "set.hdf5", content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda costs: costs[:-1], "key 'costs' has 33 rows, 'observations' has 34"),
        (lambda costs: np.where(np.arange(34) == 5, np.nan, costs), "key 'costs' has a NaN .*at row 5"),
        (lambda costs: np.stack([costs, costs], 1), r"key 'costs' has shape \(34, 2\)"),
    ],
)
def test_damaged_costs_are_refused(tmp_path, damage, message):
    content = arrays()
    content["costs"] = damage(content["costs"])
    with pytest.raises(UsageError, match=message):
        load("OfflineCarCircle-v0", path=written(tmp_path / "set.hdf5", content))


def test_unknown_task_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"'OfflineCarCircl-v0': did you mean OfflineCarCircle-v0"):
        load("OfflineCarCircl-v0", path=tmp_path)


def test_named_file_in_the_cache(tmp_path):
    path = tmp_path / "cache" / "SafetyCarCircle-v0-100-1450.hdf5"
    path.parent.mkdir()
    written(path, arrays())
    assert load("OfflineCarCircle-v0").info.paths == (str(path),)


def test_costs_are_written_and_read_again(tmp_path):
    content = arrays()
    path = write_d4rl(tmp_path / "set.hdf5", content, {"env": "safe-hopper"})
    np.testing.assert_array_equal(load("custom", path=path).dataset.transitions.cost, content["costs"])
