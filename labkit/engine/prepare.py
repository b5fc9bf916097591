"""`prepare`: from an `IntGraph` to packed weights, buffer sizes and a list of kernel calls.

Everything that can be decided once is decided here; what is left for `run` is integers. Threads may share the result.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from labkit.engine.lowering import lower
from labkit.engine.plan import Entry, Exit, Plan, Prepared
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode

__all__ = ["Prepared", "prepare"]

LARGEST_CHUNK = 32  # images that run together, so that a weight is loaded once for several
CHUNK_BYTES = 1 << 21  # and no more memory than this for their activations, so that these stay in the cache


def prepare(graph: IntGraph) -> Prepared:
    """Choose kernels and buffers for ``graph`` and pack its weights.

    Raises
    ------
    UnsupportedOperation
        A node has a shape that the fast kernels do not serve, such as a Linear layer over more than one axis.
    """
    plan = Plan(graph)
    for node in graph:
        lower(plan, node)
    image_bytes = sum(buffer.bytes for buffer in plan.buffers)
    return Prepared(
        graph,
        tuple(plan.buffers),
        tuple(_entry(plan, graph[name]) for name in graph.inputs),
        tuple(plan.steps),
        MappingProxyType({node.name: _exit(plan, node) for node in graph}),
        max(1, min(LARGEST_CHUNK, CHUNK_BYTES // image_bytes)),
    )


def _entry(plan: Plan, node: IntNode) -> Entry:
    spec, params = node.output.quantized
    low, high = (np.float32(end - int(params.zero_point)) for end in (spec.qmin, spec.qmax))
    return Entry(node, plan.places[node.name], spec.is_binary, np.float32(params.scale), low, high)


def _exit(plan: Plan, node: IntNode) -> Exit:
    is_real = isinstance(node.op, int_ops.Dequantize)
    source = plan.graph[node.inputs[0]] if is_real else node
    spec, params = source.output.quantized
    return Exit(
        node,
        plan.places[source.name],
        np.float32(params.scale) if is_real else None,
        np.int16(params.zero_point),
        np.dtype(np.float32) if is_real else spec.dtype,
    )
