"""Games that MRA and its baselines cannot be trained or evaluated in."""

from dataclasses import replace
from typing import Any

import pytest

from algos.core import Spec, UsageError
from algos.mra import maac, maddpg, play, reptile, train
from envs import particles, pointmix
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_schema
from experiments.task import make_task

METHODS = ("mra", "mra_reptile", "mra_maddpg", "mra_maac")


def config(algo: str, env: str, also: str | None = None) -> Config:
    where = EnvConfig(name=env, also=[] if also is None else [also])
    return Config(algo_schema(algo)(), DataConfig(name="none"), where, RunConfig(), 0)


def refused(wanted: Config, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        make_task(wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("algo", METHODS)
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("resource-3+9-in-6", "population 9 is above the padded maximum 6; raise"),
        ("resource-1", "population 1 has nobody to relate to; have at least 2"),
        ("pacmen-2x4+1x0", "population 1x0 leaves out a kind of agents; have at least 1"),
        ("resource-3+pacmen-2x4", "mixes games; join populations of one game"),
        ("resource-3+2x4", "'2x4' is no population of resource, which is agents"),
        ("resorce-3", "'resorce-3' is not known; did you mean 'resource-3'"),
        ("pointmix", "learns in particle games, not env=pointmix: set env=resource-3"),
    ],
)
def test_what_cannot_be_played_is_not_learnt(algo: str, env: str, message: str) -> None:
    refused(config(algo, env), message)


@pytest.mark.parametrize("algo", METHODS)
@pytest.mark.parametrize("other", ["pacmen-2x4", "pointmix", "gymnasium:Pendulum-v1"])
def test_agents_with_other_actions_are_not_evaluated(algo: str, other: str) -> None:
    # Two ghosts and four Pac-Men have the shapes of six agents.
    refused(config(algo, "resource-6", other), f"{other} .*(choose|acts in games like resource-6 only)")


@pytest.mark.parametrize("module", [train, reptile, maddpg, maac])
def test_other_kinds_of_agents_are_told_apart_where_shapes_are_the_same(module: Any) -> None:
    check, here, there = module.check_other, particles.make("resource-6"), particles.make("pacmen-2x4")
    assert here.spec == there.spec
    with pytest.raises(UsageError, match="pacmen-2x4 has other kinds of agents, .* choose resource-... in another"):
        check(here, there)
    with pytest.raises(UsageError, match="pointmix has other kinds of agents"):
        check(here, pointmix.make())
    for same in ("resource-2", "resource-3+9-in-24", "treasure-3"):
        check(here, particles.make(same))


def test_agents_need_the_five_actions() -> None:
    env = particles.make("resource-3")
    fewer = replace(env, spec=Spec(env.spec.obs_dim, 14))
    with pytest.raises(UsageError, match="14 numbers in an action of 3 agents: algo=mra needs games where all agents"):
        play.world_of("mra", fewer)
