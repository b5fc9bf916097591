"""The roundings that look at one weight at a time: nearest, down, up, and at random (Nagel et al. 2020, section 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.weight_rounding.grids import RowGrid

__all__ = ["round_ceil", "round_floor", "round_nearest", "round_stochastic", "up_share"]

Rows = NDArray[np.float64]


def round_nearest(weights: Rows, grid: RowGrid) -> Rows:
    """The level nearest to each of ``weights`` float64 [O, K] on ``grid``, ties to even; the same shape."""
    return grid.nearest(weights)


def round_floor(weights: Rows, grid: RowGrid) -> Rows:
    """The level at or below each of ``weights`` float64 [O, K] on ``grid`` (its lowest below its end); the same shape."""
    return grid.choices(weights)[0]


def round_ceil(weights: Rows, grid: RowGrid) -> Rows:
    """The level at or above each of ``weights`` float64 [O, K] on ``grid`` (its highest above its end); the same shape."""
    down, up = grid.choices(weights)
    return np.where(up_share(weights, grid) == 0, down, up)


def round_stochastic(weights: Rows, grid: RowGrid, generator: np.random.Generator) -> Rows:
    """Up with the probability `up_share`, else down: right on average (Gupta et al. 2015).

    Parameters
    ----------
    weights : float64 [O, K]
    grid : where to
    generator : of the random numbers

    Returns
    -------
    levels float64 [O, K]
    """
    down, up = grid.choices(weights)
    return np.where(generator.random(weights.shape) < up_share(weights, grid), up, down)


def up_share(weights: Rows, grid: RowGrid) -> Rows:
    """How far each of ``weights`` float64 [O, K] lies above its lower choice on ``grid``, in steps: 0 .. 1, the same shape."""
    share = (weights / grid.scale - grid.choices(weights)[0]) / grid.step
    return np.asarray(np.clip(share, 0, 1), np.float64)
