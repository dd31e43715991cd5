"""Runs that begin from earlier runs: PSEC's three phases on the eight modes, with networks of a few units."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from algos.psec import base, compose, skill
from algos.psec.nets import Net
from envs.core import UsageError
from experiments import start
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_schema, members, run_dir
from experiments.evaluate import Options, evaluate
from experiments.log import MetricsFile
from experiments.loop import train

NET = Net(hidden=8, blocks=1, time_features=2, time_hidden=(4, 4), dropout=0.0)


def make_config(root: Path, algo: Any, data: str = "eight-modes", begin: tuple[Path, ...] = (), **run: Any) -> Config:
    settings: dict[str, Any] = {
        "updates": 20,
        "eval_every": 10,
        "save_every": 10,
        "chunk": 5,
        "eval_episodes": 20,
        "root": str(root),
    }
    return Config(
        algo, DataConfig(name=data, holdout=10), EnvConfig(), RunConfig(**(settings | run)), [0, 1],
        start=[str(folder) for folder in begin],
    )  # fmt: skip


def base_algo(**static: Any) -> Any:
    return algo_schema("psec_base")(static=base.Static(net=NET, batch_size=16, **static))


def skill_algo(**static: Any) -> Any:
    usual: dict[str, Any] = {"net": NET, "batch_size": 16, "critic_hidden": (4,), "max_rank": 2}
    return algo_schema("psec_skill")(static=skill.Static(**(usual | static)), hyper=skill.Hyper(rank=2))


def compose_algo(constant: list[float] | None = None, **static: Any) -> Any:
    usual: dict[str, Any] = {"net": NET, "batch_size": 16, "hidden": (4,)}
    hyper = compose.Hyper(constant=constant or [])
    return algo_schema("psec_compose")(static=compose.Static(**(usual | static)), hyper=hyper)


def seeds_of(config: Config) -> Path:
    return run_dir(members(config)[0]).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained_base(root: Path) -> Path:
    config = make_config(root, base_algo())
    train(members(config))
    return seeds_of(config)


@pytest.fixture(scope="module")
def trained_skills(root: Path, trained_base: Path) -> Path:
    config = make_config(root, skill_algo(), begin=(trained_base,))
    train(members(config))
    return seeds_of(config)


def test_each_member_begins_from_the_run_of_its_seed(root: Path, trained_base: Path, trained_skills: Path) -> None:
    for seed in (0, 1):
        found = start.Checkpoints(trained_skills / f"seed{seed}").parts(("base",))
        earlier = start.Checkpoints(trained_base / f"seed{seed}").parts(("base",))
        assert found is not None
        assert earlier is not None
        jax.tree.map(np.testing.assert_array_equal, found[0], earlier[0])
        assert found[1]["start"][0]["place"] == str(trained_base / f"seed{seed}")


def test_a_composition_with_alpha_zero_acts_as_the_base_to_the_bit(
    root: Path, trained_base: Path, trained_skills: Path
) -> None:
    """Nothing is forgotten, however many skills there are."""
    constant = make_config(
        root, compose_algo([0.0, 0.0, 0.0, 0.0], context="constant"), begin=(trained_skills, trained_skills)
    )  # fmt: skip
    train(members(constant))
    for seed in (0, 1):
        kept = MetricsFile(seeds_of(constant) / f"seed{seed}").rows()[-1]
        original = MetricsFile(trained_base / f"seed{seed}").rows()[-1]
        for name in ("return_mean", "return_std", "cost_mean", "right_mode_mean", "heldout_loss"):
            assert kept[name] == original[name], name


def test_a_context_is_learnt_from_composition_data_and_evaluated_again(root: Path, trained_skills: Path) -> None:
    config = make_config(root, compose_algo(), "eight-modes-right", (trained_skills,))
    results = train(members(config))
    folder = seeds_of(config) / "seed1"
    row = MetricsFile(folder).rows()[-1]
    assert {"cost_mean", "right_mode_mean", "normalized_cost", "heldout_loss", "alpha_1", "alpha_2"} <= set(row)
    assert row["normalized_cost"] == pytest.approx(row["cost_mean"] / 10.0)
    told = evaluate(Options(folder, episodes=20, seed=1))
    assert told["return"]["mean"] == pytest.approx(results[1]["return"])
    assert told["measures"]["right_mode"]["mean"] == pytest.approx(row["right_mode_mean"])
    assert told["measures"]["normalized_cost"]["mean"] == pytest.approx(row["normalized_cost"])


def test_a_skill_run_that_is_stopped_goes_on_to_the_same_bytes(
    root: Path, trained_base: Path, trained_skills: Path, tmp_path: Path
) -> None:
    whole = json.loads((trained_skills / "seed0" / "result.json").read_text())
    again = make_config(tmp_path, skill_algo(), begin=(trained_base,))
    stop = lambda update, population, scores: update == 10  # noqa: E731
    train(members(dataclasses.replace(again, seed=[0])), on_evaluation=stop)
    told = train(members(dataclasses.replace(again, seed=[0])))[0]
    assert told["parameters_sha256"] == whole["parameters_sha256"]


def test_a_base_that_has_changed_is_noticed(root: Path, trained_base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "base"
    shutil.copytree(trained_base / "seed0", moved)
    config = make_config(tmp_path, skill_algo(), begin=(moved,))
    one = members(dataclasses.replace(config, seed=[0]))
    train(one, on_evaluation=lambda update, population, scores: update == 10)
    shutil.rmtree(moved)
    shutil.copytree(trained_base / "seed1", moved)
    with pytest.raises(UsageError, match="has changed since"):
        train(one)


@pytest.mark.parametrize(
    ("algo", "begin", "culprit"),
    [
        (skill_algo(), (), "set start="),
        (skill_algo(), ("nowhere",), "start=nowhere: no checkpoint is there"),
        (skill_algo(), ("base", "base"), "a skill has one base"),
        (skill_algo(net=dataclasses.replace(NET, hidden=4)), ("base",), "net.hidden=4, but the base"),
        (skill_algo(max_rank=1), ("base",), "rank=2 must be a whole number from 1 to"),
        (base_algo(), ("base",), "begins from nothing"),
        (compose_algo(), ("base",), "holds no skill"),
        (compose_algo([1.0], context="constant"), ("skills",), "1 numbers for 2 skills"),
        (compose_algo(adapter="mlp"), ("skills",), "adapter=mlp, but"),
    ],
)
def test_what_cannot_be_begun_from(
    root: Path, trained_base: Path, trained_skills: Path, algo: Any, begin: tuple[str, ...], culprit: str
) -> None:
    places = {"base": trained_base, "skills": trained_skills}
    config = make_config(root / "refused", algo, begin=tuple(places.get(name, Path(name)) for name in begin))
    with pytest.raises(UsageError, match=culprit):
        train(members(config))
    assert not (root / "refused").exists() or not list((root / "refused").glob("**/config.yaml"))


def test_skills_of_different_bases_are_not_mixed(root: Path, trained_skills: Path) -> None:
    mixed = make_config(root / "refused", compose_algo(), begin=(trained_skills / "seed0", trained_skills / "seed1"))
    with pytest.raises(UsageError, match="skills of different bases"):
        train(members(mixed))


def test_a_cost_skill_needs_costs(root: Path, trained_base: Path) -> None:
    config = make_config(root / "refused", skill_algo(), "two-regions", (trained_base,))
    with pytest.raises(UsageError, match="needs data with costs"):
        train(members(config))


def test_shapes_survive_json() -> None:
    tree: dict[str, Any] = {"a": {"w": np.zeros((2, 3), np.float32)}, "b": [np.int32(1), None, {}]}
    shapes = start.from_shapes(json.loads(json.dumps(start.to_shapes(tree))))
    assert shapes["a"]["w"].shape == (2, 3)
    assert shapes["b"][0].dtype == np.int32
    assert shapes["b"][0].shape == ()
    assert shapes["b"][1:] == [None, {}]
