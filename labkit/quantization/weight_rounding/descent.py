"""Coordinate descent: one weight at a time to the level that is best given all others, until none moves.

The problem of each output channel is a quadratic one over whole numbers (the QUBO of Nagel et al. 2020, section 3.2,
where levels are restricted to down and up). With the half gradient ``g = w G - r`` at hand, the best level of weight
k is where a parabola is lowest, ``w_k - g_k / G_kk``, rounded; the move updates g by one row of G. Every move lowers
the loss, so that it ends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.jit import jit
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.grids import RowGrid

__all__ = ["descend", "descend_decisions"]

Rows = NDArray[np.float64]

SWEEPS = 20


def descend(levels: Rows, grid: RowGrid, gram: Gram, sweeps: int = SWEEPS) -> Rows:
    """Coordinate descent over all levels of the grid.

    Parameters
    ----------
    levels : float64 [O, K], where to start
    grid : their grid
    gram : the layer's quadratic form
    sweeps : over all weights, at most

    Returns
    -------
    levels float64 [O, K] of which no single one can be bettered (unless ``sweeps`` ran out)
    """
    low, high = (np.broadcast_to(end, levels.shape) for end in (grid.low, grid.high))
    return _descend_between(levels, low, high, grid, gram, sweeps)


def descend_decisions(weights: Rows, levels: Rows, grid: RowGrid, gram: Gram, sweeps: int = SWEEPS) -> Rows:
    """Coordinate descent over the levels next below and above each weight, the decisions of AdaRound.

    Parameters
    ----------
    weights : float64 [O, K], the original ones
    levels : float64 [O, K], where to start: each one of the two
    grid : their grid
    gram : the layer's quadratic form
    sweeps : over all weights, at most

    Returns
    -------
    levels float64 [O, K], each one of the two
    """
    return _descend_between(levels, *grid.choices(weights), grid, gram, sweeps)


def _descend_between(levels: Rows, low: Rows, high: Rows, grid: RowGrid, gram: Gram, sweeps: int) -> Rows:
    moved = np.array(levels, np.float64, order="C")
    gradient = np.ascontiguousarray(gram.half_gradient(grid.values(moved)))
    scale = np.ascontiguousarray(grid.scale[:, 0])
    low, high = np.ascontiguousarray(low), np.ascontiguousarray(high)
    _sweep(moved, gradient, gram.gram, scale, low, high, float(grid.step), sweeps)
    return moved


@jit
def _sweep(
    levels: Rows, gradient: Rows, gram: Rows, scale: Rows, low: Rows, high: Rows, step: float, sweeps: int
) -> None:
    """Move ``levels`` [O, K] in place, and ``gradient`` [O, K] with them; one G for each group of rows."""
    rows, depth = levels.shape
    together = rows // gram.shape[0]
    for row in range(rows):
        matrix = gram[row // together]
        unit = scale[row]
        for _ in range(sweeps):
            moves = 0
            for k in range(depth):
                curve = matrix[k, k]
                if curve <= 0.0:
                    continue
                steps = np.rint(-gradient[row, k] / (curve * unit * step))
                level = min(max(levels[row, k] + steps * step, low[row, k]), high[row, k])
                change = (level - levels[row, k]) * unit
                # a gain within rounding error of 0 could be taken back and forth for ever
                if 2.0 * gradient[row, k] * change + curve * change * change < -1e-9 * curve * unit * unit:
                    levels[row, k] = level
                    moves += 1
                    for j in range(depth):
                        gradient[row, j] += change * matrix[k, j]
            if moves == 0:
                break
