"""Depthwise convolution: one filter for each channel, so sixteen neighbouring channels at a time. See `reference.conv2d`.

There is no sum over channels that `simd.pair_dot` could take in pairs. It takes two elements of the kernel instead: the
pixels under both are interleaved, channel by channel, and meet weights packed in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast import simd
from labkit.kernels.fast.conv import BLOCK, Windows, fill_tables
from labkit.kernels.fast.finish import CHANNELS, FINISHES, Finish, Sums, add_biases, unfinished
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["DEPTHWISE", "DEPTHWISE_SUMS", "tap_offsets"]

Array = NDArray[Any]
Values = list[ir.Value]

POSITIONS = 6  # of a tile: 12 vectors of sums
VECTORS = CHANNELS // simd.LANES


def _depthwise_tile(finish: Finish) -> Any:
    @intrinsic
    def tile(typing_context, x, y, sources, targets, taps, pairs, weights, epilogue, low, high):  # type: ignore[no-untyped-def]
        come, stored = simd.stored_type(x.dtype), simd.stored_type(y.dtype)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, _, sources, targets, taps, pairs, weights, *rest = arguments

            def table(start: ir.Value) -> Values:
                return [simd.load(builder, simd.add_bytes(builder, start, 8 * r), simd.I64) for r in range(POSITIONS)]

            positions = table(sources)

            def one_pair(state: Values) -> Values:
                tap, read, *sums = state
                offsets = [simd.load(builder, simd.add_bytes(builder, tap, 8 * k), simd.I64) for k in range(2)]
                both = [
                    simd.load(builder, simd.add_bytes(builder, read, 2 * CHANNELS * v), simd.V16I16)
                    for v in range(VECTORS)
                ]
                for r, position in enumerate(positions):
                    pixels = [simd.load_centred(builder, builder.add(position, at), come, None) for at in offsets]
                    for v, mixed in enumerate(simd.interleave(builder, *pixels)):
                        at = r * VECTORS + v
                        sums[at] = builder.add(sums[at], simd.pair_dot(builder, mixed, both[v]))
                return [simd.add_bytes(builder, tap, 16), simd.add_bytes(builder, read, 4 * CHANNELS), *sums]

            zeros = [ir.Constant(simd.V8I32, None)] * (POSITIONS * VECTORS)
            _, _, *totals = simd.counted_loop(builder, pairs, [taps, weights, *zeros], one_pair)
            sums: Sums = {
                (r, 0): simd.in_order(builder, *totals[r * VECTORS : (r + 1) * VECTORS]) for r in range(POSITIONS)
            }
            if finish is not unfinished:
                sums = add_biases(builder, sums, rest[0])
            finish(builder, sums, table(targets), rest, stored)
            return context.get_dummy_value()

        return types.void(x, y, *[types.int64] * 8), generate

    return tile


def _kernel(finish: Finish, name: str) -> Callable[..., int]:
    tile = _depthwise_tile(finish)

    def depthwise(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        tables: Array,
        weights: Array,
        epilogue: Array,
        taps: Array,
        clamp: tuple[int, int],
        windows: Windows,
    ) -> int:
        """One filter for each channel, for a kernel of any size.

        part, parts : the share of this call
        x, y : int16 or uint8 [N, H, W, C] (y int32 for sums), the input's and the output's buffer
        tables : int64 [2, BLOCK], scratch
        weights : of `packing.pack_taps`; taps : of `tap_offsets`
        epilogue, clamp : as `conv.conv2d_kernel`; not looked at for sums
        """
        positions = images * windows.height * windows.width
        sources, targets = tables.ctypes.data, tables.ctypes.data + tables.strides[0]
        first_block, end_block = share((positions + BLOCK - 1) // BLOCK, part, parts)
        for first in range(first_block * BLOCK, min(end_block * BLOCK, positions), BLOCK):
            count = (min(BLOCK, positions - first) + POSITIONS - 1) // POSITIONS * POSITIONS
            fill_tables(tables, x, y, windows, first, count, positions - first)
            for p in range(weights.shape[0]):
                panel = weights.ctypes.data + p * weights.strides[0]
                constants = epilogue.ctypes.data + p * epilogue.strides[0]
                for at in range(0, count, POSITIONS):
                    tile(
                        x,
                        y,
                        sources + 8 * at,
                        targets + 8 * at,
                        taps.ctypes.data,
                        weights.shape[1],
                        panel,
                        constants,
                        clamp[0],
                        clamp[1],
                    )
                for at in range(count):
                    tables[0, at] += CHANNELS * x.itemsize
                    tables[1, at] += CHANNELS * y.itemsize
        return 0

    depthwise.__name__ = depthwise.__qualname__ = name
    return jit(depthwise)


# Finished in registers, by rounding rule; and int32 sums without bias
DEPTHWISE: Mapping[RoundingRule, Callable[..., int]] = MappingProxyType(
    {rule: _kernel(finish, f"depthwise_{rule.value}") for rule, finish in FINISHES.items()}
)
DEPTHWISE_SUMS = _kernel(unfinished, "depthwise_sums")


def tap_offsets(
    kernel: tuple[int, int], dilation: tuple[int, int], row_bytes: int, pixel_bytes: int
) -> NDArray[np.int64]:
    """Byte offset of each kernel element from the first, int64 [taps]; the last one twice to make whole pairs."""
    rows = np.arange(kernel[0]) * dilation[0] * row_bytes
    offsets = (rows[:, None] + np.arange(kernel[1]) * dilation[1] * pixel_bytes).reshape(-1).astype(np.int64)
    return np.append(offsets, offsets[-1:]) if offsets.size % 2 else offsets
