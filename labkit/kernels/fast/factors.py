"""Factors of a product of matrices, brought to int16 in the order in which the tile reads them; see `matmul`.

Elements that lie side by side are taken sixteen at a time. A vector may touch up to 15 numbers beyond those that it wants:
those read belong to no result, and those written are written again, or lie behind the array (`packing.aligned_zeros`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.kernels.fast import simd
from labkit.kernels.fast.finish import CHANNELS
from labkit.kernels.jit import jit

__all__ = ["Sizes", "Steps", "fill_panels", "fill_rows"]

Array = NDArray[Any]

_BLOCK = 16  # pairs that are turned together


class Sizes(NamedTuple):
    """``products`` of matrices [rows, inner] and [inner, columns]."""

    products: int
    rows: int
    inner: int
    columns: int


class Steps(NamedTuple):
    """Where matrices lie in an image of a buffer: the first element, then elements to the next matrix, row and column."""

    start: int
    matrix: int
    row: int
    column: int


def _centred(builder: ir.IRBuilder, array: types.Array, zero: ir.Value, count: int) -> Any:
    """What loads ``count`` numbers of ``array``'s dtype from an address as int16, less ``zero``."""
    kind, stored = ir.VectorType(simd.I16, count), simd.stored_type(array.dtype)
    zeros = None if stored is simd.I16 else simd.splat(builder, builder.trunc(zero, simd.I16), kind)
    return lambda address: simd.load_centred(builder, address, stored, zeros, count)


@intrinsic
def _copy_run(typing_context, x, source, target, chunks, zero):  # type: ignore[no-untyped-def]
    """``chunks`` of 16 numbers at ``source`` to ``target``."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _, source, target, chunks, zero = arguments
        taken, size = _centred(builder, x, zero, CHANNELS), CHANNELS * x.dtype.bitwidth // 8

        def one(state: list[ir.Value]) -> list[ir.Value]:
            source, target = state
            simd.store(builder, taken(source), target)
            return [simd.add_bytes(builder, source, size), simd.add_bytes(builder, target, 2 * CHANNELS)]

        simd.counted_loop(builder, chunks, [source, target], one)
        return context.get_dummy_value()

    return types.void(x, *[types.int64] * 4), generate


@intrinsic
def _interleave_rows(typing_context, x, first, second, target, zero):  # type: ignore[no-untyped-def]
    """Sixteen numbers at ``first`` and sixteen at ``second``, in turn, to ``target``."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _, first, second, target, zero = arguments
        taken = _centred(builder, x, zero, CHANNELS)
        lanes = [lane + CHANNELS * which for lane in range(CHANNELS) for which in (0, 1)]
        order = ir.Constant(ir.VectorType(simd.I32, len(lanes)), lanes)
        simd.store(builder, builder.shuffle_vector(taken(first), taken(second), order), target)
        return context.get_dummy_value()

    return types.void(x, *[types.int64] * 4), generate


@intrinsic
def _turn_block(typing_context, x, source, step, last, target, zero):  # type: ignore[no-untyped-def]
    """A square of pairs: those of column c of 16 lie at ``source + c * step`` bytes, and go to lane c of vectors at ``target``.

    Columns after number ``last`` are that one again.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _, source, step, last, target, zero = arguments
        taken, kind = _centred(builder, x, zero, 2 * _BLOCK), ir.VectorType(simd.I32, _BLOCK)
        vectors = []
        for c in range(_BLOCK):
            number = builder.select(builder.icmp_signed("<", simd.I64(c), last), simd.I64(c), last)
            vectors.append(builder.bitcast(taken(builder.add(source, builder.mul(step, number))), kind))
        for width in (8, 4, 2, 1):  # of the squares that change places
            keeps = [lane + (_BLOCK - width if lane & width else 0) for lane in range(_BLOCK)]
            takes = [lane + (_BLOCK if lane & width else width) for lane in range(_BLOCK)]
            turned = list(vectors)
            for low in (number for number in range(_BLOCK) if not number & width):
                pair = vectors[low], vectors[low + width]
                for place, lanes in ((low, keeps), (low + width, takes)):
                    turned[place] = builder.shuffle_vector(*pair, ir.Constant(kind, lanes))
            vectors = turned
        for k, vector in enumerate(vectors):
            simd.store(builder, vector, simd.add_bytes(builder, target, 4 * _BLOCK * k))
        return context.get_dummy_value()

    return types.void(x, *[types.int64] * 5), generate


@jit
def fill_rows(rows: Array, x: Array, n: int, matrix: int, steps: Steps, sizes: Sizes, zero: int) -> None:
    """The first factor, number ``matrix`` of image ``n`` of ``x``, to int16 ``rows`` [rows, inner rounded up to 2].

    ``zero`` stands for real 0 in ``x``. Where ``inner`` is odd a 0 follows it.
    """
    start = steps.start + matrix * steps.matrix
    if steps.column == 1:
        chunks = (sizes.inner + CHANNELS - 1) // CHANNELS
        source = x.ctypes.data + n * x.strides[0] + start * x.itemsize
        for i in range(sizes.rows):
            _copy_run(x, source + i * steps.row * x.itemsize, rows.ctypes.data + i * rows.strides[0], chunks, zero)
    else:
        image, less = x[n].reshape(-1), np.int16(zero)
        for i in range(sizes.rows):
            first = start + i * steps.row
            for k in range(sizes.inner):
                rows[i, k] = np.int16(image[first + k * steps.column]) - less
    if sizes.inner % 2:
        for i in range(sizes.rows):
            rows[i, sizes.inner] = 0


@jit
def fill_panels(panels: Array, x: Array, n: int, matrix: int, steps: Steps, sizes: Sizes, zero: int) -> None:
    """The second factor, number ``matrix`` of image ``n`` of ``x``, to int16 ``panels`` [columns / 16, inner / 2, 16, 2].

    ``zero`` stands for real 0 in ``x``. After the last column, and after ``inner`` where it is odd, there are any numbers.
    """
    pairs, start = panels.shape[1], steps.start + matrix * steps.matrix
    source = x.ctypes.data + n * x.strides[0] + start * x.itemsize
    image, less = x[n].reshape(-1), np.int16(zero)
    for p in range(panels.shape[0]):
        there = min(CHANNELS, sizes.columns - p * CHANNELS)
        first = p * CHANNELS * steps.column
        target = panels.ctypes.data + p * panels.strides[0]
        if steps.column == 1:
            for k in range(pairs):
                upper = source + (first + 2 * k * steps.row) * x.itemsize
                lower = upper + (steps.row * x.itemsize if 2 * k + 1 < sizes.inner else 0)
                _interleave_rows(x, upper, lower, target + k * panels.strides[1], zero)
        elif steps.row == 1 and sizes.inner >= 2 * _BLOCK:
            for block in range((pairs + _BLOCK - 1) // _BLOCK):
                k = min(block * _BLOCK, pairs - _BLOCK)  # the last may reach back: the same numbers again
                at = source + (first + 2 * k) * x.itemsize
                _turn_block(x, at, steps.column * x.itemsize, there - 1, target + k * panels.strides[1], zero)
        else:
            if there < CHANNELS:
                panels[p] = 0
            for c in range(there):
                at = start + first + c * steps.column
                for k in range(sizes.inner):
                    panels[p, k // 2, c, k % 2] = np.int16(image[at + k * steps.row]) - less
