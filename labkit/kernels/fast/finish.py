"""What happens to sums in registers before they are stored: bias, requantization and clamp, or nothing.

A *finish* appends its instructions to a tile. `packing.pack_epilogue` lays out the constants that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from llvmlite import ir

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast import simd

__all__ = ["CHANNELS", "EPILOGUE_WORDS", "FINISHES", "VECTORS", "Finish", "Sums", "unfinished"]

CHANNELS = 16  # of a panel
VECTORS = CHANNELS // simd.LANES
EPILOGUE_WORDS = 32  # int64 words of constants for each vector of 8 channels

Values = list[ir.Value]
Sums = dict[tuple[int, int], Values]  # by position and panel, one vector for each 8 channels
Finish = Callable[[ir.IRBuilder, Sums, Values, Values], None]  # builder, sums, targets, [epilogue, low, high]
Constant = Callable[[int, ir.Type], ir.Value]


def _constants(builder: ir.IRBuilder, sums: Sums, epilogue: ir.Value) -> Iterator[tuple[int, int, Constant]]:
    """Each panel and vector of ``sums``, and what loads its constants: ``constant(word, kind)``."""
    for panel in range(1 + max(panel for _, panel in sums)):
        for v in range(VECTORS):
            start = simd.add_bytes(builder, epilogue, (panel * VECTORS + v) * EPILOGUE_WORDS * 8)

            def constant(word: int, kind: ir.Type, start: ir.Value = start) -> ir.Value:
                return simd.load(builder, simd.add_bytes(builder, start, word * 8), kind)

            yield panel, v, constant


def _store_int16(builder: ir.IRBuilder, sums: Sums, targets: Values) -> None:
    for (position, panel), row in sums.items():
        narrow = builder.trunc(simd.join(builder, *row), simd.V16I16)
        simd.store(builder, narrow, simd.add_bytes(builder, targets[position], panel * CHANNELS * 2))


def _single(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values) -> None:
    """Eq. 13; 16 int16 a panel are stored at each of ``targets``."""
    epilogue, low, high = arguments
    lows, highs = (simd.splat(builder, builder.trunc(bound, simd.I32), simd.V8I32) for bound in (low, high))
    for panel, v, constant in _constants(builder, sums, epilogue):
        bias, lift = constant(0, simd.V8I32), constant(28, simd.V8I32)
        mantissa, shift, half = ([constant(word, simd.V4I64), constant(word + 4, simd.V4I64)] for word in (4, 12, 20))
        for row in (sums[r, panel] for r in range(len(targets))):
            scaled = simd.scale_shift(builder, builder.add(row[v], bias), mantissa, shift, half, lift)
            row[v] = simd.clamp(builder, scaled, lows, highs)
    _store_int16(builder, sums, targets)


def _float32_even(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values) -> None:
    """Eq. 17; 16 int16 a panel are stored at each of ``targets``.

    The clamp comes before the conversion to integers, which it therefore always fits. Above 2**24 the subtraction of
    what was added inside may round, far beyond the clamp.
    """
    epilogue, low, high = arguments
    lows, highs = (simd.splat(builder, builder.sitofp(bound, simd.F32), simd.V8F32) for bound in (low, high))
    for panel, v, constant in _constants(builder, sums, epilogue):
        bias, scale, inside = constant(0, simd.V8I32), constant(4, simd.V8F32), constant(8, simd.V8F32)
        for row in (sums[r, panel] for r in range(len(targets))):
            total = builder.sitofp(builder.add(row[v], bias), simd.V8F32)
            rounded = simd.round_half_even(builder, builder.fadd(builder.fmul(total, scale), inside))
            clamped = simd.clamp_float(builder, builder.fsub(rounded, inside), lows, highs)
            row[v] = builder.fptosi(clamped, simd.V8I32)
    _store_int16(builder, sums, targets)


def unfinished(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values) -> None:
    """The plain int32 sums, 16 a panel at each of ``targets``."""
    for (position, panel), row in sums.items():
        target = simd.add_bytes(builder, targets[position], panel * CHANNELS * 4)
        simd.store(builder, simd.join(builder, *row), target)


FINISHES: Mapping[RoundingRule, Finish] = MappingProxyType(
    {RoundingRule.SINGLE: _single, RoundingRule.FLOAT32_EVEN: _float32_even}
)
