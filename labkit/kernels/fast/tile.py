"""The tile: some output positions times some output channels, whose sums stay in registers until they are finished.

A position is a row of numbers in the input: for a convolution the window of one output pixel, for a fully connected
layer one image. Six positions times a panel of 16 channels are 12 vectors of sums; with two vectors of weights and one
of inputs they fill the 16 registers of AVX2. Each loaded weight is used six times and each loaded input sixteen times.
A single position takes four panels at a time instead, so that enough sums are under way to hide the multiplier's delay.

The window is read as a number of *runs*, each contiguous in memory: for a convolution over (N, H, W, C) one run is one
row of the kernel, all columns and channels of it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from labkit.kernels.fast import simd
from labkit.kernels.fast.finish import CHANNELS, VECTORS, Finish, Sums, unfinished

__all__ = ["PANELS", "POSITIONS", "product_4", "product_6", "sums_tile", "tile_of"]

POSITIONS = 6
PANELS = 4  # of a single position

Values = list[ir.Value]


def _sum_run(
    builder: ir.IRBuilder, weight_kind: ir.VectorType, sources: Values, panels: Values, steps: ir.Value, state: Values
) -> Values:
    """Add one run to the sums in ``state``: offset of the run from ``sources``, place in the panels, then the sums."""
    vector_bytes = weight_kind.count * weight_kind.element.width // 8
    slots = _slots(sources, panels)

    def one_step(state: Values) -> Values:
        """Two neighbouring inputs of each position times the weights of both for 16 channels a panel."""
        offset, read, *sums = state
        weights = {
            (p, v): simd.load(builder, builder.add(panel, simd.add_bytes(builder, read, v * vector_bytes)), weight_kind)
            for p, panel in enumerate(panels)
            for v in range(VECTORS)
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
            simd.add_bytes(builder, read, VECTORS * vector_bytes),
            *sums,
        ]

    return simd.counted_loop(builder, steps, state, one_step)


def _slots(sources: Values, panels: Values) -> list[tuple[int, int, int]]:
    """Position, panel and vector of each sum."""
    return [(r, p, v) for r in range(len(sources)) for p in range(len(panels)) for v in range(VECTORS)]


def _by_place(sources: Values, panels: Values, totals: Values) -> Sums:
    result: Sums = {}
    for total, (r, p, _) in zip(totals, _slots(sources, panels), strict=True):
        result.setdefault((r, p), []).append(total)
    return result


def _zeros(sources: Values, panels: Values) -> Values:
    return [ir.Constant(simd.V8I32, None)] * len(_slots(sources, panels))


def _sum_up(
    builder: ir.IRBuilder, weight_kind: ir.VectorType, sources: Values, panels: Values, arguments: Values
) -> Sums:
    """Sums of products for each of ``sources`` and each channel of ``panels`` (addresses)."""
    runs, run_count, steps = arguments

    def one_run(state: Values) -> Values:
        run, read, *sums = state
        offset = simd.load(builder, run, simd.I64)
        _, read, *sums = _sum_run(builder, weight_kind, sources, panels, steps, [offset, read, *sums])
        return [simd.add_bytes(builder, run, 8), read, *sums]

    start = [runs, simd.I64(0), *_zeros(sources, panels)]
    _, _, *sums = simd.counted_loop(builder, run_count, start, one_run)
    return _by_place(sources, panels, sums)


def tile_of(positions: int, panels: int, finish: Finish) -> Any:
    """The intrinsic ``(sources, targets, runs, run_count, steps, weights, panel, epilogue, low, high)``.

    sources, targets : addresses of tables with the address of each position's window and of its results
    runs, run_count : address of a table with the byte offset of each run from the start of the window
    steps : pairs of int16 in a run
    weights, panel : the packed weights (for their type, int16 or int8) and the address of the first panel to use
    epilogue : address of that panel's constants; those of the next panel follow
    low, high : the clamp, zero point subtracted
    """

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


def _product(positions: int) -> Any:
    @intrinsic
    def product(typing_context, source, row_bytes, target, steps, panel):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            source, row_bytes, target, steps, panel = arguments
            sources = [builder.add(source, builder.mul(row_bytes, simd.I64(r))) for r in range(positions)]
            start = [simd.I64(0), simd.I64(0), *_zeros(sources, [panel])]
            _, _, *sums = _sum_run(builder, simd.V16I16, sources, [panel], steps, start)
            targets = [simd.add_bytes(builder, target, r * CHANNELS * 4) for r in range(positions)]
            unfinished(builder, _by_place(sources, [panel], sums), targets, [])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return product


sums_tile = tile_of(POSITIONS, 1, unfinished)

# Each takes ``(source, row_bytes, target, steps, panel)``: a product of matrices. Positions are rows of ``steps`` pairs
# of int16, ``row_bytes`` apart; their int32 sums with one panel of int16 weights lie side by side at ``target``.
product_6, product_4 = _product(6), _product(4)
