"""A run directory alone is enough to evaluate its policy and to film it."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from scipy import stats

from envs.core import UsageError
from envs.datasets.files import sha256_of
from envs.datasets.hdf5 import write_d4rl
from envs.datasets.scores import reference
from envs.mujoco.render import render
from experiments import evaluate, video
from experiments.checkpoint import Checkpoints
from experiments.cli import guarded
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_module, algo_schema
from experiments.loop import train

SEED, EPISODES = 3, 4
SMALL = {
    "bc": {"hidden": [8], "batch_size": 8},
    "sac": {"hidden": [8], "batch_size": 8, "buffer_capacity": 64, "warmup": 4},
    "allocation_solver": {},
}


def trained(
    algo: str, data: DataConfig, env: str, folder: Path, updates: int = 20, judged_in: str | None = None
) -> Path:
    """The directory of a run with two checkpoints."""
    static = algo_module(algo).Static(**SMALL[algo])
    half = updates // 2
    run = RunConfig(updates=updates, eval_every=half, save_every=half, eval_episodes=EPISODES, dir=str(folder))
    train([Config(algo_schema(algo)(static=static), data, EnvConfig(name=env, evaluate=judged_in), run, SEED)])
    return folder


@pytest.fixture(scope="module")
def pointmix_run(pointmix_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pointmix") / "run"
    return trained("bc", DataConfig("custom", str(pointmix_file)), "auto", folder)


@pytest.fixture(scope="module")
def hopper_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Behaviour cloning of noise on Hopper: it falls within some dozen steps."""
    rng, rows = np.random.default_rng(0), 64
    arrays = {
        "observations": rng.normal(size=(rows, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 16 == 15,
    }
    folder = tmp_path_factory.mktemp("hopper")
    write_d4rl(folder / "hopper.hdf5", arrays, {"env": "hopper", "dataset": "hopper-medium-v2"})
    return trained("bc", DataConfig("custom", str(folder / "hopper.hdf5")), "auto", folder / "run", updates=2)


@pytest.fixture
def fresh_copy(pointmix_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pointmix_run, tmp_path / "run", ignore=shutil.ignore_patterns(evaluate.FILE)))


def last_row(folder: Path) -> dict[str, float]:
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return {key: float(value) for key, value in rows[-1].items()}


def test_the_training_evaluation_is_repeated(fresh_copy: Path, capsys: pytest.CaptureFixture) -> None:
    evaluate.main([str(fresh_copy), f"episodes={EPISODES}", f"seed={SEED}"])
    written = json.loads((fresh_copy / evaluate.FILE).read_text())
    row = last_row(fresh_copy)
    assert written["update"] == row["update"] == 20
    assert written["return"]["mean"] == pytest.approx(row["return_mean"], rel=1e-6)
    returns = np.array(written["returns"])
    assert returns.shape == (EPISODES,)
    assert written["return"]["std"] == pytest.approx(np.std(returns, ddof=1))
    expected = stats.t.interval(0.95, EPISODES - 1, returns.mean(), stats.sem(returns))
    assert written["return"]["interval95"] == pytest.approx(expected)
    assert written["score"] is None  # PointMix has no reference returns
    assert {"versions", "device", "git"} <= set(written)
    assert "20 updates: 4 episodes of pointmix, seed 3" in capsys.readouterr().out


def test_more_episodes_begin_with_the_same(pointmix_run: Path) -> None:
    few, many = (evaluate.evaluate(evaluate.Options(pointmix_run, n, SEED))["returns"] for n in (EPISODES, 7))
    np.testing.assert_allclose(many[:EPISODES], few, rtol=1e-5)
    assert len(set(np.round(many, 3))) == 7


def test_one_episode_has_no_interval(pointmix_run: Path) -> None:
    summary = evaluate.evaluate(evaluate.Options(pointmix_run, episodes=1))["return"]
    assert summary["interval95"] is None


def test_scores_use_the_reference_of_the_data(hopper_run: Path) -> None:
    result = evaluate.evaluate(evaluate.Options(hopper_run, episodes=EPISODES, seed=SEED))
    low, high = reference("hopper-medium-v2")
    assert result["score"]["mean"] == pytest.approx(100 * (result["return"]["mean"] - low) / (high - low))
    assert result["score"]["mean"] == pytest.approx(last_row(hopper_run)["score"], rel=1e-5)


def with_note(run: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run, its newest checkpoint saved with another note."""
    copy = Path(shutil.copytree(run, folder))
    file = copy / "checkpoints" / str(Checkpoints(copy).newest()) / "note" / "metadata"
    note = json.loads(file.read_text())
    change(note)
    file.write_text(json.dumps(note))
    manifest = file.parents[1] / "manifest.json"
    digests = json.loads(manifest.read_text()) | {"note/metadata": sha256_of(file)}
    manifest.write_text(json.dumps(digests))
    return copy


def test_notes_of_earlier_versions(hopper_run: Path, tmp_path: Path) -> None:
    def forget(note: dict[str, Any]) -> None:
        for key in ("start", "top_score", "cost_limit"):
            del note[key]

    policy = evaluate.load(evaluate.Options(with_note(hopper_run, tmp_path / "old", forget)))
    assert (policy.reference, policy.top_score) == (list(reference("hopper-medium-v2")), 100.0)
    assert policy.cost_limit == 10.0


def test_top_score_is_that_of_the_reference(hopper_run: Path, tmp_path: Path) -> None:
    """A run on DSRL's data is scored up to 1, but up to 100 in a robot of D4RL's."""
    told = {"env": "safe-hopper", "reference": [5.0, 105.0], "top_score": 1.0}
    folder = with_note(hopper_run, tmp_path / "safe", lambda note: note.update(told))
    here, there = (evaluate.load(evaluate.Options(folder, env_name=name)) for name in ("auto", "hopper"))
    assert (here.reference, here.top_score) == ([5.0, 105.0], 1.0)
    assert (there.reference, there.top_score) == (reference("hopper-expert-v2"), 100.0)


def test_an_online_run(tmp_path: Path) -> None:
    folder = trained("sac", DataConfig("none"), "pointmix", tmp_path / "sac")
    result = evaluate.evaluate(evaluate.Options(folder, episodes=EPISODES, seed=SEED))
    assert result["return"]["mean"] == pytest.approx(last_row(folder)["return_mean"], rel=1e-6)


def test_a_run_that_was_evaluated_in_another_environment(tmp_path: Path) -> None:
    """The environment where it learnt is part of its state; the other one is where it acts."""
    folder = trained("sac", DataConfig("none"), "pointmix", tmp_path / "sac", judged_in="eight-modes")
    result = evaluate.evaluate(evaluate.Options(folder, episodes=EPISODES, seed=SEED))
    assert result["env"] == "eight-modes"
    assert result["return"]["mean"] == pytest.approx(last_row(folder)["return_mean"], rel=1e-6)


def damage(checkpoint: Path) -> None:
    file = max((path for path in (checkpoint / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def test_damage_is_passed_over_until_nothing_is_left(fresh_copy: Path, capsys: pytest.CaptureFixture) -> None:
    damage(fresh_copy / "checkpoints" / "20")
    assert evaluate.evaluate(evaluate.Options(fresh_copy, episodes=2))["update"] == 10
    assert "checkpoint 20 is damaged" in capsys.readouterr().err
    damage(fresh_copy / "checkpoints" / "10")
    with pytest.raises(UsageError, match="every checkpoint in .* is damaged"):
        evaluate.evaluate(evaluate.Options(fresh_copy, episodes=2))


BAD = {
    "episode=5": "unknown key episode; did you mean episodes?",
    "zzz=1": "unknown key zzz; keys: episodes",
    "episodes=0": "episodes=0 must be at least 1",
    "episodes=many": "episodes=many must be a whole number",
    "seed=-1": "seed=-1 must be a whole number",
    "another": "one run directory is needed, not 2",
    "env.name=hoper": "environment 'hoper' is not known; did you mean 'hopper'?",
    "env.name=hopper": "was trained for (observations, actions, largest action) of (2, 2, 1), hopper has (11, 3, 1)",
    "env.backend=mjx": "does not apply to 'pointmix'",
    "video=film.avi": "video=film.avi must be true, false, or a path that ends in .mp4 or .gif",
    "video=nowhere/film.gif": "there is no folder nowhere",
    "video=film.gif": "video draws MuJoCo robots, task allocation and particle games only, not pointmix",
    "video=true": "video draws MuJoCo robots, task allocation and particle games only, not pointmix",
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments(argument: str, fresh_copy: Path, capsys: pytest.CaptureFixture) -> None:
    assert guarded(lambda: evaluate.main([str(fresh_copy), argument])) == 2
    error = capsys.readouterr().err
    assert BAD[argument] in error
    assert error.count("\n") == 1
    assert not (fresh_copy / evaluate.FILE).exists()


def test_bad_folders(fresh_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one run directory is needed, none is given"):
        evaluate.main(["episodes=5"])
    with pytest.raises(UsageError, match="there is no such run directory"):
        evaluate.main([str(tmp_path / "absent")])
    with pytest.raises(UsageError, match=f"holds no checkpoint; did you mean {fresh_copy}?"):
        evaluate.main([str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no checkpoint; train there"):
        evaluate.main([str(tmp_path / "empty")])


@pytest.fixture(scope="module")
def opengl() -> None:
    try:
        render("hopper", np.array([[0.0, 1.25, 0, 0, 0, 0]]), width=16, height=16)
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("opengl")
def test_film(hopper_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    evaluate.main([str(hopper_run), "episodes=1", f"video={path}"])
    with Image.open(path) as film:
        frames = [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(film)]
    assert 1 < len(frames) < 100  # 31 a second; it falls early
    assert frames[0].shape == (360, 480, 3)
    assert np.abs(frames[-1] - frames[0]).max() > 50
    assert [p.name for p in tmp_path.iterdir()] == ["film.gif"]


@pytest.mark.usefixtures("opengl")
def test_film_in_mp4(hopper_run: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    evaluate.main([str(hopper_run), "episodes=1", "video=true"])
    assert (hopper_run / "video.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.fixture(scope="module")
def allocation_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("allocation") / "run"
    return trained("allocation_solver", DataConfig("none"), "electric-train-4x2", folder, updates=2)


def test_film_of_task_allocation(allocation_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played, play = [], video.play

    def listen(*args: Any) -> video.Played:
        played.append(play(*args))
        return played[0]

    monkeypatch.setattr(video, "play", listen)
    result = evaluate.evaluate(evaluate.Options(allocation_run, episodes=1, video="true"))
    with Image.open(allocation_run / "video.gif") as film:
        frames = [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(film)]
    assert 30 < len(frames) <= 71  # of 100 steps up to 40 evenly apart, 30 that complete a task, the last
    assert np.abs(frames[-1] - frames[0]).max() > 50
    assert float(played[0].reward.sum()) == pytest.approx(result["returns"][0], rel=1e-5)
    assert len(played[0].states.state.board.t) == len(played[0].reward) + 1


def test_film_of_task_allocation_in_mp4(allocation_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    evaluate.main([str(allocation_run), "episodes=1", f"video={tmp_path / 'film.mp4'}"])
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
