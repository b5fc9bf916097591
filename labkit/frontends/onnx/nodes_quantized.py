"""ONNX's quantization operators in NumPy: QuantizeLinear to ConvInteger, from 2 to 32 bits.

Sums of integers are exact and then kept to 32 bits, as the specification allows. Where it leaves the order of roundings open,
it is that of onnxruntime's kernels on x86-64: scales are joined in float32, the sum becomes float32, ties go to the even
integer, and the zero point is added after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.frontends.onnx.nodes_call import Array, Call, Operators, integer_ends
from labkit.frontends.onnx.nodes_types import dtype_of, is_integer
from labkit.frontends.onnx.nodes_windows import convolve, exact_product

__all__ = ["QUANTIZED", "accumulator", "dequantized", "quantized", "requantized", "whole"]


def whole(x: Array) -> Array:
    """``x``, integers of any type and shape, as int64."""
    return x.astype(np.int8 if "int" in x.dtype.name and x.dtype.kind not in "iu" else np.int64).astype(np.int64)


def quantized(x: Array, scale: Array, zero_point: Array, dtype: np.dtype[Any]) -> Array:
    """``x / scale`` rounded half to even, plus the zero point, saturated to ``dtype``; shape as ``x``.

    ``x`` and ``scale`` (of one float type, in which the quotient is rounded) and ``zero_point`` (integers) broadcast.
    """
    low, high = integer_ends(dtype)
    zero_point = whole(zero_point)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.rint((x / scale).astype(np.float64))
    steps = np.clip(np.where(np.isnan(steps), -np.inf, steps), low - zero_point, high - zero_point)
    return np.asarray((steps.astype(np.int64) + zero_point).astype(_holder(dtype)).astype(dtype))


def dequantized(x: Array, scale: Array, zero_point: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """``(x - zero_point) * scale``, rounded to ``dtype`` or to the float type of ``scale``; shape as ``x``.

    ``x`` and ``zero_point`` are integers, whose difference is exact; the three broadcast.
    """
    kind = np.dtype(dtype or scale.dtype)
    real = np.result_type(kind, np.float32)  # float16 results too: a product in float32 is rounded once
    return np.asarray(((whole(x) - whole(zero_point)).astype(real) * scale.astype(real)).astype(kind))


def accumulator(total: Array) -> Array:
    """``total``, an exact sum in int64 of any shape, as a 32-bit accumulator holds it, int32."""
    return total.astype(np.int32)


def requantized(total: Array, scale: Array, zero_point: Array, dtype: np.dtype[Any]) -> Array:
    """``float32(total) * scale`` rounded half to even, plus the zero point, saturated to ``dtype``; shape as ``total``.

    ``total`` int32, ``scale`` float32 and ``zero_point`` (integers) broadcast.
    """
    low, high = integer_ends(dtype)
    zero_point = whole(zero_point)
    steps = np.rint(total.astype(np.float32) * scale.astype(np.float32)).astype(np.float64)
    steps = np.clip(steps, low - zero_point, high - zero_point)
    return np.asarray((steps.astype(np.int64) + zero_point).astype(_holder(dtype)).astype(dtype))


def _holder(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A type of NumPy's own from which integers of ``dtype`` can be made."""
    return dtype if dtype.kind in "iu" else np.dtype(np.int8)


