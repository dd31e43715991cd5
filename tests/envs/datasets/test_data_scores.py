import contextlib

import numpy as np
import pytest

from envs.core import UsageError
from envs.datasets import generated, scores
from envs.datasets.registry import EMBEDDED, MIXED_RATIOS, ROBOTS, lookup, registry


def test_table_has_all_rows_of_d4rl():
    assert len(scores.table()) == 147


@pytest.mark.parametrize("name", sorted(scores.table()))
def test_reference_returns_score_0_and_100(name):
    low, high = scores.reference(name)
    assert low < high
    np.testing.assert_allclose(scores.normalized_score(name, [low, high]), [0.0, 100.0], atol=1e-12)


def test_score_of_known_values():
    # Spec of the table: hopper -20.272305 and 3234.3, so half way lies at their mean.
    assert scores.reference("hopper-medium-v2") == (-20.272305, 3234.3)
    assert scores.normalized_score("hopper-medium-v2", (3234.3 - 20.272305) / 2) == pytest.approx(50.0)
    assert scores.normalized_score("antmaze-umaze-v2", [0.0, 1.0, 0.25]).tolist() == [0.0, 100.0, 25.0]


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"'hoper-medium-v2'.*did you mean.*hopper-medium-v2"):
        scores.reference("hoper-medium-v2")
    with pytest.raises(UsageError, match="no known name is near"):
        scores.reference("qqqqqqq")


def test_table_equals_the_installed_d4rl():
    infos = None
    with contextlib.suppress(Exception):  # importing d4rl may fail in many ways
        from d4rl import infos  # type: ignore[no-redef]
    if infos is None:
        pytest.skip("the d4rl package is not installed or cannot be imported")
    theirs = {name: (infos.REF_MIN_SCORE[name], infos.REF_MAX_SCORE[name]) for name in infos.REF_MIN_SCORE}
    assert theirs == scores.table()


def test_every_d4rl_name_has_an_address_of_its_own():
    known = [registry()[name] for name in scores.table()]
    assert len({info.file for info in known}) == len({info.urls for info in known}) == 147
    for info in known:
        assert info.urls
        assert info.max_episode_steps
        assert all(url.startswith("http") and url.endswith(f"/{info.file}") for url in info.urls)


@pytest.mark.parametrize(
    ("name", "steps", "address"),
    [
        ("hopper-medium-v2", 1000, "gym_mujoco_v2/hopper_medium-v2.hdf5"),
        ("halfcheetah-medium-replay-v2", 1000, "gym_mujoco_v2/halfcheetah_medium_replay-v2.hdf5"),
        ("walker2d-medium-replay-v0", 1000, "gym_mujoco/walker_mixed.hdf5"),
        (
            "antmaze-umaze-v2",
            700,
            "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        ),
        (
            "antmaze-large-diverse-v0",
            1000,
            "ant_maze_new/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse.hdf5",
        ),
        ("maze2d-medium-v1", 600, "maze2d/maze2d-medium-sparse-v1.hdf5"),
        ("pen-human-v0", 100, "hand_dapg/pen-v0_demos_clipped.hdf5"),
        ("kitchen-complete-v0", 280, "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5"),
    ],
)
def test_known_addresses(name, steps, address):
    info = lookup(name)
    assert info.max_episode_steps == steps
    assert info.urls[-1] == f"http://rail.eecs.berkeley.edu/datasets/offline_rl/{address}"


def test_only_gym_mujoco_names_have_an_environment():
    with_env = {name for name, info in registry().items() if info.env is not None}
    assert {"ant-random-v0", "halfcheetah-full-replay-v2", "hopper-random-expert-0.1-v2"} <= with_env
    assert not any(name.startswith(("antmaze", "bullet", "maze2d", "pen", "embedded")) for name in with_env)
    assert lookup("walker2d-medium-expert-v2").env == "walker2d"


def test_antmaze_defaults():
    for name in [*scores.table(), *(f"hopper-random-expert-{ratio}-v2" for ratio in MIXED_RATIOS)]:
        info = registry()[name]
        shift = -1.0 if name.startswith("antmaze") else 0.0
        normalize = not name.startswith("antmaze")
        assert (info.reward_scale, info.reward_shift, info.normalize) == (1.0, shift, normalize)


def test_mixtures_are_registered():
    for robot in ROBOTS:
        for ratio in MIXED_RATIOS:
            info = lookup(f"{robot}-random-expert-{ratio}-v2")
            assert info.parts == (f"{robot}-expert-v2", f"{robot}-random-v2")
            assert info.ratio == float(ratio)
            assert info.reference == scores.reference(f"{robot}-random-v2")
    assert len(registry()) == 147 + 40 + 38 + len(generated.TABLE) + 1
    assert lookup("embedded").env is None
    assert EMBEDDED.name == "embedded.hdf5"


def test_lookup_of_a_misspelt_mixture():
    with pytest.raises(UsageError, match=r"did you mean hopper-random-medium-0\.1-v2.*data\.name=custom"):
        lookup("hopper-random-medum-0.1-v2")
