"""Means of windows as LiteRT and ONNX Runtime take them. See the same names in `reference`.

Both leave out what lies outside the image, so that no border is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.conv import Windows
from labkit.kernels.fast.direct import Taps
from labkit.kernels.fast.pool import inside
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["average_pool_float32", "average_pool_of_valid"]

Array = NDArray[Any]


@jit
def average_pool_of_valid(
    part: int,
    parts: int,
    images: int,
    x: Array,
    y: Array,
    sums: Array,
    channels: int,
    above: tuple[int, int],
    clamp: tuple[int, int],
    size: tuple[int, int],
    corner: tuple[int, int],
    taps: Taps,
    windows: Windows,
) -> int:
    """Means of the integers themselves, less an offset, ties away from zero (eq. 33).

    part, parts : the share of this call, of all rows of all images
    x, y : int16 or uint8 [N, H, W, C]; sums : int32 [N, H', W', C]
    above : what the integers, less the offset, are above the numbers stored in ``x`` and in ``y``
    clamp : of the integers, less the offset
    size, corner : height and width of the image in ``x``, and where it starts
    windows : ``top`` and ``left`` are those of the first window in the image and negative where it is padded
    """
    first, end = share(images * windows.height, part, parts)
    for line in range(first, end):
        n, i = line // windows.height, line % windows.height
        row = windows.top + i * windows.stride_h
        skip_h, rows = inside(row, taps.kernel_h, 1, size[0])
        row += corner[0] + skip_h
        for j in range(windows.width):
            column = windows.left + j * windows.stride_w
            skip_w, columns = inside(column, taps.kernel_w, 1, size[1])
            column += corner[1] + skip_w
            total = sums[n, i, j]
            total[:channels] = 0
            for u in range(rows):
                for v in range(columns):
                    pixel = x[n, row + u, column + v]
                    for c in range(channels):
                        total[c] = np.int32(total[c] + np.int32(pixel[c]))
            count = rows * columns
            half = count // 2
            target = y[n, windows.into_top + i, windows.into_left + j]
            for c in range(channels):
                whole = np.int64(total[c]) + count * above[0]
                mean: Any = (whole + half) // count if whole >= 0 else -((half - whole) // count)
                target[c] = min(max(mean, clamp[0]), clamp[1]) - above[1]
    return 0


@jit
def average_pool_float32(
    part: int,
    parts: int,
    images: int,
    x: Array,
    y: Array,
    sums: Array,
    channels: int,
    zeros: tuple[int, int],
    clamp: tuple[int, int],
    counts_padding: int,
    reals: Array,
    size: tuple[int, int],
    corner: tuple[int, int],
    taps: Taps,
    windows: Windows,
) -> int:
    """Means of real numbers, each operation rounded to float32, elements summed row by row (eq. 34).

    part, parts : the share of this call, of all rows of all images
    x, y : int16 or uint8 [N, H, W, C]; sums : float32 [N, H', W', C]
    zeros : what stands for real 0 in ``x``, and what the output's integers are above the numbers stored in ``y``
    clamp : of the integers
    counts_padding : 1 where elements outside the image count, else 0
    reals : float32 [3], the scales of input and output and the zero point of the output
    size, corner, taps, windows : as in `average_pool_of_valid`
    """
    scale, scale_y, zero_y = reals[0], reals[1], reals[2]
    zero = np.int32(zeros[0])
    low, high = np.float32(clamp[0]), np.float32(clamp[1])
    first, end = share(images * windows.height, part, parts)
    for line in range(first, end):
        n, i = line // windows.height, line % windows.height
        row = windows.top + i * windows.stride_h
        skip_h, rows = inside(row, taps.kernel_h, 1, size[0])
        row += corner[0] + skip_h
        for j in range(windows.width):
            column = windows.left + j * windows.stride_w
            skip_w, columns = inside(column, taps.kernel_w, 1, size[1])
            column += corner[1] + skip_w
            total = sums[n, i, j]
            total[:channels] = np.float32(0)
            for u in range(rows):
                for v in range(columns):
                    pixel = x[n, row + u, column + v]
                    for c in range(channels):
                        total[c] += np.float32(np.int32(np.int32(pixel[c]) - zero)) * scale
            count = np.float32(taps.kernel_h * taps.kernel_w if counts_padding else rows * columns)
            target = y[n, windows.into_top + i, windows.into_left + j]
            for c in range(channels):
                scaled = np.rint(total[c] / count / scale_y + zero_y)
                target[c] = np.int32(min(max(scaled, low), high)) - np.int32(zeros[1])
    return 0
