"""Adaptive average pooling with windows of differing sizes. See `reference.adaptive_average_pool2d`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.requantize import Patch
from labkit.kernels.jit import jit

__all__ = ["adaptive_average_pool2d"]

Array = NDArray[Any]


@jit
def adaptive_average_pool2d(
    images: int,
    x: Array,
    y: Array,
    sums: Array,
    rows: Array,
    columns: Array,
    area: int,
    scaling: tuple[int, int],
    clamp: tuple[int, int],
    zeros: tuple[int, int],
    patch: Patch,
) -> int:
    """``y = clamp((sum * (area / own area) * mantissa + 2**(shift - 1)) >> shift)`` (eqs. 13 and 27).

    x, y : [N, H, W, C] of any integer dtype; sums : int32 scratch [N, 1, 1, at least C]
    rows, columns : int64 [H', 2] and [W', 2], first and last + 1 of each window in the image
    area : least common multiple of the windows' areas
    scaling : mantissa and shift, 1..62
    clamp : zero point subtracted; zeros : what stands for real 0 in ``x`` and ``y``
    patch : size of the result, place of the image in ``x`` and of the result in ``y``
    """
    mantissa, shift = scaling
    half = np.int64(1) << (shift - 1)
    zero_x = np.int32(zeros[0])
    for n in range(images):
        total = sums[n, 0, 0]
        for i in range(patch.height):
            for j in range(patch.width):
                total[: patch.channels] = 0
                for u in range(rows[i, 0], rows[i, 1]):
                    for v in range(columns[j, 0], columns[j, 1]):
                        pixel = x[n, patch.top + u, patch.left + v]
                        for c in range(patch.channels):
                            total[c] = np.int32(total[c] + np.int32(pixel[c]) - zero_x)
                times = area // ((rows[i, 1] - rows[i, 0]) * (columns[j, 1] - columns[j, 0]))
                target = y[n, patch.into_top + i, patch.into_left + j]
                for c in range(patch.channels):
                    rounded: Any = (np.int64(total[c]) * times * mantissa + half) >> shift
                    target[c] = np.int32(min(max(rounded, clamp[0]), clamp[1])) + np.int32(zeros[1])
    return 0
