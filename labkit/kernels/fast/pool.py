"""Pooling. See `reference.max_pool2d` and `average_pool2d` for what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.kernels.fast import simd
from labkit.kernels.fast.conv import Windows
from labkit.kernels.fast.direct import Taps
from labkit.kernels.fast.finish import CHANNELS
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["average_sums", "inside", "max_pool2d"]

Array = NDArray[Any]

LOWEST = -(2**15)


def _largest_of(channels: int) -> Any:
    """The intrinsic for vectors of so many ``channels``."""

    @intrinsic
    def largest_of(  # type: ignore[no-untyped-def]
        typing_context, x, first, rows, row_bytes, columns, column_bytes, target
    ):
        """The largest of ``rows`` x ``columns`` vectors from address ``first`` on, to address ``target``.

        The numbers are of the type of the array ``x``, int16 or uint8, and so is the result.
        """
        return _generator(x, channels)

    return largest_of


def _generator(x: Any, channels: int) -> Any:
    kind = ir.VectorType(simd.stored_type(x.dtype), channels)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        _, first, rows, row_bytes, columns, column_bytes, target = arguments

        def one_pixel(state: list[ir.Value]) -> list[ir.Value]:
            address, largest = state
            pixel = simd.load(builder, address, kind)
            is_larger = (builder.icmp_signed if x.dtype.signed else builder.icmp_unsigned)(">", pixel, largest)
            return [builder.add(address, column_bytes), builder.select(is_larger, pixel, largest)]

        def one_row(state: list[ir.Value]) -> list[ir.Value]:
            address, largest = state
            _, largest = simd.counted_loop(builder, columns, [address, largest], one_pixel)
            return [builder.add(address, row_bytes), largest]

        lowest = ir.Constant(kind, [LOWEST if x.dtype.signed else 0] * channels)
        _, largest = simd.counted_loop(builder, rows, [first, lowest], one_row)
        simd.store(builder, largest, target)
        return context.get_dummy_value()

    return types.void(x, *[types.int64] * 6), generate


_largest_16, _largest_64 = _largest_of(CHANNELS), _largest_of(4 * CHANNELS)


@jit
def inside(start: int, taps: int, step: int, size: int) -> tuple[int, int]:
    """The first tap and the number of taps of a window that lie in ``0 .. size - 1``."""
    skipped = max(0, (-start + step - 1) // step)
    return skipped, min(taps, (size - 1 - start) // step + 1) - skipped


@jit
def max_pool2d(
    part: int,
    parts: int,
    images: int,
    x: Array,
    y: Array,
    size: tuple[int, int],
    corner: tuple[int, int],
    taps: Taps,
    windows: Windows,
) -> int:
    """Max pooling, sixteen channels at a time. Elements outside the image are left out, because 0 could win over them.

    part, parts : the share of this call, of all rows of all images
    x, y : both int16 or both uint8 [N, H, W, C]; the lanes of ``y`` beyond the last channel get numbers without meaning
    size, corner : height and width of the image in ``x``, and where it starts
    windows : ``top`` and ``left`` are those of the first window in the image and negative where it is padded
    """
    column_bytes = taps.dilation_w * x.strides[2]
    row_bytes = taps.dilation_h * x.strides[1]
    first, end = share(images * windows.height, part, parts)
    for line in range(first, end):
        n, i = line // windows.height, line % windows.height
        row = windows.top + i * windows.stride_h
        skip_h, rows = inside(row, taps.kernel_h, taps.dilation_h, size[0])
        row += corner[0] + skip_h * taps.dilation_h
        for j in range(windows.width):
            column = windows.left + j * windows.stride_w
            skip_w, columns = inside(column, taps.kernel_w, taps.dilation_w, size[1])
            column += corner[1] + skip_w * taps.dilation_w
            source = x.ctypes.data + n * x.strides[0] + row * x.strides[1] + column * x.strides[2]
            target = (
                y.ctypes.data
                + n * y.strides[0]
                + (windows.into_top + i) * y.strides[1]
                + (windows.into_left + j) * y.strides[2]
            )
            whole = y.shape[3] - y.shape[3] % (4 * CHANNELS)
            for c in range(0, whole, 4 * CHANNELS):
                at = c * x.itemsize
                _largest_64(x, source + at, rows, row_bytes, columns, column_bytes, target + at)
            for c in range(whole, y.shape[3], CHANNELS):
                at = c * x.itemsize
                _largest_16(x, source + at, rows, row_bytes, columns, column_bytes, target + at)
    return 0


@jit
def average_sums(
    part: int, parts: int, images: int, x: Array, sums: Array, channels: int, taps: Taps, windows: Windows
) -> int:
    """int32 ``sums`` [N, H', W', C] over windows of int16 or uint8 ``x`` [N, H, W, C], whose border is real 0 and counts.

    ``part`` of ``parts`` is the share of this call, of all rows of all images.
    """
    first, end = share(images * windows.height, part, parts)
    for line in range(first, end):
        n, i = line // windows.height, line % windows.height
        for j in range(windows.width):
            total = sums[n, i, j]
            total[:channels] = 0
            for u in range(taps.kernel_h):
                for v in range(taps.kernel_w):
                    pixel = x[n, windows.top + i * windows.stride_h + u, windows.left + j * windows.stride_w + v]
                    for c in range(channels):
                        total[c] = np.int32(total[c] + np.int32(pixel[c]))
    return 0
