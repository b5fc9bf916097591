"""The tile: some output positions times some output channels, whose sums stay in registers until they are finished.

A position is a row of numbers in the input: for a convolution the window of one output pixel, for a fully connected
layer one image. Six positions times a panel of 16 channels are 12 vectors of sums; with two vectors of weights and one
of inputs they fill the 16 registers of AVX2. Each loaded weight is used six times and each loaded input sixteen times.
AVX-512 has twice the registers of twice the width: there a panel is one vector, and a tile has twelve positions. A
single position takes four panels at a time instead, so that enough sums are under way to hide the multiplier's delay.

The window is read as a number of *runs*, each contiguous in memory: for a convolution over (N, H, W, C) one run is one
row of the kernel, all columns and channels of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from labkit.kernels.fast import simd
from labkit.kernels.fast.finish import CHANNELS, Finish, Sums, unfinished

__all__ = ["PANELS", "Registers", "product_of", "tile_of", "widest_registers"]

PANELS = 4  # of a single position

Values = list[ir.Value]


class Registers(Enum):
    """The width of the vectors that hold sums, in bits. LLVM splits what a processor does not have: same integers."""

    BITS_256 = 256
    BITS_512 = 512

    @property
    def lanes(self) -> int:
        """Sums (int32) in one vector."""
        return self.value // 32

    @property
    def positions(self) -> int:
        """Positions of a tile: as many as leave registers for weights and inputs."""
        return {256: 6, 512: 12}[self.value]


def widest_registers() -> Registers:
    """What is fastest on this processor."""
    features = llvmlite.binding.get_host_cpu_features()
    has_avx512 = all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vl"))
    return Registers.BITS_512 if has_avx512 else Registers.BITS_256


@dataclass(frozen=True, eq=False)
class _Shape:
    """Addresses of positions and panels, the width of a vector of sums and the type of a weight."""

    sources: Values
    panels: Values
    lanes: int
    weight: ir.IntType

    @property
    def slots(self) -> list[tuple[int, int, int]]:
        """Position, panel and vector of each sum."""
        vectors = range(CHANNELS // self.lanes)
        return [(r, p, v) for r in range(len(self.sources)) for p in range(len(self.panels)) for v in vectors]

    @property
    def sums(self) -> ir.VectorType:
        return ir.VectorType(simd.I32, self.lanes)

    @property
    def zeros(self) -> Values:
        return [ir.Constant(self.sums, None)] * len(self.slots)

    def by_place(self, builder: ir.IRBuilder, totals: Values) -> Sums:
        """The sums as a finish takes them, in vectors of eight."""
        result: Sums = {}
        for total, (r, p, _) in zip(totals, self.slots, strict=True):
            eights = [total] if self.lanes == simd.LANES else simd.halves(builder, total)
            result.setdefault((r, p), []).extend(eights)
        return result


def _sum_run(builder: ir.IRBuilder, shape: _Shape, steps: ir.Value, state: Values) -> Values:
    """Add one run to the sums in ``state``: offset of the run from the sources, place in the panels, then the sums."""
    pairs = ir.VectorType(simd.I16, 2 * shape.lanes)
    stored = ir.VectorType(shape.weight, pairs.count)
    vector_bytes = pairs.count * shape.weight.width // 8

    def one_step(state: Values) -> Values:
        """Two neighbouring inputs of each position times the weights of both for 16 channels a panel."""
        offset, read, *sums = state
        weights = {}
        for _, p, v in shape.slots[: len(shape.panels) * (CHANNELS // shape.lanes)]:
            address = builder.add(shape.panels[p], simd.add_bytes(builder, read, v * vector_bytes))
            loaded = simd.load(builder, address, stored)
            weights[p, v] = loaded if shape.weight is simd.I16 else builder.sext(loaded, pairs)
        inputs = [simd.load(builder, builder.add(source, offset), simd.I32) for source in shape.sources]
        inputs = [builder.bitcast(simd.splat(builder, both, shape.sums), pairs) for both in inputs]
        sums = [
            builder.add(total, simd.pair_dot(builder, inputs[r], weights[p, v]))
            for total, (r, p, v) in zip(sums, shape.slots, strict=True)
        ]
        step_bytes = CHANNELS * 2 * shape.weight.width // 8
        return [simd.add_bytes(builder, offset, 4), simd.add_bytes(builder, read, step_bytes), *sums]

    return simd.counted_loop(builder, steps, state, one_step)


def _sum_up(builder: ir.IRBuilder, shape: _Shape, runs: ir.Value, run_count: ir.Value, steps: ir.Value) -> Sums:
    """Sums of products for each position and each channel of the panels."""

    def one_run(state: Values) -> Values:
        run, read, *sums = state
        offset = simd.load(builder, run, simd.I64)
        _, read, *sums = _sum_run(builder, shape, steps, [offset, read, *sums])
        return [simd.add_bytes(builder, run, 8), read, *sums]

    _, _, *sums = simd.counted_loop(builder, run_count, [runs, simd.I64(0), *shape.zeros], one_run)
    return shape.by_place(builder, sums)


def tile_of(registers: Registers, positions: int, panels: int, finish: Finish) -> Any:
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
        weight = {16: simd.I16, 8: simd.I8}[weights.dtype.bitwidth]
        step_bytes = CHANNELS * 2 * weights.dtype.bitwidth // 8

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            sources, targets, runs, run_count, steps, _, panel, *rest = arguments

            def table(start: ir.Value) -> Values:
                return [simd.load(builder, simd.add_bytes(builder, start, 8 * r), simd.I64) for r in range(positions)]

            panel_bytes = builder.mul(builder.mul(run_count, steps), simd.I64(step_bytes))
            addresses = [panel]
            for _ in range(1, panels):
                addresses.append(builder.add(addresses[-1], panel_bytes))
            shape = _Shape(table(sources), addresses, registers.lanes, weight)
            sums = _sum_up(builder, shape, runs, run_count, steps)
            finish(builder, sums, table(targets), rest)
            return context.get_dummy_value()

        word = types.int64
        return types.void(word, word, word, word, word, weights, word, word, word, word), generate

    return tile


def product_of(registers: Registers, positions: int) -> Any:
    """The intrinsic ``(source, row_bytes, target, steps, panel)``: a product of matrices.

    Positions are rows of ``steps`` pairs of int16, ``row_bytes`` apart from the address ``source`` on; their int32 sums
    with one panel of int16 weights lie side by side from ``target`` on.
    """

    @intrinsic
    def product(typing_context, source, row_bytes, target, steps, panel):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            source, row_bytes, target, steps, panel = arguments
            sources = [builder.add(source, builder.mul(row_bytes, simd.I64(r))) for r in range(positions)]
            shape = _Shape(sources, [panel], registers.lanes, simd.I16)
            _, _, *sums = _sum_run(builder, shape, steps, [simd.I64(0), simd.I64(0), *shape.zeros])
            targets = [simd.add_bytes(builder, target, r * CHANNELS * 4) for r in range(positions)]
            unfinished(builder, shape.by_place(builder, sums), targets, [])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return product
