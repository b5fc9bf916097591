"""The borders of an integer network and what works number by number. See the same names in `reference`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.requantize import Patch
from labkit.kernels.jit import jit

__all__ = ["Corner", "add", "copy_to_rows", "dequantize", "quantize", "quantize_signs"]

Array = NDArray[Any]


class Corner(NamedTuple):
    """Row and column of an image's first pixel in its buffer."""

    top: int
    left: int


@jit
def quantize(real: Array, y: Array, scale: np.float32, low: np.float32, high: np.float32, corner: Corner) -> int:
    """float32 ``real`` [N, C, H, W] to int16 ``y`` [N', H', W', C'], zero point subtracted. Returns how many are NaN.

    One float32 division, rounded half to even; ``low`` and ``high`` are the ends of the grid less the zero point, so
    that clipping the quotient is the same as clipping the integer.
    """
    not_numbers = 0
    images, channels, height, width = real.shape
    for n in range(images):
        for c in range(channels):
            for i in range(height):
                row = real[n, c, i]
                target = y[n, corner.top + i]
                for j in range(width):
                    quotient = np.rint(row[j] / scale)
                    not_numbers += quotient != quotient
                    target[corner.left + j, c] = np.int16(min(max(quotient, low), high))
    return not_numbers


@jit
def quantize_signs(real: Array, y: Array, corner: Corner) -> int:
    """As `quantize` for the binary grid: +1 where ``real`` is not negative, else -1."""
    not_numbers = 0
    images, channels, height, width = real.shape
    for n in range(images):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    value = real[n, c, i, j]
                    not_numbers += value != value
                    y[n, corner.top + i, corner.left + j, c] = 1 if value >= 0 else -1
    return not_numbers


@jit
def dequantize(x: Array, real: Array, scale: np.float32, corner: Corner) -> int:
    """int16 ``x`` [N', H', W', C'] to float32 ``real`` [N, C, H, W]: one product in float32."""
    images, channels, height, width = real.shape
    for n in range(images):
        for i in range(height):
            for j in range(width):
                pixel = x[n, corner.top + i, corner.left + j]
                for c in range(channels):
                    real[n, c, i, j] = np.float32(pixel[c]) * scale
    return 0


@jit
def copy_to_rows(images: int, x: Array, y: Array, patch: Patch) -> int:
    """An image (H, W, C) in ``x`` to one row of numbers in the order C, H, W in ``y`` [N, 1, 1, C * H * W]."""
    for n in range(images):
        for c in range(patch.channels):
            for i in range(patch.height):
                for j in range(patch.width):
                    at = (c * patch.height + i) * patch.width + j
                    y[n, patch.into_top, patch.into_left, at] = x[n, patch.top + i, patch.left + j, c]
    return 0


@jit
def add(
    images: int,
    a: Array,
    b: Array,
    y: Array,
    multipliers: Array,
    shift: int,
    clamp: tuple[int, int],
    corner_b: Corner,
    patch: Patch,
) -> int:
    """``y = clamp((a m_0 + b m_1 + 2**(shift - 1)) >> shift)`` in int64 (eq. 19); all zero points are subtracted.

    |a|, |b| <= 255 and 32-bit ``multipliers`` keep the sum below 2**41, and half of 2**62 on top fits int64.
    """
    first, second, half = multipliers[0], multipliers[1], np.int64(1) << (shift - 1)
    for n in range(images):
        for i in range(patch.height):
            for j in range(patch.width):
                left = a[n, patch.top + i, patch.left + j]
                right = b[n, corner_b.top + i, corner_b.left + j]
                target = y[n, patch.into_top + i, patch.into_left + j]
                for c in range(patch.channels):
                    rounded = (left[c] * first + right[c] * second + half) >> shift
                    target[c] = np.int16(min(max(rounded, clamp[0]), clamp[1]))
    return 0
