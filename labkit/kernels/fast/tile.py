"""The tile: some output positions times some output channels, whose sums stay in registers until they are finished.

A position is a row of numbers in the input: for a convolution the window of one output pixel, for a fully connected
layer one image. Each loaded weight is used once a position and each loaded input once a vector of channels, so a tile
has as many positions and channels as leave registers for what is loaded: see `Registers`. A single position takes four
panels of 16 channels at a time, so that enough sums are under way to hide the multiplier's delay.

The window is read as a number of *runs*, each contiguous in memory: for a convolution over (N, H, W, C) one run is one
row of the kernel, all columns and channels of it. How products are formed and summed is a `Dot`.
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
from labkit.kernels.fast.finish import CHANNELS, Finish, Sums, biases, unfinished

__all__ = [
    "LONGEST_NIBBLE_RUN",
    "PANELS",
    "Dot",
    "Registers",
    "add_products",
    "fastest_dots",
    "product_of",
    "tile_of",
    "widest_registers",
]

PANELS = 4  # of a single position
LONGEST_NIBBLE_RUN = 128  # steps: each adds at most 2 * 15 * 8 to an int16

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
        """Positions of a tile of one panel: as many as leave registers for weights and inputs."""
        return {256: 6, 512: 12}[self.value]

    @property
    def wide(self) -> tuple[int, int]:
        """Positions and panels of the tile for two panels and more."""
        return {256: (6, 1), 512: (10, 2)}[self.value]

    @property
    def threes(self) -> tuple[int, int]:
        """Positions and panels of a tile of three panels: with VNNI as fast or faster where these come out even; measured."""
        return 8, 3


class Dot(Enum):
    """How a tile multiplies and sums neighbouring inputs. All give the same integers, each where it may be used.

    PAIRS : int16 inputs, less their zero point, times int8 or int16 weights, in pairs (vpmaddwd).
    QUADS, QUADS_VNNI : uint8 inputs times int8 weights, four at a time; by vpdpbusd, or in portable code.
    NIBBLES, NIBBLES_AVX2 : inputs 0..15 times weights -8..8 in bytes, whose sums fit int16 for `LONGEST_NIBBLE_RUN`
        steps; by vpmaddubsw, or in portable code.
    """

    PAIRS = "pairs"
    QUADS = "quads"
    QUADS_VNNI = "quads_vnni"
    NIBBLES = "nibbles"
    NIBBLES_AVX2 = "nibbles_avx2"

    @property
    def group(self) -> int:
        """Inputs of one step; they take 32 bits."""
        return 2 if self is Dot.PAIRS else 4

    @property
    def sums_int16(self) -> bool:
        """Whether the sums of a run are int16."""
        return self in (Dot.NIBBLES, Dot.NIBBLES_AVX2)

    @property
    def is_native(self) -> bool:
        """Whether it needs an instruction of x86."""
        return self in (Dot.QUADS_VNNI, Dot.NIBBLES_AVX2)


def _features() -> set[str]:
    return {name for name, present in llvmlite.binding.get_host_cpu_features().items() if present}


def widest_registers() -> Registers:
    """What is fastest on this processor."""
    return Registers.BITS_512 if _features() >= {"avx512f", "avx512bw", "avx512vl"} else Registers.BITS_256


def fastest_dots(registers: Registers) -> tuple[Dot, ...]:
    """The ways that this processor has for tiles of ``registers``, the fastest first; `Dot.PAIRS` is the last.

    Where there is VNNI nothing is gained by four bits: vpmaddubsw and the addition take as long as vpdpbusd.
    """
    features = _features()
    if "avx512vnni" in features and (registers is Registers.BITS_512 or "avx512vl" in features):
        return Dot.QUADS_VNNI, Dot.PAIRS
    if registers is Registers.BITS_256 and "avxvnni" in features:
        return Dot.QUADS_VNNI, Dot.PAIRS
    if ("avx512bw" if registers is Registers.BITS_512 else "avx2") in features:
        return Dot.NIBBLES_AVX2, Dot.PAIRS
    return (Dot.PAIRS,)


@dataclass(frozen=True, eq=False)
class _Shape:
    """Addresses of positions and panels, the width of a vector of sums, the type of a weight and the way to multiply."""

    sources: Values
    panels: Values
    lanes: int
    weight: ir.IntType
    dot: Dot
    ahead: ir.Value | None = None  # address of what to bring into the cache meanwhile, a line each step

    @property
    def slots(self) -> list[tuple[int, int, int]]:
        """Position, panel and vector of each sum."""
        vectors = range(CHANNELS // self.lanes)
        return [(r, p, v) for r in range(len(self.sources)) for p in range(len(self.panels)) for v in vectors]

    @property
    def sums(self) -> ir.VectorType:
        """A vector of int32 sums."""
        return ir.VectorType(simd.I32, self.lanes)

    @property
    def run_sums(self) -> ir.VectorType:
        """A vector of the sums of one run."""
        return ir.VectorType(simd.I16, 2 * self.lanes) if self.dot.sums_int16 else self.sums

    def zeros(self, kind: ir.VectorType) -> Values:
        """A vector of ``kind`` for each slot."""
        return [ir.Constant(kind, None)] * len(self.slots)

    def by_place(self, totals: Values) -> Sums:
        """The sums as a finish takes them."""
        result: Sums = {}
        for total, (r, p, _) in zip(totals, self.slots, strict=True):
            result.setdefault((r, p), []).append(total)
        return result


def add_products(builder: ir.IRBuilder, dot: Dot, total: ir.Value, inputs: ir.Value, weights: ir.Value) -> ir.Value:
    """``total`` and the products of a vector of ``inputs`` with one of ``weights``, summed as ``dot`` does."""
    if dot is Dot.PAIRS:
        return builder.add(total, simd.pair_dot(builder, inputs, weights))
    add = simd.quad_dot_16 if dot.sums_int16 else simd.quad_dot
    return add(builder, total, inputs, weights, dot.is_native)


def _sum_run(builder: ir.IRBuilder, shape: _Shape, steps: ir.Value, state: Values) -> Values:
    """Add one run to the sums in ``state``: offset of the run from the sources, place in the panels, then the sums."""
    dot = shape.dot
    inputs_kind = ir.VectorType(simd.I16 if dot is Dot.PAIRS else simd.I8, dot.group * shape.lanes)
    stored = ir.VectorType(shape.weight, inputs_kind.count)
    vector_bytes = stored.count * shape.weight.width // 8

    def one_step(state: Values) -> Values:
        """The neighbouring inputs of a group of each position times the weights of all for 16 channels a panel."""
        offset, read, *sums = state
        if shape.ahead is not None:
            # ``read`` grows by a line for each panel's step
            simd.prefetch(builder, builder.add(shape.ahead, read))
        weights = {}
        for _, p, v in shape.slots[: len(shape.panels) * (CHANNELS // shape.lanes)]:
            address = builder.add(shape.panels[p], simd.add_bytes(builder, read, v * vector_bytes))
            loaded = simd.load(builder, address, stored)
            is_wide = shape.weight is simd.I16 or dot is not Dot.PAIRS
            weights[p, v] = loaded if is_wide else builder.sext(loaded, inputs_kind)
        inputs = [simd.load(builder, builder.add(source, offset), simd.I32) for source in shape.sources]
        inputs = [builder.bitcast(simd.splat(builder, group, shape.sums), inputs_kind) for group in inputs]
        sums = [
            add_products(builder, dot, total, inputs[r], weights[p, v])
            for total, (r, p, v) in zip(sums, shape.slots, strict=True)
        ]
        step_bytes = CHANNELS * dot.group * shape.weight.width // 8
        return [simd.add_bytes(builder, offset, 4), simd.add_bytes(builder, read, step_bytes), *sums]

    return simd.counted_loop(builder, steps, state, one_step)


def _sum_up(
    builder: ir.IRBuilder, shape: _Shape, start: Values, runs: ir.Value, run_count: ir.Value, steps: ir.Value
) -> Sums:
    """``start`` and the sums of products for each position and each channel of the panels."""
    ones = ir.Constant(shape.run_sums, [1] * shape.run_sums.count)

    def one_run(state: Values) -> Values:
        run, read, *sums = state
        offset = simd.load(builder, run, simd.I64)
        if shape.dot.sums_int16:
            _, read, *short = _sum_run(builder, shape, steps, [offset, read, *shape.zeros(shape.run_sums)])
            sums = [
                builder.add(total, simd.pair_dot(builder, pairs, ones))
                for total, pairs in zip(sums, short, strict=True)
            ]
        else:
            _, read, *sums = _sum_run(builder, shape, steps, [offset, read, *sums])
        return [simd.add_bytes(builder, run, 8), read, *sums]

    _, _, *sums = simd.counted_loop(builder, run_count, [runs, simd.I64(0), *start], one_run)
    return shape.by_place(sums)


def tile_of(registers: Registers, dot: Dot, positions: int, panels: int, finish: Finish) -> Any:
    """The intrinsic ``(y, weights, sources, targets, runs, run_count, steps, panel, ahead, epilogue, low, high)``.

    y, weights : arrays, only for the type of a stored result and of a weight (int8, or int16 for `Dot.PAIRS`)
    sources, targets : addresses of tables with the address of each position's window and of its results
    runs, run_count : address of a table with the byte offset of each run from the start of the window
    steps : groups of inputs in a run
    panel : address of the first panel to use
    ahead : address of as many bytes as a panel has, which a tile of several panels asks to be brought near
    epilogue : address of that panel's constants; those of the next panel follow
    low, high : the clamp, as the results are stored
    """

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing_context, y, weights, sources, targets, runs, run_count, steps, panel, ahead, epilogue, low, high
    ):
        weight, stored = simd.stored_type(weights.dtype), simd.stored_type(y.dtype)
        step_bytes = CHANNELS * dot.group * weights.dtype.bitwidth // 8

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, _, sources, targets, runs, run_count, steps, panel, ahead, *rest = arguments

            def table(start: ir.Value) -> Values:
                return [simd.load(builder, simd.add_bytes(builder, start, 8 * r), simd.I64) for r in range(positions)]

            panel_bytes = builder.mul(builder.mul(run_count, steps), simd.I64(step_bytes))
            addresses = [panel]
            for _ in range(1, panels):
                addresses.append(builder.add(addresses[-1], panel_bytes))
            shape = _Shape(
                table(sources), addresses, registers.lanes, weight, dot, ahead if positions > 1 < panels else None
            )
            start = shape.zeros(shape.sums)
            if finish is not unfinished:
                rows = biases(builder, rest[0], panels, shape.sums)
                start = [rows[p][v] for _, p, v in shape.slots]
            sums = _sum_up(builder, shape, start, runs, run_count, steps)
            finish(builder, sums, table(targets), rest, stored)
            return context.get_dummy_value()

        return types.void(y, weights, *[types.int64] * 10), generate

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
            shape = _Shape(sources, [panel], registers.lanes, simd.I16, Dot.PAIRS)
            _, _, *sums = _sum_run(builder, shape, steps, [simd.I64(0), simd.I64(0), *shape.zeros(shape.sums)])
            targets = [simd.add_bytes(builder, target, r * CHANNELS * 4) for r in range(positions)]
            unfinished(builder, shape.by_place(sums), targets, [], simd.I32)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return product
