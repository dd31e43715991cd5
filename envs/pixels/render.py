"""Pictures drawn in jnp: balls, capsules and boxes as distances from the rays of a pinhole camera, with smooth edges.

A shape is painted by how much of each pixel it covers, over what was painted before; colours are those of the
DeepMind Control Suite under its lamps. Floors and skies are computed once, on the host. No shadows, no reflections.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HALF_VIEW = float(np.tan(np.radians(45.0) / 2))  # of the picture at distance 1; the field of view is 45 degrees
SUPERSAMPLING = 4  # of backdrops, along each axis
EDGE_SHADE = 0.7  # brightness at a round shape's rim; 1 where it faces the camera

Point = jax.Array | tuple[float, float, float]
Image = jax.Array | np.ndarray  # (size, size, 3), in [0, 1]
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]

BODY: Colour = (0.89, 0.65, 0.41)
EFFECTOR: Colour = (1.0, 0.62, 0.32)
TARGET: Colour = (0.97, 0.50, 0.50)
DECORATION: Colour = (0.31, 0.49, 0.67)
FLOOR_TILES: tuple[Colour, Colour] = ((0.27, 0.41, 0.55), (0.135, 0.28, 0.42))
TABLE: Colour = (0.18, 0.365, 0.54)
TABLE_RIM: Colour = (0.38, 0.56, 0.74)
RIM, RIM_END = 0.285, 0.303  # m, from the table's middle
FALLOFF = 0.3  # of the lamp's light: 1 / (1 + FALLOFF) is left at half a side from the middle of floor or table
HORIZON, ZENITH = np.array([0.19, 0.28, 0.36]), np.array([0.39, 0.58, 0.76])


@dataclass(frozen=True)
class Camera:
    """Where the camera stands, in metres, and how far it looks up from straight down, in radians."""

    position: tuple[float, float, float]
    tilt: float


class Rays(NamedTuple):
    """The rays of all pixels, from the top left."""

    origin: np.ndarray  # (3,)
    forward: np.ndarray  # (3,) a unit vector
    direction: np.ndarray  # (size, size, 3) unit vectors
    pixel: float  # width of a pixel at distance 1


def rays(camera: Camera, size: int) -> Rays:
    """The rays of a camera's picture (size, size)."""
    sine, cosine = np.sin(camera.tilt), np.cos(camera.tilt)
    forward, up = np.array([0.0, sine, -cosine]), np.array([0.0, cosine, sine])
    across = ((np.arange(size) + 0.5) * 2 / size - 1) * HALF_VIEW
    direction = forward - across[:, None, None] * up + across[:, None] * np.array([1.0, 0.0, 0.0])
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    as_float = lambda x: x.astype(np.float32)  # noqa: E731
    return Rays(as_float(np.array(camera.position)), as_float(forward), as_float(direction), 2 * HALF_VIEW / size)


def capsule(rays: Rays, start: Point, end: Point, radius: float) -> tuple[jax.Array, jax.Array]:
    """How much of each pixel a capsule covers, and its brightness there, both (size, size) in [0, 1].

    Of the segment from start to end, seen along each ray, what counts is the point nearest to the ray.
    """
    first = jnp.asarray(start) - rays.origin
    along = jnp.asarray(end) - jnp.asarray(start)
    first_depth, along_depth = (_dot(rays.direction, x) for x in (first, along))
    square = _dot(first, first) - jnp.square(first_depth)
    product = _dot(first, along) - first_depth * along_depth
    length = _dot(along, along) - jnp.square(along_depth)
    part = jnp.clip(-product / jnp.maximum(length, 1e-9), 0.0, 1.0)
    distance = jnp.sqrt(jnp.maximum(square + part * (2.0 * product + part * length), 0.0))
    depth = _dot(rays.forward, first) + part * _dot(rays.forward, along)
    return _disc(distance, radius, rays.pixel * depth)


def ball(rays: Rays, centre: Point, radius: float) -> tuple[jax.Array, jax.Array]:
    """As `capsule`."""
    apart = jnp.asarray(centre) - rays.origin
    distance = jnp.sqrt(jnp.maximum(_dot(apart, apart) - jnp.square(_dot(rays.direction, apart)), 0.0))
    return _disc(distance, radius, rays.pixel * _dot(rays.forward, apart))


