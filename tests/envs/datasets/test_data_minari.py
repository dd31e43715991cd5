import json
import sys

import gymnasium
import h5py
import numpy as np
import pytest

from envs.core import UsageError
from envs.datasets import load
from envs.datasets.metadata import read_metadata
from envs.datasets.minari import env_of, locate, read_minari
from envs.datasets.minari_write import write_minari

minari = pytest.importorskip("minari")
pytestmark = pytest.mark.filterwarnings("ignore:.* is (set to )?None:UserWarning")  # optional notes of the author
ID = "classic/pendulum/random-v0"


def collect(env, dataset_id=ID, episodes=2):
    """A data set recorded and written by Minari itself."""
    env = minari.DataCollector(env)
    env.action_space.seed(0)
    for seed in range(episodes):
        env.reset(seed=seed)
        done = False
        while not done:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            done = terminated or truncated
    return env.create_dataset(dataset_id=dataset_id, ref_min_score=-1500.0, ref_max_score=-100.0)


@pytest.fixture
def pendulum():
    return collect(gymnasium.make("Pendulum-v1", max_episode_steps=12))


def data_file(dataset):
    return dataset.storage.data_path / "main_data.hdf5"


def test_reads_what_minari_wrote(pendulum):
    data = read_minari(locate(ID))
    assert len(data.transitions.reward) == 24
    for number, episode in enumerate(pendulum.iterate_episodes()):
        rows = slice(12 * number, 12 * number + 12)
        np.testing.assert_array_equal(data.transitions.obs[rows], episode.observations[:-1])
        np.testing.assert_array_equal(data.transitions.next_obs[rows], episode.observations[1:])
        np.testing.assert_array_equal(data.transitions.action[rows], episode.actions)
        np.testing.assert_allclose(data.transitions.reward[rows], episode.rewards, rtol=1e-6)
        assert data.returns[number] == pytest.approx(episode.rewards.sum(), rel=1e-6)
    assert data.transitions.terminated.sum() == 0
    assert np.flatnonzero(data.transitions.truncated).tolist() == [11, 23]


def test_episodes_come_in_the_order_of_their_numbers():
    collect(gymnasium.make("Pendulum-v1", max_episode_steps=3), episodes=11)
    data = read_minari(locate(ID))
    for number, episode in enumerate(minari.load_dataset(ID).iterate_episodes()):
        np.testing.assert_array_equal(data.transitions.obs[3 * number], episode.observations[0])


def test_load_by_id_and_by_folder(pendulum, tmp_path):
    by_id = load(f"minari:{ID}", obs_dim=3, action_dim=1)
    assert by_id.info.reference == (-1500.0, -100.0)
    assert by_id.info.env is None
    assert by_id.info.transitions == 24
    folder = tmp_path / "minari" / ID
    for path in (folder, folder / "data", folder / "data" / "main_data.hdf5"):
        by_path = load(None, path=path)
        assert by_path.info.sha256 == by_id.info.sha256
        np.testing.assert_array_equal(by_path.dataset.transitions.obs, by_id.dataset.transitions.obs)


def test_writer_makes_what_minari_reads(tmp_path, arrays):
    arrays["timeouts"][-1] = False  # the last episode is unfinished
    metadata = {"env": "hopper", "dataset": "hopper-medium-v2", "returns": [1.0, 2.0]}
    folder = write_minari(tmp_path / "minari", "ours/hopper/medium-v0", arrays, metadata)
    theirs = minari.load_dataset("ours/hopper/medium-v0")
    assert theirs.total_steps == 60
    assert theirs.observation_space.shape == (11,)
    assert theirs.action_space == gymnasium.spaces.Box(-1, 1, (3,))
    assert minari.get_normalized_score(theirs, np.array(3234.3)) == pytest.approx(1.0)
    assert "ours/hopper/medium-v0" in minari.list_local_datasets()
    episodes = list(theirs.iterate_episodes())
    assert [len(episode) for episode in episodes] == [6, 4, 10, 10, 6, 4, 10, 10]
    assert all(episode.terminations[-1] or episode.truncations[-1] for episode in episodes)
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), arrays["actions"])
    for key, part in [("observations", slice(None, -1)), ("next_observations", slice(1, None))]:
        np.testing.assert_array_equal(np.concatenate([e.observations[part] for e in episodes]), arrays[key])
    assert read_metadata(folder) == metadata


def test_writer_and_reader_agree(tmp_path, arrays):
    metadata = {"env": "hopper", "dataset": "hopper-medium-v2", "max_episode_steps": 10}
    folder = write_minari(tmp_path, "hopper-v0", arrays, metadata)
    data = read_minari(folder)
    np.testing.assert_array_equal(data.transitions.next_obs, arrays["next_observations"])
    np.testing.assert_array_equal(data.transitions.terminated, arrays["terminals"])
    np.testing.assert_array_equal(data.transitions.truncated, arrays["timeouts"])
    loaded = load("custom", path=folder)
    assert (loaded.info.env, loaded.info.max_episode_steps) == ("hopper", 10)
    assert loaded.info.reference == (-20.272305, 3234.3)


