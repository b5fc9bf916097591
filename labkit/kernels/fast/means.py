"""The mean along any axes as XNNPACK takes it, and integers that are the same for every image. See `reference.mean_float32`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.elementwise import Corner
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["fill_constant", "mean_float32"]

Array = NDArray[Any]


@jit
def mean_float32(
    part: int,
    parts: int,
    images: int,
    x: Array,
    y: Array,
    come: Array,
    go: Array,
    reals: Array,
    above: tuple[int, int],
) -> int:
    """``y = clamp(rint(s m + c))`` in float32 for the sums s of groups of integers, less an offset (eq. 42).

    part, parts : the share of this call, of all groups of all images
    x, y : int16 or uint8 [N, H, W, C]
    come : int64 [groups, length], where the elements of each group lie in an image of ``x``; go : int64 [groups], its result
    reals : float32 [4]: multiplier, addend, and the clamp
    above : what the integers, less the offset, are above the numbers stored in ``x`` and in ``y``
    """
    count, length = come.shape
    first, end = share(images * count, part, parts)
    for n in range(first // count, (end + count - 1) // count):
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        for g in range(max(0, first - n * count), min(count, end - n * count)):
            total = np.int64(length * above[0])
            for k in range(length):
                total += np.int64(source[come[g, k]])
            rounded = np.rint(np.float32(total) * reals[0] + reals[1])
            target[go[g]] = np.int32(min(max(rounded, reals[2]), reals[3])) - above[1]
    return 0


@jit
def fill_constant(part: int, parts: int, images: int, y: Array, values: Array, corner: Corner) -> int:
    """``values`` [H, W, C], as they are stored, to every image of ``y`` [N, H', W', C'].

    ``part`` of ``parts`` is the share of this call, of the images; ``corner`` is that of the image in ``y``.
    """
    height, width, channels = values.shape
    first, end = share(images, part, parts)
    for n in range(first, end):
        for i in range(height):
            for j in range(width):
                target, source = y[n, corner.top + i, corner.left + j], values[i, j]
                for c in range(channels):
                    target[c] = source[c]
    return 0
