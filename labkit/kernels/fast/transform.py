"""The transforms of `winograd` on vectors: a patch of 16 channels at once, in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from labkit.kernels.fast import simd
from labkit.kernels.fast.finish import CHANNELS, Finish, add_biases, unfinished
from labkit.kernels.fast.winograd import Transform

__all__ = ["inputs_of", "outputs_of"]


class _Lanes:
    """A vector with Python's signs for it; every operation wraps around, as the algebra allows."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _new(self, value: ir.Value) -> _Lanes:
        return _Lanes(self.builder, value)

    def __add__(self, other: _Lanes) -> _Lanes:
        return self._new(self.builder.add(self.value, other.value))

    def __sub__(self, other: _Lanes) -> _Lanes:
        return self._new(self.builder.sub(self.value, other.value))

    def __mul__(self, factor: int) -> _Lanes:
        return self._new(self.builder.mul(self.value, self._every(factor)))

    def __lshift__(self, bits: int) -> _Lanes:
        return self._new(self.builder.shl(self.value, self._every(bits)))

    def __rshift__(self, bits: int) -> _Lanes:
        return self._new(self.builder.ashr(self.value, self._every(bits)))

    def _every(self, number: int) -> ir.Constant:
        return ir.Constant(self.value.type, [number] * self.value.type.count)


Rows = list[list[_Lanes]]


def _by_column_then_row(combine: Callable[[Any], list[Any]], patch: Rows) -> Rows:
    """``M patch M^T`` for the matrix M of which ``combine`` is the product."""
    columns = [combine(column) for column in zip(*patch, strict=True)]
    return [combine(row) for row in zip(*columns, strict=True)]


def inputs_of(transform: Transform) -> Any:
    """The intrinsic ``(x, source, row_bytes, pixel_bytes, target, plane_bytes)`` for 16 channels.

    It reads a patch of the numbers of ``x``, int16 or uint8, at the address ``source`` and stores each point as int16 in
    a plane of its own, from ``target`` on.
    """
    points = transform.points

    @intrinsic
    def transform_inputs(typing_context, x, source, row_bytes, pixel_bytes, target, plane_bytes):  # type: ignore[no-untyped-def]
        stored = simd.stored_type(x.dtype)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, source, row_bytes, pixel_bytes, target, plane_bytes = arguments
            patch: Rows = []
            for i in range(points):
                row = builder.add(source, builder.mul(row_bytes, simd.I64(i)))
                pixels = [builder.add(row, builder.mul(pixel_bytes, simd.I64(j))) for j in range(points)]
                patch.append([_Lanes(builder, simd.load_centred(builder, pixel, stored, None)) for pixel in pixels])
            results = _by_column_then_row(transform.input_transform, patch)
            for plane, lanes in enumerate(lanes for row in results for lanes in row):
                offset = builder.mul(plane_bytes, simd.I64(plane))
                simd.store(builder, lanes.value, builder.add(target, offset))
            return context.get_dummy_value()

        return types.void(x, *[types.int64] * 5), generate

    return transform_inputs


def outputs_of(transform: Transform, finish: Finish, lanes: int) -> Any:
    """The intrinsic ``(y, source, plane_bytes, target, row_bytes, pixel_bytes, epilogue, low, high)`` for a panel.

    It reads 16 int32 at ``source`` in each plane, divides the factors out and hands the sums to ``finish``, which stores
    them as the array ``y`` does, from the address ``target`` on. Vectors hold ``lanes`` of them, 8 or 16.
    """
    size, points = transform.size, transform.points

    @intrinsic
    def transform_outputs(  # type: ignore[no-untyped-def]
        typing_context, y, source, plane_bytes, target, row_bytes, pixel_bytes, epilogue, low, high
    ):
        stored = simd.stored_type(y.dtype)

        def unscaled(builder: ir.IRBuilder, source: ir.Value, plane_bytes: ir.Value, vector: int) -> Rows:
            patch: Rows = [[] for _ in range(points)]
            for plane in range(points * points):
                offset = simd.add_bytes(builder, builder.mul(plane_bytes, simd.I64(plane)), vector * lanes * 4)
                sums = simd.load(builder, builder.add(source, offset), ir.VectorType(simd.I32, lanes))
                patch[plane // points].append(_Lanes(builder, sums))
            results = _by_column_then_row(transform.output_transform, patch)
            for i in range(size):
                for j in range(size):
                    whole = results[i][j] if transform.odd == 1 else results[i][j] * transform.inverse
                    results[i][j] = whole >> transform.shift(i, j)
            return results

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, source, plane_bytes, target, row_bytes, pixel_bytes, *rest = arguments
            vectors = [unscaled(builder, source, plane_bytes, v) for v in range(CHANNELS // lanes)]

            for i in range(size):
                row = builder.add(target, builder.mul(row_bytes, simd.I64(i)))
                targets = [builder.add(row, builder.mul(pixel_bytes, simd.I64(j))) for j in range(size)]
                results = {(j, 0): [vector[i][j].value for vector in vectors] for j in range(size)}
                if finish is not unfinished:
                    results = add_biases(builder, results, rest[0])
                finish(builder, results, targets, rest, stored)
            return context.get_dummy_value()

        return types.void(y, *[types.int64] * 8), generate

    return transform_outputs
