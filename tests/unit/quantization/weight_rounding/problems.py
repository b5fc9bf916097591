"""Small rounding problems for the tests of weight rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, PerTensor, QuantSpec
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.grids import RowGrid, grid_spec, minmax_grid

Rows = NDArray[np.float64]


def form(outputs: int, depth: int, groups: int = 1, seed: int = 0, shift: float = 0.1) -> tuple[Rows, Gram]:
    """Weights [O, K] and a well-conditioned quadratic form whose minimum lies a little off them."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(outputs, depth))
    mixing = rng.normal(size=(groups, depth, depth))
    gram = mixing @ mixing.transpose(0, 2, 1) / depth + 0.1 * np.eye(depth)
    best = weights + shift * rng.normal(size=weights.shape)
    start = Gram(gram, np.zeros_like(weights), np.zeros(outputs), np.zeros((groups, depth)), np.zeros(outputs), 100)
    cross = start.times(best)
    return weights, Gram(
        gram, cross, (cross * best).sum(1) + 1, rng.normal(size=(groups, depth)), np.ones(outputs), 100
    )


def grid_of(weights: Rows, bits: int = 3, levels: str = "narrow", per_channel: bool = True) -> RowGrid:
    spec = QuantSpec(bits, narrow=True, granularity=PerAxis(0) if per_channel else PerTensor())
    return minmax_grid(weights, grid_spec(spec, levels))
