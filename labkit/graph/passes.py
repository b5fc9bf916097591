"""Steps that turn one `FloatGraph` into a simpler one with the same result. Each returns a new graph.

`simplify` is what quantization starts from: no identities, batch norm folded, activations fused, no dead nodes, and a tensor
that is wanted at 16 bits and at 8 on two grids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.widths import MOVES, NEEDS_WIDE, mixed_takers, takes_wide, wanted_wide, wide_names

__all__ = [
    "fold_batch_norm",
    "fold_into",
    "fuse_activations",
    "narrow_products",
    "remove_dead_nodes",
    "remove_identities",
    "simplify",
]

VANISHING = 2.0**-100  # scales of smaller weights would come near the end of the float32 numbers


def simplify(graph: FloatGraph) -> FloatGraph:
    """``graph`` without identities and dead nodes, batch norm folded, activations fused where they can be.

    What a transformer wants at 16 bits for one consumer and at 8 for another has a Rescale (`narrow_products`).
    """
    return narrow_products(fuse_activations(fold_batch_norm(remove_dead_nodes(remove_identities(graph)))))


def remove_identities(graph: FloatGraph) -> FloatGraph:
    """Drop nodes of ``graph`` that do nothing; whoever took their result takes what they were given."""
    return _merge_into_producer(
        graph, lambda node: isinstance(node.op, float_ops.Identity), lambda producer, _: producer
    )


def remove_dead_nodes(graph: FloatGraph) -> FloatGraph:
    """Drop nodes of ``graph`` whose result reaches no output."""
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    kept = tuple(n for n in graph.nodes if n.name in needed or isinstance(n.op, float_ops.Input))
    return FloatGraph(kept, graph.outputs)


def fold_batch_norm(graph: FloatGraph) -> FloatGraph:
    """Fold each batch norm of ``graph`` into the convolution or linear layer before it (eqs. 22 and 23).

    Where the layer's result is also used elsewhere, or there is no such layer, the batch norm becomes a depthwise
    1x1 convolution of its own, so that quantization meets no batch norm at all.
    """

    def foldable(node: FloatNode) -> bool:
        if not isinstance(node.op, float_ops.BatchNorm2d):
            return False
        producer = graph[node.inputs[0]]
        alone = len(graph.consumers(producer.name)) == 1 and producer.name not in graph.outputs
        return alone and isinstance(producer.op, float_ops.Conv2d | float_ops.Linear)

    def fold(producer: FloatNode, node: FloatNode) -> FloatNode:
        assert isinstance(producer.op, float_ops.Conv2d | float_ops.Linear)
        assert isinstance(node.op, float_ops.BatchNorm2d)
        before = producer.op
        weight, bias = fold_into(before.weight, before.bias, node.op)
        vanished = tuple(sorted({*before.vanished, *_vanished(before.weight, weight)}))
        return replace(producer, op=replace(before, weight=weight, bias=bias, vanished=vanished))

    folded = _merge_into_producer(graph, foldable, fold)
    return FloatGraph(tuple(_stand_alone(node) for node in folded.nodes), folded.outputs)


def fold_into(
    weight: NDArray[np.float32], bias: NDArray[np.float32] | None, norm: float_ops.BatchNorm2d
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``w' = w g`` and ``b' = beta + (b - mean) g`` with ``g = gamma / sqrt(variance + epsilon)`` (eqs. 22, 23).

    ``weight`` is [C, ...] with the normalised channels first, ``bias`` [C] or None for 0, ``norm`` the frozen batch norm.
    Computed in float64, rounded once to float32; a channel without a weight of 2**-100 or more is set to 0 (eq. 23a).
    """
    gain = norm.gamma.astype(np.float64) / np.sqrt(norm.variance.astype(np.float64) + norm.epsilon)
    before = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
    scaled = weight.astype(np.float64) * gain.reshape([-1] + [1] * (weight.ndim - 1))
    scaled[np.abs(scaled).reshape(len(scaled), -1).max(1) < VANISHING] = 0
    shifted = norm.beta.astype(np.float64) + (before - norm.mean.astype(np.float64)) * gain
    return scaled.astype(np.float32), shifted.astype(np.float32)


def fuse_activations(graph: FloatGraph) -> FloatGraph:
    """Make each ReLU or ReLU6 of ``graph`` the ``activation`` of the node before it, where that node requantizes anyway."""
    carriers = (
        float_ops.Conv2d,
        float_ops.Linear,
        float_ops.Add,
        float_ops.Multiply,
        float_ops.AveragePool2d,
        float_ops.AdaptiveAveragePool2d,
    )

    def fusable(node: FloatNode) -> bool:
        if not isinstance(node.op, float_ops.Relu):
            return False
        producer = graph[node.inputs[0]]
        alone = len(graph.consumers(producer.name)) == 1 and producer.name not in graph.outputs
        return alone and isinstance(producer.op, carriers) and producer.activation is Activation.NONE

    def fuse(producer: FloatNode, node: FloatNode) -> FloatNode:
        assert isinstance(node.op, float_ops.Relu)
        return replace(producer, activation=node.op.kind)

    return _merge_into_producer(graph, fusable, fuse)


