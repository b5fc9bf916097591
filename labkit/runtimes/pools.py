"""Average pools that keep the scale of their input, as PyTorch and LiteRT have them, followed by a change of scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from labkit.arithmetic.windows import common_area
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.runtimes.labkit_rules import requantizer, scale_of

__all__ = ["with_pools_that_keep_scale"]

_Pool = int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d | int_ops.AveragePoolFloat32


def with_pools_that_keep_scale(
    graph: IntGraph, keep: Callable[[IntNode, Tensor], bool] = lambda node, source: False
) -> IntGraph:
    """``graph`` with each average pool that changes the scale made two nodes: a pool that keeps it, and a `Requantize`.

    The second one has the name of the pool, so that names still mean the same numbers; the first one is called NAME.mean.
    Under labkit's rules the pool then rounds twice. A graph without such a pool is returned as it is. ``keep`` says of a pool
    and of the tensor that it takes whether the runtime can change the scale there.
    """
    nodes: list[IntNode] = []
    for node in graph:
        source = graph[node.inputs[0]].output if isinstance(node.op, _Pool) else None
        stays = source is None or _same(source, node.output) or keep(node, source)
        nodes += [node] if source is None or stays else _split(graph, node, source)
    return graph if len(nodes) == len(graph.nodes) else IntGraph(tuple(nodes), graph.outputs, graph.notes)


def _same(a: Tensor, b: Tensor) -> bool:
    (spec, params), (other, others) = a.quantized, b.quantized
    return spec == other and params.scale == others.scale and params.zero_point == others.zero_point


def _area(op: int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d, source: Tensor) -> int:
    if isinstance(op, int_ops.AveragePool2d):
        return op.kernel[0] * op.kernel[1]
    height, width = (*(1, 1), *source.shape[1:])[-2:]
    return common_area(height, width, op.output_size)


def _split(graph: IntGraph, node: IntNode, source: Tensor) -> list[IntNode]:
    op = node.op
    assert isinstance(op, _Pool)
    name = f"{node.name}.mean"
    taken = graph.carriers()
    while name in taken:
        name += "_"
    spec, params = source.quantized
    kept = replace(node.output, spec=spec, params=params)
    old = op.clamp if isinstance(op, int_ops.AveragePoolFloat32) else op.requantizer.clamp
    whole = (spec.qmin, spec.qmax)
    if isinstance(op, int_ops.AveragePoolFloat32):
        pool: int_ops.IntOp = replace(op, clamp=whole)
    else:
        pool = replace(op, requantizer=requantizer(1 / _area(op, source), kept))
    rescale = replace(requantizer(scale_of(source) / scale_of(node.output), node.output), clamp=old)
    return [
        IntNode(name, pool, node.inputs, kept),
        IntNode(node.name, int_ops.Requantize(rescale), (name,), node.output, node.carries),
    ]
