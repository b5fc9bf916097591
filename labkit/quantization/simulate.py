"""Simulated quantization: float arithmetic on values that were rounded to the integer grid ("fake quantization").

This is how the EE219 lab measures its steps one by one: weights only, then activations, then the bias. The integers
and scales are those of an `IntGraph`; only the arithmetic is float, so its sums are not exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.arithmetic.affine import dequantize
from labkit.errors import InputError
from labkit.frontends.float_run import run_float
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.quantization.inputs import only_input

__all__ = ["BIASES", "run_simulated", "simulate_weights"]

BIASES = ("float", "unscaled", "quantized")


def simulate_weights(graph: FloatGraph, net: IntGraph, bias: str = "float") -> FloatGraph:
    """``graph`` with the weights that the integers of ``net`` stand for.

    Parameters
    ----------
    graph : simplified FloatGraph
    net : the IntGraph made from it
    bias : "float" leaves biases as they are; "quantized" takes the int32 ones (eq. 8); "unscaled" adds the real bias
        to the integer sums as if it were an integer, which makes it worth ``b * S_w * S_x`` (the EE219 lab's 57.07 %)

    Raises
    ------
    InputError
        ``bias`` is none of these.
    """
    if bias not in BIASES:
        raise InputError(f"bias must be one of {', '.join(BIASES)}, got {bias!r}.")
    nodes = []
    for node in graph:
        op = node.op
        if not isinstance(op, float_ops.Conv2d | float_ops.Linear):
            nodes.append(node)
            continue
        integer = net[node.name]
        assert isinstance(integer.op, int_ops.Conv2d | int_ops.Linear)
        weight = integer.op.weight
        unit = weight.params.scale.astype(np.float64) * float(net.inputs_of(integer)[0].quantized[1].scale)
        value = op.bias
        if value is not None and bias != "float":
            value = ((integer.op.bias if bias == "quantized" else value) * unit).astype(np.float32)
        nodes.append(
            replace(node, op=replace(op, weight=dequantize(weight.values, weight.params, weight.spec), bias=value))
        )
    return FloatGraph(tuple(nodes), graph.outputs)


def run_simulated(
    graph: FloatGraph, net: IntGraph, x: NDArray[np.float32] | Mapping[str, NDArray[Any]], activations: bool = True
) -> NDArray[np.float32]:
    """The first output of ``graph``, each tensor rounded to its grid in ``net`` on the way.

    ``x`` is float32 [N, ...], or for several inputs arrays [N, ...] by name.

    ``activations`` False leaves the tensors as they are. Returns float32 [N, ...].

    Raises
    ------
    InputError
        ``x`` is one array, and the network takes several.
    """

    def rounded(name: str, value: torch.Tensor) -> torch.Tensor:
        if net[name].output.is_index:
            return value
        spec, params = net[name].output.quantized
        scale, zero_point = float(params.scale), int(params.zero_point)
        q = torch.round(value / scale).clamp_(spec.qmin - zero_point, spec.qmax - zero_point)
        return q.mul_(scale)

    given = x if isinstance(x, Mapping) else {only_input(graph, "One array is"): x}
    return run_float(graph, given, rounded if activations else None, only_outputs=True)[graph.outputs[0]]
