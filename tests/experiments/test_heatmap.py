import numpy as np
import pytest
from PIL import Image

from envs.core import UsageError
from envs.shaped import mountaincar
from experiments.heatmap import cells, heatmap

BOX = ((0.0, 1.0), (-2.0, 2.0))


def test_cells_cover_the_box():
    states = cells(BOX, 4)
    assert states.shape == (4, 4, 2)
    np.testing.assert_allclose(states[0, :, 0], [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(states[:, 1, 1], [-1.5, -0.5, 0.5, 1.5])


@pytest.mark.parametrize("coordinate", [0, 1])
def test_values_lie_where_their_states_are(coordinate, tmp_path):
    values = cells(BOX, 16)[..., coordinate] + 2.0  # of one sign: the brighter, the more
    marks = {"start": (0.5, 0.0), "goal": ((0.9, 1.0), (-2.0, -1.0))}
    heatmap(tmp_path / "map.png", values, BOX, "A value", marks)
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("L"), float)
    height, width = picture.shape
    inside = picture[height // 10 : -height // 8, width // 8 : -width // 4]
    third = [len(inside) // 3, len(inside[0]) // 3]
    right, left = inside[:, -third[1] :].mean(), inside[:, : third[1]].mean()
    top, bottom = inside[: third[0]].mean(), inside[-third[0] :].mean()
    assert (right > left + 40) == (coordinate == 0)
    assert (top > bottom + 40) == (coordinate == 1)


def test_zero_is_pale_where_both_signs_occur(tmp_path):
    values = np.array([[-1.0, 0.0, 0.0, 0.0, 4.0]])
    heatmap(tmp_path / "map.png", values, (mountaincar.START, (0.0, 1.0)), "A reward")
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"), float)
    height, width, _ = picture.shape
    assert picture[height // 2, int(0.45 * width)].min() > 230


@pytest.mark.parametrize("values", [np.array([[1.0, np.nan]]), np.zeros(3)])
def test_gaps_are_refused(values, tmp_path):
    with pytest.raises(UsageError, match="heat map 'Gap': give it a matrix of finite numbers"):
        heatmap(tmp_path / "map.png", values, BOX, "Gap")
    assert not list(tmp_path.iterdir())
