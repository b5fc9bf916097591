"""Which tensors of a simplified `FloatGraph` a transformer wants at 16 bits, and which share a range.

What few operations take at 16 bits (a LayerNorm, a GELU, a softmax, a sum) and what the others need at 8 is decided by the kinds
of operations alone; `passes.narrow_products` puts a Rescale where one tensor is wanted at both.
"""

from __future__ import annotations

from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode

__all__ = [
    "KEEPS_SCALE",
    "MOVES",
    "NEEDS_WIDE",
    "mixed_takers",
    "scale_owner",
    "takes_wide",
    "wanted_wide",
    "wide_names",
]

MOVES = (float_ops.Reshape, float_ops.Transpose, float_ops.Flatten)
KEEPS_SCALE = (
    *MOVES,
    *(float_ops.MaxPool2d, float_ops.Pad, float_ops.UpsampleNearest2d),
    float_ops.ArgMax,  # an index has no scale; it depends on that of its input
)
NEEDS_WIDE = (float_ops.LayerNorm, float_ops.Gelu, float_ops.MaskedSoftmax)
_TAKES_WIDE = (*NEEDS_WIDE, float_ops.Add, float_ops.Rescale)
_GIVES_WIDE = (
    *(float_ops.LayerNorm, float_ops.Gelu, float_ops.Add, float_ops.Rescale, float_ops.Constant, float_ops.Embedding),
    *(float_ops.Conv2d, float_ops.Linear, float_ops.MatMul),
)


def scale_owner(graph: FloatGraph, name: str) -> str:
    """The node of ``graph`` whose range the result of ``name`` has: itself, or what a max-pool, flatten, ... took it from."""
    node = graph[name]
    return scale_owner(graph, node.inputs[0]) if isinstance(node.op, KEEPS_SCALE) else name


def takes_wide(node: FloatNode) -> bool:
    """Whether ``node`` computes something and can take 16 bits for that."""
    return isinstance(node.op, _TAKES_WIDE)


def wanted_wide(graph: FloatGraph) -> set[str]:
    """The nodes of ``graph`` whose results somebody wants at 16 bits, and that can give them.

    They are what a LayerNorm, a GELU or a masked softmax takes; what is added up for them; and what a LayerNorm or an embedding
    puts out.
    """
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if isinstance(node.op, float_ops.LayerNorm | float_ops.Embedding):
            wanted.add(node.name)
        if isinstance(node.op, NEEDS_WIDE) or (isinstance(node.op, float_ops.Add) and node.name in wanted):
            first = node.inputs[:1] if isinstance(node.op, float_ops.MaskedSoftmax) else node.inputs
            wanted |= {scale_owner(graph, name) for name in first}
    return {name for name in wanted if isinstance(graph[name].op, _GIVES_WIDE)}


def mixed_takers(graph: FloatGraph) -> dict[str, tuple[bool, bool]]:
    """For each node of ``graph``: whether somebody takes its result at 16 bits, and whether somebody needs it at 8.

    Whoever only moves numbers counts as those who take them from there. What leaves the network may have 16 bits.
    """
    found = dict.fromkeys((node.name for node in graph), (False, False))
    for name in graph.outputs:
        found[name] = (True, False)
    for node in reversed(graph.nodes):
        if isinstance(node.op, MOVES):
            wide, narrow = found[node.name]
        else:
            wide, narrow = takes_wide(node), not takes_wide(node)
        for name in node.inputs:
            found[name] = (found[name][0] or wide, found[name][1] or narrow)
    return found


def wide_names(graph: FloatGraph) -> tuple[str, ...]:
    """The nodes of a simplified ``graph`` whose results have 16 bits: they are wanted so, and nobody needs them at 8."""
    wanted, takers = wanted_wide(graph), mixed_takers(graph)
    return tuple(node.name for node in graph if node.name in wanted and not takers[node.name][1])
