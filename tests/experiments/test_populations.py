"""A trained learner of particle games in populations that it did not learn in."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from algos.mra import adapt, play
from algos.mra.settings import Hyper, Static
from algos.runner import Population
from envs.core import Env, UsageError
from experiments import evaluate, populations
from experiments import population_study as study
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_schema
from experiments.loop import train
from experiments.population_programs import Player
from experiments.population_study import Case, Request, Result, Run
from tests.algos.mra_games import draw_obs

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MRA for pairs."""
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    static = Static(batch_size=8, buffer_size=200, envs=4, cycle_updates=2)
    run = RunConfig(updates=4, eval_every=4, eval_episodes=2, save_every=4, dir=str(folder))
    algo = algo_schema("mra")(hyper=Hyper(), static=static)
    train([Config(algo, DataConfig(name="none"), EnvConfig(name="resource-2"), run, 0)])
    return folder


@pytest.fixture(scope="module")
def measured(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote of that run among three, where adapting takes little to compile."""
    out = tmp_path_factory.mktemp("populations") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapt, "make", to_the_right)
        populations.main([str(run_dir), "in=[resource-3]", "episodes=6", "adapt=[0,4]", f"out={out}"])
    return out


def to_the_right(variant: str, env: Env, static: Static) -> Callable:
    """In place of adaptation: all networks learn to push to the right; a table of skills does not change."""

    def step(key: jax.Array, state: adapt.State, hyper: Hyper) -> tuple[adapt.State, dict]:
        if variant == "latent_only":
            return state, {}
        policy = state.adapted.policy
        head = policy["action_head"]
        last = head["fc2"] | {"bias": head["fc2"]["bias"] + 100.0 * jax.nn.one_hot(1, 5)}
        learner = state.adapted.learner._replace(policy=policy | {"action_head": head | {"fc2": last}})
        return state._replace(adapted=state.adapted._replace(learner=learner)), {}

    return step


def test_everything_asked_for_is_measured(measured: Path) -> None:
    rows = pd.read_csv(measured / "populations.csv", keep_default_na=False, na_values=[""])
    columns = ["learner", "adapted", "adapt_episodes", "skills"]
    assert {tuple(row) for row in rows[columns].fillna("").to_numpy().tolist()} == {
        ("random", "none", 0, ""), ("nearest", "none", 0, ""), ("untrained", "none", 0, "prior"),
        ("untrained", "all", 4, "prior"), ("trained", "none", 0, "prior"), ("trained", "none", 0, "best_of_Z"),
        ("trained", "all", 4, "prior"), ("trained", "all", 4, "best_of_Z"), ("trained", "latent_only", 4, "prior"),
    }  # fmt: skip
    np.testing.assert_allclose(rows["return"], 3 * 20 * rows.agent_reward, rtol=1e-5)  # agents, steps
    assert rows.occupied.between(0.0, 1.0).all()
    np.testing.assert_allclose(rows["return"], 20 * 10.5 * rows.occupied, rtol=1e-4)  # ten times the occupied sizes
    assert ((rows.agent_reward_low < rows.agent_reward) & (rows.agent_reward < rows.agent_reward_high)).all()
    assert (rows.interval_over == "episodes").all()
    assert rows.git.notna().all()
    of_all = rows["return"][rows.adapted == "all"]
    assert of_all.nunique() == 1  # trained or not: all go to the right
    mine = rows[(rows.learner == "trained") & (rows.skills == "prior")].set_index("adapted")["return"]
    assert mine["all"] != mine["none"]
    assert mine["latent_only"] == mine["none"]
    differences = rows[["action_distance", "graph_distance"]][(rows.skills == "prior") & (rows.adapted == "none")]
    assert ((differences > 0.0) & (differences < 1.0)).all(axis=None)


def test_a_measurement_is_that_of_an_evaluation(measured: Path, run_dir: Path) -> None:
    rows = pd.read_csv(measured / "runs.csv", keep_default_na=False)
    found = evaluate.evaluate(evaluate.parse([str(run_dir), "env.name=resource-3", "episodes=6"]))
    mine = rows[(rows.learner == "trained") & (rows.adapted == "none") & (rows.skills == "prior")]
    np.testing.assert_allclose(mine["return"], found["return"]["mean"], rtol=1e-5)
    assert mine.run.tolist() == [str(run_dir)]


def test_picture(measured: Path) -> None:
    with Image.open(measured / "populations.png") as picture:
        found = picture.convert("RGB").getcolors(1 << 20)
    assert found is not None
    colours = {colour for _, colour in found}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in populations.PALETTE[:4]} <= colours


def test_intervals_of_several_runs_are_over_runs() -> None:
    case = Case("resource-3", "trained", skills="prior")
    values = (np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.array([4.0, 5.0]))
    results: list[tuple[Run | None, Result]] = [
        (None, Result(case, {"return": x}, {"graph_distance": x[0]})) for x in values
    ]
    (row,) = populations.table({case: results}, Request(("resource-3",))).to_dict("records")
    means = np.array([2.0, 3.0, 4.5])
    half = 4.302652730 * means.std(ddof=1) / np.sqrt(3.0)  # Student's 97.5 % quantile, 2 degrees of freedom
    np.testing.assert_allclose(
        [row["return"], row["return_low"], row["return_high"]],
        [means.mean(), means.mean() - half, means.mean() + half], rtol=1e-5,
    )  # fmt: skip
    assert row["interval_over"] == "runs"
    assert row["graph_distance"] == pytest.approx(7.0 / 3.0)


def test_the_best_skill_is_that_of_all_agents() -> None:
    def compare(population: Population, normalizer: tuple, seeds: np.ndarray) -> dict[str, np.ndarray]:
        assert (seeds == seeds[0]).all()  # every skill begins in the same scenes
        return {"return": np.where(np.arange(3)[:, None] == 1, 1.0, 0.0) * np.ones(seeds.shape)}

    player = Player({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, jnp.zeros(3))
    program: Any = SimpleNamespace(compare=compare)
    found, best = study.best_skill(program, player, 0)
    assert best == 1
    skills = play.skills(jax.random.key(0), found.log_probs, draw_obs(0, 3, 3))
    assert (skills.argmax(-1) == 1).all()
    assert found.policy["w"].shape == (2,)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["in=resource-3", "out=OUT"], "not understood"),
        (["RUN", "in=resource-3"], "not understood"),
        (["RUN", "in=resource-3", "out=OUT", "colour=red"], "not understood"),
        (["RUN", "in=resource-3", "out=OUT", "episodes=0"], "at least 1"),
        (["RUN", "in=resource-3", "out=OUT", "episodes=many"], "whole number"),
        (["RUN", "in=[resource-3,resource-3]", "out=OUT"], "name each once"),
        (["RUN", "in=resource-3", "out=OUT", "skills=worst"], "must be of prior"),
        (["RUN", "in=resource-3", "out=FILE"], "is a file"),
        (["RUN", "in=resource-3", "out=OUT", "adapt=[0,6]"], "multiple of the 4"),
        (["RUN", "in=resorce-3", "out=OUT"], "not known"),
        (["RUN", "in=resource-1", "out=OUT"], "nobody to relate to"),
        (["RUN", "in=treasure-3", "out=OUT"], "learnt resource"),
        (["RUN", "in=resource-3+6", "out=OUT"], "several populations"),
        (["RUN", "RUN", "in=resource-3", "out=OUT"], "there twice"),
        (["NONE", "in=resource-3", "out=OUT"], "no such run"),
    ],
)
def test_what_cannot_be_measured_is_refused(args: list[str], message: str, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    names = {"RUN": run_dir, "OUT": tmp_path / "out", "FILE": tmp_path / "file", "NONE": tmp_path / "none"}
    for name, path in names.items():
        args = [str(path) if arg == name else arg.replace(f"={name}", f"={path}") for arg in args]
    with pytest.raises(UsageError, match=message):
        populations.main(args)
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_evaluated_among_agents_of_other_kinds(run_dir: Path) -> None:
    with pytest.raises(UsageError, match="env=pacmen-2x4 has other kinds of agents, .* than resource-2"):
        evaluate.load(evaluate.Options(run_dir, env_name="pacmen-2x4"))


def test_a_run_without_networks_of_mra_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy = SimpleNamespace(note={"config": {"algo": {"name": "sac"}}}, population=SimpleNamespace(state=()))
    monkeypatch.setattr(evaluate, "load", lambda options: policy)
    with pytest.raises(UsageError, match="is a run of algo=sac"):
        study.load(tmp_path)
