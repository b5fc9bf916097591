"""The bias of the last layer: left out, left unscaled, rounded to int32 at S_w S_x, and where int32 is too small for that."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.errors import QuantizationError
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.net import IntegerNet
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer
from labkit.studies.lab import Lab, logits

__all__ = ["BiasOverflow", "overflow", "unscaled_bias", "without_bias"]

_LAST = "fc3"


def without_bias(graph: FloatGraph) -> FloatGraph:
    """``graph`` without the bias of fc3."""
    return _with_last(graph, _last(graph).weight, None)


def unscaled_bias(graph: FloatGraph, net: IntGraph) -> dict[str, RoundedLayer]:
    """fc3 of ``graph`` with the integer weights of ``net``, and round(bias), in real units, as its integer bias.

    That is the lab's net before its last step: the bias is added to the integer sums as if it were one of them.
    """
    node = net[_LAST]
    assert isinstance(node.op, int_ops.Linear)
    unit = node.op.weight.params.scale.astype(np.float64) * float(net.inputs_of(node)[0].quantized[1].scale)
    bias = _last(graph).bias
    assert bias is not None
    return {_LAST: RoundedLayer(node.op.weight, np.asarray(np.rint(bias) * unit, np.float32))}


@dataclass(frozen=True)
class BiasOverflow:
    """One channel of fc3 whose weights were divided by 2**exponent, at scale S_w S_x and in labkit.

    exponent : of the division
    needed : bias / (S_w S_x), rounded: what int32 would have to hold
    unit_steps : S_w S_x in steps of the output's grid
    wrapped : that number cut to 32 bits
    enlarged : S_w' / S_w, by which labkit enlarges the channel's weight scale (eq. 8a of docs/arithmetic.md); 1 where it need not
    taken : the bias integer that labkit takes
    wrapped_steps, taken_steps : what is wrong with the channel's output then, at most, in steps of its grid: by ``wrapped`` from
        the bias alone, by ``taken`` measured in the engine against the float network, rounding included
    """

    exponent: int
    needed: int
    unit_steps: float
    wrapped: int
    enlarged: float
    taken: int
    wrapped_steps: float
    taken_steps: float


def overflow(lab: Lab, exponent: int, images: int = 256) -> BiasOverflow:
    """The channel of fc3 with the largest bias, its weights divided by 2**``exponent``.

    Parameters
    ----------
    lab : a LeNet with a bias
    exponent : 0 or more
    images : test images for the measured error
    """
    last = _last(lab.graph)
    assert last.bias is not None
    channel = int(np.abs(last.bias).argmax())
    weight = last.weight.copy()
    weight[channel] = np.ldexp(weight[channel], -exponent)
    graph = _with_last(lab.graph, weight, last.bias)
    plan = BitPlan.uniform(graph, 8, 8)
    net = convert(graph, lab.calibration, plan)
    node = net[_LAST]
    assert isinstance(node.op, int_ops.Linear)
    own = np.abs(weight[channel]).max().astype(np.float64) / plan.weight_spec(_LAST).qmax
    unit = own * float(net.inputs_of(node)[0].quantized[1].scale)
    bias, step = float(last.bias[channel]), float(node.output.quantized[1].scale)
    needed = round(bias / unit)
    wrapped = _wrapped(needed)
    x = lab.x[:images]
    errors = IntegerNet(net).run(x)[:, channel] - _clipped(logits(graph, x)[:, channel], net)
    return BiasOverflow(
        exponent,
        needed,
        unit / step,
        wrapped,
        float(node.op.weight.params.scale[channel] / own),
        int(node.op.bias[channel]),
        abs(wrapped - needed) * unit / step,
        float(np.abs(errors).max() / step),
    )


def _wrapped(value: int) -> int:
    """``value`` cut to 32 bits in two's complement."""
    return (value + 2**31) % 2**32 - 2**31


def _clipped(values: NDArray[np.float32], net: IntGraph) -> NDArray[np.float32]:
    """``values`` float32 [N] cut to what the output grid of ``net`` reaches: what lies beyond is not the bias's doing."""
    spec, params = net[_LAST].output.quantized
    scale, zero = float(params.scale), int(params.zero_point)
    return np.clip(values, (spec.qmin - zero) * scale, (spec.qmax - zero) * scale)


def _last(graph: FloatGraph) -> float_ops.Linear:
    op = graph[_LAST].op
    if not isinstance(op, float_ops.Linear):
        raise QuantizationError(f"{_LAST} is no linear layer of this network. Hand in a LeNet.")
    return op


def _with_last(graph: FloatGraph, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> FloatGraph:
    nodes = (replace(n, op=replace(_last(graph), weight=weight, bias=bias)) if n.name == _LAST else n for n in graph)
    return FloatGraph(tuple(nodes), graph.outputs)
