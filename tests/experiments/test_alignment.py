"""Pictures of what a BARFI run has learnt."""

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from envs.core import UsageError
from experiments import alignment, train

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = ("run.updates=6", "run.eval_every=6", "run.save_every=6", "run.eval_episodes=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of BARFI with all multipliers learnt, and one of what it is compared with."""
    folder = tmp_path_factory.mktemp("alignment")
    for name, *more in (("barfi", "algo.static.phi2_mode=linear"), ("barfi_reinforce",)):
        GlobalHydra.instance().clear()
        with pytest.MonkeyPatch.context() as patch:
            place = f"run.dir={folder / name}"
            patch.setattr(sys, "argv", ["train", f"algo={name}", "env=gridworld-bad", place, *SMALL, *more])
            train.run()
    return folder


def test_learnt_multipliers_are_drawn(runs: Path, capsys: pytest.CaptureFixture) -> None:
    alignment.main([str(runs / "barfi")])
    assert "learnt discount 0.99" in capsys.readouterr().out
    for name in ("phi1", "phi2", "phi3"):
        with Image.open(runs / "barfi" / "alignment" / f"{name}.png") as picture:
            colours = picture.convert("RGB").getcolors(1 << 20)
            assert colours is not None
            assert len(colours) > 50


def test_what_cannot_be_drawn_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="learns no reward"):
        alignment.draw(runs / "barfi_reinforce", tmp_path / "out")
    with pytest.raises(UsageError, match="two dimensions"):
        alignment.plane("cartpole-bad")
    with pytest.raises(UsageError, match="not understood"):
        alignment.main([str(runs), "colour=red"])
    assert not (tmp_path / "out").exists()
