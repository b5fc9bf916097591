"""onnxruntime's own quantized operators (domain com.microsoft) in NumPy, with the roundings of its kernels on x86-64.

Each formula was measured against onnxruntime, ties included; docs/arithmetic.md derives those that labkit's graphs have too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from labkit.frontends.onnx.nodes_call import Array, Call, Operators, integer_ends
from labkit.frontends.onnx.nodes_quantized import QUANTIZED, accumulator, dequantized, quantized, requantized, whole
from labkit.frontends.onnx.nodes_windows import counts, exact_product, taps, window_of
from labkit.kernels.reference_torch import fused_multiply_add

__all__ = ["MICROSOFT_NODES"]

_F = np.float32


def _rounded_inside(v: Array, dtype: np.dtype[Any]) -> Array:
    """``v`` float32, which holds the zero point already, rounded half to even and saturated to ``dtype``."""
    low, high = integer_ends(dtype)
    return np.clip(np.rint(v), low, high).astype(dtype)


def _grid(scale: Array, zero: Array | None) -> tuple[Any, int]:
    """A scale as float32 and a zero point, 0 where it is left out, each one number."""
    return _F(np.asarray(scale).reshape(())), 0 if zero is None else int(np.asarray(zero).reshape(()))


def _qlinear_add(
    call: Call,
    a: Array,
    a_scale: Array,
    a_zero: Array | None,
    b: Array,
    b_scale: Array,
    b_zero: Array | None,
    y_scale: Array,
    y_zero: Array | None = None,
) -> Array:
    (sa, za), (sb, zb), (sy, zy) = _grid(a_scale, a_zero), _grid(b_scale, b_zero), _grid(y_scale, y_zero)
    ra, rb = sa / sy, sb / sy
    fixed = _F(zy) - fused_multiply_add(np.asarray(ra), _F(za), rb * _F(zb))
    return _rounded_inside(fused_multiply_add(a.astype(_F), ra, fused_multiply_add(b.astype(_F), rb, fixed)), a.dtype)


def _qlinear_mul(
    call: Call,
    a: Array,
    a_scale: Array,
    a_zero: Array | None,
    b: Array,
    b_scale: Array,
    b_zero: Array | None,
    y_scale: Array,
    y_zero: Array | None = None,
) -> Array:
    (sa, za), (sb, zb), (sy, zy) = _grid(a_scale, a_zero), _grid(b_scale, b_zero), _grid(y_scale, y_zero)
    product = ((whole(a) - za) * (whole(b) - zb)).astype(_F)
    return _rounded_inside(product * (sa * sb / sy) + _F(zy), a.dtype)


def _channels_first(call: Call, x: Array) -> Array:
    return np.moveaxis(x, -1, 1) if call.get("channels_last", 0) else x


def _back(call: Call, y: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(y, 1, -1)) if call.get("channels_last", 0) else y


def _qlinear_global_average_pool(
    call: Call, x: Array, x_scale: Array, x_zero: Array | None, y_scale: Array, y_zero: Array | None = None
) -> Array:
    return _back(call, _mean_of_all(_channels_first(call, x), _grid(x_scale, x_zero), _grid(y_scale, y_zero)))


def _mean_of_all(x: Array, x_grid: tuple[Any, int], y_grid: tuple[Any, int]) -> Array:
    cells = math.prod(x.shape[2:])
    total = accumulator(whole(x).sum(tuple(range(2, x.ndim)), keepdims=True) - x_grid[1] * cells)
    step = x_grid[0] / (y_grid[0] * _F(cells))
    return requantized(total, np.asarray(step), np.asarray(y_grid[1]), x.dtype)


def _qlinear_average_pool(
    call: Call, x: Array, x_scale: Array, x_zero: Array | None, y_scale: Array, y_zero: Array | None = None
) -> Array:
    x = _channels_first(call, x)
    x_grid, y_grid = _grid(x_scale, x_zero), _grid(y_scale, y_zero)
    window = window_of(call, x.shape[2:], [int(k) for k in call.get("kernel_shape")])
    if window.kernel == x.shape[2:] and not np.any(window.pads):  # onnxruntime hands this one to the global pool
        return _back(call, _mean_of_all(x, x_grid, y_grid))
    real = dequantized(x, np.asarray(x_grid[0]), np.asarray(x_grid[1]))
    total = np.zeros((), _F)
    for seen in taps(real, window, 0):  # in this order, in float32
        total = total + seen
    # onnxruntime counts the whole window here, even what the last one of ceil_mode sees beyond the padding
    whole_window = bool(call.get("count_include_pad", 0))
    cells = np.asarray(math.prod(window.kernel)) if whole_window else counts(call, x.shape[2:], window)
    mean = total / cells.astype(_F)
    return _back(call, _rounded_inside(mean / y_grid[0] + _F(y_grid[1]), x.dtype))


def _qlinear_concat(call: Call, y_scale: Array, y_zero: Array, *parts: Array) -> Array:
    if not parts or len(parts) % 3:
        raise call.wrong(f"three inputs for each part are needed, got {len(parts)}")
    moved = []
    for x, scale, zero in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        same = _grid(scale, zero) == _grid(y_scale, y_zero)
        moved.append(x if same else quantized(dequantized(x, scale, zero), y_scale, y_zero, x.dtype))
    return np.concatenate(moved, int(call.get("axis", 0)))


def _qgemm(
    call: Call,
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero: Array | None = None,
) -> Array:
    left, right = whole(a) - whole(a_zero).reshape(()), whole(b)
    if call.get("transB", 0):
        right = right.T
    right = right - whole(b_zero).reshape(-1 if b_zero.size > 1 else ())
    total = exact_product(left.T if call.get("transA", 0) else left, right)
    if c is not None:
        total = total + whole(c)
    step = _F(call.get("alpha", 1.0)) * a_scale.reshape(()) * b_scale.reshape(-1 if b_scale.size > 1 else ())
    if y_scale is None:
        return accumulator(total).astype(_F) * step.astype(_F)
    zero = np.zeros((), a.dtype) if y_zero is None else y_zero
    return requantized(accumulator(total), np.asarray(step / y_scale.reshape(())), zero.reshape(()), zero.dtype)


MICROSOFT_NODES: Operators = {
    "DequantizeLinear": QUANTIZED["DequantizeLinear"],  # as ONNX's, for types that older versions of it lack
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear_add,
    "QLinearAveragePool": _qlinear_average_pool,
    "QLinearConcat": _qlinear_concat,
    "QLinearGlobalAveragePool": _qlinear_global_average_pool,
    "QLinearMul": _qlinear_mul,
    "QuantizeLinear": QUANTIZED["QuantizeLinear"],
}
