"""The loops behind histograms and searches, against Python numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.kernels.counting import best_grid, count_magnitudes

FINITE = st.floats(-100, 100, width=32)


@given(
    values=st.lists(FINITE, max_size=40), exponent=st.integers(-3, 8), dtype=st.sampled_from([np.float32, np.float64])
)
def test_every_value_is_counted_where_exact_arithmetic_puts_it(values: list[float], exponent: int, dtype: type) -> None:
    width = Fraction(2) ** exponent
    bins = 1024
    wanted, zeros = np.zeros(2 * bins, np.int64), 0
    for value in values:
        if value == 0:
            zeros += 1
        else:
            wanted[math.floor(abs(Fraction(value)) / width) + (bins if value < 0 else 0)] += 1
    counts = np.zeros(2 * bins, np.int64)
    assert count_magnitudes(np.array(values, dtype), float(1 / width), counts) == zeros
    assert counts.tolist() == wanted.tolist()


def _error(points: np.ndarray, weights: np.ndarray, scale: float, low: float, high: float, power: float) -> float:
    return math.fsum(
        w * abs(x - scale * min(max(round(x / scale), low), high)) ** power
        for x, w in zip(points.tolist(), weights.tolist(), strict=True)
    )


@pytest.mark.parametrize("power", [1.0, 2.0, 2.4, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_grid_is_that_of_all_full_sums(power: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, weights = rng.laplace(0, 1, 60), rng.integers(0, 9, 60).astype(float)
    scales = rng.uniform(0.02, 1.5, 50)
    low, high = rng.integers(-9, 1, 50).astype(float), rng.integers(0, 9, 50).astype(float)
    errors = np.empty(50)
    best = best_grid(points, weights, scales, low, high, power, np.inf, errors)
    full = [_error(points, weights, *grid, power) for grid in zip(scales, low, high, strict=True)]
    assert best == int(np.argmin(full))
    assert errors[best] == pytest.approx(full[best], rel=1e-12)
    assert all(math.isinf(e) or e == pytest.approx(f, rel=1e-12) for e, f in zip(errors, full, strict=True))
    assert all(f >= full[best] for e, f in zip(errors, full, strict=True) if math.isinf(e))


def test_the_first_of_equal_grids_is_taken() -> None:
    same = np.full(5, 0.5)
    grids = same, same * 0 - 4, same * 0 + 4
    errors = np.empty(5)
    assert best_grid(np.array([0.3]), np.ones(1), *grids, 2.0, np.inf, errors) == 0
    assert best_grid(np.array([0.3]), np.ones(1), *grids, 2.0, errors[0], errors) == 0, (
        "the limit itself is good enough"
    )
    assert best_grid(np.array([0.3]), np.ones(1), *grids, 2.0, 0.9 * errors[0], errors) == -1
