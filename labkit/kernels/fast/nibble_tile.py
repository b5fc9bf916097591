"""Fully connected layers on weights of four bits, which are unpacked in registers.

For a single image each weight is used once and the time goes into reading weights: half as many bytes take little more
than half as long. See `nibbles` for how weights lie in memory. A byte b = 16 * w1 + u with u = w0 + 8 is a multiplier itself:

    sum(x * w0) = sum(x * u) - 8 * sum(x)        16 * sum(x * w1) = sum(x * b) - sum(x * u)

so that one AND is all that unpacking costs, and one more sum, of the inputs, which serves all channels. 16 times a
sum must fit int32, or the division by 16 is wrong: `wraps_nowhere`. Where sums are int16 (`Dot.NIBBLES`) it would
not, and both halves are taken out of the byte, each 8 too large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast import simd
from labkit.kernels.fast.conv import BLOCK, Windows, fill_tables
from labkit.kernels.fast.finish import CHANNELS, Finish, Sums, add_biases, finish_for
from labkit.kernels.fast.nibbles import LIFT
from labkit.kernels.fast.shares import share
from labkit.kernels.fast.tile import Dot, Registers, add_products
from labkit.kernels.jit import jit

__all__ = ["linear_nibbles_kernel", "wraps_nowhere"]

Array = NDArray[Any]
Values = list[ir.Value]

# Pairs of panels in a tile of one position: enough sums to hide the multiplier's delay
_PAIRS_OF_ONE = {Registers.BITS_256: 2, Registers.BITS_512: 4}
_MANY = {Registers.BITS_256: (2, 1), Registers.BITS_512: (4, 2)}  # positions and pairs where there are several images


def wraps_nowhere(magnitudes: NDArray[np.int64], largest: int) -> bool:
    """Whether 16 times any sum of weights times inputs up to ``largest`` in magnitude fits int32.

    ``magnitudes`` int64 [O] are the sums of the weights' magnitudes for each output.
    """
    return bool(np.all(16 * magnitudes * largest < 2**31))


@dataclass(frozen=True)
class _Shape:
    """``pairs`` of panels of packed weights against ``positions``; ``has_both`` of the panels of a pair, or the first."""

    lanes: int
    dot: Dot
    positions: int
    pairs: int
    has_both: bool

    @property
    def loads(self) -> list[tuple[int, int]]:
        """Pair and vector of each vector of bytes."""
        return [(pair, v) for pair in range(self.pairs) for v in range(CHANNELS // self.lanes)]

    @property
    def sums_of_position(self) -> int:
        """One of the inputs alone, and two for each load."""
        return 1 + 2 * len(self.loads)

    @property
    def inputs(self) -> ir.VectorType:
        """A vector of inputs: 32 bits of them, repeated."""
        return ir.VectorType(simd.I16 if self.dot is Dot.PAIRS else simd.I8, self.dot.group * self.lanes)

    @property
    def sums(self) -> ir.VectorType:
        """A vector of int32 sums."""
        return ir.VectorType(simd.I32, self.lanes)

    @property
    def run_sums(self) -> ir.VectorType:
        """A vector of the sums of one run."""
        return ir.VectorType(simd.I16, 2 * self.lanes) if self.dot.sums_int16 else self.sums


def _multipliers(builder: ir.IRBuilder, shape: _Shape, loaded: ir.Value) -> tuple[ir.Value, ir.Value]:
    """What inputs are multiplied by: ``w0 + 8``, and the whole byte, or ``w1 + 8`` where sums are int16."""
    if not shape.dot.sums_int16:
        whole = loaded if loaded.type == shape.inputs else builder.sext(loaded, shape.inputs)
        return builder.and_(whole, _all(shape.inputs, 15)), whole
    words = ir.VectorType(simd.I16, loaded.type.count // 2)  # there is no shift of bytes
    shifted = builder.bitcast(builder.lshr(builder.bitcast(loaded, words), _all(words, 4)), loaded.type)
    upper = builder.xor(builder.and_(shifted, _all(loaded.type, 15)), _all(loaded.type, LIFT))
    return builder.and_(loaded, _all(loaded.type, 15)), upper


def _all(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _sum_run(
    builder: ir.IRBuilder, shape: _Shape, sources: Values, panels: Values, steps: ir.Value, state: Values
) -> Values:
    """Add one run to ``state``: its offset, the place in the panels, then of each position 8 * sum(x) and all sums."""
    vector_bytes = shape.lanes * shape.dot.group
    stored = ir.VectorType(simd.I8, vector_bytes)

    def one_step(state: Values) -> Values:
        offset, read, *sums = state
        weights: Values = [_all(shape.inputs, LIFT)]
        for pair, v in shape.loads:
            address = builder.add(panels[pair], simd.add_bytes(builder, read, v * vector_bytes))
            weights += _multipliers(builder, shape, simd.load(builder, address, stored))
        groups = [simd.load(builder, builder.add(source, offset), simd.I32) for source in sources]
        inputs = [builder.bitcast(simd.splat(builder, group, shape.sums), shape.inputs) for group in groups]
        products = [(x, w) for x in inputs for w in weights]
        results = [add_products(builder, shape.dot, total, x, w) for total, (x, w) in zip(sums, products, strict=True)]
        step_bytes = CHANNELS * shape.dot.group
        return [simd.add_bytes(builder, offset, 4), simd.add_bytes(builder, read, step_bytes), *results]

    return simd.counted_loop(builder, steps, state, one_step)


def _separate(builder: ir.IRBuilder, shape: _Shape, sums: Values) -> Values:
    """int32 sums for the lower and for the upper half of each load, of each position, from what `_sum_run` leaves."""
    results = []
    for start in range(0, len(sums), shape.sums_of_position):
        lift, *halves = sums[start : start + shape.sums_of_position]
        for lower, upper in zip(halves[0::2], halves[1::2], strict=True):
            if shape.dot.sums_int16:
                ones = _all(shape.run_sums, 1)
                results += [simd.pair_dot(builder, builder.sub(half, lift), ones) for half in (lower, upper)]
            else:
                shifted = builder.ashr(builder.sub(upper, lower), _all(shape.sums, 4))
                results += [builder.sub(lower, lift), shifted]
    return results


def _sum_up(
    builder: ir.IRBuilder,
    shape: _Shape,
    sources: Values,
    panels: Values,
    runs: ir.Value,
    run_count: ir.Value,
    steps: ir.Value,
) -> Sums:
    """Sums of products for each position and each channel of the panels."""
    zeros = [ir.Constant(shape.run_sums, None)] * (shape.positions * shape.sums_of_position)
    totals = [ir.Constant(shape.sums, None)] * (2 * shape.positions * len(shape.loads))

    def one_run(state: Values) -> Values:
        run, read, *sums = state
        offset = simd.load(builder, run, simd.I64)
        if shape.dot.sums_int16:
            _, read, *short = _sum_run(builder, shape, sources, panels, steps, [offset, read, *zeros])
            found = _separate(builder, shape, short)
            sums = [builder.add(a, b) for a, b in zip(sums, found, strict=True)]
        else:
            _, read, *sums = _sum_run(builder, shape, sources, panels, steps, [offset, read, *sums])
        return [simd.add_bytes(builder, run, 8), read, *sums]

    start = totals if shape.dot.sums_int16 else zeros
    _, _, *sums = simd.counted_loop(builder, run_count, [runs, simd.I64(0), *start], one_run)
    totals = sums if shape.dot.sums_int16 else _separate(builder, shape, sums)
    places = [(r, 2 * pair + half) for r in range(shape.positions) for pair, _ in shape.loads for half in range(2)]
    result: Sums = {}
    for total, (r, p) in zip(totals, places, strict=True):
        if shape.has_both or p == 0:
            result.setdefault((r, p), []).append(total)
    return result


def _tile_of(registers: Registers, dot: Dot, positions: int, pairs: int, has_both: bool, finish: Finish) -> Any:
    """As `tile.tile_of` for ``pairs`` of packed panels; ``panel`` is the address of the first pair."""

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing_context, y, sources, targets, runs, run_count, steps, panel, epilogue, low, high
    ):
        stored, shape = simd.stored_type(y.dtype), _Shape(registers.lanes, dot, positions, pairs, has_both)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, sources, targets, runs, run_count, steps, panel, *rest = arguments

            def table(start: ir.Value) -> Values:
                return [simd.load(builder, simd.add_bytes(builder, start, 8 * r), simd.I64) for r in range(positions)]

            pair_bytes = builder.mul(builder.mul(run_count, steps), simd.I64(CHANNELS * dot.group))
            panels = [panel]
            for _ in range(1, pairs):
                panels.append(builder.add(panels[-1], pair_bytes))
            sums = _sum_up(builder, shape, table(sources), panels, runs, run_count, steps)
            finish(builder, add_biases(builder, sums, rest[0]), table(targets), rest, stored)
            return context.get_dummy_value()

        return types.void(y, *[types.int64] * 9), generate

    return tile


@cache
def linear_nibbles_kernel(registers: Registers, dot: Dot, is_for_one: bool, rule: RoundingRule) -> Callable[..., int]:
    """The kernel for a fully connected layer on packed weights, for a single image or for any number of them.

    It takes what `conv.conv2d_kernel` takes, with the panels of `nibbles.pack_nibbles`, and finishes by ``rule``.
    """
    finish = finish_for(rule)
    positions, wide = (1, _PAIRS_OF_ONE[registers]) if is_for_one else _MANY[registers]
    pair_tile = _tile_of(registers, dot, positions, 1, True, finish)
    wide_tile = pair_tile if wide == 1 else _tile_of(registers, dot, positions, wide, True, finish)
    last_tile = _tile_of(registers, dot, positions, 1, False, finish)

    def linear_nibbles(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        tables: Array,
        packed: Array,
        epilogue: Array,
        runs: Array,
        clamp: tuple[int, int],
        windows: Windows,
    ) -> int:
        sources, targets = tables.ctypes.data, tables.ctypes.data + tables.strides[0]
        steps, run, count = packed.shape[2], runs.ctypes.data, runs.shape[0]
        width = 2 * CHANNELS * y.itemsize
        pairs = epilogue.shape[0] // 2  # of which both panels are there
        first_group, end_group = share((packed.shape[0] + wide - 1) // wide, part, parts)
        end = min(end_group * wide, packed.shape[0])
        for first in range(0, images, BLOCK):
            rows = (min(BLOCK, images - first) + positions - 1) // positions * positions
            fill_tables(tables, x, y, windows, first, rows, images - first)
            pair, written = first_group * wide, 0
            while pair < end:
                for at in range(rows):
                    tables[1, at] += pair * width - written
                written = pair * width
                panel = packed.ctypes.data + pair * packed.strides[0]
                constants = epilogue.ctypes.data + 2 * pair * epilogue.strides[0]
                taken = wide if pair + wide <= min(end, pairs) else 1
                for at in range(0, rows, positions):
                    x_at, y_at = sources + 8 * at, targets + 8 * at
                    if pair >= pairs:
                        last_tile(y, x_at, y_at, run, count, steps, panel, constants, clamp[0], clamp[1])
                    elif taken == wide:
                        wide_tile(y, x_at, y_at, run, count, steps, panel, constants, clamp[0], clamp[1])
                    else:
                        pair_tile(y, x_at, y_at, run, count, steps, panel, constants, clamp[0], clamp[1])
                pair += taken
        return 0

    name = f"linear_nibbles_{registers.value}_{dot.value}_{'one' if is_for_one else 'many'}_{rule.value}"
    linear_nibbles.__name__ = linear_nibbles.__qualname__ = name
    return jit(linear_nibbles)
