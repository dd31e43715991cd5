"""`algo=allocation_solver`: solvers in the training loop and in evaluations; what it refuses."""

import csv
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from algos.core import Env
from algos.task_allocation import solver
from algos.task_allocation.solver import NAMES, Hyper, Static
from algos.task_allocation.solvers import SOLVERS
from envs import registry
from tests.algos.allocation_toy import random_problem
from tests.conftest import Train

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
SHORT = ["algo=allocation_solver", "env=almighty", "run.updates=4", "run.eval_every=2", "run.eval_episodes=2"]


@pytest.fixture
def run_solver(run_train: Train) -> Train:
    """Short runs: (folder of the runs, arguments) -> (exit status, stderr)."""
    return lambda root, *args: run_train(f"run.root={root}", *SHORT, *args)


def metrics(root: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of metrics.csv by seed."""
    files = sorted(root.rglob("metrics.csv"))
    return {file.parent.name: list(csv.DictReader(file.open())) for file in files}


def test_greedy_through_the_whole_loop(run_solver: Train, tmp_path: Path) -> None:
    status, err = run_solver(tmp_path)
    assert status == 0, err
    rows = metrics(tmp_path)["seed0"]
    assert [row["update"] for row in rows] == ["2", "4"]
    for row in rows:
        assert "proven" not in row
        found = {name: float(row[name]) for name in ("return_mean", "train_profit", "value", "decisions", "gross_mean")}
        assert found == {"return_mean": 35, "train_profit": 35, "value": 35, "decisions": 1, "gross_mean": 44}


def test_chance_follows_the_seed_alone(run_solver: Train, tmp_path: Path) -> None:
    by_chance = ("algo.static.solver=random_cover", "run.eval_episodes=3", "seed=[0,1]")
    found = []
    for name in ("one", "other"):
        status, err = run_solver(tmp_path / name, *by_chance)
        assert status == 0, err
        found.append(metrics(tmp_path / name))
    assert found[0] == found[1]
    first, second = found[0]["seed0"], found[0]["seed1"]
    assert [row["value"] for row in first] != [row["value"] for row in second]
    assert [row["return_mean"] for row in first] != [row["return_mean"] for row in second]
    assert all(float(row["return_std"]) > 0 for row in first)  # episodes of one evaluation draw apart
    assert first[0]["value"] != first[1]["value"]  # so do steps of training
    assert first[0]["return_mean"] == first[1]["return_mean"]  # evaluations begin from the same seeds


def test_cp_sat_proves_the_optimum(run_solver: Train, tmp_path: Path) -> None:
    pytest.importorskip("ortools", reason="CP-SAT needs the extra `exact`")
    status, err = run_solver(tmp_path, "algo.static.solver=cp_sat", "algo.static.seconds=60")
    assert status == 0, err
    for row in metrics(tmp_path)["seed0"]:
        assert (float(row["return_mean"]), float(row["value"]), float(row["proven"])) == (35, 35, 1)


def test_acts_on_any_leading_axes() -> None:
    env = registry.make("rbf-train-6x2")
    assert isinstance(env, Env)
    algo = solver.make(Static(), env.spec, env)
    obs = jax.vmap(env.reset, (0, None))(jax.random.split(KEY, 6), env.params)[1]
    state = jax.eval_shape(algo.init, KEY, Hyper())
    act = jax.jit(lambda obs: algo.act(KEY, state, obs, Hyper()))
    rows = act(obs)
    assert rows.shape == (6, env.spec.action_dim)
    np.testing.assert_array_equal(act(obs.reshape(2, 3, -1)).reshape(6, -1), rows)
    np.testing.assert_array_equal(act(obs[4]), rows[4])
    assert len(np.unique(rows, axis=0)) > 1
    assert (rows > 0).any()


OTHERWISE = {
    "genetic": [{"crossover": 0.0}, {"mutation": 0.5}],
    "annealing": [{"hottest": 50.0}, {"coldest": 4.0}],
    "swarm": [{"inertia": 0.1}, {"own": 0.5}, {"shared": 0.1}],
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_settings_reach_the_searches(name: str) -> None:
    one = random_problem(np.random.default_rng(3), entities=30, slots=5)
    solve = jax.jit(solver.solver_of(Static(name)))
    usual, proven = solve(KEY, one, Hyper())
    assert proven is None
    np.testing.assert_array_equal(usual, jax.jit(SOLVERS[name])(KEY, one))  # the defaults are the searches' own
    for change in OTHERWISE[name]:
        assert (solve(KEY, one, Hyper(**change))[0] != usual).any(), change
    fewer = jax.jit(solver.solver_of(Static(name, evaluations=600)))
    assert (fewer(KEY, one, Hyper())[0] != usual).any()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["algo.static.solver=simplex"], f"algo.static.solver=simplex must be one of {', '.join(NAMES)}"),
        (["algo.static.solver=cp_sat", "algo.static.seconds=0"], "algo.static.seconds=0 must be more than 0"),
        (["algo.static.solver=cp_sat", "algo.static.seconds=nan"], "algo.static.seconds=nan must be more than 0"),
        (["algo.static.solver=swarm", "algo.static.evaluations=59"], "algo.static.evaluations=59 must be at least 60"),
        (["algo.static.solver=brute_force"], "brute force over 25 entities and 9 slots"),
        (["env=pointmix"], "algo=allocation_solver allocates tasks, env=pointmix has none"),
    ],
)
def test_mistakes_are_refused_in_one_line(run_solver: Train, tmp_path: Path, args: list[str], words: str) -> None:
    status, err = run_solver(tmp_path / "runs", *args)
    assert status == 2, err
    assert len(err.splitlines()) == 1, err
    assert words in err
    assert not (tmp_path / "runs").exists()


def test_without_ortools_the_extra_is_named(run_solver: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    monkeypatch.delitem(sys.modules, "ortools.sat.python", raising=False)
    status, err = run_solver(tmp_path / "runs", "algo.static.solver=cp_sat")
    assert (status, err) == (2, "error: CP-SAT needs OR-Tools: pip install 'adaptax[exact]'")
    assert not (tmp_path / "runs").exists()
