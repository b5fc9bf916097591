"""The tile: some output positions times some output channels, whose sums stay in registers until they are finished.

A position is a row of numbers in the input: for a convolution the window of one output pixel, for a fully connected
layer one image. Six positions times a panel of 16 channels are 12 vectors of sums; with two vectors of weights and one
of inputs they fill the 16 registers of AVX2. Each loaded weight is used six times and each loaded input sixteen times.
A single position takes four panels at a time instead, so that enough sums are under way to hide the multiplier's delay.

The window is read as a number of *runs*, each contiguous in memory: for a convolution over (N, H, W, C) one run is one
row of the kernel, all columns and channels of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from labkit.kernels.fast import simd

__all__ = ["CHANNELS", "EPILOGUE_WORDS", "PANELS", "POSITIONS", "fused_tile", "single_tile", "sums_tile", "wide_tile"]

POSITIONS = 6
PANELS = 4  # of a single position
CHANNELS = 16  # of a panel
EPILOGUE_WORDS = 32  # int64 words of constants for each vector of 8 channels, see packing.pack_epilogue

_VECTORS = CHANNELS // simd.LANES

Values = list[ir.Value]
Sums = dict[tuple[int, int], Values]  # by position and panel, one vector for each 8 channels
Finish = Callable[[ir.IRBuilder, Sums, Values, Values], None]


def _fused(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values) -> None:
    """Bias, requantization under SINGLE and clamp in registers; 16 int16 a panel are stored at each of ``targets``."""
    epilogue, low, high = arguments
    lows, highs = (simd.splat(builder, builder.trunc(bound, simd.I32), simd.V8I32) for bound in (low, high))
    panels = 1 + max(panel for _, panel in sums)
    for panel, v in ((panel, v) for panel in range(panels) for v in range(_VECTORS)):
        start = simd.add_bytes(builder, epilogue, (panel * _VECTORS + v) * EPILOGUE_WORDS * 8)

        def constant(word: int, kind: ir.Type, start: ir.Value = start) -> ir.Value:
            return simd.load(builder, simd.add_bytes(builder, start, word * 8), kind)

        bias, lift = constant(0, simd.V8I32), constant(28, simd.V8I32)
        mantissa, shift, half = ([constant(word, simd.V4I64), constant(word + 4, simd.V4I64)] for word in (4, 12, 20))
        for row in (sums[r, panel] for r in range(len(targets))):
            scaled = simd.scale_shift(builder, builder.add(row[v], bias), mantissa, shift, half, lift)
            row[v] = simd.clamp(builder, scaled, lows, highs)
    for (position, panel), row in sums.items():
        narrow = builder.trunc(simd.join(builder, *row), simd.V16I16)
        simd.store(builder, narrow, simd.add_bytes(builder, targets[position], panel * CHANNELS * 2))


def _unfinished(builder: ir.IRBuilder, sums: Sums, targets: Values, arguments: Values) -> None:
    """The plain int32 sums, 16 a panel at each of ``targets``."""
    for (position, panel), row in sums.items():
        target = simd.add_bytes(builder, targets[position], panel * CHANNELS * 4)
        simd.store(builder, simd.join(builder, *row), target)


def _sum_up(
    builder: ir.IRBuilder, weight_kind: ir.VectorType, sources: Values, panels: Values, arguments: Values
) -> Sums:
    """Sums of products for each of ``sources`` and each channel of ``panels`` (addresses)."""
    runs, run_count, steps = arguments
    vector_bytes = weight_kind.count * weight_kind.element.width // 8
    slots = [(r, p, v) for r in range(len(sources)) for p in range(len(panels)) for v in range(_VECTORS)]

    def one_step(state: Values) -> Values:
        """Two neighbouring inputs of each position times the weights of both for 16 channels a panel."""
        offset, read, *sums = state
        weights = {
            (p, v): simd.load(builder, builder.add(panel, simd.add_bytes(builder, read, v * vector_bytes)), weight_kind)
            for p, panel in enumerate(panels)
            for v in range(_VECTORS)
        }
        if weight_kind is not simd.V16I16:
            weights = {key: builder.sext(vector, simd.V16I16) for key, vector in weights.items()}
        pairs = [simd.load(builder, builder.add(source, offset), simd.I32) for source in sources]
        inputs = [builder.bitcast(simd.splat(builder, pair, simd.V8I32), simd.V16I16) for pair in pairs]
        sums = [
            builder.add(total, simd.pair_dot(builder, inputs[r], weights[p, v]))
            for total, (r, p, v) in zip(sums, slots, strict=True)
        ]
        return [
            simd.add_bytes(builder, offset, 4),
            simd.add_bytes(builder, read, _VECTORS * vector_bytes),
            *sums,
        ]

    def one_run(state: Values) -> Values:
        run, read, *sums = state
        offset = simd.load(builder, run, simd.I64)
        _, read, *sums = simd.counted_loop(builder, steps, [offset, read, *sums], one_step)
        return [simd.add_bytes(builder, run, 8), read, *sums]

    zeros = [ir.Constant(simd.V8I32, None)] * len(slots)
    _, _, *sums = simd.counted_loop(builder, run_count, [runs, simd.I64(0), *zeros], one_run)
    result: Sums = {}
    for total, (r, p, _) in zip(sums, slots, strict=True):
        result.setdefault((r, p), []).append(total)
    return result


def _tile(positions: int, panels: int, finish: Finish) -> Any:
    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing_context, sources, targets, runs, run_count, steps, weights, panel, epilogue, low, high
    ):
        weight_kind = {16: simd.V16I16, 8: simd.V16I8}[weights.dtype.bitwidth]
        step_bytes = CHANNELS * 2 * weights.dtype.bitwidth // 8

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            sources, targets, runs, run_count, steps, _, panel, *rest = arguments

            def table(start: ir.Value) -> Values:
                return [simd.load(builder, simd.add_bytes(builder, start, 8 * r), simd.I64) for r in range(positions)]

            panel_bytes = builder.mul(builder.mul(run_count, steps), simd.I64(step_bytes))
            addresses = [panel]
            for _ in range(1, panels):
                addresses.append(builder.add(addresses[-1], panel_bytes))
            sums = _sum_up(builder, weight_kind, table(sources), addresses, [runs, run_count, steps])
            finish(builder, sums, table(targets), rest)
            return context.get_dummy_value()

        word = types.int64
        return types.void(word, word, word, word, word, weights, word, word, word, word), generate

    return tile


# Each takes ``(sources, targets, runs, run_count, steps, weights, panel, epilogue, low, high)``:
#   sources, targets   addresses of tables with the address of each position's window and of its results
#   runs, run_count    address of a table with the byte offset of each run from the start of the window
#   steps              pairs of int16 in a run
#   weights, panel     the packed weights (for their type, int16 or int8) and the address of the first panel to use
#   epilogue           address of that panel's constants; those of the next panel follow
#   low, high          the clamp, zero point subtracted
fused_tile = _tile(POSITIONS, 1, _fused)
single_tile = _tile(1, 1, _fused)
wide_tile = _tile(1, PANELS, _fused)
sums_tile = _tile(POSITIONS, 1, _unfinished)
