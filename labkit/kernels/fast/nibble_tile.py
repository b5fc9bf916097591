"""A fully connected layer of one image on weights of four bits, which are unpacked in registers.

Each weight is used once, so that the time goes into reading weights: half as many bytes take little more than half as
long. See `nibbles` for how weights lie in memory. A byte b = 16 * w1 + u with u = w0 + 8 is a multiplier itself:

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
from labkit.kernels.fast.conv import Windows, fill_tables
from labkit.kernels.fast.finish import CHANNELS, Finish, Sums, add_biases, finish_for
from labkit.kernels.fast.nibbles import LIFT
from labkit.kernels.fast.shares import share
from labkit.kernels.fast.tile import Dot, Registers, add_products
from labkit.kernels.jit import jit

__all__ = ["linear_nibbles_kernel", "wraps_nowhere"]

Array = NDArray[Any]
Values = list[ir.Value]

_PAIRS = {Registers.BITS_256: 2, Registers.BITS_512: 4}  # of panels in a tile: enough sums to hide the multiplier's delay


def wraps_nowhere(weights: NDArray[np.integer], largest: int) -> bool:
    """Whether 16 times any sum of ``weights`` [O, ...] times inputs up to ``largest`` in magnitude fits int32."""
    sums = np.abs(weights.astype(np.int64)).reshape(weights.shape[0], -1).sum(axis=1) * largest
    return bool(np.all(16 * sums < 2**31))


@dataclass(frozen=True)
class _Shape:
    """``pairs`` of panels of packed weights against one position; ``has_both`` of the panels of a pair, or the first."""

    lanes: int
    dot: Dot
    pairs: int
    has_both: bool

    @property
    def loads(self) -> list[tuple[int, int]]:
        """Pair and vector of each vector of bytes."""
        return [(pair, v) for pair in range(self.pairs) for v in range(CHANNELS // self.lanes)]

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
    builder: ir.IRBuilder, shape: _Shape, source: ir.Value, panels: Values, steps: ir.Value, state: Values
) -> Values:
    """Add one run to ``state``: its offset, the place in the panels, 8 * sum(x), then two sums for each load."""
    vector_bytes = shape.lanes * shape.dot.group
    stored = ir.VectorType(simd.I8, vector_bytes)

    def one_step(state: Values) -> Values:
        offset, read, lift, *sums = state
        group = simd.load(builder, builder.add(source, offset), simd.I32)
        x = builder.bitcast(simd.splat(builder, group, shape.sums), shape.inputs)
        results = [add_products(builder, shape.dot, lift, x, _all(shape.inputs, LIFT))]
        for at, (pair, v) in enumerate(shape.loads):
            address = builder.add(panels[pair], simd.add_bytes(builder, read, v * vector_bytes))
            for half, weights in enumerate(_multipliers(builder, shape, simd.load(builder, address, stored))):
                results.append(add_products(builder, shape.dot, sums[2 * at + half], x, weights))
        step_bytes = CHANNELS * shape.dot.group
        return [simd.add_bytes(builder, offset, 4), simd.add_bytes(builder, read, step_bytes), *results]

    return simd.counted_loop(builder, steps, state, one_step)


def _separate(builder: ir.IRBuilder, shape: _Shape, lift: ir.Value, sums: Values) -> Values:
    """The sums for the lower and for the upper half of each load, from what `_sum_run` leaves, as int32."""
    results = []
    for lower, upper in zip(sums[0::2], sums[1::2], strict=True):
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
    source: ir.Value,
    panels: Values,
    runs: ir.Value,
    run_count: ir.Value,
    steps: ir.Value,
) -> Sums:
    """Sums of products for each channel of the panels."""
    count = 2 * len(shape.loads)

    def one_run(state: Values) -> Values:
        run, read, *sums = state
        offset = simd.load(builder, run, simd.I64)
        if shape.dot.sums_int16:
            zeros = [ir.Constant(shape.run_sums, None)] * (1 + count)
            _, read, lift, *short = _sum_run(builder, shape, source, panels, steps, [offset, read, *zeros])
            found = _separate(builder, shape, lift, short)
            sums = [sums[0], *(builder.add(a, b) for a, b in zip(sums[1:], found, strict=True))]
        else:
            _, read, *sums = _sum_run(builder, shape, source, panels, steps, [offset, read, *sums])
        return [simd.add_bytes(builder, run, 8), read, *sums]

    zeros = [ir.Constant(shape.sums, None)] * (1 + count)
    _, _, lift, *sums = simd.counted_loop(builder, run_count, [runs, simd.I64(0), *zeros], one_run)
    totals = sums if shape.dot.sums_int16 else _separate(builder, shape, lift, sums)
    result: Sums = {}
    for at, (pair, _) in enumerate(shape.loads):
        for half in range(1 + shape.has_both):
            result.setdefault((0, 2 * pair + half), []).append(totals[2 * at + half])
    return result


def _tile_of(registers: Registers, dot: Dot, pairs: int, has_both: bool, finish: Finish) -> Any:
    """As `tile.tile_of` for one position and ``pairs`` of packed panels; ``panel`` is the address of the first pair."""

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing_context, y, sources, targets, runs, run_count, steps, panel, epilogue, low, high
    ):
        stored, shape = simd.stored_type(y.dtype), _Shape(registers.lanes, dot, pairs, has_both)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, sources, targets, runs, run_count, steps, panel, *rest = arguments
            pair_bytes = builder.mul(builder.mul(run_count, steps), simd.I64(CHANNELS * dot.group))
            panels = [panel]
            for _ in range(1, pairs):
                panels.append(builder.add(panels[-1], pair_bytes))
            source, target = (simd.load(builder, table, simd.I64) for table in (sources, targets))
            sums = _sum_up(builder, shape, source, panels, runs, run_count, steps)
            finish(builder, add_biases(builder, sums, rest[0]), [target], rest, stored)
            return context.get_dummy_value()

        return types.void(y, *[types.int64] * 9), generate

    return tile


@cache
def linear_nibbles_kernel(registers: Registers, dot: Dot, rule: RoundingRule) -> Callable[..., int]:
    """The kernel for a fully connected layer of one image on packed weights, finished by ``rule``.

    It takes what `nibbles.conv2d_nibbles_kernel` takes.
    """
    finish, wide = finish_for(rule), _PAIRS[registers]
    wide_tile, pair_tile = (_tile_of(registers, dot, pairs, True, finish) for pairs in (wide, 1))
    last_tile = _tile_of(registers, dot, 1, False, finish)

    def linear_nibbles(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        tables: Array,
        unpacked: Array,
        packed: Array,
        epilogue: Array,
        runs: Array,
        clamp: tuple[int, int],
        windows: Windows,
    ) -> int:
        sources, targets = tables.ctypes.data, tables.ctypes.data + tables.strides[0]
        fill_tables(tables, x, y, windows, 0, 1, 1)
        steps, run, count = packed.shape[2], runs.ctypes.data, runs.shape[0]
        width = 2 * CHANNELS * y.itemsize
        pairs = epilogue.shape[0] // 2  # of which both panels are there
        first, end = share((packed.shape[0] + wide - 1) // wide, part, parts)
        start, pair = tables[1, 0], first * wide
        end = min(end * wide, packed.shape[0])
        while pair < end:
            tables[1, 0] = start + pair * width
            at = packed.ctypes.data + pair * packed.strides[0]
            constants = epilogue.ctypes.data + 2 * pair * epilogue.strides[0]
            if pair + wide <= min(end, pairs):
                wide_tile(y, sources, targets, run, count, steps, at, constants, clamp[0], clamp[1])
                pair += wide
            elif pair < pairs:
                pair_tile(y, sources, targets, run, count, steps, at, constants, clamp[0], clamp[1])
                pair += 1
            else:
                last_tile(y, sources, targets, run, count, steps, at, constants, clamp[0], clamp[1])
                pair += 1
        return 0

    linear_nibbles.__name__ = linear_nibbles.__qualname__ = f"linear_nibbles_{registers.value}_{dot.value}_{rule.value}"
    return jit(linear_nibbles)
