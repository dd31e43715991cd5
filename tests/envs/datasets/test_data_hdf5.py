import json

import h5py
import numpy as np
import pytest

from envs.core import UsageError
from envs.datasets.files import sha256_of
from envs.datasets.hdf5 import read_hdf5, write_d4rl
from envs.datasets.metadata import read_metadata

METADATA = {
    "env": "hopper",
    "dataset": "hopper-medium-v2",
    "max_episode_steps": 10,
    "mean_return": 12.5,
    "deterministic": False,
    "returns": [1.0, 2.0] * 9000,  # longer than an HDF5 attribute may be
    "versions": {"jax": "0", "mujoco": "3"},
    "commit": None,
}


def one_line_naming(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    assert all(str(part) in text for part in parts), text


def test_round_trip(tmp_path, arrays):
    path = write_d4rl(tmp_path / "new" / "set.hdf5", arrays | {"infos/qpos": np.ones((60, 2))}, METADATA)
    raw = read_hdf5(path)
    for key, column in arrays.items():
        np.testing.assert_array_equal(getattr(raw, key), column)
    assert read_metadata(path) == METADATA
    with h5py.File(path) as file:
        assert file.attrs["env"] == "hopper"
        assert json.loads(file["metadata/versions"][()]) == METADATA["versions"]
        assert file["rewards"].compression == "gzip"
        assert file["infos/qpos"].shape == (60, 2)
    assert [entry.name for entry in path.parent.iterdir()] == ["set.hdf5"]


def test_same_input_gives_the_same_bytes(tmp_path, arrays):
    one, two = (write_d4rl(tmp_path / name, arrays, METADATA) for name in ("one.hdf5", "two.hdf5"))
    assert sha256_of(one) == sha256_of(two)


def test_writer_does_not_overwrite_unasked(tmp_path, arrays):
    path = write_d4rl(tmp_path / "set.hdf5", arrays, {})
    before = sha256_of(path)
    with pytest.raises(UsageError) as caught:
        write_d4rl(path, arrays, METADATA)
    one_line_naming(caught, path, "not overwritten")
    assert sha256_of(path) == before
    write_d4rl(path, arrays, METADATA, overwrite=True)
    assert read_metadata(path)["env"] == "hopper"


def test_failed_write_leaves_nothing_behind(tmp_path, arrays):
    with pytest.raises(TypeError):
        write_d4rl(tmp_path / "set.hdf5", arrays, {"bad": [object()]})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_d4rl(tmp_path / "file" / "set.hdf5", arrays, {})
    with pytest.raises(UsageError, match="'infos/qpos' has 2 rows"):
        write_d4rl(tmp_path / "set.hdf5", arrays | {"infos/qpos": np.ones(2)}, {})


def test_metadata_of_d4rls_own_files(tmp_path):
    path = tmp_path / "set.hdf5"
    with h5py.File(path, "w") as file:
        file["metadata/algorithm"] = np.bytes_("SAC")
        file["metadata/iteration"] = np.array([3000])
        file["metadata/policy/fc0/weight"] = np.zeros((32, 11))
    assert read_metadata(path) == {"algorithm": "SAC", "iteration": [3000]}


def test_columns_of_width_one_and_other_types_are_taken(tmp_path, arrays):
    path = tmp_path / "set.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = arrays["observations"].astype(np.float64)
        file["actions"] = arrays["actions"]
        file["rewards"] = arrays["rewards"][:, None]
        file["terminals"] = arrays["terminals"][:, None].astype(np.float32)
    raw = read_hdf5(path)
    np.testing.assert_array_equal(raw.rewards, arrays["rewards"])
    np.testing.assert_array_equal(raw.terminals, arrays["terminals"])
    np.testing.assert_array_equal(raw.observations, arrays["observations"])
    assert raw.terminals.dtype == bool
    assert raw.timeouts is None
    assert raw.next_observations is None


def with_value(column, row, value):
    column = np.array(column, np.float64)
    column[row] = value
    return column


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda a: a.pop("actions"), ["'actions' is missing"]),
        (lambda a: a.pop("terminals"), ["'terminals' is missing"]),
        (lambda a: a.update(rewards=a["rewards"][:7]), ["'rewards' has 7 rows", "60"]),
        (lambda a: a.update(timeouts=a["timeouts"][:7]), ["'timeouts' has 7 rows", "60"]),
        (lambda a: a.update(observations=a["observations"][:, 0]), ["'observations'", "(60,)", "width"]),
        (lambda a: a.update(rewards=np.zeros((60, 2))), ["'rewards'", "(60, 2)"]),
        (lambda a: a.update(actions=with_value(a["actions"], (4, 1), np.nan)), ["'actions'", "row 4"]),
        (lambda a: a.update(rewards=with_value(a["rewards"], 9, -np.inf)), ["'rewards'", "row 9"]),
        (lambda a: a.update(observations=with_value(a["observations"], (5, 0), 1e300)), ["row 5"]),
        (lambda a: a.update(terminals=with_value(a["terminals"], 3, 2)), ["'terminals'", "row 3", "2.0"]),
        (lambda a: a.update(actions=np.full((60, 3), b"x")), ["'actions'", "expected numbers"]),
        (lambda a: a.update(next_observations=np.zeros((60, 2))), ["'next_observations'", "width 2"]),
        (lambda a: a.update({key: column[:0] for key, column in a.items()}), ["is empty"]),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, change, parts):
    change(arrays)
    path = tmp_path / "set.hdf5"
    with h5py.File(path, "w") as file:
        for key, column in arrays.items():
            file[key] = column
    with pytest.raises(UsageError) as caught:
        read_hdf5(path)
    one_line_naming(caught, path, *parts)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UsageError) as caught:
        read_hdf5(tmp_path / "none.hdf5")
    one_line_naming(caught, tmp_path / "none.hdf5", "no such file", "data.path=FILE")
    page = tmp_path / "page.hdf5"
    page.write_text("<html>not found</html>")
    with pytest.raises(UsageError) as caught:
        read_hdf5(page)
    one_line_naming(caught, page, "not an HDF5 file", "22 bytes")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_file(tmp_path, arrays, share):
    path = write_d4rl(tmp_path / "set.hdf5", arrays, METADATA)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError) as caught:
        read_hdf5(path)
    one_line_naming(caught, path, "truncated or damaged")


def test_damaged_chunk(tmp_path, arrays):
    path = write_d4rl(tmp_path / "set.hdf5", arrays, {})
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(UsageError, match="truncated or damaged"):
        read_hdf5(path)
