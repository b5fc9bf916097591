"""What HAWQ-V3 asks of an allocation besides budgets: fixed first and last layers, equal bits where residuals meet."""

from __future__ import annotations

from labkit.allocation.costs import weight_layers
from labkit.errors import QuantizationError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph

__all__ = ["first_and_last", "residual_partners"]

_PASSES_ON = (
    *(float_ops.MaxPool2d, float_ops.Flatten, float_ops.Pad, float_ops.Reshape, float_ops.Transpose),
    *(float_ops.UpsampleNearest2d, float_ops.Relu),
)


def first_and_last(graph: FloatGraph, bits: int = 8) -> dict[str, int]:
    """``bits`` for the first and the last layer of the simplified ``graph`` in running order, to hand in as ``fixed``.

    Raises
    ------
    QuantizationError
        The graph has no layer with weights.
    """
    layers = weight_layers(graph)
    if not layers:
        raise QuantizationError("The network has no convolution and no linear layer, so there is none to fix.")
    return {layers[0]: bits, layers[-1]: bits}


def residual_partners(graph: FloatGraph) -> tuple[tuple[str, ...], ...]:
    """Groups of layers of the simplified ``graph`` whose outputs meet in an addition, to hand in as ``tied``.

    An operand that is itself the result of an addition comes from no one layer and ties nothing.
    """
    layers = set(weight_layers(graph))
    groups = []
    for node in graph:
        if isinstance(node.op, float_ops.Add):
            found = tuple(name for name in (_origin(graph, source) for source in node.inputs) if name in layers)
            if len(set(found)) > 1:
                groups.append(tuple(dict.fromkeys(found)))
    return tuple(groups)


def _origin(graph: FloatGraph, name: str) -> str:
    """The node whose result arrives under ``name``, past operations that only move or clamp it."""
    node = graph[name]
    return _origin(graph, node.inputs[0]) if isinstance(node.op, _PASSES_ON) else name
