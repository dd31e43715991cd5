"""Pictures of what a BARFI run has learnt."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from envs.core import UsageError
from experiments import alignment, train
from experiments.log import MetricsFile
from experiments.reporting.figures import PALETTE
from tests.conftest import call

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = ("run.updates=6", "run.eval_every=6", "run.save_every=6", "run.eval_episodes=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of BARFI with all multipliers learnt, and one of what it is compared with."""
    folder = tmp_path_factory.mktemp("alignment")
    for name, *more in (("barfi", "algo.static.phi2_mode=linear"), ("barfi_reinforce",)):
        place = f"run.dir={folder / name}"
        assert call(train.run, f"algo={name}", "env=gridworld-bad", place, *SMALL, *more) == 0
    return folder


def test_learnt_multipliers_are_drawn(runs: Path, capsys: pytest.CaptureFixture) -> None:
    alignment.main([str(runs / "barfi")])
    assert "learnt discount 0.99" in capsys.readouterr().out
    for name in ("phi1", "phi2", "phi3", "weights"):
        with Image.open(runs / "barfi" / "alignment" / f"{name}.png") as picture:
            colours = picture.convert("RGB").getcolors(1 << 20)
            assert colours is not None
            assert len(colours) > 50


def test_weights_over_training(runs: Path, tmp_path: Path) -> None:
    """Every multiplier asked for that was measured has its line; those of the discount go where it went."""
    rows = MetricsFile(runs / "barfi").rows()
    rows = [row | {"update": 10.0 * i, "gamma": 0.9 - 0.1 * i, "phi2_mean": 0.5 * i} for i in range(4) for row in rows]
    old = [{name: row[name] for name in ("update", "gamma")} for row in rows]
    drawn = {}
    for case, names in {"all": ["phi1", "phi2", "phi3"], "fixed": ["phi1", "phi3"]}.items():
        alignment.draw_weights(rows, names, tmp_path / f"{case}.png")
        drawn[case] = lines(tmp_path / f"{case}.png")
    alignment.draw_weights(old, ["phi1", "phi3"], tmp_path / "old.png")
    drawn["old"] = lines(tmp_path / "old.png")
    shown = {case: [i for i, line in enumerate(found) if len(line)] for case, found in drawn.items()}
    assert shown == {"all": [0, 1, 2, 3], "fixed": [0, 1, 3], "old": [0]}
    for case in drawn:
        y, x = drawn[case][0].T
        assert y[x == x.max()].min() > y[x == x.min()].max() + 100  # downwards


def lines(path: Path) -> list[np.ndarray]:
    """Pixels (n, 2) as (row, column) of each of the first four colours."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return [np.argwhere((pixels == tuple(bytes.fromhex(colour[1:]))).all(-1)) for colour in PALETTE[:4]]


def test_what_cannot_be_drawn_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="learns no reward"):
        alignment.draw(runs / "barfi_reinforce", tmp_path / "out")
    with pytest.raises(UsageError, match="two dimensions"):
        alignment.plane("cartpole-bad")
    with pytest.raises(UsageError, match="not understood"):
        alignment.main([str(runs), "colour=red"])
    assert not (tmp_path / "out").exists()
