"""Best responses to trained runs, and runs against one another."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from algos.mra import best_response, initial, maddpg
from algos.mra.learn import begin, init_params
from algos.mra.settings import Hyper, Static
from envs import particles
from envs.core import UsageError
from experiments import best_responses, crossplay, entrants, evaluate, exploitability
from experiments.best_responses import Agent, Result
from experiments.crossplay import Pair, first_side
from experiments.entrants import Entrant
from tests.algos.mra_games import filled

pytestmark = pytest.mark.usefixtures("quick_compilation")

STATIC = Static(skills=2)
WIDTH = 4 + 3 * 6  # of an agent's vector in a game of six landmarks
EPISODES = 256


def checkpoint(learner: Any, name: str, trained_in: str, seed: int, static: dict[str, Any]) -> Any:
    """A run's checkpoint as `evaluate.load` finds it."""
    config = {"algo": {"name": name, "static": static}, "env": {"name": trained_in}, "seed": seed}
    state = SimpleNamespace(learner=jax.tree.map(lambda x: x[None], learner))
    hyper = jax.tree.map(lambda x: jnp.array([x]), Hyper())
    return SimpleNamespace(note={"config": config}, population=SimpleNamespace(state=state, hyper=hyper))


def mra(scale: float, seed: int = 0, trained_in: str = "resource-2") -> Any:
    """Of scale 0 it acts uniformly at random, whatever it sees."""
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), STATIC, WIDTH, 1, 1))
    learner = begin(filled(shapes, seed, scale))
    return checkpoint(learner, "mra", trained_in, seed, asdict(STATIC))


def own_actors(agents: int) -> Any:
    keys = jax.random.split(jax.random.key(0), agents)
    draw = jax.vmap(lambda key: initial.draw(key, initial.attentive_policy(STATIC, WIDTH, 1)))
    actors = filled(jax.eval_shape(draw, keys), 0)
    learner = maddpg.Learner(actors, {}, {}, {}, (), ())
    return checkpoint(learner, "mra_maddpg", f"resource-{agents}", 0, {})


RUNS: dict[str, Callable[[], Any]] = {
    "uniform": lambda: mra(0.0),
    "first": lambda: mra(0.7, 1),
    "second": lambda: mra(0.7, 2),
    "treasure": lambda: mra(0.7, 3, "treasure-2"),
    "maddpg": lambda: own_actors(2),
    "sac": lambda: checkpoint((), "sac", "hopper", 0, {}),
}


@pytest.fixture(scope="module", autouse=True)
def runs() -> Any:
    """Folders by these names are runs."""
    real = evaluate.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "load", lambda o: RUNS[o.run_dir.name]() if o.run_dir.name in RUNS else real(o))
        yield


@pytest.fixture(scope="module")
def responded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote of the random player."""
    out = tmp_path_factory.mktemp("exploitability") / "new"
    numbers = ["updates=40", "games=64", f"episodes={EPISODES}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_response, "LEARNING_RATE", 3e-3)  # fewer updates than by default
        exploitability.main(["uniform", "in=[resource-2]", "start=scratch", f"out={out}", *numbers])
    return out


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote of two runs."""
    out = tmp_path_factory.mktemp("crossplay") / "new"
    crossplay.main(["first", "second", "in=[resource-2]", f"out={out}", f"episodes={EPISODES}"])
    return out


def test_a_response_to_random_play_gains(responded: Path) -> None:
    rows = pd.read_csv(responded / "exploitability.csv").set_index("start")
    row = rows.loc["scratch"]
    assert row["return"] == pytest.approx(20 * 0.467, abs=4.0)  # random play of pairs, 1,000 episodes elsewhere
    assert row.gap_low > 0.0
    assert row.gap == pytest.approx(row.response - row["return"])
    assert row.nashconv == pytest.approx(2.0 * row.gap)  # two agents that are alike
    assert rows.loc["best", "nashconv"] == row.nashconv
    learning = pd.read_csv(responded / "curves.csv")
    assert learning["update"].tolist() == list(range(1, 41))
    assert learning["return"][30:].mean() > learning["return"][:10].mean() + 2.0


def test_numbers_have_their_origin(responded: Path, crossed: Path) -> None:
    for path, name in ((responded / "exploitability.json", "runs"), (crossed / "crossplay.json", "pairs")):
        told = json.loads(path.read_text())
        assert {"device", "git", "versions", "runs", name} <= set(told)
        assert told["places"] == ["resource-2"]
        assert told["episodes"] == EPISODES


