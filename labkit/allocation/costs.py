"""Costs that can be counted: bytes of weights, and bit operations. `latency` has the one that must be measured.

Both are whole numbers of eighths, so that their sums have no rounding error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from labkit.allocation.cost_table import CostTable
from labkit.errors import QuantizationError
from labkit.frontends.float_run import run_float
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.quantization.plan import BitPlan, scale_owner

__all__ = ["ALL_BITS", "bit_operations", "layer_macs", "weight_bytes", "weight_layers"]

ALL_BITS = (1, 2, 3, 4, 5, 6, 7, 8)  # the candidates of MPQCO (supplement, section 1)
_BIAS_BYTES = 4  # int32
_SCALE_BYTES = 4  # float32
_NORM_BYTES = 12  # int32 multiplier and int64 addend
_WIDE_BYTES = 2  # int16


def weight_layers(graph: FloatGraph) -> tuple[str, ...]:
    """Names of the convolutions and linear layers of the simplified ``graph``, in running order."""
    return tuple(_operations(graph))


def weight_bytes(graph: FloatGraph, bits: Sequence[int] = ALL_BITS, *, per_channel: bool = True) -> CostTable:
    """Bytes that the parameters take: n b / 8 for the n weights of a layer at b bits, as if bits lay end to end.

    The fixed part holds what does not depend on the bits: 4 bytes for each bias (int32), where a layer has one, and 4 for
    each scale (float32), one an output channel or one a layer. Zero points of symmetric weights are 0 and take nothing. Tables
    of embeddings have 8 bits and a scale a row or one each, whatever the layers have; a layer norm takes 12 bytes a feature, and
    a constant 2 an element.

    Parameters
    ----------
    graph : after `passes.simplify`
    bits : candidates, ascending
    per_channel : one scale for each output channel, or one a layer

    Raises
    ------
    QuantizationError
        The graph has no layer with weights, or the bits are not ascending integers in 1..8.
    """
    layers = _some_layers(graph)
    ops = _operations(graph)
    sizes = np.array([op.weight.size for op in ops.values()], np.float64)
    biases = sum(op.bias.size for op in ops.values() if op.bias is not None)
    scales = sum(op.weight.shape[0] for op in ops.values()) if per_channel else len(ops)
    values = sizes[:, None] * np.asarray(bits, np.float64)[None, :] / 8
    fixed = _BIAS_BYTES * biases + _SCALE_BYTES * scales + _other_bytes(graph, per_channel)
    notes = {"weights": int(sizes.sum()), "biases": int(biases), "scales": int(scales)}
    return CostTable(layers, tuple(bits), values, "bytes", "size", float(fixed), notes)


def bit_operations(
    graph: FloatGraph, activations: int | Mapping[str, int] | BitPlan = 8, bits: Sequence[int] = ALL_BITS
) -> CostTable:
    """Multiply-accumulates of one image x weight bits x bits of the layer's input (the slides on HAWQ-V3 count so).

    It agrees with `labkit.graph.costs.costs` of the converted network.

    Parameters
    ----------
    graph : after `passes.simplify`
    activations : bits of all activations (8 at input and output), bits by tensor, or a plan that says them
    bits : candidates for the weights, ascending

    Raises
    ------
    QuantizationError
        The graph has no layer with weights, bits are out of range, or an activation has no bits.
    """
    layers = _some_layers(graph)
    if isinstance(activations, BitPlan):
        table: Mapping[str, int] = activations.activations
    elif isinstance(activations, Mapping):
        table = BitPlan({}, activations).activations
    else:
        table = BitPlan.uniform(graph, activations=activations).activations
    inputs = [scale_owner(graph, graph[name].inputs[0]) for name in layers]
    if missing := [name for name in inputs if name not in table]:
        raise QuantizationError(
            f"There are no activation bits for {missing[0]!r}, which a layer takes; the bits name {', '.join(table)}."
        )
    macs = layer_macs(graph)
    each = np.array([macs[layer] * table[name] for layer, name in zip(layers, inputs, strict=True)], np.float64)
    values = each[:, None] * np.asarray(bits, np.float64)[None, :]
    notes = {"macs": sum(macs.values())}
    return CostTable(layers, tuple(bits), values, "bit operations", "bit operations", 0.0, notes)


def layer_macs(graph: FloatGraph) -> dict[str, int]:
    """Multiply-accumulates of each convolution and linear layer of the simplified ``graph`` for one image."""
    inputs = {node.name: node.op.shape for node in graph if isinstance(node.op, float_ops.Input)}
    results = run_float(graph, {name: np.zeros((1, *shape), np.float32) for name, shape in inputs.items()})
    return {
        name: int(op.weight.size * np.prod(results[name].shape[2:], dtype=np.int64))
        for name, op in _operations(graph).items()
    }


def _other_bytes(graph: FloatGraph, per_channel: bool) -> int:
    """Bytes of the parameters of ``graph`` that no layer multiplies by."""
    found = 0
    for node in graph:
        if isinstance(node.op, float_ops.Embedding):
            found += node.op.weight.size + _SCALE_BYTES * (len(node.op.weight) if per_channel else 1)
        elif isinstance(node.op, float_ops.LayerNorm):
            found += _NORM_BYTES * len(node.op.gamma)
        elif isinstance(node.op, float_ops.Constant):
            found += _WIDE_BYTES * node.op.values.size
    return found


def _operations(graph: FloatGraph) -> dict[str, float_ops.Conv2d | float_ops.Linear]:
    return {node.name: node.op for node in graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)}


def _some_layers(graph: FloatGraph) -> tuple[str, ...]:
    layers = weight_layers(graph)
    if not layers:
        raise QuantizationError("The network has no convolution and no linear layer, so there are no bits to allocate.")
    return layers
