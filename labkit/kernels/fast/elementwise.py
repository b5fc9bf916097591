"""The borders of an integer network and what works number by number. See the same names in `reference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.kernels.fast import simd
from labkit.kernels.fast.requantize import Patch
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = [
    "Corner",
    "add",
    "add_vectors",
    "copy_to_rows",
    "dequantize",
    "give_integers",
    "quantize",
    "quantize_signs",
    "split_multipliers",
    "take_integers",
]

Array = NDArray[Any]


class Corner(NamedTuple):
    """Row and column of an image's first pixel in its buffer."""

    top: int
    left: int


@jit
def quantize(part: int, parts: int, images: int, real: Array, y: Array, numbers: Array, corner: Corner) -> int:
    """float32 ``real`` [N, C, H, W] to int16 or uint8 ``y`` [N', H', W', C']. Returns how many are NaN.

    part, parts : the share of this call, of all rows of all images
    numbers : float32 [4]: the scale, the ends of the grid less the zero point, and what stands for real 0 in ``y``

    One float32 division, rounded half to even; clipping the quotient is the same as clipping the integer.
    """
    not_numbers = 0
    _, channels, height, width = real.shape
    scale, low, high, zero = numbers[0], numbers[1], numbers[2], numbers[3]
    first, end = share(images * height, part, parts)
    for line in range(first, end):
        n, i = line // height, line % height
        target = y[n, corner.top + i]
        for c in range(channels):
            row = real[n, c, i]
            for j in range(width):
                quotient = np.rint(row[j] / scale)
                not_numbers += quotient != quotient
                target[corner.left + j, c] = np.int16(min(max(quotient, low), high) + zero)
    return not_numbers


@jit
def quantize_signs(part: int, parts: int, images: int, real: Array, y: Array, numbers: Array, corner: Corner) -> int:
    """As `quantize` for the binary grid: +1 where ``real`` is not negative, else -1; ``y`` is int16."""
    not_numbers = 0
    _, channels, height, width = real.shape
    first, end = share(images * height, part, parts)
    for line in range(first, end):
        n, i = line // height, line % height
        for c in range(channels):
            for j in range(width):
                value = real[n, c, i, j]
                not_numbers += value != value
                y[n, corner.top + i, corner.left + j, c] = 1 if value >= 0 else -1
    return not_numbers


@jit
def dequantize(
    part: int, parts: int, images: int, x: Array, real: Array, scale: Array, zero: int, corner: Corner
) -> int:
    """int16 or uint8 ``x`` [N', H', W', C'] to float32 ``real`` [N, C, H, W]: one product in float32.

    part, parts : the share of this call, of all rows of all images
    scale : float32 [1]
    zero : what stands for real 0 in ``x``
    """
    _, channels, height, width = real.shape
    factor, offset = scale[0], np.int32(zero)
    first, end = share(images * height, part, parts)
    for line in range(first, end):
        n, i = line // height, line % height
        for j in range(width):
            pixel = x[n, corner.top + i, corner.left + j]
            for c in range(channels):
                real[n, c, i, j] = np.float32(np.int32(pixel[c]) - offset) * factor
    return 0


@jit
def take_integers(part: int, parts: int, images: int, given: Array, y: Array, above: Array, corner: Corner) -> int:
    """Integers ``given`` [N, C, H, W] of any dtype to int16, uint8 or int32 ``y`` [N', H', W', C'].

    part, parts : the share of this call, of all rows of all images
    above : int64 [1], what the integers are above the numbers stored in ``y``
    """
    _, channels, height, width = given.shape
    first, end = share(images * height, part, parts)
    for line in range(first, end):
        n, i = line // height, line % height
        target = y[n, corner.top + i]
        for c in range(channels):
            row = given[n, c, i]
            for j in range(width):
                target[corner.left + j, c] = np.int32(row[j]) - np.int32(above[0])
    return 0


