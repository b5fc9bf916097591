"""Sums of rounded numbers: the formulas against counting, and the engine's sums against whole numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from labkit.graph import int_ops
from labkit.kernels import reference
from labkit.studies.hawq.rounding_sums import (
    add_separately,
    branch_errors,
    errors,
    independent,
    irwin_hall,
    scaled_errors,
    uniform_mismatch,
)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_distribution_of_a_sum_of_uniform_numbers(n: int) -> None:
    draws = np.random.default_rng(n).uniform(size=(n, 200_000)).sum(0)
    for x in np.linspace(-0.5, n + 0.5, 9):
        share = irwin_hall(float(x), n)
        assert abs(float((draws <= x).mean()) - share) < 5 * math.sqrt(max(share * (1 - share), 1e-9) / 200_000) + 1e-9


@pytest.mark.parametrize(
    ("n", "exact"), [(1, Fraction(0)), (2, Fraction(1, 4)), (3, Fraction(1, 3)), (4, Fraction(77, 192))]
)
def test_mismatch_of_uniform_errors(n: int, exact: Fraction) -> None:
    assert uniform_mismatch(n) == pytest.approx(float(exact), abs=1e-12)


def test_errors_round_half_up() -> None:
    assert errors(np.array([2.4, 1.3, 3.7, 0.5, -0.5, 7.0])).tolist() == pytest.approx(
        [0.4, 0.3, -0.3, -0.5, -0.5, 0.0]
    )


@pytest.mark.parametrize(("one", "other"), [(1.0, 0.3), (0.5, 0.5), (0.4, 0.4), (0.618, 0.707), (0.001, 0.618)])
def test_independent_counts_all_pairs(one: float, other: float) -> None:
    a, b = scaled_errors(one, 60), scaled_errors(other, 50)
    counted = np.mean([not -0.5 <= x + y < 0.5 for x in a for y in b])
    assert independent(a, b) == pytest.approx(counted, abs=1e-12)


@pytest.mark.parametrize("width", [0.0, 0.2, 0.6, 1.0])
def test_beside_a_uniform_error_it_is_the_mean_magnitude(width: float) -> None:
    a, b = np.linspace(-width / 2, width / 2, 2001), np.linspace(-0.5, 0.5, 20_001)
    assert independent(a, b) == pytest.approx(width / 4, abs=1e-3)


@pytest.mark.parametrize("multipliers", [(2**29, 2**28), (634_531_121, 915_332_007), (1_073_741_823, 3)])
def test_branches_of_a_sum_of_integers(multipliers: tuple[int, int]) -> None:
    op = int_ops.Add(np.array(multipliers, np.int32), 30, 7, (-(10**6), 10**6))
    generator = np.random.default_rng(0)
    a, b = generator.integers(-255, 256, (2, 500)).astype(np.int64)
    first, second, differs = branch_errors(op, a, b)
    for i in range(len(a)):
        parts = [Fraction(int(v) * m, 2**30) for v, m in zip((a[i], b[i]), multipliers, strict=True)]
        rounded = [math.floor(part + Fraction(1, 2)) for part in parts]
        assert (first[i], second[i]) == tuple(float(part - r) for part, r in zip(parts, rounded, strict=True))
        once = math.floor(sum(parts) + Fraction(1, 2))
        assert differs[i] == (sum(rounded) != once)
        assert abs(sum(rounded) - once) <= 1


def test_two_roundings_in_place_of_one() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.integers(0, 256, (2, 4, 3)).astype(np.uint8)
    same = {"zero_points": (3, 9), "output_zero_point": 5, "clamp": (5, 200)}
    exact = np.array([2**30, 2**29], np.int32)  # ratios 1 and 1/2: only the second is rounded
    settings = {**same, "multipliers": exact, "shift": 30}
    assert np.array_equal(add_separately(a, b, **settings), reference.add(a, b, **settings))  # type: ignore[arg-type]
    uneven = {**same, "multipliers": np.array([429_496_730, 429_496_730], np.int32), "shift": 30}  # 0.4 and 0.4
    one = np.array([[4]], np.uint8), np.array([[10]], np.uint8)
    assert reference.add(*one, **uneven) == 6  # type: ignore[arg-type]
    assert add_separately(*one, **uneven) == 5  # type: ignore[arg-type]
