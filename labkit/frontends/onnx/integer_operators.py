"""Operators that take integers and say themselves what they mean: QLinearConv and its like, and Clip and Relu of integers.

Each function takes the state of the import and a node, and says what the node's result is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from labkit.errors import ModelError
from labkit.frontends.onnx import layers
from labkit.frontends.onnx.building import Building
from labkit.frontends.onnx.layers import Make
from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.softmax import softmax
from labkit.frontends.onnx.values import Integers, Value, activation_grid, refuse
from labkit.frontends.onnx.weights import bias_from_integers, scaled, transposed
from labkit.graph import int_ops
from labkit.graph.ir import Tensor
from labkit.runtimes.labkit_rules import requantizer

__all__ = ["INTEGER_OPERATORS", "clip_of_integers", "relu_of_integers"]


def _made(state: Building, node: OnnxNode, sources: tuple[Integers, ...], make: Make, grid: int) -> Integers:
    """The operation of ``make``, whose output's scale and zero point are inputs ``grid`` and the next of ``node``."""
    spec, params = activation_grid(node, *state.grid_arrays(node, grid, sources[0].tensor.dtype))
    output = Tensor((), spec, params)
    return state.add(node.outputs[0], make(output, (None, None)), sources, output)


def _conv(state: Building, node: OnnxNode) -> Value:
    source, weights = state.activation(node, 0), state.weights(node, 3, 0)
    bias = (
        bias_from_integers(node, state.constant(node, 8, "bias"), len(weights.values)) if state.has(node, 8) else None
    )
    return _made(state, node, (source,), layers.convolution(node, source.tensor, weights, bias), 6)


def _product_of_two(state: Building, node: OnnxNode) -> Value:
    """Two activations (N, B, m, k) and (N, B, k, n), or (N, m, k) and (N, k, n), which become products of one matrix each."""
    sources = state.activation(node, 0), state.activation(node, 3)
    if {len(source.tensor.shape) for source in sources} != {2}:
        return _made(state, node, sources, layers.matrix_product(node, sources), 6)
    name = node.outputs[0]
    a, b = (
        state.add_between(name, int_ops.Reshape((1, *source.tensor.shape)), (source,), source.tensor)
        for source in sources
    )
    spec, params = activation_grid(node, *state.grid_arrays(node, 6, a.tensor.dtype))
    output = Tensor((), spec, params)
    made = state.add_between(name, layers.matrix_product(node, (a, b))(output, (None, None)), (a, b), output)
    return state.add(name, int_ops.Reshape(made.tensor.shape[1:]), (made,), output)


def _matmul(state: Building, node: OnnxNode) -> Value:
    if state.name(node, 3) not in state.constants:
        return _product_of_two(state, node)
    source, weights = state.activation(node, 0), state.weights(node, 3, 1)
    return _made(state, node, (source,), layers.linear(node, source.tensor, transposed(node, weights), None), 6)


def _gemm(state: Building, node: OnnxNode) -> Value:
    source = state.activation(node, 0)
    per_row = bool(node.attributes.get("transB", 0))
    weights = state.weights(node, 3, 0 if per_row else 1)
    weights = scaled(node, weights if per_row else transposed(node, weights))
    if node.attributes.get("transA", 0):
        raise refuse(node, "it transposes its input (transA), which mixes the images of a batch.")
    if not state.has(node, 7):
        raise refuse(node, "it puts out real numbers.")
    bias = (
        bias_from_integers(node, state.constant(node, 6, "bias"), len(weights.values)) if state.has(node, 6) else None
    )
    return _made(state, node, (source,), layers.linear(node, source.tensor, weights, bias), 7)


def _average_pool(state: Building, node: OnnxNode) -> Value:
    source = state.activation(node, 0)
    if node.attributes.get("channels_last", 0):
        raise refuse(node, "its channels are last.")
    return _made(state, node, (source,), layers.average(node, source.tensor), 3)


