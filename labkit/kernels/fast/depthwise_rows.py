"""Depthwise convolution on bytes, for kernels of three columns: neighbouring outputs of a row at a time.

Four neighbouring pixels of sixteen channels are brought into the order channel by channel, so that one `simd.quad_dot`
multiplies a row of the kernel with each of them. With stride 1 the same four pixels serve two outputs: the second meets
the weights moved by one place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast import simd
from labkit.kernels.fast.conv import Windows
from labkit.kernels.fast.finish import CHANNELS, Sums, biases, finish_for
from labkit.kernels.fast.packing import aligned_zeros, rounded_up
from labkit.kernels.fast.shares import share
from labkit.kernels.fast.tile import Dot
from labkit.kernels.jit import jit

__all__ = ["COLUMNS", "depthwise_rows_kernel", "pack_rows", "tile_width"]

COLUMNS = 3  # of a kernel

Array = NDArray[Any]
Values = list[ir.Value]

_QUAD = 4  # pixels that meet one row of the kernel
_WIDEST = 8  # outputs of a tile: a vector of sums each


def tile_width(width: int) -> int:
    """How many of the ``width`` outputs of a row to take at a time: the largest number that repeats fewest of them."""
    return min(range(min(_WIDEST, width), (min(_WIDEST, width) + 1) // 2, -1), default=width, key=lambda t: -width % t)


def pack_rows(weights: NDArray[np.integer]) -> NDArray[np.int8]:
    """``weights`` int8 [C, rows, 3] as int8 ``[C / 16, rows, 2, 16, 4]``: for the first and the second of two outputs."""
    channels, rows, columns = weights.shape
    full = np.zeros((rounded_up(channels), rows, 2, _QUAD), np.int8)
    for place in range(2):
        full[:channels, :, place, place : place + columns] = weights
    panels = full.reshape(-1, CHANNELS, rows, 2, _QUAD).transpose(0, 2, 3, 1, 4)
    packed = aligned_zeros(panels.shape, np.int8)
    packed[...] = panels
    return packed


def _row_tile(dot: Dot, width: int, stride: int, rule: RoundingRule) -> Any:
    """The intrinsic for ``width`` neighbouring outputs of 16 channels; see its use for the arguments."""
    finish = finish_for(rule)
    kind, quad = ir.VectorType(simd.I32, CHANNELS), ir.VectorType(simd.I8, _QUAD * CHANNELS)
    by_channel = ir.Constant(
        ir.VectorType(simd.I32, quad.count), [k * CHANNELS + c for c in range(CHANNELS) for k in range(_QUAD)]
    )

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing_context, y, source, row_bytes, pixel_bytes, rows, weights, target, into_bytes, epilogue, low, high
    ):
        stored = simd.stored_type(y.dtype)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, source, row_bytes, pixel_bytes, rows, weights, target, into_bytes, *rest = arguments
            pixel_offsets = [builder.mul(pixel_bytes, simd.I64(j)) for j in range((width - 1) * stride + COLUMNS)]

            def quad_at(row: ir.Value, first: int) -> ir.Value:
                """Pixels ``first`` .. ``first + 3`` channel by channel; one beyond the last stands in for the last."""
                places = [min(first + k, len(pixel_offsets) - 1) for k in range(_QUAD)]
                loaded = [
                    simd.load(builder, builder.add(row, pixel_offsets[place]), ir.VectorType(simd.I8, CHANNELS))
                    for place in places
                ]
                low, high = simd.join(builder, *loaded[:2]), simd.join(builder, *loaded[2:])
                together = simd.join(builder, low, high)
                return builder.shuffle_vector(together, ir.Constant(quad, ir.Undefined), by_channel)

            def one_row(state: Values) -> Values:
                row, read, *sums = state
                taps = [simd.load(builder, simd.add_bytes(builder, read, quad.count * k), quad) for k in range(2)]
                for j in range(0, width, 3 - stride):
                    pixels = quad_at(row, j * stride)
                    for k in range(min(3 - stride, width - j)):
                        sums[j + k] = simd.quad_dot(builder, sums[j + k], pixels, taps[k], dot.is_native)
                return [builder.add(row, row_bytes), simd.add_bytes(builder, read, 2 * quad.count), *sums]

            bias = biases(builder, rest[0], 1, kind)[0][0]
            _, _, *totals = simd.counted_loop(builder, rows, [source, weights, *[bias] * width], one_row)
            sums: Sums = {(j, 0): [total] for j, total in enumerate(totals)}
            targets = [builder.add(target, builder.mul(into_bytes, simd.I64(j))) for j in range(width)]
            finish(builder, sums, targets, rest, stored)
            return context.get_dummy_value()

        return types.void(y, *[types.int64] * 10), generate

    return tile


@cache
def depthwise_rows_kernel(dot: Dot, width: int, stride: int, rule: RoundingRule) -> Callable[..., int]:
    """The kernel for tiles of ``width`` outputs (`tile_width`) and a horizontal ``stride`` of 1 or 2, finished by ``rule``."""
    tile = _row_tile(dot, width, stride, rule)

    def depthwise_rows(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        weights: Array,
        epilogue: Array,
        dilation: int,
        clamp: tuple[int, int],
        windows: Windows,
    ) -> int:
        """One filter for each channel.

        part, parts : the share of this call, of all rows of all images
        x, y : uint8 (y int16 too) [N, H, W, C], the input's and the output's buffer
        weights : of `pack_rows`; epilogue : of `packing.pack_epilogue`, for vectors of 16
        dilation : of the kernel's rows
        clamp : lowest and highest result, as they are stored
        """
        first, end = share(images * windows.height, part, parts)
        row_bytes, pixel_bytes, into_bytes = dilation * x.strides[1], x.strides[2], y.strides[2]
        for line in range(first, end):
            n, i = line // windows.height, line % windows.height
            source = x.ctypes.data + n * x.strides[0] + (windows.top + i * windows.stride_h) * x.strides[1]
            target = y.ctypes.data + n * y.strides[0] + (windows.into_top + i) * y.strides[1]
            for p in range(weights.shape[0]):
                panel = weights.ctypes.data + p * weights.strides[0]
                constants = epilogue.ctypes.data + p * epilogue.strides[0]
                for start in range(0, windows.width, width):
                    j = min(start, windows.width - width)  # the last may reach back: the same numbers again
                    tile(
                        y,
                        source + (windows.left + j * stride) * pixel_bytes + CHANNELS * p,
                        row_bytes,
                        pixel_bytes,
                        weights.shape[1],
                        panel,
                        target + (windows.into_left + j) * into_bytes + CHANNELS * y.itemsize * p,
                        into_bytes,
                        constants,
                        clamp[0],
                        clamp[1],
                    )
        return 0

    name = f"depthwise_rows_{dot.value}_{width}_{stride}_{rule.value}"
    depthwise_rows.__name__ = depthwise_rows.__qualname__ = name
    return jit(depthwise_rows)
