"""Composition of configurations, and the names of run directories."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from algos import OFFLINE, ONLINE
from algos.task_allocation import nets
from envs.core import UsageError
from envs.datasets.registry import registry
from experiments import config as schema
from experiments.config import Config
from experiments.loop import chunk_updates

schema.register()

# Nothing of theirs can be narrower.
WITHOUT_NETWORKS = (
    "allocation_solver", "barfi", "barfi_reinforce", "barfi_actor_critic", "barfi_ppo", "mra",
    "mra_reptile", "mra_maddpg",
)  # fmt: skip


def composed(*overrides: str) -> Config:
    with initialize_config_module("configs", version_base="1.3"):
        return schema.to_config(compose("config", list(overrides)))


@pytest.mark.parametrize("name", OFFLINE + ONLINE)
def test_every_algorithm_has_a_configuration_in_both_sizes(name: str) -> None:
    paper, small = composed(f"algo={name}"), composed(f"algo={name}", "size=small")
    assert paper.algo.name == name
    assert paper.algo.static == schema.algo_module(name).Static()
    assert (small.algo.static == paper.algo.static) == (name in WITHOUT_NETWORKS)
    assert small.algo.hyper == paper.algo.hyper
    hash(small.algo.static)


def test_the_original_codes_switches_are_a_configuration() -> None:
    official = composed("algo=task_allocation_official").algo
    assert official.name == "task_allocation"
    assert official.static == nets.Static(**nets.OFFICIAL) != nets.Static()


def test_the_papers_settings_are_found_by_data_set() -> None:
    tuned = composed("algo=a2pr", "data=halfcheetah-medium-v2").algo.hyper
    assert (tuned.alpha, tuned.vae_weight, tuned.mask, tuned.discount) == (40.0, 1.0, 1.0, 0.99)
    single = composed("algo=a2pr", "data=halfcheetah-medium-v2", "setting=single").algo.hyper
    assert (single.alpha, single.vae_weight, single.mask, single.discount) == (2.5, 1.0, 1.0, 0.99)
    swept = composed("algo=a2pr", "data=halfcheetah-medium-v2", "algo.hyper.alpha=3").algo.hyper
    assert (swept.alpha, swept.vae_weight) == (3.0, 1.0)


def test_every_tuned_setting_belongs_to_a_data_set() -> None:
    folder = Path(schema.__file__).parent.parent / "configs" / "tuned" / "paper"
    files = list(folder.glob("*/*.yaml"))
    assert len(files) >= 12
    assert {file.stem for file in files} <= set(registry())
    for file in files[::10]:
        composed(f"algo={file.parent.name}", f"data={file.stem}")


def test_run_directories_are_named_by_what_is_run() -> None:
    base = composed("algo=bc", "data=hopper-medium-v2", "seed=3")
    assert schema.run_dir(base).parts[:3] == ("runs", "bc", "hopper-medium-v2")
    assert schema.run_dir(base).name == "seed3"
    same = composed("algo=bc", "data=hopper-medium-v2", "seed=4", "run.save_every=10", "run.tensorboard=true")
    assert schema.run_dir(same).parent == schema.run_dir(base).parent
    other = composed("algo=bc", "data=hopper-medium-v2", "seed=3", "algo.hyper.actor_lr=1e-4")
    assert schema.run_dir(other) != schema.run_dir(base)
    assert schema.fingerprint_of(schema.as_dict(base)) == schema.fingerprint(base)


def test_a_list_of_seeds_is_a_population() -> None:
    members = schema.members(composed("seed=[3,1]"))
    assert [member.seed for member in members] == [3, 1]
    with pytest.raises(UsageError, match=r"run\.dir"):
        schema.members(composed("seed=[3,1]", "run.dir=here"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["run.eval_every=5000", "run.save_every=50000"], 1000),
        (["run.eval_every=5000", "run.save_every=2500", "run.chunk=600"], 500),
        (["run.eval_every=500", "run.save_every=750"], 250),
        (["run.eval_every=2", "run.save_every=50000", "run.chunk=1"], 2),
    ],
)
def test_a_chunk_divides_all_intervals(settings: list[str], expected: int) -> None:
    assert chunk_updates(composed(*settings), 2) == expected
