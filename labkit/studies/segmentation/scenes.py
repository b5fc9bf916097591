"""Drawn pictures with a class for each pixel: circles, rectangles and triangles in front of stripes, with noise.

Everything is drawn from a seed and an index with NumPy alone, so that the same picture comes out everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.data import normalise
from labkit.errors import InputError

__all__ = ["CLASSES", "SIDE", "Scenes", "draw_scene", "draw_scenes", "shape_mask"]

SIDE = 48
CLASSES = ("background", "circle", "rectangle", "triangle")
_MOST_SHAPES = 4
_NOISE = 0.08  # standard deviation, of a brightness in 0..1
_LEAST_CONTRAST = 0.3  # between the mean colours of a shape and the background, in one channel at least

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scenes:
    """pixels : uint8 [N, 3, SIDE, SIDE], red, green and blue.

    labels : uint8 [N, SIDE, SIDE], indices of `CLASSES`.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @property
    def images(self) -> NDArray[np.float32]:
        """The pixels as a network takes them: float32 [N, 3, SIDE, SIDE] in [-1, 1]."""
        return normalise(self.pixels)


def draw_scenes(count: int, *seed: int) -> Scenes:
    """``count`` pictures; picture i depends on ``seed`` and i alone.

    Raises
    ------
    InputError
        ``count`` is less than 1.
    """
    if count < 1:
        raise InputError(f"At least one picture must be drawn, got count {count}.")
    pairs = [draw_scene(np.random.default_rng((*seed, index))) for index in range(count)]
    return Scenes(np.stack([pixels for pixels, _ in pairs]), np.stack([labels for _, labels in pairs]))


def draw_scene(generator: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture with 1 to 4 shapes, later ones in front: uint8 [3, SIDE, SIDE] and its classes, uint8 [SIDE, SIDE].

    ``generator`` draws everything.
    """
    behind = generator.random(3)
    image = _stripes(generator, behind)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(int(generator.integers(1, _MOST_SHAPES + 1))):
        kind = int(generator.integers(1, len(CLASSES)))
        centre = SIDE * generator.uniform(0.1, 0.9, 2)
        radius, angle, aspect = generator.uniform(5, 13), generator.uniform(0, 2 * np.pi), generator.uniform(0.6, 1)
        colour = generator.random(3)
        if np.abs(colour - behind).max() < _LEAST_CONTRAST:
            colour = (behind + 0.5) % 1
        inside = shape_mask(CLASSES[kind], (centre[0], centre[1]), radius, angle, aspect)
        image = np.where(inside, _stripes(generator, colour), image)
        labels[inside] = kind
    image = image + generator.normal(0, _NOISE, image.shape)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), labels


def shape_mask(kind: str, centre: tuple[float, float], radius: float, angle: float, aspect: float) -> NDArray[np.bool_]:
    """Which pixels of a picture lie in a shape: bool [SIDE, SIDE].

    Parameters
    ----------
    kind : "circle", "rectangle" or "triangle" (with equal sides)
    centre : row and column
    radius : of the circle; half the long side of the rectangle; two thirds of the distance from the triangle's centre to
        its corners
    angle : by which the shape is turned, in radians
    aspect : short side over long side of the rectangle, in (0, 1]

    Raises
    ------
    InputError
        There is no such kind.
    """
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    down, right = rows - centre[0], columns - centre[1]
    u, v = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
    if kind == "circle":
        return np.asarray(u**2 + v**2 <= radius**2)
    if kind == "rectangle":
        return np.asarray((np.abs(u) <= radius) & (np.abs(v) <= aspect * radius))
    if kind == "triangle":
        turns = 2 * np.pi / 3 * np.arange(3)
        sides = [
            np.cos(turn) * u + np.sin(turn) * v <= 0.75 * radius for turn in turns
        ]  # half the distance to a corner
        return np.asarray(sides[0] & sides[1] & sides[2])
    raise InputError(f"A shape is one of {', '.join(CLASSES[1:])}, got {kind!r}.")


def _stripes(generator: np.random.Generator, colour: Reals) -> Reals:
    """The mean ``colour`` [3] with waves of a random direction, width and strength: [3, SIDE, SIDE]."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    across, down, phase = generator.uniform(-8, 8), generator.uniform(-8, 8), generator.uniform(0, 1)
    wave = np.sin(2 * np.pi * (across * columns + down * rows + phase))
    strength = generator.uniform(0, 0.2) * generator.uniform(-1, 1, 3)
    return np.asarray(colour[:, None, None] + strength[:, None, None] * wave)
