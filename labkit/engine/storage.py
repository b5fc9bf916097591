"""Which tensors are stored as bytes, and how each convolution and linear layer multiplies: decided by those who read them.

A tile that multiplies bytes (`Dot`) wants its input as bytes, counted from the lowest number of the grid; one that
multiplies pairs of int16 wants the zero point subtracted. What has several readers is stored as bytes only if none of
them needs int16, which serves every kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.kernels.fast.packing import fits_int8
from labkit.kernels.fast.tile import Dot

__all__ = ["centred_weights", "dot_of", "tensors_in_bytes"]

_NIBBLE_INPUTS, _NIBBLE_WEIGHTS = 15, 8  # the largest, for which `Dot.NIBBLES` cannot overflow
# results are elements of the input, in the same storage and perhaps in the same memory
_MOVES = int_ops.MaxPool2d | int_ops.Flatten | int_ops.Pad | int_ops.Reshape


def centred_weights(op: int_ops.Conv2d | int_ops.Linear) -> NDArray[np.int16]:
    """The weights of ``op`` less their zero points, in its own shape; nine bits at the most."""
    zero_point = op.weight.params.zero_point.reshape([-1] + [1] * (op.weight.values.ndim - 1))
    return np.asarray(op.weight.values.astype(np.int16) - zero_point, np.int16)


def dot_of(dots: Sequence[Dot], op: int_ops.Conv2d | int_ops.Linear, grid: QuantSpec) -> Dot:
    """The first of ``dots`` that is exact for ``op`` on inputs of ``grid``; `Dot.PAIRS` if none is."""
    if grid.is_binary:
        return Dot.PAIRS
    weights = centred_weights(op)
    inputs = grid.qmax - grid.qmin
    magnitudes = np.abs(weights.astype(np.int64)).reshape(weights.shape[0], -1).sum(axis=1)
    if not fits_int8(weights) or np.any(2 * inputs * magnitudes + np.abs(op.bias.astype(np.int64)) >= 2**31):
        return Dot.PAIRS
    is_small = inputs <= _NIBBLE_INPUTS and np.abs(weights).max(initial=0) <= _NIBBLE_WEIGHTS
    return next((dot for dot in dots if dot is not Dot.PAIRS and (is_small or not dot.sums_int16)), Dot.PAIRS)


def tensors_in_bytes(graph: IntGraph, dots: Sequence[Dot]) -> frozenset[str]:
    """Names of the nodes of ``graph`` whose results are stored as bytes, where ``dots`` are to be used."""
    if all(dot is Dot.PAIRS for dot in dots):
        return frozenset()
    tied: dict[str, str] = {}  # from a moved tensor to the one that decides for it
    need_words: set[str] = set()
    for node in graph:
        tied[node.name] = tied[node.inputs[0]] if isinstance(node.op, _MOVES) else node.name
        if node.output.spec is None or node.output.spec.is_binary:
            need_words.add(tied[node.name])
        if isinstance(node.op, int_ops.Conv2d | int_ops.Linear) and _multiplies_on_tiles(node):
            grid, _ = graph[node.inputs[0]].output.quantized
            if dot_of(dots, node.op, grid) is Dot.PAIRS:
                need_words.add(tied[node.inputs[0]])
    return frozenset(name for name, decides in tied.items() if decides not in need_words)


def _multiplies_on_tiles(node: IntNode) -> bool:
    return not isinstance(node.op, int_ops.Conv2d) or node.op.groups == 1