@jit
def give_integers(part: int, parts: int, images: int, x: Array, given: Array, above: Array, corner: Corner) -> int:
    """The integers stored in ``x`` [N', H', W', C'] to ``given`` [N, C, H, W]; the opposite of `take_integers`.

    ``part`` of ``parts`` is the share of this call, of all rows of all images; ``above`` int64 [1].
    """
    _, channels, height, width = given.shape
    first, end = share(images * height, part, parts)
    for line in range(first, end):
        n, i = line // height, line % height
        for j in range(width):
            pixel = x[n, corner.top + i, corner.left + j]
            for c in range(channels):
                given[n, c, i, j] = np.int32(pixel[c]) + np.int32(above[0])
    return 0


@jit
def copy_to_rows(part: int, parts: int, images: int, x: Array, y: Array, patch: Patch) -> int:
    """An image (H, W, C) in ``x`` to one row of numbers in the order C, H, W in ``y`` [N, 1, 1, C * H * W].

    ``part`` of ``parts`` is the share of this call, of the images. Both arrays are int16, or both uint8 with one zero.
    """
    first, end = share(images, part, parts)
    for n in range(first, end):
        for c in range(patch.channels):
            for i in range(patch.height):
                for j in range(patch.width):
                    at = (c * patch.height + i) * patch.width + j
                    y[n, patch.into_top, patch.into_left, at] = x[n, patch.top + i, patch.left + j, c]
    return 0


def split_multipliers(
    multipliers: Array, shift: int, largest: Sequence[int] = (255, 255)
) -> tuple[int, int, int] | None:
    """The numbers of `add_vectors`: high halves, low halves and shift. None where 32 bits do not suffice.

    With ``m = high * 2**15 + low`` and 0 <= low < 2**15 the sum of eq. 19 is ``H * 2**15 + L`` with ``H = a high_0 +
    b high_1`` and ``L = a low_0 + b low_1``, both below 2**24 for |a|, |b| <= 255; ``largest`` of the two, up to 2**15, decide
    whether they fit 32 bits. From a shift of 16 on the half that is added is a multiple of 2**15, and shifting by 15 first
    loses nothing that a floor would look at::

        (H * 2**15 + L + 2**(shift - 1)) >> shift = (H + (L >> 15) + 2**(shift - 16)) >> (shift - 15)

    Each pair of halves is returned as one number of 32 bits, ready to be repeated over a vector.
    """
    high, low = multipliers.astype(np.int64) >> 15, multipliers.astype(np.int64) & (2**15 - 1)
    if not (16 <= shift <= 45 and high.min() >= 0 and high.max() < 2**15):
        return None
    sums = [sum(int(a) * int(part) for a, part in zip(largest, parts, strict=True)) for parts in (high, low)]
    if sums[1] >= 2**31 or sums[0] + (sums[1] >> 15) + 1 + (1 << (shift - 16)) >= 2**31:
        return None
    return int(high[0] | high[1] << 16), int(low[0] | low[1] << 16), shift - 15


