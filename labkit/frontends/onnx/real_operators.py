"""Operators on real numbers that stand for integers (the format QDQ): each waits for the QuantizeLinear that follows it.

Each function takes the state of the import and a node, and says what the node's result is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import ModelError
from labkit.frontends.onnx import layers
from labkit.frontends.onnx.building import Building
from labkit.frontends.onnx.integer_operators import clip_of_integers, relu_of_integers
from labkit.frontends.onnx.layers import Make
from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.softmax import softmax
from labkit.frontends.onnx.values import (
    Dequantized,
    Integers,
    Pending,
    Real,
    Value,
    Weights,
    activation_grid,
    refuse,
    within,
)
from labkit.frontends.onnx.weights import bias_from_real, bias_from_weights, has_bias_scale, scaled, transposed
from labkit.graph import int_ops
from labkit.graph.ir import Tensor

__all__ = ["REAL_OPERATORS"]


def _quantize(state: Building, node: OnnxNode) -> Value:
    spec, params = activation_grid(node, *state.grid_arrays(node, 1, np.dtype(np.uint8)))
    value, name = state.value(node, 0), node.outputs[0]
    output = Tensor((), spec, params)
    if isinstance(value, Real):
        return state.entry(node, value, replace(output, shape=value.shape))
    if isinstance(value, Pending):
        op = value.make(output, value.bounds)
        clamp = getattr(op, "clamp", None) or getattr(getattr(op, "requantizer", None), "clamp", (spec.qmin, spec.qmax))
        if value.in_float or (clamp != (spec.qmin, spec.qmax) and not value.is_table):
            state.in_float.append(value.node.name)
        if not value.drops_axes:
            return state.add(name, op, value.inputs, output, value.names)
        before = state.add_between(name, op, value.inputs, output)
        return state.add(name, int_ops.Reshape(before.tensor.shape[:1]), (before,), output, value.names)
    source = state.integers(node, 0)
    have_spec, have = source.tensor.quantized
    if have_spec == spec and (have.scale, have.zero_point) == (params.scale, params.zero_point):
        state.carry(source, name)
        return source
    return state.add(name, layers.rescaling(source.tensor)(output, (None, None)), (source,), output)


def _dequantize(state: Building, node: OnnxNode) -> Value:
    source = state.activation(node, 0)
    state.carry(source, node.outputs[0])
    return Dequantized(source)


def _pending(node: OnnxNode, inputs: tuple[Integers, ...], make: Make, **more: Any) -> Pending:
    return Pending(node, inputs, make, names=(node.outputs[0],), **more)


def _source(state: Building, node: OnnxNode, index: int = 0) -> Integers:
    value = state.value(node, index)
    if not isinstance(value, Dequantized):
        raise refuse(node, f"its input {state.name(node, index)!r} does not come from a DequantizeLinear.")
    return value.of


def _weights(state: Building, node: OnnxNode, index: int = 1) -> Weights:
    name = state.name(node, index)
    value = state.values.get(name)
    if not isinstance(value, Weights):
        raise refuse(node, f"its weights {name!r} are no constant that was quantized.")
    state.spend_on(value)
    return value


def _bias(
    state: Building, node: OnnxNode, source: Integers, weights: Weights, outputs: int
) -> NDArray[np.int32] | None:
    if not state.has(node, 2):
        return None
    name, scale = state.name(node, 2), source.tensor.quantized[1].scale
    value = state.values.get(name)
    if isinstance(value, Weights):
        return bias_from_weights(node, value, scale, weights, outputs)
    return bias_from_real(node, state.constant(node, 2, "bias"), scale, weights, outputs)


def _is_not_fused(state: Building, node: OnnxNode, source: Integers, weights: Weights) -> bool:
    """Whether onnxruntime computes a layer in float32: weights of few bits, or a bias (of zeros) of another scale."""
    bias = state.values.get(state.name(node, 2))
    other = isinstance(bias, Weights) and not has_bias_scale(bias, source.tensor.quantized[1].scale, weights)
    return weights.bits < 8 or other


def _conv(state: Building, node: OnnxNode) -> Value:
    source, weights = _source(state, node), _weights(state, node)
    bias = _bias(state, node, source, weights, len(weights.values))
    make = layers.convolution(node, source.tensor, weights, bias)
    return _pending(node, (source,), make, in_float=_is_not_fused(state, node, source, weights))


def _gemm(state: Building, node: OnnxNode) -> Value:
    source, weights = _source(state, node), _weights(state, node)
    if node.attributes.get("transA", 0):
        raise refuse(node, "it transposes its input (transA), which mixes the images of a batch.")
    if state.has(node, 2) and float(node.attributes.get("beta", 1.0)) != 1.0:
        raise refuse(node, "it scales its bias (beta).")
    weights = scaled(node, weights if node.attributes.get("transB", 0) else transposed(node, weights))
    bias = _bias(state, node, source, weights, len(weights.values))
    make = layers.linear(node, source.tensor, weights, bias)
    return _pending(node, (source,), make, in_float=_is_not_fused(state, node, source, weights))


def _matmul(state: Building, node: OnnxNode) -> Value:
    if isinstance(state.values.get(state.name(node, 1)), Dequantized):
        sources = _source(state, node), _source(state, node, 1)
        return _pending(node, sources, layers.matrix_product(node, sources))
    source, weights = _source(state, node), _weights(state, node)
    make = layers.linear(node, source.tensor, transposed(node, weights), None)
    return _pending(node, (source,), make, in_float=weights.bits < 8)


def _two(state: Building, node: OnnxNode) -> tuple[Integers, Integers]:
    """Both inputs, of which one may be a constant."""
    held = [state.values.get(state.name(node, index)) for index in (0, 1)]
    if isinstance(held[0], Weights) and not isinstance(held[1], Weights):
        other = _source(state, node, 1)
        return state.constant_first(node, held[0], other.tensor.shape), other
    first = _source(state, node, 0)
    if isinstance(held[1], Weights):
        return first, state.constant_integers(node, held[1], first.tensor.shape)
    return first, _source(state, node, 1)


def _add(state: Building, node: OnnxNode) -> Value:
    sources = _two(state, node)
    return _pending(node, sources, layers.addition(node, sources))


def _subtract(state: Building, node: OnnxNode) -> Value:
    sources = _two(state, node)
    return _pending(node, sources, layers.addition(node, sources, subtracts=True), in_float=True)


def _multiply(state: Building, node: OnnxNode) -> Value:
    sources = _two(state, node)
    return _pending(node, sources, layers.product(sources))


def _average_pool(state: Building, node: OnnxNode) -> Value:
    source = _source(state, node)
    return _pending(node, (source,), layers.average(node, source.tensor))


def _global_average_pool(state: Building, node: OnnxNode) -> Value:
    source = _source(state, node)
    return _pending(node, (source,), layers.global_average(node, source.tensor))


def _reduce_mean(state: Building, node: OnnxNode) -> Value:
    source = _source(state, node)
    rank = len(source.tensor.shape) + 1
    if state.has(node, 1):
        listed = tuple(int(axis) for axis in state.constant(node, 1, "axes").reshape(-1))
    else:
        listed = tuple(node.attributes.get("axes", ()))
    axes = sorted(axis + (rank if axis < 0 else 0) for axis in listed)
    if axes != list(range(2, rank)):
        raise refuse(node, f"it takes the mean over the axes {listed} of {rank}; height and width together are known.")
    keeps = bool(node.attributes.get("keepdims", 1))
    make = layers.global_average(node, source.tensor)
    return _pending(node, (source,), make, drops_axes=not keeps, in_float=True)


def _concat(state: Building, node: OnnxNode) -> Value:
    state.spend_on_parts(len(node.inputs))
    if all(isinstance(state.value(node, index), Integers) for index in range(len(node.inputs))):
        sources = tuple(state.integers(node, index) for index in range(len(node.inputs)))
        if len({_grid(source) for source in sources}) > 1:
            raise refuse(node, "it joins integers of differing scales.")
        make = layers.concatenation(node, sources)
        return state.add(node.outputs[0], make(sources[0].tensor, (None, None)), sources, sources[0].tensor)
    sources = tuple(_source(state, node, index) for index in range(len(node.inputs)))
    return _pending(node, sources, layers.concatenation(node, sources))


def _grid(source: Integers) -> tuple[Any, ...]:
    spec, params = source.tensor.quantized
    return spec, float(params.scale), int(params.zero_point)


def _relu(state: Building, node: OnnxNode) -> Value:
    value = state.value(node, 0)
    if isinstance(value, Integers):
        return relu_of_integers(state, node)
    return _clamped(state, node, value, 0.0, None)


def _clip(state: Building, node: OnnxNode) -> Value:
    value = state.value(node, 0)
    if isinstance(value, Integers):
        return clip_of_integers(state, node)
    ends: list[float | None] = [None, None]
    for i, what in enumerate(("lowest", "highest")):
        if state.has(node, 1 + i):
            end = state.constant(node, 1 + i, what)
            if end.size != 1 or not np.isfinite(end.astype(np.float64)).all():
                raise ModelError(f"{node}: its {what} number must be one finite float32, got {end.dtype} {end.shape}.")
            ends[i] = float(end.reshape(()))
    low, high = ends
    if low is not None and high is not None and low > high:
        raise refuse(node, f"its lowest number, {low}, is above its highest, {high}.")
    return _clamped(state, node, value, low, high)


def _clamped(state: Building, node: OnnxNode, value: Value, low: float | None, high: float | None) -> Value:
    if isinstance(value, Pending):
        return replace(value, bounds=within(value.bounds, low, high), names=(*value.names, node.outputs[0]))
    source = _source(state, node)
    return _pending(node, (source,), layers.rescaling(source.tensor), bounds=(low, high), is_table=True)


def _softmax(state: Building, node: OnnxNode) -> Value:
    source = _source(state, node)
    return _pending(node, (source,), softmax(node, source.tensor))


REAL_OPERATORS: Mapping[str, Callable[[Building, OnnxNode], Value]] = MappingProxyType(
    {
        "Add": _add,
        "AveragePool": _average_pool,
        "Clip": _clip,
        "Concat": _concat,
        "Conv": _conv,
        "DequantizeLinear": _dequantize,
        "Gemm": _gemm,
        "GlobalAveragePool": _global_average_pool,
        "MatMul": _matmul,
        "Mul": _multiply,
        "QuantizeLinear": _quantize,
        "ReduceMean": _reduce_mean,
        "Relu": _relu,
        "Softmax": _softmax,
        "Sub": _subtract,
    }
)
