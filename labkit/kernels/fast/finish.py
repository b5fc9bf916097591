"""What happens to sums in registers before they are stored: bias, requantization and clamp, or nothing.

A *finish* appends its instructions to a tile. `packing.pack_epilogue` lays out the constants that it reads. It takes sums
that hold the bias already: they start with it (`biases`), or it is added to them (`add_biases`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from types import MappingProxyType

from llvmlite import ir

from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.kernels.fast import simd

__all__ = ["CHANNELS", "FINISHES", "Finish", "Sums", "add_biases", "biases", "finish_for", "finish_rule", "unfinished"]

CHANNELS = 16  # of a panel

Values = list[ir.Value]
Sums = dict[tuple[int, int], Values]  # by position and panel, in vectors of 8 or of 16 channels
# builder, sums, targets, [epilogue, low, high], type of a stored number
Finish = Callable[[ir.IRBuilder, Sums, Values, Values, ir.IntType], None]
Constant = Callable[[int, ir.Type], ir.Value]


def biases(builder: ir.IRBuilder, epilogue: ir.Value, panels: int, kind: ir.VectorType) -> list[Values]:
    """The biases of each of ``panels``, in vectors of ``kind``."""
    vectors, vector_bytes = CHANNELS // kind.count, kind.count * 4
    starts = [8 * vector_bytes * at for at in range(panels * vectors)]
    rows = [simd.load(builder, simd.add_bytes(builder, epilogue, start), kind) for start in starts]
    return [rows[panel * vectors : (panel + 1) * vectors] for panel in range(panels)]


def add_biases(builder: ir.IRBuilder, sums: Sums, epilogue: ir.Value) -> Sums:
    """``sums`` with the biases added to them."""
    panels = 1 + max(panel for _, panel in sums)
    found = biases(builder, epilogue, panels, sums[0, 0][0].type)
    return {
        (position, panel): [builder.add(total, bias) for total, bias in zip(row, found[panel], strict=True)]
        for (position, panel), row in sums.items()
    }


def _constants(builder: ir.IRBuilder, sums: Sums, epilogue: ir.Value) -> Iterator[tuple[int, int, Constant]]:
    """Each panel and vector of ``sums``, and what loads its constants: ``constant(row, kind)`` of `pack_epilogue`."""
    vectors = sums[0, 0]
    row_bytes = vectors[0].type.count * 4
    for panel in range(1 + max(panel for _, panel in sums)):
        for v in range(len(vectors)):
            start = simd.add_bytes(builder, epilogue, (panel * len(vectors) + v) * 8 * row_bytes)

            def constant(row: int, kind: ir.Type, start: ir.Value = start) -> ir.Value:
                return simd.load(builder, simd.add_bytes(builder, start, row * row_bytes), kind)

            yield panel, v, constant


def _store(builder: ir.IRBuilder, sums: Sums, targets: Values, stored: ir.IntType) -> None:
    for (position, panel), row in sums.items():
        whole = reduce(lambda low, high: simd.join(builder, low, high), row)
        narrow = whole if stored is simd.I32 else builder.trunc(whole, ir.VectorType(stored, CHANNELS))
        simd.store(builder, narrow, simd.add_bytes(builder, targets[position], panel * CHANNELS * stored.width // 8))


def _single(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values, stored: ir.IntType) -> None:
    """Eq. 13; 16 numbers of the type ``stored`` a panel are stored at each of ``targets``."""
    epilogue, low, high = arguments
    kind = sums[0, 0][0].type
    half_kind = ir.VectorType(simd.I64, kind.count // 2)
    lows, highs = (simd.splat(builder, builder.trunc(bound, simd.I32), kind) for bound in (low, high))
    for panel, v, constant in _constants(builder, sums, epilogue):
        lift = constant(7, kind)
        mantissa, shift, half = ([constant(row, half_kind), constant(row + 1, half_kind)] for row in (1, 3, 5))
        for row in (sums[r, panel] for r in range(len(targets))):
            scaled = simd.scale_shift(builder, row[v], mantissa, shift, half, lift)
            row[v] = simd.clamp(builder, scaled, lows, highs)
    _store(builder, sums, targets, stored)


def _double_rounded(upwards: bool) -> Finish:
    """Eq. 14, or 15 where ties go ``upwards`` in the second step too, for multipliers below 1: exponents of at most 0.

    Both rules have the same first step: C's division of the nudged product is ``(x mantissa + 2**30) >> 31`` for either sign.
    """

    def finish(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values, stored: ir.IntType) -> None:
        epilogue, low, high = arguments
        kind = sums[0, 0][0].type
        wide = ir.VectorType(simd.I64, kind.count // 2)
        lows, highs = (simd.splat(builder, builder.trunc(bound, simd.I32), kind) for bound in (low, high))
        shift, half = (ir.Constant(wide, [number] * wide.count) for number in (31, 2**30 + 2**62))
        lift = ir.Constant(kind, [-(2**31)] * kind.count)  # 2**(62 - 31), see `simd.scale_shift`
        none = ir.Constant(kind, [0] * kind.count)
        for panel, v, constant in _constants(builder, sums, epilogue):
            mantissa = [constant(1, wide), constant(2, wide)]
            right, bits, offset = (constant(at, kind) for at in (3, 4, 5))
            for row in (sums[r, panel] for r in range(len(targets))):
                doubled = simd.scale_shift(builder, row[v], mantissa, [shift, shift], [half, half], lift)
                rest = builder.and_(doubled, bits)
                if upwards:  # the highest bit that is shifted out
                    is_more = builder.icmp_signed("!=", rest, none)
                else:  # a tie of a negative number is not more
                    below = builder.ashr(doubled, ir.Constant(kind, [31] * kind.count))
                    threshold = builder.sub(builder.lshr(bits, ir.Constant(kind, [1] * kind.count)), below)
                    is_more = builder.icmp_signed(">", rest, threshold)
                rounded = builder.add(builder.ashr(doubled, right), builder.zext(is_more, kind))
                row[v] = simd.clamp(builder, builder.add(rounded, offset), lows, highs)
        _store(builder, sums, targets, stored)

    return finish


def _float32_even(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values, stored: ir.IntType) -> None:
    """Eq. 17; 16 numbers of the type ``stored`` a panel are stored at each of ``targets``.

    The clamp comes before the conversion to integers, which it therefore always fits. Above 2**24 the addition of the
    offset after the rounding may round, far beyond the clamp.
    """
    epilogue, low, high = arguments
    kind = sums[0, 0][0].type
    real = ir.VectorType(simd.F32, kind.count)
    lows, highs = (simd.splat(builder, builder.sitofp(bound, simd.F32), real) for bound in (low, high))
    for panel, v, constant in _constants(builder, sums, epilogue):
        scale, inside, offset = constant(1, real), constant(2, real), constant(3, real)
        for row in (sums[r, panel] for r in range(len(targets))):
            total = builder.sitofp(row[v], real)
            rounded = simd.round_half_even(builder, builder.fadd(builder.fmul(total, scale), inside))
            clamped = simd.clamp_float(builder, builder.fadd(rounded, offset), lows, highs)
            row[v] = builder.fptosi(clamped, kind)
    _store(builder, sums, targets, stored)


def _float32_twice(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values, stored: ir.IntType) -> None:
    """Eqs. 28 and 29: as `_float32_even` with two products and a float bias between them."""
    epilogue, low, high = arguments
    kind = sums[0, 0][0].type
    real = ir.VectorType(simd.F32, kind.count)
    lows, highs = (simd.splat(builder, builder.sitofp(bound, simd.F32), real) for bound in (low, high))
    for panel, v, constant in _constants(builder, sums, epilogue):
        first, bias, second, inside, offset = (constant(at, real) for at in range(1, 6))
        for row in (sums[r, panel] for r in range(len(targets))):
            shifted = builder.fadd(builder.fmul(builder.sitofp(row[v], real), first), bias)
            rounded = simd.round_half_even(builder, builder.fadd(builder.fmul(shifted, second), inside))
            clamped = simd.clamp_float(builder, builder.fadd(rounded, offset), lows, highs)
            row[v] = builder.fptosi(clamped, kind)
    _store(builder, sums, targets, stored)


def unfinished(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values, stored: ir.IntType) -> None:
    """The plain int32 sums, 16 a panel at each of ``targets``; ``stored`` is int32."""
    _store(builder, sums, targets, stored)


FINISHES: Mapping[RoundingRule, Finish] = MappingProxyType(
    {
        RoundingRule.SINGLE: _single,
        RoundingRule.GEMMLOWP: _double_rounded(upwards=False),
        RoundingRule.GEMMLOWP_UP: _double_rounded(upwards=True),
        RoundingRule.FLOAT32_EVEN: _float32_even,
        RoundingRule.FLOAT32_TWICE: _float32_twice,
    }
)


def finish_rule(requantizer: Requantizer) -> RoundingRule:
    """The rule whose finish serves ``requantizer``: FLOAT32_EVEN with a bias is FLOAT32_TWICE with a first factor of 1."""
    if requantizer.rule is RoundingRule.FLOAT32_EVEN and requantizer.bias is not None:
        return RoundingRule.FLOAT32_TWICE
    return requantizer.rule


def finish_for(rule: RoundingRule | None) -> Finish:
    """The finish of ``rule``, one of `FINISHES`; `unfinished` where it is None."""
    return unfinished if rule is None else FINISHES[rule]
