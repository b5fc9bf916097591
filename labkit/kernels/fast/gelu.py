"""I-BERT's i-GELU. See `reference_transformer.i_gelu`, and eq. 48.

Where the constants keep everything before the requantization within int32, as they do for an input of 16 bits and a range of
8 to 32, it is computed sixteen numbers at a time and finished in registers. Else products are made one by one in int64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.arithmetic.ibert import GELU_SHIFT
from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast import simd
from labkit.kernels.fast.finish import FINISHES, Finish, add_biases
from labkit.kernels.fast.requantize import Patch
from labkit.kernels.fast.shares import share
from labkit.kernels.fast.tile import Registers
from labkit.kernels.jit import jit

__all__ = ["Polynomial", "gelu_kernel", "gelu_products", "largest_product", "stays_in_int32"]

Array = NDArray[Any]


class Polynomial(NamedTuple):
    """The constants of i-GELU, all negative: `int_ops.GeluPolynomial`."""

    b: int
    c: int
    one: int


def largest_product(constants: Polynomial, largest: int) -> int:
    """The largest magnitude of what is requantized, for inputs of a magnitude up to ``largest``; it may be somewhat less."""
    return ((_largest_square(constants) >> GELU_SHIFT) + 1 - constants.one) * largest


def stays_in_int32(constants: Polynomial, largest: int) -> bool:
    """Whether no number before the requantization leaves int32 for inputs of a magnitude up to ``largest``."""
    return _largest_square(constants) < 2**31 and largest_product(constants, largest) < 2**31


def _largest_square(constants: Polynomial) -> int:
    """The largest magnitude of the parabola and of the square in it."""
    return max(-constants.c, abs(constants.b**2 + constants.c), constants.b**2)


def _gelu_of(finish: Finish, lanes: int) -> Any:
    """The intrinsic for sixteen neighbouring numbers, in vectors of ``lanes``."""

    @intrinsic
    def gelu_of(typing_context, x, y, source, target, epilogue, low, high, b, c, one, zero):  # type: ignore[no-untyped-def]
        """The numbers at the address ``source`` to the address ``target``; ``zero`` stands for real 0 in ``x``."""
        come, stored = simd.stored_type(x.dtype), simd.stored_type(y.dtype)
        kind, short = ir.VectorType(simd.I32, lanes), ir.VectorType(simd.I16, 16)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, _, source, target, *rest, b, c, one, zero = arguments
            b, c, one = (simd.splat(builder, builder.trunc(number, simd.I32), kind) for number in (b, c, one))
            zeros = None if come is simd.I16 else simd.splat(builder, builder.trunc(zero, simd.I16), short)
            none, down = ir.Constant(kind, None), ir.Constant(kind, [GELU_SHIFT] * lanes)
            wide = builder.sext(simd.load_centred(builder, source, come, zeros), simd.V16I32)
            row = []
            for q in [wide] if lanes == 16 else simd.halves(builder, wide):
                is_negative, opposite = builder.icmp_signed("<", q, none), builder.neg(q)
                far = builder.add(builder.select(is_negative, opposite, q), b)  # |q| + b, which counts up to 0
                near = builder.select(builder.icmp_signed("<", far, none), far, none)
                square = builder.add(builder.mul(near, near), c)
                shifted = builder.ashr(builder.select(is_negative, builder.neg(square), square), down)
                row.append(builder.mul(opposite, builder.add(shifted, one)))  # where q is 0 so is the product
            finish(builder, add_biases(builder, {(0, 0): row}, rest[0]), [target], rest, stored)
            return context.get_dummy_value()

        return types.void(x, y, *[types.int64] * 9), generate

    return gelu_of


@cache
def gelu_kernel(registers: Registers, rule: RoundingRule) -> Callable[..., int]:
    """The kernel that works in int32 and in vectors of ``registers``, finished by ``rule``, one of `finish.FINISHES`."""
    gelu_of = _gelu_of(FINISHES[rule], registers.lanes)

    def gelu(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        epilogue: Array,
        clamp: tuple[int, int],
        constants: Polynomial,
        zero: int,
        patch: Patch,
    ) -> int:
        """i-GELU of every pixel and channel of ``patch``.

        part, parts : the share of this call, of all pixels of all images
        x, y : int16 or uint8 [N, H, W, C]; lanes after the last channel of ``y`` get numbers without meaning
        epilogue : from `packing.pack_epilogue`, the same for all channels
        clamp : of the output, as it is stored
        zero : the number that stands for real 0 in ``x``
        """
        length = patch.height * patch.width
        vectors = (patch.channels + 15) // 16
        come_by, go_by = 16 * x.itemsize, 16 * y.itemsize
        first, end = share(images * length, part, parts)
        for at in range(first, end):
            n, pixel = at // length, at % length
            i, j = pixel // patch.width, pixel % patch.width
            source = x.ctypes.data + n * x.strides[0] + (patch.top + i) * x.strides[1]
            source += (patch.left + j) * x.strides[2]
            target = y.ctypes.data + n * y.strides[0] + (patch.into_top + i) * y.strides[1]
            target += (patch.into_left + j) * y.strides[2]
            for v in range(vectors):
                come, go = source + v * come_by, target + v * go_by
                b, c, one = constants.b, constants.c, constants.one
                gelu_of(x, y, come, go, epilogue.ctypes.data, clamp[0], clamp[1], b, c, one, zero)
        return 0

    gelu.__name__ = gelu.__qualname__ = f"gelu_{registers.value}_{rule.value}"
    return jit(gelu)


@jit
def gelu_products(
    part: int,
    parts: int,
    images: int,
    x: Array,
    sums: Array,
    constants: Polynomial,
    zero: int,
    patch: Patch,
) -> int:
    """What i-GELU requantizes, for every pixel and channel of ``patch``: int32 ``sums`` [N, H, W, C], from their first pixel on.

    ``part`` of ``parts`` is the share of this call, of all rows of all images; ``zero`` stands for real 0 in ``x``.

    Returns how many do not fit int32.
    """
    overflows = 0
    first, end = share(images * patch.height, part, parts)
    for line in range(first, end):
        n, i = line // patch.height, line % patch.height
        for j in range(patch.width):
            source, target = x[n, patch.top + i, patch.left + j], sums[n, i, j]
            for c in range(patch.channels):
                q = np.int64(source[c]) - zero
                far: Any = min(abs(q), -constants.b)
                near = far + constants.b
                square = near * near + constants.c
                product = -q * (((square if q > 0 else -square) >> GELU_SHIFT) + constants.one)
                overflows += 0 if -(2**31) <= product < 2**31 else 1
                target[c] = np.int32(product)
    return overflows
