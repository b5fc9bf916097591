"""ONNX operators that work element by element, in NumPy; results have the type of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.frontends.onnx.nodes_call import Array, Call, Operator, Operators
from labkit.frontends.onnx.nodes_quantized import whole
from labkit.frontends.onnx.nodes_types import dtype_of, is_integer, wrapped

__all__ = ["ELEMENTWISE"]


def _one(function: Callable[..., Any]) -> Operator:
    """An operator of one tensor from a NumPy function that keeps the type."""

    def operator(call: Call, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(x)).astype(x.dtype)

    return operator


def _two(function: Callable[..., Any]) -> Operator:
    """An operator of two tensors from a NumPy function."""

    def operator(call: Call, a: Array, b: Array) -> Array:
        call.bounded(np.broadcast_shapes(a.shape, b.shape))
        with np.errstate(all="ignore"):
            return np.asarray(function(a, b))

    return operator


def _several(function: Callable[..., Any]) -> Operator:
    def operator(call: Call, first: Array, *rest: Array) -> Array:
        for other in rest:
            call.bounded(np.broadcast_shapes(first.shape, other.shape))
            first = function(first, other)
        return np.asarray(first)

    return operator


def _divide(call: Call, a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        with np.errstate(all="ignore"):
            return np.asarray(a / b)
    if not np.all(b):
        raise call.wrong("it divides an integer by 0")
    quotient = (
        np.abs(a.astype(object)) // np.abs(b.astype(object)) * np.sign(a.astype(object)) * np.sign(b.astype(object))
    )
    return np.asarray(quotient).astype(a.dtype)


def _power(call: Call, a: Array, b: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(np.power(a.astype(np.float64), b.astype(np.float64))).astype(a.dtype)


def _clip(call: Call, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    if call.opset < 11:
        low, high = (None if call.get(end) is None else np.asarray(call.get(end), x.dtype) for end in ("min", "max"))
    if low is not None:
        x = np.maximum(x, low.reshape(()))
    return x if high is None else np.asarray(np.minimum(x, high.reshape(())))


def _relu(call: Call, x: Array) -> Array:
    return np.asarray(np.maximum(x, np.zeros((), x.dtype)))


def _leaky_relu(call: Call, x: Array) -> Array:
    return np.where(x < 0, x * x.dtype.type(call.get("alpha", 0.01)), x)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def _hard_sigmoid(call: Call, x: Array) -> Array:
    alpha, beta = x.dtype.type(call.get("alpha", 0.2)), x.dtype.type(call.get("beta", 0.5))
    return np.asarray(np.clip(alpha * x + beta, 0, 1).astype(x.dtype))


def _hard_swish(x: Array) -> Array:
    return np.asarray(x * np.clip(x * x.dtype.type(1 / 6) + x.dtype.type(0.5), 0, 1))


def _erf(x: Array) -> Array:
    import math

    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _cast(call: Call, x: Array) -> Array:
    if call.get("to") is None:
        raise call.wrong("it does not say to which type")
    return _as_type(x, dtype_of(int(call.get("to")), call.name))


def _cast_like(call: Call, x: Array, like: Array) -> Array:
    return _as_type(x, like.dtype)


def _as_type(x: Array, dtype: np.dtype[Any]) -> Array:
    """``x`` as ``dtype``: reals lose their fraction, integers their high bits."""
    if dtype.kind == "b":
        return np.asarray(whole(x) != 0 if is_integer(x.dtype) else x != 0)
    if not is_integer(dtype):
        values = whole(x) if is_integer(x.dtype) else x
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    if x.dtype.kind == "b" or is_integer(x.dtype):
        return wrapped(whole(x), dtype)
    with np.errstate(invalid="ignore"):  # what lies outside of 64 bits, or is no number, ONNX leaves open
        if dtype == np.uint64:
            return x.astype(dtype)
        return wrapped(np.trunc(x).astype(np.int64), dtype)


def _round(call: Call, x: Array) -> Array:
    return np.rint(x)


def _where(call: Call, condition: Array, a: Array, b: Array) -> Array:
    call.bounded(np.broadcast_shapes(condition.shape, a.shape, b.shape))
    return np.where(condition, a, b)


def _nothing(call: Call, x: Array) -> Array:
    return x


def _dropout(call: Call, x: Array, ratio: Array | None = None, training: Array | None = None) -> Any:
    if training is not None and np.any(training):
        raise call.unsupported("training_mode")
    return x if call.outputs == 1 else (x, np.ones(x.shape, bool))


def _sum_of(a: Array, b: Array) -> Array:
    return np.asarray(a + b)


ELEMENTWISE: Operators = {
    "Abs": _one(np.abs),
    "Add": _two(np.add),
    "And": _two(np.logical_and),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _one(np.ceil),
    "Clip": _clip,
    "Div": _divide,
    "Dropout": _dropout,
    "Equal": _two(np.equal),
    "Erf": _one(_erf),
    "Exp": _one(np.exp),
    "Floor": _one(np.floor),
    "Greater": _two(np.greater),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _one(_hard_swish),
    "Identity": _nothing,
    "LeakyRelu": _leaky_relu,
    "Less": _two(np.less),
    "Log": _one(np.log),
    "Max": _several(np.maximum),
    "Min": _several(np.minimum),
    "Mul": _two(np.multiply),
    "Neg": _one(np.negative),
    "Not": _one(np.logical_not),
    "Or": _two(np.logical_or),
    "Pow": _power,
    "Reciprocal": _one(lambda x: 1 / x),
    "Relu": _relu,
    "Round": _round,
    "Sigmoid": _one(_sigmoid),
    "Sqrt": _one(np.sqrt),
    "Sub": _two(np.subtract),
    "Sum": _several(_sum_of),
    "Tanh": _one(np.tanh),
    "Where": _where,
}
