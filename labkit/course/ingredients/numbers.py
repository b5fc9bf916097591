"""Ingredients about numbers: random generators and matrices as functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["generator", "product_with"]


def generator(seed: int) -> np.random.Generator:
    """NumPy's default random generator, seeded."""
    return np.random.default_rng(seed)


def product_with(matrix: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The function v -> ``matrix`` @ v, for a float64 ``matrix`` [n, n] and vectors [n] (or [n, k])."""
    return lambda vector: matrix @ vector
