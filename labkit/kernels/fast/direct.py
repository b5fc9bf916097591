"""Convolution in groups, in plain loops. See `reference.conv2d`.

The tile wants sixteen output channels that share their input; grouped layers do not have them. int32 sums
[N, H', W', C] without bias are left to a requantization pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.conv import Windows
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["Taps", "grouped_sums"]

Array = NDArray[Any]


class Taps(NamedTuple):
    """The kernel's size and the distance between its elements."""

    kernel_h: int
    kernel_w: int
    dilation_h: int
    dilation_w: int


@jit
def grouped_sums(
    part: int,
    parts: int,
    images: int,
    x: Array,
    sums: Array,
    weights: Array,
    groups: int,
    taps: Taps,
    windows: Windows,
) -> int:
    """Any number of groups: ``weights`` int8 or int16 [O, kH, kW, C / groups]. The inner loop is a dot product.

    ``part`` of ``parts`` is the share of this call, of all rows of all images; ``x`` is int16 or uint8.
    """
    outputs, depth = weights.shape[0], weights.shape[3]
    first_line, end_line = share(images * windows.height, part, parts)
    for line in range(first_line, end_line):
        n, i = line // windows.height, line % windows.height
        for j in range(windows.width):
            for o in range(outputs):
                first = o // (outputs // groups) * depth
                total = np.int32(0)
                for u in range(taps.kernel_h):
                    row = x[n, windows.top + i * windows.stride_h + u * taps.dilation_h]
                    for v in range(taps.kernel_w):
                        pixel = row[windows.left + j * windows.stride_w + v * taps.dilation_w]
                        w = weights[o, u, v]
                        for c in range(depth):
                            total = np.int32(total + np.int32(pixel[first + c]) * np.int32(w[c]))
                sums[n, i, j, o] = total
    return 0