def _global_average_pool(state: Building, node: OnnxNode) -> Value:
    source = state.activation(node, 0)
    if node.attributes.get("channels_last", 0):
        raise refuse(node, "its channels are last.")
    return _made(state, node, (source,), layers.global_average(node, source.tensor), 3)


def _two(state: Building, node: OnnxNode) -> tuple[Integers, Integers]:
    """Both operands, of which one may be a constant."""
    constant = [state.name(node, index) in state.constants for index in (0, 3)]
    if constant == [True, False]:
        other = state.activation(node, 3)
        return state.constant_first(node, state.weights(node, 0, 0), other.tensor.shape), other
    first = state.activation(node, 0)
    if constant[1]:
        return first, state.constant_integers(node, state.weights(node, 3, 0), first.tensor.shape)
    return first, state.activation(node, 3)


def _add(state: Building, node: OnnxNode) -> Value:
    sources = _two(state, node)
    return _made(state, node, sources, layers.addition(node, sources), 6)


def _multiply(state: Building, node: OnnxNode) -> Value:
    sources = _two(state, node)
    return _made(state, node, sources, layers.product(sources), 6)


def _concat(state: Building, node: OnnxNode) -> Value:
    if len(node.inputs) < 5 or (len(node.inputs) - 2) % 3:
        raise ModelError(f"{node}: it takes a scale, a zero point and three inputs a part, got {len(node.inputs)}.")
    state.spend_on_parts(len(node.inputs))
    sources = tuple(state.activation(node, index) for index in range(2, len(node.inputs), 3))
    return _made(state, node, sources, layers.concatenation(node, sources), 0)


def _softmax(state: Building, node: OnnxNode) -> Value:
    source = state.activation(node, 0)
    if int(node.attributes.get("opset", 13)) < 13:
        raise refuse(node, "it is a softmax of before opset 13, over several axes at once.")
    return _made(state, node, (source,), softmax(node, source.tensor), 3)


def clip_of_integers(state: Building, node: OnnxNode) -> Value:
    """What the ``node``, a Clip of integers, makes of its input in ``state``: the same scale, a narrower clamp.

    Raises
    ------
    ModelError
        Its ends are not of the type of its input.
    """
    source = state.integers(node, 0)
    spec, _ = source.tensor.quantized
    ends = [spec.qmin, spec.qmax]
    for i, what in enumerate(("lowest", "highest")):
        if state.has(node, 1 + i):
            end = state.constant(node, 1 + i, what)
            if end.dtype != source.tensor.dtype or end.size != 1:
                raise ModelError(
                    f"{node}: its {what} number must be one {source.tensor.dtype}, got {end.dtype} {end.shape}."
                )
            ends[i] = int(end.reshape(()))
    return _clamped(state, node, source, min(max(ends[0], spec.qmin), spec.qmax), min(ends[1], spec.qmax))


def relu_of_integers(state: Building, node: OnnxNode) -> Value:
    """What ``node``, a Relu of integers, makes of its input in ``state``: none below the integer 0, whatever the zero point."""
    source = state.integers(node, 0)
    return _clamped(state, node, source, max(0, source.tensor.quantized[0].qmin), source.tensor.quantized[0].qmax)


def _clamped(state: Building, node: OnnxNode, source: Integers, low: int, high: int) -> Integers:
    if low > high:
        raise refuse(node, f"its lowest number, {low}, is above its highest, {high}.")
    kept = replace(requantizer(1.0, source.tensor), clamp=(low, high))
    return state.add(node.outputs[0], int_ops.Requantize(kept), (source,), source.tensor)


INTEGER_OPERATORS: Mapping[str, Callable[[Building, OnnxNode], Value]] = MappingProxyType(
    {
        "QGemm": _gemm,
        "QLinearAdd": _add,
        "QLinearAveragePool": _average_pool,
        "QLinearConcat": _concat,
        "QLinearConv": _conv,
        "QLinearGlobalAveragePool": _global_average_pool,
        "QLinearMatMul": _matmul,
        "QLinearMul": _multiply,
        "QLinearSoftmax": _softmax,
    }
)
