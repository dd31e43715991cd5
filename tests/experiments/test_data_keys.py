"""The keys of `data` that select a part of it: how they reach training, and what they do to a run's name."""

import pytest
from hydra import compose, initialize_config_module

from envs.core import UsageError
from experiments import config as schema
from experiments.task import make_task

schema.register()


def composed(*overrides: str) -> schema.Config:
    with initialize_config_module("configs", version_base="1.3"):
        return schema.to_config(compose("config", ["algo=bc", "data=pointmix-random-expert-0.1", *overrides]))


def test_a_task_has_the_selected_part_and_the_rest() -> None:
    task = make_task(composed("data.episodes=6", "data.holdout=4", "data.cost_limit=25"))
    assert task.source.transitions.reward.shape == (180,)
    assert task.holdout is not None
    assert task.holdout.transitions.reward.shape == (120,)
    assert task.data is not None
    assert task.data.behaviour_returns.shape == (6,)
    assert task.cost_limit == 25.0
    joint = make_task(composed("data.fraction=0.1", "data.also=[pointmix-random-expert-0.5]"))
    assert joint.source.transitions.reward.shape == (2_100 + 21_000,)
    assert joint.holdout is None


def test_dsrl_tasks_are_data_groups() -> None:
    config = composed("data=OfflineHalfCheetahVelocityGymnasium-v1", "data.best_safe=30")
    assert (config.data.name, config.data.best_safe) == ("OfflineHalfCheetahVelocityGymnasium-v1", 30)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_cost_limit_is_more_than_nothing(limit: int) -> None:
    with pytest.raises(UsageError, match=r"data\.cost_limit=.* must be more than 0"):
        composed(f"data.cost_limit={limit}")


def test_keys_added_later_count_where_they_are_set() -> None:
    config = composed()
    usual, saved = schema.fingerprint(config), schema.as_dict(config)
    for key in schema.ADDED_TO_DATA:
        del saved["data"][key]
    for key in schema.ADDED:
        del saved[key]
    assert schema.fingerprint_of(saved) == usual
    values = {"episodes": 5, "fraction": 0.5, "best_safe": 5, "holdout": 5, "also": "[embedded]", "cost_limit": 5}
    values |= {"reward_range": 5}
    assert tuple(values) == schema.ADDED_TO_DATA
    others = {schema.fingerprint(composed(f"data.{key}={value}")) for key, value in values.items()}
    assert len(others | {usual}) == len(values) + 1