def box(rays: Rays, y: float, x: tuple[jax.Array, jax.Array], height: tuple[float, float]) -> jax.Array:
    """How much of each pixel (size, size) an upright rectangle covers; for a camera that looks along the y axis."""
    distance = y - rays.origin[1]
    seen = rays.origin + distance * rays.direction / rays.direction[..., 1:2]
    pixel = rays.pixel * abs(float(distance))
    return _overlap(seen[..., 0], pixel, *x) * _overlap(seen[..., 2], pixel, *height)


def paint(image: Image, coverage: jax.Array, shade: jax.Array | float, colour: Colour) -> jax.Array:
    """The image with a shape painted over it."""
    new = jnp.asarray(shade)[..., None] * jnp.asarray(colour)
    return jnp.asarray(image) + coverage[..., None] * (new - image)


def to_bytes(image: jax.Array) -> jax.Array:
    """Floats in [0, 1] -> uint8."""
    return jnp.round(255.0 * image).astype(jnp.uint8)


def with_floor(camera: Camera, size: int, height: float, extent: float, light: float = 1.0) -> np.ndarray:
    """A picture (size, size, 3) of a chequered floor with half-width `extent`, in metres, under a sky.

    light: how bright the floor is in its middle; the higher the lamp, the darker.
    """

    def colour(seen: Rays) -> np.ndarray:
        sky = HORIZON + (ZENITH - HORIZON) * seen.direction[..., 2:]
        x, y, hit = _meet(seen, height)
        even = (np.floor(x) + np.floor(y)) % 2 == 0
        tiles = light * _lamp(x, y, extent) * np.where(even[..., None], *np.array(FLOOR_TILES))
        on_floor = hit & (np.maximum(np.abs(x), np.abs(y)) < extent)
        return np.where(on_floor[..., None], tiles, sky)

    return _backdrop(camera, size, colour)


def with_table(camera: Camera, size: int) -> np.ndarray:
    """A picture (size, size, 3) of a table with a rim, from above."""

    def colour(seen: Rays) -> np.ndarray:
        x, y, _ = _meet(seen, 0.0)
        out = np.maximum(np.abs(x), np.abs(y))[..., None]
        return _lamp(x, y, RIM_END) * np.where((out > RIM) & (out < RIM_END), TABLE_RIM, TABLE)

    return _backdrop(camera, size, colour)


def _lamp(x: np.ndarray, y: np.ndarray, extent: float) -> np.ndarray:
    """Brightness (..., 1) under a lamp above the middle."""
    return 1.0 / (1.0 + FALLOFF * (x**2 + y**2) / extent**2)[..., None]


def _backdrop(camera: Camera, size: int, colour: Callable[[Rays], np.ndarray]) -> np.ndarray:
    """Colours (..., 3) of rays, averaged over each pixel."""
    fine = colour(rays(camera, SUPERSAMPLING * size))
    return fine.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3)).astype(np.float32)


def _meet(seen: Rays, height: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where rays meet a level plane below the camera, x and y, and whether they do."""
    down = np.minimum(seen.direction[..., 2], -1e-6)
    point = seen.origin + ((height - seen.origin[2]) / down)[..., None] * seen.direction
    return point[..., 0], point[..., 1], seen.direction[..., 2] < -1e-6


def _dot(first: jax.Array | np.ndarray, second: jax.Array) -> jax.Array:
    """(..., 3), (3,) -> (...), in full precision: accelerators may round the factors of `@` to fewer bits."""
    x, y, z = jnp.moveaxis(jnp.asarray(first), -1, 0)
    return x * second[0] + y * second[1] + z * second[2]


def _disc(distance: jax.Array, radius: float, pixel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coverage and brightness at a distance from a round shape's middle; `pixel` is the pixel's width there."""
    facing = jnp.sqrt(jnp.maximum(1.0 - jnp.square(distance / radius), 0.0))
    return _overlap(distance, pixel, -radius, radius), EDGE_SHADE + (1.0 - EDGE_SHADE) * facing


def _overlap(
    middle: jax.Array | np.ndarray, pixel: jax.Array | float, low: jax.Array | float, high: jax.Array | float
) -> jax.Array:
    """The part of pixels, as intervals around `middle`, that lies between low and high."""
    half = pixel / 2
    shared = jnp.minimum(middle + half, high) - jnp.maximum(middle - half, low)
    return jnp.clip(shared / pixel, 0.0, 1.0)
