"""Pictures of active units over training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from envs.core import UsageError
from experiments import plasticity
from experiments.log import MetricsFile
from experiments.reporting.figures import PALETTE

SWITCHED = (0.0, 0.0, 0.75, 1.0)  # of each interval of 100 agent steps: it switched at 225


def write(folder: Path, switched: tuple[float, ...], **columns: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, share in enumerate(switched):
        row = {"update": 100 * (i + 1), "return_mean": 10.0 * i, "updates": 0.5 + 1.5 * share, "switched": share}
        MetricsFile(folder).append(row | {"fau_critic": 0.5 - 0.1 * i if i else 0.0} | columns)


def test_a_switch_is_found_within_its_interval(tmp_path: Path) -> None:
    write(tmp_path / "seed0", SWITCHED)
    write(tmp_path / "seed1", (0.0, 0.0))
    write(tmp_path / "seed2", (0.25,))
    points = [plasticity.switch_point(run) for run in plasticity.read_runs(tmp_path)]
    assert points == [225.0, None, 75.0]


def test_before_the_first_update_there_is_no_fau(tmp_path: Path) -> None:
    write(tmp_path, SWITCHED)
    (run,) = plasticity.read_runs(tmp_path)
    assert list(plasticity.curve(run, "fau_critic").index) == [200, 300, 400]
    assert list(plasticity.curve(run, "updates").index) == [100, 200, 300, 400]


def test_groups_have_their_colours(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "a" / "seed0", SWITCHED, fau_encoder=0.4)
    write(tmp_path / "a" / "seed1", (0.0, 0.0, 0.0, 0.0), fau_encoder=0.3)
    write(tmp_path / "b", (0.0, 0.0))
    plasticity.main([f"adaptive={tmp_path / 'a'}", f"constant={tmp_path / 'b'}", f"out={tmp_path / 'x.png'}"])
    printed = capsys.readouterr().out
    assert "adaptive: 2 runs, switched at agent steps 225, never" in printed
    assert "constant: 1 runs, switched at agent steps never" in printed
    with Image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in PALETTE[:2]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == wanted).all(1).sum() > 100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["runs/x"], "not understood: runs/x"),
        (["a=runs"], "not understood: a=runs"),
        (["a=EMPTY", "out=x.png"], "holds no runs"),
        (["a=OTHER", "out=x.png"], "measures no active units: choose runs of algo=drqv2"),
    ],
)
def test_mistakes_are_named(args: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    MetricsFile(tmp_path / "other").append({"update": 1, "score": 2.0})
    places = [arg.replace("EMPTY", str(tmp_path / "empty")).replace("OTHER", str(tmp_path / "other")) for arg in args]
    with pytest.raises(UsageError, match=message):
        plasticity.main(places)
