"""The straight-through estimator on the quadratic form: round in the loss, and pretend in the gradient that nobody did.

The rounded weights take the gradient of the loss, and it is applied to the real ones as it stands (Bengio et al.
2013). Levels may move further than one step, unlike AdaRound's; the price is a gradient that is not the loss's (Nagel
et al. 2020, section 5.1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.options import LayerHistory

__all__ = ["straight_through"]

Rows = NDArray[np.float64]

ITERATIONS, LEARNING_RATE = 500, 0.01


def straight_through(
    weights: Rows, grid: RowGrid, gram: Gram, iterations: int = ITERATIONS, learning_rate: float = LEARNING_RATE
) -> tuple[Rows, LayerHistory]:
    """Levels by Adam on real weights through straight-through rounding.

    Parameters
    ----------
    weights : float64 [O, K], where to start
    grid : of the layer
    gram : its quadratic form
    iterations : of Adam
    learning_rate : of Adam in steps of the grid; it falls to 0 in a straight line

    Returns
    -------
    levels float64 [O, K] of the last iteration, and the history: the output error of each iteration's rounded weights
    """
    exact = weights / grid.scale
    first, second, losses = np.zeros_like(exact), np.zeros_like(exact), np.empty(iterations)
    for step in range(iterations):
        levels = grid.nearest(grid.values(exact))
        losses[step] = gram.error(grid.values(levels)).sum()
        inside = (exact >= grid.low) & (exact <= grid.high)  # a clipped weight's rounding does not follow it
        slope = 2 * gram.half_gradient(grid.values(levels)) * grid.scale * inside
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        update = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-12)
        exact = exact - learning_rate * (1 - step / iterations) * update
    return grid.nearest(grid.values(exact)), LayerHistory(losses)
