"""Fill the border of a buffer, where its memory held another tensor before."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["fill_border"]

Array = NDArray[Any]


@jit
def fill_border(part: int, parts: int, images: int, y: Array, border: tuple[int, int, int, int], zero: int) -> int:
    """Write ``zero`` into the rows and columns of ``y`` [N, H, W, C] at its top, bottom, left and right.

    part, parts : the share of this call, of all rows of all images
    border : how many rows and columns there are at each side
    """
    top, bottom, left, right = border
    height, width, lanes = y.shape[1:]
    first, end = share(images * height, part, parts)
    for line in range(first, end):
        n, i = line // height, line % height
        is_inside = top <= i < height - bottom
        columns = left if is_inside else width
        for j in range(columns):
            for c in range(lanes):
                y[n, i, j, c] = zero
        if is_inside:
            for j in range(width - right, width):
                for c in range(lanes):
                    y[n, i, j, c] = zero
    return 0