def test_writer_refuses(tmp_path, arrays):
    folder = write_minari(tmp_path, "hopper-v0", arrays, {})
    with pytest.raises(UsageError, match="not overwritten"):
        write_minari(tmp_path, "hopper-v0", arrays, {})
    write_minari(tmp_path, "hopper-v0", arrays, {"seed": 1}, overwrite=True)
    assert read_metadata(folder) == {"seed": 1}
    with pytest.raises(UsageError, match="malformed"):
        write_minari(tmp_path, "../hopper", arrays, {})
    del arrays["next_observations"]
    with pytest.raises(UsageError, match="'next_observations' is missing"):
        write_minari(tmp_path, "other-v0", arrays, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hopper-v0"]


def test_environment_from_gymnasium_id():
    assert env_of({"env_spec": json.dumps({"id": "HalfCheetah-v5"})}) == "halfcheetah"
    assert env_of({"env_spec": json.dumps({"id": "AdroitHandDoor-v1"})}) is None
    assert env_of({"env_spec": None}) is None


BOX = gymnasium.spaces.Box(-1, 1, (2,), np.float32)


def stacked(space, steps):
    """Samples of a space, stacked as Minari keeps them."""
    samples = [space.sample() for _ in range(steps)]
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space}
    return np.stack(samples)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "reason"),
    [
        (gymnasium.spaces.Dict(position=BOX), BOX, "'observations' is a Dict"),
        (BOX, gymnasium.spaces.Discrete(3), "'actions' has entries of shape"),
        (gymnasium.spaces.Box(-1, 1, (2, 2), np.float32), BOX, "'observations' has entries of shape"),
    ],
)
def test_other_spaces_are_refused(observation_space, action_space, reason):
    steps = {"rewards": [0.0, 1.0], "terminations": [False, True], "truncations": [False, False]}
    episode = minari.data_collector.EpisodeBuffer(
        id=0,
        observations=stacked(observation_space, 3),
        actions=stacked(action_space, 2),
        **{key: np.asarray(values) for key, values in steps.items()},
    )
    minari.create_dataset_from_buffers(
        "other-v0", [episode], observation_space=observation_space, action_space=action_space
    )
    with pytest.raises(UsageError, match=f"main_data.hdf5: episode_0: key {reason}"):
        load("minari:other-v0")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: f["episode_1"].__delitem__("rewards"), "episode_1: key 'rewards' is missing"),
        (lambda f: f["episode_1/observations"].resize(12, axis=0), "'observations' has 12 rows, expected 13"),
        (
            lambda f: f["episode_0/actions"].write_direct(np.full((12, 1), np.nan, "f4")),
            "'actions' has a NaN",
        ),
        (lambda f: f.clear(), "holds no episode"),
    ],
)
def test_damaged_data_sets_are_refused(pendulum, damage, reason):
    with h5py.File(data_file(pendulum), "a") as file:
        damage(file)
    with pytest.raises(UsageError, match=reason):
        load(f"minari:{ID}")


def test_damaged_metadata_and_formats(pendulum):
    path = data_file(pendulum).with_name("metadata.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"data_format": "arrow"}))
    with pytest.raises(UsageError, match="data format 'arrow' is not supported"):
        load(f"minari:{ID}")
    path.write_text("{")
    with pytest.raises(UsageError, match="cannot be read as Minari's metadata"):
        load(f"minari:{ID}")
    path.unlink()  # as in old versions of the format, which keep attributes in the data file
    assert load(f"minari:{ID}").info.transitions == 24


def test_absent_data_set_is_downloaded_by_minari(monkeypatch, arrays, tmp_path):
    monkeypatch.setattr(minari, "download_dataset", lambda name: write_minari(tmp_path / "minari", name, arrays, {}))
    assert load("minari:mujoco/hopper/medium-v0").info.transitions == 60


def test_absent_data_set_without_network_or_package(monkeypatch):
    def fail(name):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(minari, "download_dataset", fail)
    with pytest.raises(UsageError, match=r"no route to host\); check name and network.*data\.path=FOLDER$"):
        load("minari:mujoco/hopper/medium-v0")
    monkeypatch.setattr(minari, "download_dataset", lambda name: None)
    with pytest.raises(UsageError, match="is not at"):
        load("minari:mujoco/hopper/medium-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UsageError, match=r"pip install 'minari\[hf\]'"):
        load("minari:mujoco/hopper/medium-v0")


def test_no_data_set_in_the_folder(tmp_path):
    with pytest.raises(UsageError, match="no Minari data set is here"):
        load("minari:hopper-v0", path=tmp_path)
