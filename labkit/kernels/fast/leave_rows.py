"""The borders out of an integer network for tensors whose last axis is contiguous. See the same names in `elementwise`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["dequantize_rows", "give_rows"]

Array = NDArray[Any]


@jit
def dequantize_rows(
    part: int, parts: int, images: int, x: Array, real: Array, scale: Array, zero: int, steps: tuple[int, int]
) -> int:
    """As `elementwise.dequantize` where the last axis of the image is contiguous in ``x``, which starts with its first element.

    ``part`` of ``parts`` is the share of this call, of all rows of all images; ``steps`` are elements from one channel and
    from one row to the next.
    """
    _, channels, height, width = real.shape
    factor, offset = scale[0], np.int32(zero)
    first, end = share(images * channels * height, part, parts)
    for line in range(first, end):
        n, row = line // (channels * height), line % (channels * height)
        c, i = row // height, row % height
        start = c * steps[0] + i * steps[1]
        source, target = x[n].reshape(-1)[start : start + width], real[n, c, i]
        for j in range(width):
            target[j] = np.float32(np.int32(source[j]) - offset) * factor
    return 0


@jit
def give_rows(part: int, parts: int, images: int, x: Array, given: Array, above: Array, steps: tuple[int, int]) -> int:
    """As `elementwise.give_integers`, with ``part``, ``parts`` and ``steps`` as above; ``above`` is int64 [1]."""
    _, channels, height, width = given.shape
    first, end = share(images * channels * height, part, parts)
    for line in range(first, end):
        n, row = line // (channels * height), line % (channels * height)
        c, i = row // height, row % height
        start = c * steps[0] + i * steps[1]
        source, target = x[n].reshape(-1)[start : start + width], given[n, c, i]
        for j in range(width):
            target[j] = np.int32(source[j]) + np.int32(above[0])
    return 0
