"""Tables of everything that an operation can compute from one or two integers, made by the readable tier."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec
from labkit.engine.node_by_node import compute_node
from labkit.graph.ir import IntGraph, IntNode
from labkit.kernels.kernel_set import REFERENCE

__all__ = ["integers_of", "table_of"]


def integers_of(spec: QuantSpec) -> NDArray[Any]:
    """Every integer of the grid ``spec`` from the lowest on, in its dtype: shape [up to 256]."""
    return np.arange(spec.qmin, spec.qmax + 1).astype(spec.dtype)


def table_of(graph: IntGraph, node: IntNode) -> NDArray[np.int32]:
    """What ``node`` of ``graph`` makes of every integer, or of every pair of integers, of its inputs' grids.

    Returns
    -------
    int32 of the shape [integers of the first grid, of the second, ...], the lowest integer of each first

    Raises
    ------
    BoundError
        A rounding rule does not take some of them.
    """
    grids = [integers_of(tensor.quantized[0]) for tensor in graph.inputs_of(node)]
    shape = tuple(len(grid) for grid in grids)
    every = [grid.reshape(-1, 1) for grid in np.meshgrid(*grids, indexing="ij")]
    result = compute_node(graph, node, every, REFERENCE)
    return np.asarray(result, np.int32).reshape(shape)
