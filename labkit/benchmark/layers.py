"""How fast each layer runs inside its network, and how many bytes a run takes."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from labkit.benchmark.results import LayerRate
from labkit.engine.arena import arena_for
from labkit.engine.prepare import Prepared, prepare
from labkit.engine.run import run
from labkit.graph import int_ops
from labkit.graph.costs import costs
from labkit.graph.ir import IntGraph, IntNode

__all__ = ["arena_bytes", "layer_rates"]

_ROUNDS = 30
_SECONDS = 3.0


def arena_bytes(prepared: Prepared, images: int) -> int:
    """Bytes of the memory in which ``prepared`` runs a batch of ``images``, a chunk at a time."""
    return arena_for(prepared, min(images, prepared.chunk)).bytes


def layer_rates(name: str, graph: IntGraph, batch: NDArray[np.float32]) -> list[LayerRate]:
    """Time the kernel calls of ``graph``, called ``name``, for ``batch`` float32 [N, ...] in the order in which they run.

    Each layer meets the caches as its neighbours leave them. A batch longer than a chunk is timed for one chunk. The
    median of 30 runs is taken, or of as many as there is time for in three seconds.
    """
    prepared = prepare(graph)
    count = min(len(batch), prepared.chunk)
    run(prepared, {graph.inputs[0]: batch[:count]})
    calls = arena_for(prepared, count).calls
    seconds: dict[str, list[float]] = defaultdict(list)
    started = time.monotonic()
    for index in range(_ROUNDS):
        if index > 2 and time.monotonic() - started > _SECONDS:
            break
        spent: dict[str, int] = defaultdict(int)
        for node, kernel, whole, arguments in calls:
            begun = time.perf_counter_ns()
            kernel(*whole, count, *arguments)
            spent[node] += time.perf_counter_ns() - begun
        for node, nanoseconds in spent.items():
            seconds[node].append(nanoseconds / 1e9)
    macs = costs(graph).macs
    return [
        LayerRate(name, layer, _kind(graph[layer]), macs[layer] * count, _bytes(graph, graph[layer], count), middle)
        for layer, middle in ((layer, float(np.median(times))) for layer, times in seconds.items())
        if layer in macs
    ]


def _kind(node: IntNode) -> str:
    if isinstance(node.op, int_ops.Linear):
        return "linear"
    if isinstance(node.op, int_ops.MatMul):
        return "product"
    assert isinstance(node.op, int_ops.Conv2d)
    _, depth, height, width = node.op.weight.values.shape
    if node.op.groups > 1:
        return "depthwise" if depth == 1 else "grouped"
    if depth <= 4:
        return "first"
    stride = "" if node.op.stride == (1, 1) else f" stride {node.op.stride[0]}"
    return f"{height}x{width}{stride}"


def _bytes(graph: IntGraph, node: IntNode, images: int) -> int:
    tensors = (*graph.inputs_of(node), node.output)
    moved = sum(int(np.prod(tensor.shape)) * tensor.dtype.itemsize for tensor in tensors)
    weights = node.op.weight.values.size if isinstance(node.op, int_ops.Conv2d | int_ops.Linear) else 0
    return moved * images + int(weights)
