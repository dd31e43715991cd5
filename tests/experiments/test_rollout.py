"""Evaluation: what a policy keeps in mind over an episode, and more environments than one."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from algos.core import Algorithm
from algos.mra.train import Hyper, Static
from algos.runner import Population
from envs.core import Env, Spec, TimeStep
from experiments import evaluate
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_schema
from experiments.loop import train
from experiments.rollout import episode_seeds, make_evaluator

pytestmark = pytest.mark.usefixtures("quick_compilation")


def step(key, state, action, params):
    """The reward tells whether the action is the first one of the episode."""
    t, first = state
    first = jnp.where(t == 0, action[0], first)
    reward = (action[0] == first).astype(float)
    ended = jnp.zeros((), bool)
    return (t + 1, first), TimeStep(jnp.zeros(1), reward, ended, t + 1 >= 5, {"told": action[0]})


ENV = Env("echo", Spec(1, 1), 5, {}, lambda key, params: ((jnp.int32(0), jnp.zeros(())), jnp.zeros(1)), step)


def stay(key, state, source, hyper):
    return state, {}


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_memory_is_drawn_once_for_each_episode(how):
    def begin(key, state, obs, hyper):
        return state + jax.random.uniform(key, obs.shape[:-1])

    def act(key, state, obs, hyper, memory):
        return memory[..., None]

    keys = jax.random.split(jax.random.key(0))
    population = Population(keys, jnp.array([0.0, 10.0]), jnp.zeros(2), jnp.ones(2, bool))
    algo = Algorithm(lambda *_: None, stay, act, begin=begin)
    evaluator = make_evaluator(algo, ENV, 4, how)
    sums = evaluator(population, (jnp.zeros(()), jnp.ones(())), episode_seeds([1, 2], 4, 0, "fixed"))
    assert (sums["return"] == 5.0).all()
    told = sums["told"] / 5.0
    assert len(np.unique(told)) == told.size
    assert (told[0] < 1.0).all()
    assert (told[1] > 10.0).all()
    # Drawn anew at each step instead, actions would not be those of the start.
    forgetful = Algorithm(lambda *_: None, stay, lambda k, s, o, h: begin(k, s, o, h)[..., None])
    again = make_evaluator(forgetful, ENV, 4, how)(
        population, (jnp.zeros(()), jnp.ones(())), episode_seeds([1, 2], 4, 0, "fixed")
    )
    assert (again["return"] == 1.0).all()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """MRA for pairs, evaluated among three and four as well."""
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    static = Static(batch_size=8, buffer_size=200, envs=4, cycle_updates=2)
    env = EnvConfig(name="resource-2", also=["resource-3", "resource-4"])
    run = RunConfig(updates=8, eval_every=4, eval_episodes=8, save_every=8, dir=str(folder))
    train([Config(algo_schema("mra")(hyper=Hyper(), static=static), DataConfig(name="none"), env, run, 0)])
    return folder


def test_other_environments_have_columns_of_their_own(run_dir):
    rows = pd.read_csv(run_dir / "metrics.csv")
    for place in ("resource-3", "resource-4"):
        assert (rows[f"return_mean@{place}"] != rows["return_mean"]).all()
        assert {f"agent_reward_mean@{place}", f"occupied_mean@{place}"} <= set(rows.columns)
    agents = {"return_mean": 2, "return_mean@resource-3": 3, "return_mean@resource-4": 4}
    for column, count in agents.items():
        mean = rows[column.replace("return", "agent_reward")]
        np.testing.assert_allclose(rows[column], count * mean, rtol=1e-4)


def test_a_run_is_evaluated_in_populations_that_it_did_not_learn_in(run_dir):
    found = evaluate.evaluate(evaluate.parse([str(run_dir), "env.name=resource-5", "episodes=4"]))
    assert found["return"]["mean"] > 0.0
