"""Why a layer in float32 and the same layer in integers differ: each differing element lies next to a rounding tie.

Both are given the integers that the engine gave the layer. The real result v, in output steps, is known in float64. Integers
compute e = M (sum + bias rounded), with a multiplier off by 2**-31 of itself; float32 computes f with an error of its own.
They can differ only where a tie lies between e and f, hence no further from v than the larger of |e - v| and |f - v|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.arithmetic.affine import dequantize
from labkit.frontends.float_run import run_node
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, FloatNode, IntGraph
from labkit.quantization.simulate import simulate_weights
from labkit.studies.hawq.fake import to_steps

__all__ = ["LayerTies", "centred", "exact_sums", "layer_ties", "real_values"]

_UNIT = 2.0**-24  # float32's relative rounding error
_MULTIPLIER = 2.0**-31  # eq. 12
_OTHER_ROUNDINGS = (
    6  # of both factors of a product, of the bias, of its addition, of the quotient by S, and one to spare
)
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class LayerTies:
    """One layer, given the engine's own input, in float32 and in integers.

    name : of the node
    elements : compared
    differing : of them
    largest : difference in steps
    predicted : elements that the rounded bias alone should change: its error in steps times the elements at a tie
    farthest : the largest distance of a differing element's real value from a tie, as a share of its bound; 0 for none
    unexplained : differing elements beyond their bound
    """

    name: str
    elements: int
    differing: int
    largest: int
    predicted: float
    farthest: float
    unexplained: int


def layer_ties(graph: FloatGraph, net: IntGraph, trace: dict[str, NDArray[np.generic]]) -> tuple[LayerTies, ...]:
    """Compare every node of the simplified ``graph`` with the same of ``net``, node by node.

    ``trace`` holds the engine's integers [N, ...] by name: each node is given those that the engine gave it. Inputs are left
    out. A node that is neither a convolution, a linear layer, a sum nor a mean has the bound 0: it may not differ at all.
    """
    found = []
    with torch.inference_mode():
        for node, weighted in zip(graph, simulate_weights(graph, net), strict=True):
            if isinstance(node.op, float_ops.Input):
                continue
            reals = [real_values(net, name, trace[name]) for name in node.inputs]
            fake = to_steps(net, node.name, run_node(weighted, [torch.from_numpy(real) for real in reals]).numpy())
            engine = trace[node.name].astype(np.int32)
            found.append(_compare(node, net, trace, fake, engine))
    return tuple(found)


def _compare(
    node: FloatNode,
    net: IntGraph,
    trace: dict[str, NDArray[np.generic]],
    fake: NDArray[np.int32],
    engine: NDArray[np.int32],
) -> LayerTies:
    differs = fake != engine
    count, largest = int(differs.sum()), int(np.abs(fake - engine).max(initial=0))
    predicted = _changed_by_bias(node, net, engine)
    if not count:
        return LayerTies(node.name, differs.size, 0, 0, predicted, 0.0, 0)
    exact, bound = _exact(node, net, trace)
    distance = np.abs(exact[differs] - np.floor(exact[differs]) - 0.5)
    shares = distance / np.maximum(bound[differs], np.finfo(np.float64).tiny)
    return LayerTies(
        node.name, differs.size, count, largest, predicted, float(shares.max()), int(np.sum(distance > bound[differs]))
    )


def _exact(node: FloatNode, net: IntGraph, trace: dict[str, NDArray[np.generic]]) -> tuple[Reals, Reals]:
    """The real result in output steps, and how far from a tie it may be where float32 and integers differ."""
    op, integer = node.op, net[node.name]
    step = float(integer.output.quantized[1].scale)
    inputs = [centred(net, name, trace[name]) for name in node.inputs]
    scales = [float(tensor.quantized[1].scale) for tensor in net.inputs_of(integer)]
    if isinstance(op, float_ops.Conv2d | float_ops.Linear):
        assert isinstance(integer.op, int_ops.Conv2d | int_ops.Linear)
        weight = integer.op.weight
        levels = weight.values.astype(np.float64)  # symmetric: no zero point
        ratio = weight.params.scale.astype(np.float64) * scales[0] / step
        biases = np.zeros(len(levels)) if op.bias is None else op.bias.astype(np.float64) / step
        exact = _along(ratio, exact_sums(op, inputs[0], levels)) + _shape(biases, op)
        size = _along(ratio, exact_sums(op, np.abs(inputs[0]), np.abs(levels))) + _shape(np.abs(biases), op)
        depth = int(np.prod(levels.shape[1:]))
        bias_error = 0.0 if op.bias is None else 0.5 * ratio
        in_integers = _shape(np.broadcast_to(bias_error, biases.shape), op) + _MULTIPLIER * size
        return exact, np.maximum(in_integers, (depth + _OTHER_ROUNDINGS) * _UNIT * size)
    if isinstance(op, float_ops.Add):
        assert isinstance(integer.op, int_ops.Add)
        parts = [value * scale / step for value, scale in zip(inputs, scales, strict=True)]
        size = np.abs(parts[0]) + np.abs(parts[1])
        in_integers = (np.abs(inputs[0]) + np.abs(inputs[1])) * 0.5 * 2.0**-integer.op.shift  # eq. 19
        return parts[0] + parts[1], np.maximum(in_integers, _OTHER_ROUNDINGS * _UNIT * size)
    if isinstance(op, float_ops.AveragePool2d | float_ops.AdaptiveAveragePool2d):
        value = inputs[0] * scales[0] / step
        exact, size = (run_node(node, [torch.from_numpy(part)]).numpy() for part in (value, np.abs(value)))
        taps = int(np.prod(inputs[0].shape[2:]))  # no window is larger
        return exact, (taps + _OTHER_ROUNDINGS) * _UNIT * size
    zeros = np.zeros(trace[node.name].shape)
    return zeros, zeros - 1.0


def _changed_by_bias(node: FloatNode, net: IntGraph, engine: NDArray[np.int32]) -> float:
    """A value is carried over a tie by a shift of d < 1 steps with probability d, where its fraction is anything."""
    integer = net[node.name]
    if not isinstance(integer.op, int_ops.Conv2d | int_ops.Linear):
        return 0.0
    assert isinstance(node.op, float_ops.Conv2d | float_ops.Linear)
    if node.op.bias is None:
        return 0.0
    step = float(integer.output.quantized[1].scale)
    unit = integer.op.weight.params.scale.astype(np.float64) * float(net.inputs_of(integer)[0].quantized[1].scale)
    shift = np.abs(integer.op.bias * unit - node.op.bias.astype(np.float64)) / step
    low, high = integer.op.requantizer.clamp
    # A tie k + 1/2 has the density of its two neighbours; beside a clamp, whose own count tells nothing, that of the inner one.
    levels = engine.reshape(len(engine), engine.shape[1], -1)
    at_ties = ((levels > low) & (levels < high)).sum((0, 2)) + 0.5 * ((levels == low + 1) | (levels == high - 1)).sum(
        (0, 2)
    )
    return float((at_ties * shift).sum())


def exact_sums(op: float_ops.Conv2d | float_ops.Linear, x: Reals, levels: Reals) -> Reals:
    """What the layer ``op`` sums up from ``x`` [N, ...] and ``levels`` [O, ...], integers held in float64: float64 [N, ...].

    Exact below 2**53.
    """
    values, weight = torch.from_numpy(x), torch.from_numpy(levels)
    if isinstance(op, float_ops.Linear):
        return F.linear(values, weight).numpy()
    (top, bottom), (left, right) = op.padding
    padded = F.pad(values, (left, right, top, bottom))
    return F.conv2d(padded, weight, None, op.stride, 0, op.dilation, op.groups).numpy()


def _along(factor: Reals, values: Reals) -> Reals:
    return values * factor.reshape(-1, *[1] * (values.ndim - 2)) if factor.ndim else values * factor


def _shape(channels: Reals, op: float_ops.Conv2d | float_ops.Linear) -> Reals:
    return channels.reshape(-1, 1, 1) if isinstance(op, float_ops.Conv2d) else channels


def real_values(net: IntGraph, name: str, values: NDArray[np.generic]) -> NDArray[np.float32]:
    """The numbers that ``values``, integers [N, ...] of the node ``name`` of ``net``, stand for: float32 [N, ...]."""
    spec, params = net[name].output.quantized
    return dequantize(values.astype(spec.dtype), params, spec)


def centred(net: IntGraph, name: str, values: NDArray[np.generic]) -> Reals:
    """``values``, integers [N, ...] of the node ``name`` of ``net``, less the zero point: float64 [N, ...]."""
    return values.astype(np.float64) - int(net[name].output.quantized[1].zero_point)
