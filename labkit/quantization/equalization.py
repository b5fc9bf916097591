"""Cross-layer equalization: give both layers that meet in a channel weights of like range (Nagel et al. 2019, section 4.1).

A ReLU, a max-pool or a mean lets a positive factor through: if layer one's output channel i is divided by s_i and
layer two's weights for it are multiplied by s_i, the network computes what it did before. With the ranges r1 and r2
of both layers' weights for the channel, ``s = sqrt(r1 r2) / r2`` makes both ranges sqrt(r1 r2), which is best for one
scale a tensor. With one scale a channel there is little to gain.

A ReLU6 does not let factors through. Pairs joined by one are left alone, or, with ``relu6="replace"``, every ReLU6
becomes a ReLU first, as the paper does with MobileNetV2: the float network then changes where it was clipped at 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from labkit.errors import QuantizationError
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode

__all__ = ["RELU6", "Equalized", "Pair", "absorb_biases", "equalizable_pairs", "equalize", "normal_moments"]

Layer = float_ops.Conv2d | float_ops.Linear
Values = NDArray[np.float64]

RELU6 = ("keep", "replace")
ROUNDS = 20
_LETS_FACTORS_THROUGH = (
    *(float_ops.MaxPool2d, float_ops.AveragePool2d, float_ops.AdaptiveAveragePool2d),
    *(float_ops.Flatten, float_ops.Pad, float_ops.UpsampleNearest2d),
)


@dataclass(frozen=True)
class Pair:
    """Two layers by name, ``first`` and ``second``, with nothing between that would stop a positive factor of a channel."""

    first: str
    second: str


@dataclass(frozen=True, eq=False)
class Equalized:
    """The equalized ``graph``, and by layer the factors float64 [C] that its output channels were divided by (``scales``)."""

    graph: FloatGraph
    scales: Mapping[str, Values]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", MappingProxyType(dict(self.scales)))


def equalizable_pairs(graph: FloatGraph) -> tuple[Pair, ...]:
    """Each layer of a simplified ``graph`` whose result reaches one other layer and nothing else.

    What lies between lets factors through. A depthwise convolution between two others is the second of one pair and the
    first of the next (the paper's triples).
    """
    pairs = []
    for node in graph:
        if not _is_layer(node) or node.activation is Activation.RELU6:
            continue
        at, flattened = node, False
        while True:
            consumers = graph.consumers(at.name)
            if len(consumers) != 1 or at.name in graph.outputs:
                break
            (at,) = consumers
            flattened |= isinstance(at.op, float_ops.Flatten)
            if _is_layer(at):
                if _joins(node, at, flattened):
                    pairs.append(Pair(node.name, at.name))
                break
            is_relu = isinstance(at.op, float_ops.Relu) and at.op.kind is Activation.RELU
            if not (isinstance(at.op, _LETS_FACTORS_THROUGH) or is_relu) or at.activation is Activation.RELU6:
                break
    return tuple(pairs)


def equalize(graph: FloatGraph, rounds: int = ROUNDS, relu6: str = "keep") -> Equalized:
    """Equalize all pairs of layers, over and over, since a layer's two neighbours pull at it from both sides.

    Parameters
    ----------
    graph : after `passes.simplify`
    rounds : over all pairs, at most; it stops when no factor differs from 1 by more than 1e-6
    relu6 : "keep" leaves pairs joined by a ReLU6 alone; "replace" makes each ReLU6 a ReLU first

    Raises
    ------
    QuantizationError
        ``relu6`` is neither.
    """
    if relu6 not in RELU6:
        raise QuantizationError(f"relu6 must be one of {', '.join(RELU6)}, got {relu6!r}.")
    if relu6 == "replace":
        graph = _without_relu6(graph)
    ops: dict[str, Layer] = {node.name: node.op for node in graph if _is_layer(node)}  # type: ignore[misc]
    scales = {name: np.ones(len(op.weight)) for name, op in ops.items()}
    pairs = equalizable_pairs(graph)
    for _ in range(rounds):
        furthest = 0.0
        for pair in pairs:
            first, second = ops[pair.first], ops[pair.second]
            channels = len(first.weight)
            out_range, in_range = _output_ranges(first), _input_ranges(second, channels)
            alive = (out_range > 0) & (in_range > 0)
            factor = np.where(alive, np.sqrt(np.where(alive, out_range / np.where(alive, in_range, 1), 1)), 1.0)
            ops[pair.first] = _scaled_outputs(first, 1 / factor)
            ops[pair.second] = _scaled_inputs(second, factor)
            scales[pair.first] = scales[pair.first] * factor
            furthest = max(furthest, float(np.abs(factor - 1).max()))
        if furthest < 1e-6:
            break
    return Equalized(_with_ops(graph, ops), scales)


def absorb_biases(graph: FloatGraph, moments: Mapping[str, tuple[Values, Values]]) -> FloatGraph:
    """Move what is nearly always there out of a layer's outputs into the next layer's bias (Nagel et al. 2019, section 4.1).

    Where an output before its ReLU is almost never below ``c = max(0, mean - 3 deviation)``, ``relu(x) = relu(x - c)
    + c``: the layer's bias loses c and the next one's gains ``W c``. Activations get a smaller range. It changes the
    result where an output does fall below c. Pairs whose second layer pads with zeros are left alone, since c would
    be missing in the padding.

    Parameters
    ----------
    graph : after `passes.simplify`
    moments : by layer, mean and deviation float64 [C] of its output before the activation; `normal_moments` reads
        them off batch norms

    Returns
    -------
    the graph with other biases
    """
    ops: dict[str, Layer] = {node.name: node.op for node in graph if _is_layer(node)}  # type: ignore[misc]
    for pair in equalizable_pairs(graph):
        first, second = ops[pair.first], ops[pair.second]
        padded = isinstance(second, float_ops.Conv2d) and any(any(edge) for edge in second.padding)
        if (
            pair.first not in moments
            or graph[pair.first].activation is not Activation.RELU
            or padded
            or _pads(graph, pair)
        ):
            continue
        mean, deviation = moments[pair.first]
        absorbed = np.maximum(0.0, mean - 3 * deviation)
        ops[pair.first] = replace(first, bias=(_bias(first) - absorbed).astype(np.float32))
        shift = _channel_sums(second, len(first.weight)) @ absorbed
        ops[pair.second] = replace(second, bias=(_bias(second) + shift).astype(np.float32))
    return _with_ops(graph, ops)


def normal_moments(graph: FloatGraph, scales: Mapping[str, Values] | None = None) -> dict[str, tuple[Values, Values]]:
    """Mean and deviation of each layer's output where a batch norm follows: its beta and the magnitude of its gamma.

    Parameters
    ----------
    graph : before batch norms are folded
    scales : by layer float64 [C], as `Equalized` has them: what the outputs have been divided by since

    Returns
    -------
    by layer name: mean and deviation, both float64 [C]
    """
    found = {}
    for node in graph:
        if isinstance(node.op, float_ops.BatchNorm2d) and _is_layer(graph[node.inputs[0]]):
            divisor = (scales or {}).get(node.inputs[0], np.ones(len(node.op.beta)))
            beta, gamma = node.op.beta.astype(np.float64), np.abs(node.op.gamma.astype(np.float64))
            found[node.inputs[0]] = (beta / divisor, gamma / divisor)
    return found


def _is_layer(node: FloatNode) -> bool:
    return isinstance(node.op, float_ops.Conv2d | float_ops.Linear)


def _joins(first: FloatNode, second: FloatNode, flattened: bool) -> bool:
    """Each output channel of ``first`` must be a run of inputs of ``second``."""
    channels = len(first.op.weight)  # type: ignore[union-attr]
    if isinstance(second.op, float_ops.Conv2d):
        return isinstance(first.op, float_ops.Conv2d) and not flattened
    inputs = second.op.weight.shape[1]  # type: ignore[union-attr]
    if isinstance(first.op, float_ops.Conv2d):
        return flattened and inputs % channels == 0
    return not flattened and inputs == channels


def _pads(graph: FloatGraph, pair: Pair) -> bool:
    """A node between the two puts zeros in, or takes them into its means."""
    (node,) = graph.consumers(pair.first)
    while node.name != pair.second:
        if isinstance(node.op, float_ops.Pad | float_ops.AveragePool2d):
            return True
        (node,) = graph.consumers(node.name)
    return False


def _by_input(op: Layer, channels: int) -> NDArray[np.float32]:
    """The weights as [groups, O / groups, channels / groups, taps], so that inputs can be looked at one by one."""
    groups = op.groups if isinstance(op, float_ops.Conv2d) else 1
    return op.weight.reshape(groups, len(op.weight) // groups, channels // groups, -1)


def _output_ranges(op: Layer) -> Values:
    return np.asarray(np.abs(op.weight.reshape(len(op.weight), -1)).max(1), np.float64)


def _input_ranges(op: Layer, channels: int) -> Values:
    return np.asarray(np.abs(_by_input(op, channels)).max((1, 3)).reshape(channels), np.float64)


def _channel_sums(op: Layer, channels: int) -> Values:
    """[O, channels]: the sum of each output's weights for one input channel."""
    by_input = _by_input(op, channels).sum(3, dtype=np.float64)
    groups, outputs, inputs = by_input.shape
    sums = np.zeros((groups, outputs, groups, inputs))
    sums[np.arange(groups), :, np.arange(groups)] = by_input
    return sums.reshape(groups * outputs, channels)


def _scaled_outputs(op: Layer, factor: Values) -> Layer:
    weight = (op.weight * factor.reshape([-1] + [1] * (op.weight.ndim - 1))).astype(np.float32)
    return replace(op, weight=weight, bias=None if op.bias is None else (op.bias * factor).astype(np.float32))


def _scaled_inputs(op: Layer, factor: Values) -> Layer:
    by_input = _by_input(op, len(factor))
    scaled = by_input * factor.reshape(len(by_input), 1, -1, 1)
    return replace(op, weight=scaled.reshape(op.weight.shape).astype(np.float32))


def _bias(op: Layer) -> Values:
    return np.zeros(len(op.weight)) if op.bias is None else op.bias.astype(np.float64)


def _with_ops(graph: FloatGraph, ops: Mapping[str, Layer]) -> FloatGraph:
    return FloatGraph(tuple(replace(node, op=ops.get(node.name, node.op)) for node in graph), graph.outputs)


def _without_relu6(graph: FloatGraph) -> FloatGraph:
    nodes = []
    for node in graph:
        if node.activation is Activation.RELU6:
            node = replace(node, activation=Activation.RELU)
        if isinstance(node.op, float_ops.Relu):
            node = replace(node, op=float_ops.Relu(Activation.RELU))
        nodes.append(node)
    return FloatGraph(tuple(nodes), graph.outputs)
