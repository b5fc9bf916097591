"""What it takes to verify one image, so that large networks are verified a few images at a time."""

from __future__ import annotations

from math import prod

from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode

__all__ = ["image_bytes"]

_TRACED = 4  # bytes of a number in a trace: one or two in the arena, one in the array that is returned, borders
_LONG = 8  # bytes of a number in the emulation: int64 or float64


def image_bytes(graph: IntGraph) -> int:
    """About how many bytes hold one image while the trace of ``graph`` is compared with its emulation, at the most.

    All tensors of the trace; those of the emulation that a later node takes, in int64; and what the emulation of one node
    needs beside them.
    """
    sizes = {node.name: prod(node.output.shape) for node in graph}
    last_use = {name: node.name for node in graph for name in node.inputs}
    held = most = 0
    for node in graph:
        held += sizes[node.name]
        most = max(most, held + _beside(graph, node))
        held -= sum(sizes[name] for name in {*node.inputs, node.name} if last_use.get(name, node.name) == node.name)
    return _TRACED * sum(sizes.values()) + _LONG * most


def _beside(graph: IntGraph, node: IntNode) -> int:
    """How many long numbers the emulation of ``node`` needs beside what goes in and comes out.

    The input in float64, centred and padded; the windows of a convolution as the columns of a matrix; five steps from sums to
    integers, and more for polynomials and norms.
    """
    inputs, output = [prod(graph[name].output.shape) for name in node.inputs], prod(node.output.shape)
    windows = 0
    if isinstance(node.op, int_ops.Conv2d):
        kernel, positions = node.op.weight.values.shape[2:], prod(node.output.shape[1:])
        windows = graph[node.inputs[0]].output.shape[0] * prod(kernel) * positions
    steps = 12 if isinstance(node.op, int_ops.SoftmaxPolynomial | int_ops.GeluPolynomial | int_ops.LayerNorm) else 5
    return 3 * sum(inputs) + windows + steps * output