def test_pictures(responded: Path, crossed: Path) -> None:
    for path in (responded / "exploitability.png", crossed / "crossplay.png"):
        with Image.open(path) as picture:
            found = picture.convert("RGB").getcolors(1 << 20)
        assert found is not None
        assert len(found) > 20


def test_a_run_with_itself_is_self_play(crossed: Path) -> None:
    """The agents of both sides come from one distribution, and pairs that swap sides are one game seen from both."""
    rows = pd.read_csv(crossed / "pairs.csv").set_index(["first_run", "second_run"])
    assert len(rows) == 4  # of two agents, half is one
    assert (rows.sides == "half").all()
    np.testing.assert_allclose(rows.team, rows["first"] + rows["second"], rtol=1e-6)
    for name in ("first", "second"):
        alone = rows.loc[(name, name)]
        assert alone["first_low"] < alone["second_high"]
        assert alone["second_low"] < alone["first_high"]
    mixed, swapped = rows.loc[("first", "second")], rows.loc[("second", "first")]
    assert mixed["first_low"] < swapped["second_high"]
    assert swapped["second_low"] < mixed["first_high"]
    env = particles.make("resource-2")
    (alone_run,) = entrants.load([Path("first")])
    seats = entrants.Seats((alone_run.networks(env),) * 2, jnp.array([[1.0, 1.0], [0.0, 0.0]]))
    stacked = entrants.stacked([seats])
    each = entrants.returns("resource-2", (alone_run.form,) * 2, stacked, EPISODES, 0)
    np.testing.assert_allclose(each.sum(-1).mean(), rows.loc[("first", "first"), "team"], rtol=1e-6)


def test_methods_are_means_over_their_runs() -> None:
    def pair(a: int, b: int, value: float) -> Pair:
        first, second = (Entrant(Path(str(i)), i, "resource-2", "m", "", {}) for i in (a, b))
        values = {name: np.array([value, value + 1.0]) for name in crossplay.NUMBERS}
        return Pair("resource-2", "half", first, second, values)

    pairs = [pair(0, 0, 1.0), pair(1, 1, 5.0), pair(0, 1, 2.0), pair(0, 2, 4.0), pair(1, 0, 9.0), pair(1, 2, 9.0)]
    rows = crossplay.methods_table(pairs).set_index("second_method")
    assert rows.loc["itself", "first"] == pytest.approx(3.5)
    assert rows.loc["m", "first"] == pytest.approx((3.5 + 9.5) / 2)  # 2.5 and 4.5 of the first, 9.5 of the second
    half = 12.706204736 * np.std([3.5, 9.5], ddof=1) / np.sqrt(2.0)  # Student's 97.5 % quantile, 1 degree of freedom
    assert rows.loc["m", "first_high"] == pytest.approx(6.5 + half)
    assert rows.loc["m", "pairs"] == 4


def test_sides() -> None:
    sides = ("half", "one")
    assert {k: v.tolist() for k, v in first_side(particles.make("resource-5"), sides).items()} == {
        "half": [True, True, False, False, False], "one": [True, False, False, False, False],
    }  # fmt: skip
    assert list(first_side(particles.make("resource-3"), ("one", "half"))) == ["one"]
    padded = particles.make("resource-4-in-6")
    assert first_side(padded, ("half",))["half"].tolist() == [True, True, False, False]
    assert {k: v.tolist() for k, v in first_side(particles.make("pacmen-1x2"), sides).items()} == {
        "kinds": [True, False, False]
    }


def test_who_responds() -> None:
    run, owner = entrants.load([Path("first"), Path("maddpg")])
    assert best_responses.responding(run, particles.make("resource-3")) == [Agent(0, 0, 3)]
    assert best_responses.responding(run, particles.make("pacmen-2x3")) == [Agent(0, 0, 2), Agent(2, 1, 3)]
    assert best_responses.responding(owner, particles.make("resource-2")) == [Agent(0, 0, 1), Agent(1, 0, 1)]