def narrow_products(graph: FloatGraph) -> FloatGraph:
    """Give each tensor of ``graph`` that is wanted at 16 bits a Rescale, "<name>.narrow", for those who need 8.

    The result of a LayerNorm has 16 bits in any case, as its integers have no zero point, and is added up so; the convolutions
    that read it, perhaps behind a Reshape or a Transpose, read 8. Where a LayerNorm, a GELU or a masked softmax, which need 16
    bits, takes what cannot have them (images, the result of a pool), a Rescale "<name>.wide" stands between. Networks without
    these and without embeddings stay as they are.
    """
    wanted, takers = wanted_wide(graph), mixed_takers(graph)
    nodes: list[FloatNode] = []
    narrowed: dict[str, str] = {}
    taken = {name for node in graph for name in (node.name, *node.carries)}

    def only_narrow(node: FloatNode) -> bool:
        return not takers[node.name][0] if isinstance(node.op, MOVES) else not takes_wide(node)

    for node in graph.nodes:
        needs_narrow = only_narrow(node)
        nodes.append(replace(node, inputs=tuple(narrowed.get(n, n) if needs_narrow else n for n in node.inputs)))
        if isinstance(node.op, MOVES) and node.inputs[0] in wanted and not needs_narrow:
            wanted.add(node.name)
        stays = takers[node.name][0] or isinstance(node.op, float_ops.LayerNorm)
        if node.name in wanted and stays and any(map(only_narrow, graph.consumers(node.name))):
            narrowed[node.name] = _fresh(f"{node.name}.narrow", taken)
            nodes.append(FloatNode(narrowed[node.name], float_ops.Rescale(), (node.name,)))
    return _widened(FloatGraph(tuple(nodes), graph.outputs), taken)


def _widened(graph: FloatGraph, taken: set[str]) -> FloatGraph:
    """``graph`` with a Rescale before whatever needs 16 bits and takes 8; ``taken`` are the names in use."""
    wide = set(wide_names(graph))
    widened: dict[str, str] = {}
    nodes: list[FloatNode] = []
    for node in graph.nodes:
        if isinstance(node.op, MOVES) and node.inputs[0] in wide:
            wide.add(node.name)
        if isinstance(node.op, NEEDS_WIDE) and node.inputs[0] not in wide:
            source = node.inputs[0]
            if source not in widened:
                widened[source] = _fresh(f"{source}.wide", taken)
                nodes.append(FloatNode(widened[source], float_ops.Rescale(), (source,)))
            node = replace(node, inputs=(widened[source], *node.inputs[1:]))
        nodes.append(node)
    return FloatGraph(tuple(nodes), graph.outputs)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _vanished(before: NDArray[np.float32], after: NDArray[np.float32]) -> tuple[int, ...]:
    """The channels that hold a weight ``before`` and none ``after``, arrays [C, ...]."""
    gone = before.reshape(len(before), -1).any(1) & ~after.reshape(len(after), -1).any(1)
    return tuple(int(channel) for channel in np.flatnonzero(gone))


def _stand_alone(node: FloatNode) -> FloatNode:
    if not isinstance(node.op, float_ops.BatchNorm2d):
        return node
    channels = node.op.gamma.shape[0]
    ones = np.ones((channels, 1, 1, 1), np.float32)
    weight, bias = fold_into(ones, None, node.op)
    op = float_ops.Conv2d(weight, bias, (1, 1), ((0, 0), (0, 0)), (1, 1), channels, _vanished(ones, weight))
    return replace(node, op=op)


def _merge_into_producer(
    graph: FloatGraph,
    wanted: Callable[[FloatNode], bool],
    merge: Callable[[FloatNode, FloatNode], FloatNode],
) -> FloatGraph:
    """Replace (producer, node) by ``merge(producer, node)`` for each ``wanted`` node; the producer carries its name."""
    kept: dict[str, FloatNode] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        moved = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        if not wanted(node):
            kept[node.name] = moved
            continue
        producer = kept[moved.inputs[0]]
        kept[producer.name] = replace(merge(producer, moved), carries=(*producer.carries, node.name, *node.carries))
        renamed[node.name] = producer.name
    return FloatGraph(tuple(kept.values()), tuple(renamed.get(name, name) for name in graph.outputs))
