"""Pictures of control tasks: where things are, how much they cover, in which colours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import pixels
from envs.pixels import pendulum, reacher, render
from envs.pixels.core import Body

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE = 84
ABOVE = render.Camera((0.0, 0.0, 2.0), 0.0)


def body(position: Any, velocity: Any = (0.0, 0.0), target: Any = (0.0, 0.0)) -> Body:
    return Body(jnp.array(position), jnp.array(velocity), jnp.array(target))


@pytest.fixture(scope="module")
def painters() -> Any:
    """Painters by task; each is compiled when it is first called."""
    names = "cartpole-swingup", "pendulum-swingup", "reacher-easy", "pointmass-easy", "acrobot-swingup"
    return {name: jax.jit(pixels.TASKS[name].painter(SIZE)) for name in names}


def pixel(camera: render.Camera, point: Any) -> np.ndarray:
    """Row and column (2,), as fractions, at which a camera shows a point."""
    x, y, z = np.array(point) - camera.position
    sine, cosine = np.sin(camera.tilt), np.cos(camera.tilt)
    depth, up = sine * y - cosine * z, cosine * y + sine * z
    return SIZE / 2 * (1 + np.array([-up, x]) / (depth * np.tan(np.pi / 8))) - 0.5


def at(image: jax.Array, place: np.ndarray) -> np.ndarray:
    row, column = np.round(place).astype(int)
    return np.asarray(image)[row, column].astype(float)


def bytes_of(colour: Any) -> np.ndarray:
    return 255 * np.array(colour)


def test_a_ball_covers_its_area_wherever_it_is():
    rays = render.rays(ABOVE, SIZE)
    pixel_area = (2 * render.HALF_VIEW * 2.0 / SIZE) ** 2
    cover = jax.jit(lambda x: render.ball(rays, jnp.array([x, 0.05, 0.0]), 0.1))
    for x in (0.0, 0.003, 0.01):
        coverage, shade = cover(x)
        assert coverage.shape == shade.shape == (SIZE, SIZE)
        assert float(coverage.sum() * pixel_area) == pytest.approx(np.pi * 0.1**2, rel=0.02)
        assert float(coverage.max()) == 1.0
        assert float(shade.max()) <= 1.0
        assert float(shade.min()) > render.EDGE_SHADE - 1e-6
        assert ((coverage > 0) & (coverage < 1)).any()  # smooth edges


def test_a_capsule_covers_its_area_and_a_dot_is_a_ball():
    rays = render.rays(ABOVE, SIZE)
    pixel_area = (2 * render.HALF_VIEW * 2.0 / SIZE) ** 2
    coverage, _ = render.capsule(rays, (-0.3, 0.1, 0.0), (0.2, -0.1, 0.0), 0.02)
    area = 2 * 0.02 * np.hypot(0.5, 0.2) + np.pi * 0.02**2
    assert float(coverage.sum() * pixel_area) == pytest.approx(area, rel=0.03)
    dot, ball = render.capsule(rays, (0.1, 0.1, 0.3), (0.1, 0.1, 0.3), 0.1), render.ball(rays, (0.1, 0.1, 0.3), 0.1)
    np.testing.assert_allclose(dot[0], ball[0], atol=1e-3)
    thin, _ = render.capsule(rays, (-0.3, 0.0, 0.0), (0.3, 0.0, 0.0), 0.002)  # far thinner than a pixel
    assert float(thin.sum() * pixel_area) == pytest.approx(2 * 0.002 * 0.6, rel=0.1)


def test_a_box_covers_its_area():
    rays = render.rays(render.Camera((0.0, -2.0, 1.0), np.pi / 2), SIZE)
    coverage = render.box(rays, 0.0, (jnp.array(-0.211), jnp.array(0.137)), (0.9, 1.033))
    pixel_area = (2 * render.HALF_VIEW * 2.0 / SIZE) ** 2
    assert float(coverage.sum() * pixel_area) == pytest.approx(0.348 * 0.133, rel=1e-4)


def test_colours_and_places(painters):
    image = painters["pendulum-swingup"](body([1.0], [0.0]))
    ball = np.array(pendulum.HINGE) + 0.5 * np.array([np.sin(1.0), 0.0, np.cos(1.0)])
    np.testing.assert_allclose(at(image, pixel(pendulum.CAMERA, ball)), bytes_of(render.EFFECTOR), atol=8)
    rod = (np.array(pendulum.HINGE) + ball) / 2
    assert at(image, pixel(pendulum.CAMERA, rod))[0] > 150  # orange; the floor is blue
    arm = body([0.3, 0.8], target=(-0.1, 0.12))
    image = painters["reacher-easy"](arm)
    place = lambda x, y: pixel(reacher.CAMERA, (x, y, reacher.HEIGHT))  # noqa: E731
    np.testing.assert_allclose(at(image, place(-0.1, 0.12)), bytes_of(render.TARGET), atol=8)
    finger = at(image, place(*reacher.finger(arm)))
    assert finger[0] > 180 > 130 > finger[2]
    assert at(image, place(0.2, -0.2))[2] > 80 > at(image, place(0.2, -0.2))[0]
    cart = painters["cartpole-swingup"](body([0.5, 0.0]))
    assert at(cart, SIZE / 2 * (1 + np.array([0.0, 0.5 / (3.85 * np.tan(np.pi / 8))])) - 0.5) == pytest.approx(
        bytes_of(render.BODY), abs=1
    )


def test_the_cart_leaves_the_picture(painters):
    """As in the suite, whose rail is longer than what its camera sees."""
    shown, gone = (painters["cartpole-swingup"](body([x, np.pi])) for x in (0.0, 1.8))
    orange = lambda image: int((np.asarray(image)[..., 0] > 150).sum())  # noqa: E731
    assert orange(shown) > 70 > 30 > orange(gone)


def test_only_what_moves_changes(painters):
    paint = painters["pendulum-swingup"]
    first, second = (np.asarray(paint(body([angle], [0.0]))).astype(int) for angle in (1.0, 1.3))
    changed = np.abs(first - second).max(axis=-1) > 0
    assert changed.any()
    rows, columns = np.nonzero(changed)
    corners = [
        pixel(pendulum.CAMERA, (x, 0.0, z))
        for x in (-0.08, 0.58) for z in (0.5, 0.98)  # hinge, both positions of the ball, and their radii
    ]  # fmt: skip
    (top, left), (bottom, right) = np.min(corners, axis=0) - 1, np.max(corners, axis=0) + 1
    assert rows.min() >= top
    assert rows.max() <= bottom
    assert columns.min() >= left
    assert columns.max() <= right
    np.testing.assert_array_equal(paint(body([1.0], [9.0])), first)  # speed is not seen


def test_a_target_changes_its_own_place_alone(painters):
    targets = (-0.1, 0.12), (-0.14, 0.02)
    first, second = (np.asarray(painters["reacher-easy"](body([-0.5, 0.8], target=x))).astype(int) for x in targets)
    places = np.argwhere(np.abs(first - second).max(axis=-1) > 0)
    centres = [pixel(reacher.CAMERA, (*x, reacher.HEIGHT)) for x in targets]
    reach = 0.05 / 0.74 / (2 * render.HALF_VIEW) * SIZE + 2
    apart = np.min([np.linalg.norm(places - centre, axis=1) for centre in centres], axis=0)
    assert len(places) > 150
    assert apart.max() <= reach


@pytest.mark.parametrize("task", ["cartpole-swingup", "pendulum-swingup", "pointmass-easy", "acrobot-swingup"])
def test_small_moves_change_the_picture_a_little(painters, task):
    rest = np.array([0.05, 0.1]) if task != "pendulum-swingup" else np.array([0.1])
    moved = rest + (0.001 if task == "pointmass-easy" else 0.01)  # below a pixel's width
    first, second = (np.asarray(painters[task](body(x, 0 * x))).astype(int) for x in (rest, moved))
    change = np.abs(first - second)
    assert 0 < change.max() < 140
    assert change.sum() > 20


def test_many_pictures_at_once_are_the_single_ones(painters):
    angles = jnp.array([[0.3], [2.0], [-1.0]])
    many = jax.jit(jax.vmap(pixels.TASKS["pendulum-swingup"].painter(SIZE)))(
        Body(angles, 0 * angles, jnp.zeros((3, 2)))
    )
    assert many.shape == (3, SIZE, SIZE, 3)
    assert many.dtype == jnp.uint8
    for image, angle in zip(many, angles):
        single = np.asarray(painters["pendulum-swingup"](body(angle, [0.0]))).astype(int)
        assert np.abs(np.asarray(image).astype(int) - single).max() <= 1


def test_sizes_show_the_same_scene(painters):
    arm = body([0.3, 0.8], target=(-0.1, 0.12))
    half = np.asarray(pixels.TASKS["reacher-easy"].painter(SIZE // 2)(arm)).astype(float)
    full = np.asarray(painters["reacher-easy"](arm)).astype(float)
    shrunk = full.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - shrunk).mean() < 1.0
    assert np.abs(half - shrunk).max() < 50
