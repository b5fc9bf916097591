"""Training images moved and mirrored at random."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["shift_and_mirror"]

Number = TypeVar("Number", np.uint8, np.float32)

_PAD = 4
_LEAST = 4 * _PAD  # shorter sides would lose too much


def shift_and_mirror(
    images: NDArray[Number], rng: np.random.Generator, mirror: bool, fill: float = 0.0
) -> NDArray[Number]:
    """Shift each image by up to 4 pixels either way and mirror one in two (He et al. 2016, section 4.2).

    Sides of less than 16 pixels are not shifted along.

    Parameters
    ----------
    images : uint8 or float32 [N, C, H, W]
    rng : decides
    mirror : whether to; a mirrored photograph is one still, a mirrored digit is none
    fill : what stands where nothing was, as a number of the images (black)

    Returns
    -------
    uint8 or float32 [N, C, H, W], as the images; a new array
    """
    n, channels, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (_PAD, _PAD), (_PAD, _PAD)), constant_values=fill)
    corner = rng.integers(0, 2 * _PAD + 1, (2, n, 1))
    for axis, size in enumerate((height, width)):
        if size < _LEAST:
            corner[axis] = _PAD  # it stays where it is
    rows = corner[0] + np.arange(height)
    columns = corner[1] + np.arange(width)
    if mirror:
        columns = np.where(rng.integers(0, 2, (n, 1)) == 1, columns[:, ::-1], columns)
    at = (
        np.arange(n)[:, None, None, None],
        np.arange(channels)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None],
    )
    moved: NDArray[Number] = padded[at]
    return moved