def _spread(call: Call, values: Array, shape: Sequence[int]) -> Array:
    """Scales or zero points, one for the tensor, for each index of an axis or for each block, ready to meet ``shape``."""
    block = int(call.get("block_size", 0))
    if values.size == 1 and (values.ndim < 2 or not block):
        return values.reshape(())
    rank, axis = len(shape), int(call.get("axis", 1))
    if rank == 1 and axis == 1:
        axis = 0
    if not -rank <= axis < rank:
        raise call.wrong(f"axis {axis} of a tensor of {rank} axes")
    axis %= rank
    if block:
        blocks = [*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :]]
        if list(values.shape) != blocks:
            raise call.wrong(f"scales {list(values.shape)} for blocks of {block} along axis {axis} of {list(shape)}")
        return np.repeat(values, block, axis)[(*[slice(None)] * axis, slice(shape[axis]))]
    if values.shape != (shape[axis],):
        raise call.wrong(f"scales or zero points {list(values.shape)} for axis {axis} of {list(shape)}")
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def _quantize_linear(call: Call, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    given = int(call.get("output_dtype", 0))
    if zero_point is not None:
        dtype = zero_point.dtype
        if given and dtype_of(given, call.name) != dtype:
            raise call.wrong(f"output_dtype {given} beside a zero point of {dtype}")
    else:
        dtype = dtype_of(given or 2, call.name)
        zero_point = np.zeros((), np.int64)
    if not is_integer(dtype):
        raise call.unsupported(f"a result of {dtype}")
    precision = int(call.get("precision", 0))
    kind = dtype_of(precision, call.name) if precision else scale.dtype
    steps, zeros = _spread(call, scale.astype(kind), x.shape), _spread(call, zero_point, x.shape)
    return quantized(x.astype(kind), steps, zeros, dtype)


def _dequantize_linear(call: Call, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    if not is_integer(x.dtype):
        raise call.unsupported(f"an input of {x.dtype}")
    if zero_point is not None and zero_point.dtype != x.dtype:
        raise call.wrong(f"an input of {x.dtype} with a zero point of {zero_point.dtype}")
    zeros = np.zeros((), np.int64) if zero_point is None else _spread(call, zero_point, x.shape)
    given = int(call.get("output_dtype", 0))
    return dequantized(x, _spread(call, scale, x.shape), zeros, dtype_of(given, call.name) if given else None)


def _dynamic_quantize_linear(call: Call, x: Array) -> tuple[Array, Array, Array]:
    low, high = (np.float32(min(0, x.min(initial=0))), np.float32(max(0, x.max(initial=0))))
    scale = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    zero_point = np.uint8(np.rint(np.clip(-low / scale, np.float32(0), np.float32(255))))
    y = quantized(x, np.asarray(scale), np.asarray(zero_point), np.dtype(np.uint8))
    return y, np.asarray(scale), np.asarray(zero_point)


def _rows(call: Call, values: Array, a: Array) -> Array:
    """Parameters of the left matrix ``a``: one, one for each row, or of the shape of ``a`` with the last axis 1."""
    if values.size == 1:
        return values.reshape(())
    if values.ndim == 1 and a.ndim >= 2 and values.size == a.shape[-2]:
        return values[:, None]
    if values.ndim == a.ndim and values.shape[-1] == 1:
        return values
    raise call.wrong(f"scales or zero points {list(values.shape)} for a left matrix {list(a.shape)}")


def _columns(call: Call, values: Array, b: Array) -> Array:
    """Parameters of the right matrix ``b``: one, one for each column, or of the shape of ``b`` with the last but one axis 1."""
    if values.size == 1:
        return values.reshape(())
    if (values.ndim == 1 and b.ndim >= 2 and values.size == b.shape[-1]) or (
        values.ndim == b.ndim and values.ndim > 1 and values.shape[-2] == 1
    ):
        return values
    raise call.wrong(f"scales or zero points {list(values.shape)} for a right matrix {list(b.shape)}")


def _product(call: Call, a: Array, b: Array, a_zero: Array | None, b_zero: Array | None) -> Array:
    if a.ndim > 1 and b.ndim > 1:
        call.bounded([*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]])
    left, right = whole(a), whole(b)
    if a_zero is not None:
        left = left - _rows(call, whole(a_zero), a)
    if b_zero is not None:
        right = right - _columns(call, whole(b_zero), b)
    return accumulator(exact_product(left, right))


def _matmul_integer(call: Call, a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None) -> Array:
    return _product(call, a, b, a_zero, b_zero)


def _qlinear_matmul(
    call: Call,
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    y_scale: Array,
    y_zero: Array,
) -> Array:
    total = _product(call, a, b, a_zero, b_zero)
    rows, columns = _rows(call, a_scale, a).astype(np.float32), _columns(call, b_scale, b).astype(np.float32)
    steps = rows * columns / _rows(call, y_scale, total).astype(np.float32)
    return requantized(total, steps, _rows(call, y_zero, total), y_zero.dtype)


def _sum_of_products(call: Call, x: Array, x_zero: Array | None, w: Array, w_zero: Array | None) -> Array:
    """The convolution of integers less their zero points; zeros are padded, which are zero points of the input."""
    left, right = whole(x), whole(w)
    if x_zero is not None:
        left = left - _one(call, whole(x_zero))
    if w_zero is not None:
        right = right - _channels(call, whole(w_zero), w, w.ndim)
    return convolve(call, left, right)


def _one(call: Call, values: Array) -> Array:
    if values.size != 1:
        raise call.wrong(f"one scale and zero point is needed for the whole tensor, got {list(values.shape)}")
    return values.reshape(())


def _channels(call: Call, values: Array, w: Array, rank: int) -> Array:
    """Parameters of weights [M, ...], one or one for each output channel, in ``rank`` axes of which the first is M."""
    if values.size == 1:
        return values.reshape(())
    if values.shape != (w.shape[0],):
        raise call.wrong(f"scales or zero points {list(values.shape)} for weights {list(w.shape)}")
    return values.reshape(-1, *[1] * (rank - 1))


def _conv_integer(call: Call, x: Array, w: Array, x_zero: Array | None = None, w_zero: Array | None = None) -> Array:
    return accumulator(_sum_of_products(call, x, x_zero, w, w_zero))


def _qlinear_conv(
    call: Call,
    x: Array,
    x_scale: Array,
    x_zero: Array,
    w: Array,
    w_scale: Array,
    w_zero: Array,
    y_scale: Array,
    y_zero: Array,
    bias: Array | None = None,
) -> Array:
    total = _sum_of_products(call, x, x_zero, w, w_zero)
    if bias is not None:
        total = total + whole(bias).reshape(-1, *[1] * (x.ndim - 2))
    steps = _one(call, x_scale) * _channels(call, w_scale, w, x.ndim - 1) / _one(call, y_scale)
    return requantized(accumulator(total), steps, _one(call, y_zero), y_zero.dtype)


QUANTIZED: Operators = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize_linear,
}
