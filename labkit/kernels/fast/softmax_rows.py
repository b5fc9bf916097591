"""I-BERT's i-softmax of rows whose elements lie side by side, sixteen at a time. See `softmax_polynomial`.

What the table of `softmax_polynomial` holds is computed here, in the same integers: with d the distance from the largest
element and l = -ln2, z = d // l and the rest r give P = c - r (b - r), and E = (P m + 2**(s + z - 1)) >> (s + z) follows in
64 bits. The quotient is a product, z = (d k) >> t with k = 2**t // l + 1 and t = 30 and the bits of l: k l exceeds 2**t by l at
most, so that the product is exact for d <= 30 l where 30 l**2 < 2**t, and k has at most 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import EXPONENT_SHIFT, ExpConstants
from labkit.kernels.fast import simd
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["Exponential", "Rows", "exponential_of", "softmax_rows"]

Array = NDArray[Any]
Values = list[ir.Value]

FAR = 1 << 20  # below every element, and farther than any two lie apart
_LANES = 16
_LONGEST = 62  # beyond it a shift leaves nothing
_ROW_MOST = 1 << 16  # elements: the sum of so many exponentials of 15 bits fits int32


class Exponential(NamedTuple):
    """The integers of eqs. 46 and 47: l = -ln2, b, c, the mantissa m and the shift s; then k and t, which divide by l."""

    ln2: int
    b: int
    c: int
    mantissa: int
    shift: int
    reciprocal: int
    reach: int


class Rows(NamedTuple):
    """How many ``rows`` of how many elements, and from one to the next in the source and in the target, in elements."""

    rows: int
    length: int
    source: int
    target: int


def exponential_of(constants: ExpConstants, multiplier: FixedPointMultiplier, length: int) -> Exponential | None:
    """``constants`` and ``multiplier`` for rows of ``length``, or None where 32 bits do not suffice for the polynomial."""
    ln2, b, c, shift = -constants.ln2, constants.b, constants.c, 31 - int(multiplier.exponent)
    fits = ln2 * max(b, ln2) < 2**30 and b >= ln2 and c < 2**30 and length <= _ROW_MOST
    reach = 30 + ln2.bit_length()  # 30 l**2 < 2**reach for l < 2**25
    return Exponential(ln2, b, c, int(multiplier.mantissa), shift, (1 << reach) // ln2 + 1, reach) if fits else None


def _constant(kind: ir.VectorType, number: int) -> ir.Value:
    return ir.Constant(kind, [number] * kind.count)


def _by_64_bits(builder: ir.IRBuilder, x: ir.Value, compute: Callable[[ir.Value, int], ir.Value]) -> ir.Value:
    """Lanes of ``x`` (int32, not negative) widened to 64 bits, ``compute``d as even and as odd lanes, and narrowed again."""
    wide = ir.VectorType(simd.I64, x.type.count // 2)
    thirty_two, low = _constant(wide, 32), _constant(wide, 2**32 - 1)
    pairs = builder.bitcast(x, wide)
    even, odd = compute(builder.and_(pairs, low), 0), compute(builder.lshr(pairs, thirty_two), 1)
    merged = builder.or_(builder.and_(even, low), builder.shl(odd, thirty_two))
    return builder.bitcast(merged, x.type)


def _horizontal(builder: ir.IRBuilder, x: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    while x.type.count > 1:
        low, high = simd.halves(builder, x)
        x = combine(low, high)
    return builder.extract_element(x, simd.I32(0))


@intrinsic
def _largest(typing_context, x, source, hidden, values, chunks):  # type: ignore[no-untyped-def]
    """Elements at ``source`` less those at ``hidden`` (int32) to ``values`` (int32), ``chunks`` of 16; returns the largest."""
    come = simd.stored_type(x.dtype)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _, source, hidden, values, chunks = arguments

        def one(state: Values) -> Values:
            source, hidden, values, largest = state
            wide = builder.sext(simd.load_centred(builder, source, come, None), simd.V16I32)
            seen = builder.sub(wide, simd.load(builder, hidden, simd.V16I32))
            simd.store(builder, seen, values)
            on = [
                simd.add_bytes(builder, at, size) for at, size in ((source, 2 * come.width), (hidden, 64), (values, 64))
            ]
            return [*on, simd.maximum(builder, largest, seen)]

        start = [source, hidden, values, _constant(simd.V16I32, -2 * FAR)]
        *_, largest = simd.counted_loop(builder, chunks, start, one)
        return builder.sext(_horizontal(builder, largest, lambda a, b: simd.maximum(builder, a, b)), simd.I64)

    return types.int64(x, *[types.int64] * 4), generate


@intrinsic
def _exponentials(typing_context, values, chunks, largest, ln2, b, c, mantissa, shift, reciprocal, reach):  # type: ignore[no-untyped-def]
    """E of ``chunks`` of 16 elements at ``values`` (int32), in their place; returns their sum."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        values, chunks, *numbers = arguments
        kind, wide = simd.V16I32, ir.VectorType(simd.I64, _LANES // 2)
        largest, ln2, b, c = (simd.splat(builder, builder.trunc(number, simd.I32), kind) for number in numbers[:4])
        mantissa, shift, reciprocal, reach = (simd.splat(builder, number, wide) for number in numbers[4:])
        thirty_two = _constant(wide, 2**32 - 1)  # both are known to fit 32 bits, so that these are multiplied
        mantissa, reciprocal = builder.and_(mantissa, thirty_two), builder.and_(reciprocal, thirty_two)
        farthest = builder.mul(ln2, _constant(kind, EXPONENT_SHIFT))
        none = ir.Constant(kind, None)
        one_wide, longest = _constant(wide, 1), _constant(wide, _LONGEST)

        def divided(lane: ir.Value, parity: int) -> ir.Value:
            return builder.lshr(builder.mul(lane, reciprocal), reach)

        def one(state: Values) -> Values:
            at, total = state
            apart = builder.sub(largest, simd.load(builder, at, kind))
            is_seen = builder.icmp_signed("<", apart, _constant(kind, FAR // 2))
            within = builder.select(builder.icmp_signed("<", apart, farthest), apart, farthest)
            halvings = _by_64_bits(builder, within, divided)
            rest = builder.sub(within, builder.mul(halvings, ln2))
            power = builder.sub(c, builder.mul(rest, builder.sub(b, rest)))
            power = builder.select(builder.icmp_signed(">", power, none), power, none)
            down = [builder.add(shift, halves) for halves in _halves_of(builder, halvings, wide)]

            def scaled(lane: ir.Value, parity: int) -> ir.Value:
                by = builder.select(builder.icmp_unsigned("<", down[parity], longest), down[parity], longest)
                rounding = builder.shl(one_wide, builder.sub(by, one_wide))
                short = builder.lshr(builder.add(builder.mul(lane, mantissa), rounding), by)
                is_near = builder.icmp_unsigned("<=", down[parity], longest)
                return builder.select(is_near, short, ir.Constant(wide, None))

            short = builder.select(is_seen, _by_64_bits(builder, power, scaled), none)
            simd.store(builder, short, at)
            return [simd.add_bytes(builder, at, 64), builder.add(total, short)]

        _, total = simd.counted_loop(builder, chunks, [values, none], one)
        return builder.sext(_horizontal(builder, total, builder.add), simd.I64)

    return types.int64(*[types.int64] * 10), generate


def _halves_of(builder: ir.IRBuilder, x: ir.Value, wide: ir.VectorType) -> tuple[ir.Value, ir.Value]:
    """The even and the odd lanes of ``x``, int32 and not negative, as int64."""
    pairs = builder.bitcast(x, wide)
    return builder.and_(pairs, _constant(wide, 2**32 - 1)), builder.lshr(pairs, _constant(wide, 32))


@intrinsic
def _shares(typing_context, y, values, target, chunks, factor, half, down, most, zero):  # type: ignore[no-untyped-def]
    """``min((E factor + half) >> down, most) + zero`` of ``chunks`` of 16 E at ``values`` (int32), to ``target``."""
    stored = simd.stored_type(y.dtype)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _, values, target, chunks, *numbers = arguments
        kind, wide = simd.V16I32, ir.VectorType(simd.I64, _LANES // 2)
        factor, half, down = (simd.splat(builder, number, wide) for number in numbers[:3])
        factor = builder.and_(factor, _constant(wide, 2**32 - 1))
        most, zero = (simd.splat(builder, builder.trunc(number, simd.I32), kind) for number in numbers[3:])

        def one(state: Values) -> Values:
            at, target = state

            def scaled(lane: ir.Value, parity: int) -> ir.Value:
                return builder.lshr(builder.add(builder.mul(lane, factor), half), down)

            part = _by_64_bits(builder, simd.load(builder, at, kind), scaled)
            part = builder.add(builder.select(builder.icmp_signed("<", part, most), part, most), zero)
            simd.store(builder, builder.trunc(part, ir.VectorType(stored, _LANES)), target)
            return [simd.add_bytes(builder, at, 64), simd.add_bytes(builder, target, 2 * stored.width)]

        simd.counted_loop(builder, chunks, [values, target], one)
        return context.get_dummy_value()

    return types.void(y, *[types.int64] * 8), generate


@jit
def softmax_rows(
    part: int,
    parts: int,
    images: int,
    x: Array,
    mask: Array,
    y: Array,
    work: Array,
    rows: Rows,
    exponential: Exponential,
    masks: tuple[int, int],
    bits: int,
    zero_y: int,
) -> int:
    """The shares of each of ``rows`` of ``x`` to ``y``.

    part, parts : the share of this call, of all rows of all images
    x, y : int16 or uint8 [N, ...], whose rows start at its first element; rows of ``y`` have room for whole vectors
    mask : int16 or uint8 [N, 1, 1, lanes]
    work : int32 [2, length rounded up to 16], scratch
    masks : whether there is a mask, and the number in it that leaves an element out
    bits : of the result
    zero_y : what stands for real 0 in ``y``
    """
    chunks = (rows.length + _LANES - 1) // _LANES
    hidden, values = work.ctypes.data, work.ctypes.data + work.strides[0]
    half, down, most = np.int64(1) << (31 - bits), 32 - bits, (np.int64(1) << bits) - 1
    ln2, b, c, mantissa, shift, reciprocal, reach = exponential
    first, end = share(images * rows.rows, part, parts)
    filled = -1
    for at in range(first, end):
        n, row = at // rows.rows, at % rows.rows
        if n != filled:
            for k in range(rows.length, work.shape[1]):
                work[0, k] = 2 * FAR
            for k in range(rows.length):
                work[0, k] = FAR if masks[0] != 0 and mask[n, 0, 0, k] == masks[1] else 0
            filled = n
        source = x.ctypes.data + n * x.strides[0] + row * rows.source * x.itemsize
        target = y.ctypes.data + n * y.strides[0] + row * rows.target * y.itemsize
        largest = _largest(x, source, hidden, values, chunks)
        if largest > -FAR // 2:
            total = _exponentials(values, chunks, largest, ln2, b, c, mantissa, shift, reciprocal, reach)
        else:  # nothing takes part
            total = np.int64(0)
            work[1, :] = 0
        # 2**32 would not fit 32 bits; where the sum is 1 the share is rounded to the largest with one less too
        factor = min((np.int64(1) << 32) // max(total, 1), (np.int64(1) << 32) - 1)
        _shares(y, values, target, chunks, factor, half, down, most, zero_y)
    return 0