def _add_of(count: int) -> Any:
    """The intrinsic for ``count`` neighbouring numbers of `add_vectors`."""

    @intrinsic
    def add_of(  # type: ignore[no-untyped-def]
        typing_context, a, b, y, left, right, target, highs, lows, shift, low, high, zero_a, zero_b, zero
    ):
        """The numbers at the addresses ``left`` and ``right``, to the address ``target``."""
        kinds = [simd.stored_type(array.dtype) for array in (a, b)]
        stored = ir.VectorType(simd.stored_type(y.dtype), count)
        short, wide = ir.VectorType(simd.I16, count), ir.VectorType(simd.I32, count // 2)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, _, _, left, right, target, *numbers, zero_a, zero_b, zero = arguments
            highs, lows, shift, low, high, zero = (
                simd.splat(builder, builder.trunc(number, simd.I32), wide) for number in (*numbers, zero)
            )
            zeros = [simd.splat(builder, builder.trunc(number, simd.I16), short) for number in (zero_a, zero_b)]
            centred = [
                simd.load_centred(builder, address, kind, None if kind is simd.I16 else number, count)
                for address, kind, number in zip((left, right), kinds, zeros, strict=True)
            ]
            highs, lows = (builder.bitcast(pair, short) for pair in (highs, lows))
            one, fifteen = (ir.Constant(wide, [number] * wide.count) for number in (1, 15))
            half = builder.shl(one, builder.sub(shift, one))
            results = []
            for both in simd.interleave(builder, *centred):
                fraction = builder.ashr(simd.pair_dot(builder, both, lows), fifteen)
                total = builder.add(builder.add(simd.pair_dot(builder, both, highs), fraction), half)
                results.append(builder.add(simd.clamp(builder, builder.ashr(total, shift), low, high), zero))
            narrow = builder.trunc(simd.join(builder, *simd.in_order(builder, *results)), stored)
            simd.store(builder, narrow, target)
            return context.get_dummy_value()

        return types.void(a, b, y, *[types.int64] * 11), generate

    return add_of


_add_16, _add_64 = _add_of(16), _add_of(64)


@jit
def add_vectors(
    part: int,
    parts: int,
    images: int,
    a: Array,
    b: Array,
    y: Array,
    highs: int,
    lows: int,
    shift: int,
    clamp: tuple[int, int],
    zeros: tuple[int, int, int],
    corner_b: Corner,
    patch: Patch,
) -> int:
    """As `add`, sixteen channels at a time in 32 bits; ``highs``, ``lows`` and ``shift`` from `split_multipliers`."""
    first, end = share(images * patch.height, part, parts)
    for line in range(first, end):
        n, i = line // patch.height, line % patch.height
        left = a.ctypes.data + n * a.strides[0] + (patch.top + i) * a.strides[1] + patch.left * a.strides[2]
        right = b.ctypes.data + n * b.strides[0] + (corner_b.top + i) * b.strides[1] + corner_b.left * b.strides[2]
        into = y.ctypes.data + n * y.strides[0] + (patch.into_top + i) * y.strides[1] + patch.into_left * y.strides[2]
        lanes = y.shape[3]
        # pixels of equally many lanes lie side by side in all three, filling lanes and all
        is_one_run = a.shape[3] == lanes and b.shape[3] == lanes
        runs = 1 if is_one_run else patch.width
        length = patch.width * lanes if is_one_run else (patch.channels + 15) // 16 * 16
        for _ in range(runs):
            whole = length - length % 64
            for c in range(0, whole, 64):
                come_a, come_b, go = left + c * a.itemsize, right + c * b.itemsize, into + c * y.itemsize
                _add_64(a, b, y, come_a, come_b, go, highs, lows, shift, *clamp, *zeros)
            for c in range(whole, length, 16):
                come_a, come_b, go = left + c * a.itemsize, right + c * b.itemsize, into + c * y.itemsize
                _add_16(a, b, y, come_a, come_b, go, highs, lows, shift, *clamp, *zeros)
            left += a.strides[2]
            right += b.strides[2]
            into += y.strides[2]
    return 0


@jit
def add(
    part: int,
    parts: int,
    images: int,
    a: Array,
    b: Array,
    y: Array,
    multipliers: Array,
    shift: int,
    clamp: tuple[int, int],
    zeros: tuple[int, int, int],
    corner_b: Corner,
    patch: Patch,
) -> int:
    """``y = clamp((a m_0 + b m_1 + 2**(shift - 1)) >> shift)`` in int64 (eq. 19); all zero points are subtracted.

    part, parts : the share of this call, of all rows of all images
    a, b, y : int16 or uint8 [N, H, W, C], in each of which one of ``zeros`` stands for real 0

    |a|, |b| <= 2**15 and 32-bit ``multipliers`` keep the sum below 2**48, and half of 2**62 on top fits int64.
    """
    first_multiplier, second_multiplier, half = multipliers[0], multipliers[1], np.int64(1) << (shift - 1)
    first, end = share(images * patch.height, part, parts)
    for line in range(first, end):
        n, i = line // patch.height, line % patch.height
        for j in range(patch.width):
            left = a[n, patch.top + i, patch.left + j]
            right = b[n, corner_b.top + i, corner_b.left + j]
            target = y[n, patch.into_top + i, patch.into_left + j]
            for c in range(patch.channels):
                total = (np.int64(left[c]) - zeros[0]) * first_multiplier
                total += (np.int64(right[c]) - zeros[1]) * second_multiplier
                target[c] = np.int16(min(max((total + half) >> shift, clamp[0]), clamp[1]) + zeros[2])
    return 0
