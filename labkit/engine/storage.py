"""Which tensors are stored as bytes, and how each convolution and linear layer multiplies: decided by those who read them.

A tile that multiplies bytes (`Dot`) wants its input as bytes, counted from the lowest number of the grid; one that
multiplies pairs of int16 wants the zero point subtracted. What has several readers is stored as bytes only if none of
them needs int16, which serves every kernel. Numbers of 16 bits are int16 in any case.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labkit.arithmetic.affine import QuantSpec
from labkit.engine.weights import facts_of
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.kernels.fast.tile import Dot

__all__ = ["dot_of", "tensors_in_bytes"]

_NIBBLE_INPUTS, _NIBBLE_WEIGHTS = 15, 8  # the largest, for which `Dot.NIBBLES` cannot overflow
# results are elements of the input, in the same storage and perhaps in the same memory
_MOVES = int_ops.MaxPool2d | int_ops.Flatten | int_ops.Pad | int_ops.Reshape


def dot_of(dots: Sequence[Dot], op: int_ops.Conv2d | int_ops.Linear, grid: QuantSpec) -> Dot:
    """The first of ``dots`` that is exact for ``op`` on inputs of ``grid``; `Dot.PAIRS` if none is."""
    if grid.is_binary:
        return Dot.PAIRS
    facts, inputs = facts_of(op.weight), grid.qmax - grid.qmin
    if not facts.fits_int8 or np.any(2 * inputs * facts.magnitudes + np.abs(op.bias.astype(np.int64)) >= 2**31):
        return Dot.PAIRS
    is_small = inputs <= _NIBBLE_INPUTS and facts.largest <= _NIBBLE_WEIGHTS
    return next((dot for dot in dots if dot is not Dot.PAIRS and (is_small or not dot.sums_int16)), Dot.PAIRS)


def tensors_in_bytes(graph: IntGraph, dots: Sequence[Dot]) -> frozenset[str]:
    """Names of the nodes of ``graph`` whose results are stored as bytes, where ``dots`` are to be used."""
    if all(dot is Dot.PAIRS for dot in dots):
        return frozenset()
    tied: dict[str, str] = {}  # from a moved tensor to the one that decides for it
    need_words: set[str] = set()
    for node in graph:
        tied[node.name] = tied[node.inputs[0]] if isinstance(node.op, _MOVES) else node.name
        if node.output.spec is None or node.output.spec.is_binary or node.output.spec.is_wide:
            need_words.add(tied[node.name])
        if isinstance(node.op, int_ops.Conv2d | int_ops.Linear) and _multiplies_on_tiles(node):
            grid, _ = graph[node.inputs[0]].output.quantized
            if dot_of(dots, node.op, grid) is Dot.PAIRS:
                need_words.add(tied[node.inputs[0]])
    return frozenset(name for name, decides in tied.items() if decides not in need_words)


def _multiplies_on_tiles(node: IntNode) -> bool:
    return not isinstance(node.op, int_ops.Conv2d) or node.op.groups == 1