def test_nashconv_counts_every_agent() -> None:
    agents = [Agent(0, 0, 2), Agent(2, 1, 3)]
    entrant = Entrant(Path("x"), 0, "pacmen-2x3", "m", "", {})
    joint, response = np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[2.0, 6.0], [3.0, 1.0]])
    result = Result("pacmen-2x3", entrant, "run", agents, joint, response, None)
    np.testing.assert_allclose(result.nashconv, [2.0 * 1.0 + 3.0 * 4.0, 2.0 * 2.0 - 3.0])
    (row,) = exploitability.table([result]).to_dict("records")
    assert (row["gap_ghosts"], row["gap_pacmen"], row["return_pacmen"]) == (1.5, 1.5, 2.0)
    assert row["interval_over"] == "episodes"


def test_the_best_start_is_chosen_in_other_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two runs, one gains by the second start only, the other by none."""
    gains = {"none": [0.0, 0.0], "run": [-1.0, -1.0], "scratch": [2.0, -2.0]}
    env = particles.make("resource-2")
    group = entrants.load([Path("first"), Path("second")])

    def respond(place: str, form: Any, others: Any, slots: np.ndarray, start: str, request: Any) -> Any:
        return form, start, np.zeros((3, 2))

    def returns(place: str, forms: Any, seats: Any, episodes: int, seed: int) -> np.ndarray:
        start = seats.networks[0] if isinstance(seats.networks[0], str) else "none"
        return np.array(gains[start])[:, None, None] + seed * np.ones((2, episodes, 2))

    monkeypatch.setattr(best_responses, "respond", respond)
    monkeypatch.setattr(best_responses, "returns", returns)
    request = best_responses.Request(("resource-2",), episodes=4)
    found = {(r.start, r.entrant.seed): r.gap.mean() for r in best_responses.measure(group, "resource-2", request)}
    assert env.params.counts.tolist() == [[2]]
    assert (found["best", 1], found["best", 2]) == (2.0, 0.0)
    assert (found["run", 1], found["scratch", 2]) == (-1.0, -2.0)


def test_methods_of_other_settings_are_told_apart() -> None:
    first, second, other = entrants.load([Path("first"), Path("second"), Path("maddpg")])
    assert (first.method, second.method, other.method) == (
        "mra resource-2", "mra resource-2", "mra_maddpg resource-2",
    )  # fmt: skip
    assert entrants._numbered("mra resource-2", 1) == "mra resource-2 (2)"
    assert [len(group) for group in entrants.alike([first, other, second], particles.make("resource-2"))] == [2, 1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["first"], "not understood"),
        (["first", "in=resource-2", "out=OUT", "colour=red"], "not understood"),
        (["first", "first", "in=resource-2", "out=OUT"], "there twice"),
        (["first", "nowhere", "in=resource-2", "out=OUT"], "no such run"),
        (["first", "sac", "in=resource-2", "out=OUT"], "is a run of algo=sac"),
        (["first", "second", "in=resource-1", "out=OUT"], "nobody to relate to"),
        (["first", "second", "in=resource-4-in-3", "out=OUT"], "above the padded maximum"),
        (["first", "second", "in=resource-2+3", "out=OUT"], "several populations"),
        (["first", "treasure", "in=resource-2", "out=OUT"], "treasure learnt treasure"),
        (["first", "maddpg", "in=resource-3", "out=OUT"], "each of 2 agents, not 3"),
        (["first", "second", "in=resource-2", "out=OUT", "episodes=0"], "at least 1"),
        (["first", "second", "in=resource-2", "out=OUT", "seed=-1"], "whole number"),
        (["first", "second", "in=resource-2", "out=OUT", "seed=[1,2]"], "one number"),
        (["first", "second", "in=resource-2", "out=FILE"], "is a file"),
    ],
)
@pytest.mark.parametrize("command", [exploitability, crossplay])
def test_what_cannot_be_measured_is_refused(command: Any, args: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    args = [arg.replace("=OUT", f"={tmp_path / 'out'}").replace("=FILE", f"={tmp_path / 'file'}") for arg in args]
    with pytest.raises(UsageError, match=message):
        command.main(args)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (exploitability, ["first", "start=middle"], "must be of run"),
        (exploitability, ["first", "updates=0"], "at least 1"),
        (crossplay, ["first"], "nobody to play with"),
        (crossplay, ["first", "second", "sides=all"], "must be of half"),
    ],
)
def test_keys_of_each_command_are_checked(command: Any, args: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        command.main([*args, "in=resource-2", f"out={tmp_path / 'out'}"])
