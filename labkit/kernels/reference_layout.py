"""The readable tier: operations that move integers and compute nothing. `labkit.kernels.reference` offers them too.

They know no scale: what comes out has the scale and the zero point of what went in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["pad", "reshape", "transpose", "upsample_nearest2d"]

Integers = NDArray[np.integer]
Padding = tuple[tuple[int, int], tuple[int, int]]


def pad(x: Integers, *, padding: Padding, zero_point: int) -> Integers:
    """``x`` [N, C, H, W] with real 0, which is the integer ``zero_point``, around each image.

    ``padding`` is ((top, bottom), (left, right)). Returns [N, C, H + top + bottom, W + left + right].
    """
    return np.pad(x, ((0, 0), (0, 0), *padding), constant_values=zero_point)


def reshape(x: Integers, *, shape: tuple[int, ...]) -> Integers:
    """``x`` [N, ...] as [N, *``shape``], in C order."""
    return x.reshape(x.shape[0], *shape)


def transpose(x: Integers, *, axes: tuple[int, ...]) -> Integers:
    """``x`` [N, ...] with its axes in another order: axis i of the result is axis ``axes[i]`` of ``x``, N not counted."""
    return x.transpose(0, *(1 + axis for axis in axes))


def upsample_nearest2d(x: Integers, *, factor: tuple[int, int]) -> Integers:
    """``x`` [N, C, H, W] with each pixel repeated ``factor`` = (f, g) times. Returns [N, C, H f, W g]."""
    return np.repeat(np.repeat(x, factor[0], axis=2), factor[1], axis=3)
