"""What LiteRT's rules made of a graph, brought back to operations from which every runtime's rules can be made."""

from __future__ import annotations

import math
from dataclasses import replace

from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.runtimes.labkit_rules import requantizer, scale_of, softmax
from labkit.runtimes.lookups import labkit_lookup

__all__ = ["without_litert"]


def without_litert(graph: IntGraph) -> IntGraph:
    """``graph`` with labkit's means, tables, softmax and border where it has those of LiteRT or XNNPACK."""
    nodes = tuple(replace(node, op=_op(node, graph.inputs_of(node))) for node in graph)
    return graph if all(a.op is b.op for a, b in zip(nodes, graph, strict=True)) else replace(graph, nodes=nodes)


def _op(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    if isinstance(op, int_ops.QuantizeAwayFromZero):
        return int_ops.Quantize(op.shape)
    if isinstance(op, int_ops.SoftmaxFixedPoint | int_ops.SoftmaxByReciprocal):
        return softmax(op.axis, inputs[0], node.output)
    if isinstance(op, int_ops.Lookup) and op.function != "rescale":
        return labkit_lookup(op.function, inputs[0], node.output)
    if isinstance(op, int_ops.MeanFloat32):
        return _mean(op, inputs[0], node.output)
    return op


def _mean(op: int_ops.MeanFloat32, source: Tensor, output: Tensor) -> IntOp:
    sizes = [source.shape[axis] if axis in op.axes else 1 for axis in range(1, len(source.shape))]
    made = requantizer(scale_of(source) / (scale_of(output) * math.prod(sizes)), output)
    height, width = (*(1, 1), *sizes)[-2:]
    if len(op.axes) == len(source.shape) - 1:
        return int_ops.AdaptiveAveragePool2d((1, 1), made)
    return int_ops.AveragePool2d((height, width), (1, 1), ((0, 0), (0, 0)), made)
