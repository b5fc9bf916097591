"""I-BERT's i-LayerNorm. See `reference_transformer.i_layer_norm`, and eqs. 49 and 50."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.requantize import Patch
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["i_layer_norm"]

Array = NDArray[Any]


@jit
def _root(square: int) -> int:
    """``floor(sqrt(square))`` of 0..2**62 by Newton's method on integers (I-BERT, algorithm 4), from a power of two above."""
    if square == 0:
        return 0
    bits = np.int64(0)
    for step in (32, 16, 8, 4, 2, 1):
        if square >> (bits + step) != 0:
            bits += step
    root = np.int64(1) << (bits // 2 + 1)
    while True:
        lower: Any = (root + square // root) >> 1
        if lower >= root:
            return root  # type: ignore[return-value]
        root = lower


@jit
def i_layer_norm(
    part: int,
    parts: int,
    images: int,
    x: Array,
    y: Array,
    work: Array,
    multipliers: Array,
    addends: Array,
    shift: int,
    epsilon: int,
    clamp: tuple[int, int],
    zeros: tuple[int, int],
    patch: Patch,
) -> int:
    """Each pixel of ``x``: its channels less their mean, over their standard deviation, times gamma, plus beta.

    part, parts : the share of this call, of all pixels of all images
    x, y : int16 or uint8 [N, H, W, C]
    work : int32 [C], scratch
    multipliers : int32 [C]; addends : int64 [C], with the half of 2**shift that rounds
    epsilon : added to the sum of squares
    clamp : of the result, whose zero point is 0
    zeros : the numbers that stand for real 0 in ``x`` and ``y``
    """
    features, length = patch.channels, patch.height * patch.width
    centred = work[:features]
    first, end = share(images * length, part, parts)
    for at in range(first, end):
        n, pixel = at // length, at % length
        i, j = pixel // patch.width, pixel % patch.width
        source = x[n, patch.top + i, patch.left + j]
        target = y[n, patch.into_top + i, patch.into_left + j]
        total = np.int64(0)
        for c in range(features):
            total += np.int64(source[c])
        mean = total // features  # the numbers as they are stored: what stands for 0 drops out but for ties
        rest = total - mean * features
        if 2 * rest > features or (2 * rest == features and (mean - zeros[0]) % 2 != 0):
            mean += 1
        squares: Any = np.int64(epsilon)
        for c in range(features):
            apart = np.int32(np.int64(source[c]) - mean)
            centred[c] = apart
            squares += np.int64(apart) * np.int64(apart)
        deviation = max(_root(squares), 1)
        # 2**31 // 1 would not fit int32: where the deviation is 1 the product is doubled and halved by doing neither
        factor = np.int32((np.int64(1) << 31) // deviation if deviation > 1 else np.int64(1) << 30)
        halved = 1 if deviation > 1 else 0
        for c in range(features):
            centred[c] = np.int32((np.int64(centred[c]) * np.int64(factor)) >> halved)
        for c in range(features):
            q = (np.int64(centred[c]) * np.int64(multipliers[c]) + addends[c]) >> shift
            target[c] = min(max(q, clamp[0]), clamp[1]) + zeros[1]
    return 0
