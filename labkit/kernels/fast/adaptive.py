"""Adaptive average pooling with windows of differing sizes. See `reference.adaptive_average_pool2d`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.requantize import Patch
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["adaptive_sums"]

Array = NDArray[Any]


@jit
def adaptive_sums(
    part: int,
    parts: int,
    images: int,
    x: Array,
    sums: Array,
    rows: Array,
    columns: Array,
    area: int,
    zero: int,
    patch: Patch,
) -> int:
    """int32 ``sums`` [N, H', W', C] of windows of ``x``, each times ``area`` over its own area (eq. 27).

    part, parts : the share of this call, of all rows of all images
    x : [N, H, W, C] of any integer dtype, in which ``zero`` stands for real 0
    rows, columns : int64 [H', 2] and [W', 2], first element and the one after the last of each window in the image
    area : least common multiple of the windows' areas
    patch : size of the result and place of the image in ``x``
    """
    first, end = share(images * patch.height, part, parts)
    for line in range(first, end):
        n, i = line // patch.height, line % patch.height
        for j in range(patch.width):
            total = sums[n, i, j]
            total[: patch.channels] = 0
            for u in range(rows[i, 0], rows[i, 1]):
                for v in range(columns[j, 0], columns[j, 1]):
                    pixel = x[n, patch.top + u, patch.left + v]
                    for c in range(patch.channels):
                        total[c] = np.int32(total[c] + np.int32(np.int32(pixel[c]) - np.int32(zero)))
            times = np.int32(area // ((rows[i, 1] - rows[i, 0]) * (columns[j, 1] - columns[j, 0])))
            for c in range(patch.channels):
                total[c] = np.int32(total[c] * times)
    return 0
