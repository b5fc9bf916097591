"""The border into an integer network for images of few channels, whose pixels lie side by side without filling lanes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.kernels.fast import simd
from labkit.kernels.fast.elementwise import Corner
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["PIXELS", "quantize_kernel"]

PIXELS = 16  # at a time: an image must be at least as wide

Array = NDArray[Any]


def _quantize_pixels(channels: int) -> Any:
    @intrinsic
    def quantize_pixels(typing_context, y, source, plane_bytes, target, scale, low, high, zero):  # type: ignore[no-untyped-def]
        """Sixteen pixels at ``source`` of each plane, interleaved from ``target`` on. Returns how many are NaN."""
        stored = simd.stored_type(y.dtype)
        real, wide = ir.VectorType(simd.F32, PIXELS), ir.VectorType(simd.I32, PIXELS)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, source, plane_bytes, target, *numbers = arguments
            scale, low, high, zero = (simd.splat(builder, number, real) for number in numbers)
            rows, not_numbers = [], simd.I64(0)
            for _ in range(channels):
                pixels = simd.load(builder, source, real)
                is_none = builder.bitcast(builder.fcmp_unordered("uno", pixels, pixels), simd.I16)
                not_numbers = builder.add(not_numbers, builder.zext(builder.ctpop(is_none), simd.I64))
                quotient = simd.round_half_even(builder, builder.fdiv(pixels, scale))
                # a NaN becomes ``low``, so that the conversion is defined
                whole = builder.fptosi(builder.fadd(simd.clamp_float(builder, quotient, low, high), zero), wide)
                rows.append(builder.trunc(whole, ir.VectorType(stored, PIXELS)))
                source = builder.add(source, plane_bytes)
            for first in range(0, PIXELS * channels, PIXELS):
                places = range(first, first + PIXELS)
                part = rows[0]
                for c, row in enumerate(rows):  # place p holds channel p % channels of pixel p // channels
                    lanes = [
                        p // channels + (PIXELS if p % channels == c else 0)
                        if p % channels == c or c == 0
                        else p - first
                        for p in places
                    ]
                    part = builder.shuffle_vector(part, row, ir.Constant(wide, lanes))
                simd.store(builder, part, simd.add_bytes(builder, target, first * stored.width // 8))
            return not_numbers

        return types.int64(y, *[types.int64] * 3, *[types.float32] * 4), generate

    return quantize_pixels


@cache
def quantize_kernel(channels: int) -> Callable[..., int]:
    """`elementwise.quantize` for images of ``channels`` that are at least `PIXELS` wide, in a buffer of as many lanes.

    It may count a NaN more than once.
    """
    quantize_pixels = _quantize_pixels(channels)

    def quantize(part: int, parts: int, images: int, real: Array, y: Array, numbers: Array, corner: Corner) -> int:
        not_numbers = 0
        _, _, height, width = real.shape
        scale, low, high, zero = numbers[0], numbers[1], numbers[2], numbers[3]
        first, end = share(images * height, part, parts)
        for line in range(first, end):
            n, i = line // height, line % height
            source = real.ctypes.data + n * real.strides[0] + i * real.strides[2]
            target = y.ctypes.data + n * y.strides[0] + (corner.top + i) * y.strides[1] + corner.left * y.strides[2]
            for start in range(0, width, PIXELS):
                j = min(start, width - PIXELS)  # the last may reach back: the same numbers again
                into = target + j * y.strides[2]
                not_numbers += quantize_pixels(y, source + 4 * j, real.strides[1], into, scale, low, high, zero)
        return not_numbers

    quantize.__name__ = quantize.__qualname__ = f"quantize_{channels}"
    return jit(quantize)
