"""ONNX operators that sum in float32 or look along axes: matrix products, normalisation, softmax, reductions, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.frontends.onnx.nodes_call import Array, Call, Operator, Operators
from labkit.frontends.onnx.nodes_layout import axes_of

__all__ = ["SUMS"]


def _matmul(call: Call, a: Array, b: Array) -> Array:
    if a.ndim > 1 and b.ndim > 1:
        call.bounded([*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]])
    return np.asarray(np.matmul(a, b))


def _gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Array:
    left, right = (a.T if call.get("transA", 0) else a), (b.T if call.get("transB", 0) else b)
    y = left @ right
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if alpha != 1:
        y = y * a.dtype.type(alpha)
    if c is not None:
        y = y + (c if beta == 1 else c * a.dtype.type(beta))
    return np.asarray(y)


def _batch_norm(call: Call, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array) -> Array:
    if call.get("training_mode", 0) or call.outputs > 1:
        raise call.unsupported("training_mode")
    gain = gamma / np.sqrt(variance + variance.dtype.type(call.get("epsilon", 1e-5)))
    shape = (-1, *[1] * (x.ndim - 2))
    return np.asarray(((x - mean.reshape(shape)) * gain.reshape(shape) + beta.reshape(shape)).astype(x.dtype))


def _layer_norm(call: Call, x: Array, gamma: Array, beta: Array | None = None) -> tuple[Array, ...]:
    axes = tuple(range(int(call.get("axis", -1)) % x.ndim, x.ndim))
    mean = x.mean(axes, keepdims=True)
    variance = np.square(x - mean).mean(axes, keepdims=True)
    inverse = (1 / np.sqrt(variance + x.dtype.type(call.get("epsilon", 1e-5)))).astype(x.dtype)
    y = (x - mean) * inverse * gamma
    return ((y if beta is None else y + beta).astype(x.dtype), mean, inverse)[: call.outputs]


def _softmax(call: Call, x: Array) -> Array:
    return np.exp(_log_softmax(call, x))


def _log_softmax(call: Call, x: Array) -> Array:
    if call.opset < 13:
        raise call.unsupported(f"the meaning of opset {call.opset}, which flattens its input")
    axis = int(call.get("axis", -1))
    less = x - x.max(axis, keepdims=True)
    return np.asarray(less - np.log(np.exp(less).sum(axis, keepdims=True)))


def _arg(function: Callable[..., Any]) -> Operator:
    def operator(call: Call, x: Array) -> Array:
        axis = int(call.get("axis", 0)) % max(1, x.ndim)
        last = bool(call.get("select_last_index", 0))
        found = function(np.flip(x, axis) if last else x, axis)
        found = np.expand_dims(x.shape[axis] - 1 - found if last else found, axis)
        return np.asarray(found if call.get("keepdims", 1) else found.squeeze(axis)).astype(np.int64)

    return operator


def _reduce(function: Callable[..., Any]) -> Operator:
    def operator(call: Call, x: Array, axes: Array | None = None) -> Array:
        named = axes_of(call, axes, x.ndim)
        if not named:
            if call.get("noop_with_empty_axes", 0):
                return x
            named = None
        return np.asarray(function(x, axis=named, keepdims=bool(call.get("keepdims", 1)))).astype(x.dtype)

    return operator


SUMS: Operators = {
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "BatchNormalization": _batch_norm,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _log_softmax,
    "MatMul": _matmul,
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceSum": _reduce(np.sum),
    "Softmax": _softmax,
}
