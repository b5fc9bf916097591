"""What a runtime's rules made of a graph, brought back to operations from which every runtime's rules can be made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.runtimes.bounds import clamp_even
from labkit.runtimes.labkit_rules import add, requantizer, scale_of

__all__ = ["without_torch"]


def without_torch(graph: IntGraph) -> IntGraph:
    """``graph`` with whole biases, labkit's sums, border and changes of scale where it has those of PyTorch's engines.

    A bias that was made a real number becomes the nearest integer again: the same one, where it was below about 2**21.
    """
    nodes = tuple(replace(node, op=_op(node, graph.inputs_of(node))) for node in graph)
    return graph if all(a.op is b.op for a, b in zip(nodes, graph, strict=True)) else replace(graph, nodes=nodes)


def _op(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    if isinstance(op, int_ops.QuantizeByReciprocal):
        return int_ops.Quantize(op.shape)
    if isinstance(op, int_ops.AddDequantized | int_ops.AddAwayFromZero):
        return replace(add((inputs[0], inputs[1]), node.output), clamp=op.clamp)
    if isinstance(op, int_ops.Lookup) and op.function == "rescale":
        plain = requantizer(scale_of(inputs[0]) / scale_of(node.output), node.output)
        return int_ops.Requantize(replace(plain, clamp=_clamp(op, node.output)))
    if isinstance(op, int_ops.Conv2d | int_ops.Linear) and op.requantizer.bias is not None:
        bias = _whole_bias(op, op.requantizer.bias, inputs[0])
        old = op.requantizer
        plain = Requantizer(RoundingRule.FLOAT32_EVEN, old.multiplier, old.zero_point, old.clamp)
        return replace(op, bias=bias, requantizer=plain)
    return op


def _clamp(op: int_ops.Lookup, output: Tensor) -> tuple[int, int]:
    """The clamp of a fused ReLU or ReLU6, where the table ends as with one; else the whole grid."""
    spec, _ = output.quantized
    relu, relu6 = clamp_even((0.0, None), output), clamp_even((0.0, 6.0), output)
    low, high = int(op.table.min()), int(op.table.max())
    if low < relu[0]:
        return spec.qmin, spec.qmax
    return relu6 if high <= relu6[1] else relu


def _whole_bias(op: int_ops.Conv2d | int_ops.Linear, bias: NDArray[np.float32], source: Tensor) -> NDArray[np.int32]:
    """The integers nearest to the real ``bias``: those that were there before, up to about 2**21."""
    whole = bias.astype(np.float64)
    if op.requantizer.rule is RoundingRule.FLOAT32_TWICE:
        whole = whole / (op.weight.params.scale.astype(np.float64) * np.float64(source.quantized[1].scale))
    within = np.clip(np.rint(whole), -(2**31), 2**31 - 1)
    return np.asarray(np.broadcast_to(within, op.bias.shape), np.int32)
