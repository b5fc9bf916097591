"""Random inputs for a saved net of which nothing but its graph is known: whatever each of its borders takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode

__all__ = ["random_inputs"]


def random_inputs(graph: IntGraph, count: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """``count`` random images or sequences for ``graph`` by input name, [N, ...] in its own types and layout, drawn by ``rng``.

    Integers are drawn from the whole grid, indices below the rows of the shortest table that they look up. A mask is 1 for at
    least one element: half of them are 1 up to some length, as sentences are, the others anywhere. Where real numbers go in
    they are those for which such integers stand, half of them moved by half a step, which is a tie at the border.
    """
    return {name: _random(graph, graph[name], count, rng) for name in graph.inputs}


def _random(graph: IntGraph, node: IntNode, count: int, rng: np.random.Generator) -> NDArray[Any]:
    shape = (count, *node.output.source_shape)
    takers = [taker for taker in graph if node.name in taker.inputs]
    if node.output.is_index:
        rows = [len(taker.op.weight.values) for taker in takers if isinstance(taker.op, int_ops.Embedding)]
        return rng.integers(0, min(rows, default=1), shape).astype(node.output.dtype)
    spec, params = node.output.quantized
    if any(isinstance(taker.op, int_ops.SoftmaxPolynomial) and taker.inputs[1:] == (node.name,) for taker in takers):
        hidden = int(params.zero_point)
        seen = hidden + 1 if hidden < spec.qmax else hidden - 1
        return np.where(_masks(shape, rng), seen, hidden).astype(spec.dtype)
    integers = rng.integers(spec.qmin, spec.qmax + 1, shape)
    if isinstance(node.op, int_ops.Input):
        return integers.astype(spec.dtype)
    halves = rng.integers(0, 2, integers.shape) * np.float32(0.5)
    steps = (integers - int(params.zero_point)).astype(np.float32) + halves
    return np.asarray(steps * np.float32(params.scale), np.float32)


def _masks(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Masks of ``shape``, (N, length), with at least one True in each row."""
    count, length = shape
    places = np.arange(length)
    masks = np.where(
        rng.random((count, 1)) < 0.5, places < rng.integers(1, length + 1, (count, 1)), rng.random(shape) < 0.5
    )
    return np.asarray(masks | (places == rng.integers(0, length, (count, 1))) & ~masks.any(axis=1, keepdims=True))
