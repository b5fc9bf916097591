"""The range of least error against trying every range in Python numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from unit.quantization.clipping.samples import GRIDS, SHAPES, histogram_of, sample

from labkit.arithmetic.affine import QuantSpec, dequantize, params_from_range, quantize
from labkit.errors import QuantizationError
from labkit.quantization.clipping.lp import l24_range, lp_range, lp_range_of_values, mse_range


def error(values: NDArray[np.floating], spec: QuantSpec, low: float, high: float, p: float) -> float:
    """Mean |x - Q(x)|^p with labkit's own rounding, which shares nothing with the search."""
    params = params_from_range(low, high, spec)
    rounded = dequantize(quantize(values, params, spec), params, spec).astype(np.float64)
    return float((np.abs(values.astype(np.float64) - rounded) ** p).mean())


def candidates(values: NDArray[np.floating], spec: QuantSpec, steps: int) -> list[tuple[float, float]]:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    ratios = [1 - 0.01 * i for i in range(steps)]
    if spec.symmetric:
        limit = max(-low, high)
        return [(-r * limit, r * limit) for r in ratios]
    if low == 0 or high == 0:
        return [(r * low, r * high) for r in ratios]
    return [(a * low, b * high) for a, b in itertools.product(ratios, ratios)]


@pytest.mark.parametrize("p", [2.0, 2.4, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", ["bell", "laplace", "relu", "heavy", "skew", "positive", "negative"])
def test_no_range_of_the_search_is_better_on_the_values_themselves(shape: str, grid: str, p: float) -> None:
    values = sample(shape, 400)
    spec, steps = GRIDS[grid], 30
    low, high = lp_range_of_values(values, spec, p, steps)
    least = min(error(values, spec, *ends, p) for ends in candidates(values, spec, steps))
    assert error(values, spec, low, high, p) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("p", [2.0, 2.4, 4.0])
@pytest.mark.parametrize("grid", ["u8", "u4", "s8", "s4", "s2"])
@pytest.mark.parametrize("shape", ["bell", "laplace", "relu", "heavy", "skew", "negative"])
def test_a_histogram_finds_a_range_as_good(shape: str, grid: str, p: float) -> None:
    values, spec = sample(shape, 4000), GRIDS[grid]
    steps = 25 if spec.bits == 8 else 60
    from_values = lp_range_of_values(values, spec, p, steps)
    from_bins = lp_range(histogram_of(values), spec, p, steps)
    assert error(values, spec, *from_bins, p) <= 1.03 * error(values, spec, *from_values, p)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_never_worse_than_min_max_and_lies_within(shape: str, grid: str) -> None:
    values, spec = sample(shape, 3000), GRIDS[grid]
    for find, p in ((mse_range, 2.0), (l24_range, 2.4)):
        low, high = find(histogram_of(values), spec)
        assert values.min() <= low <= high <= values.max()
        full = error(values, spec, float(values.min()), float(values.max()), p)
        assert error(values, spec, low, high, p) <= 1.02 * full + 1e-12


@pytest.mark.parametrize("grid", GRIDS)
def test_a_larger_exponent_cuts_less(grid: str) -> None:
    seen = histogram_of(sample("heavy"))
    widths = [np.subtract(*lp_range(seen, GRIDS[grid], p)[::-1]) for p in (2.0, 3.0, 5.0, 9.0)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(widths)) and widths[0] < widths[-1]


def test_fewer_bits_cut_more() -> None:
    for shape in ("bell", "laplace", "relu", "heavy"):
        seen = histogram_of(sample(shape, 100_000))
        highs = [mse_range(seen, QuantSpec(bits, narrow=True))[1] for bits in range(2, 9)]
        assert highs == sorted(highs) and highs[0] < highs[-1]


def test_the_two_ends_are_cut_on_their_own() -> None:
    values = np.concatenate([np.random.default_rng(0).uniform(-1, 1, 20_000), [40.0]]).astype(np.float32)
    seen, spec = histogram_of(values), GRIDS["u4"]
    own, tied = mse_range(seen, spec), lp_range(seen, spec, tied=True)
    assert tied[0] / values.min() == pytest.approx(tied[1] / values.max(), rel=1e-3)
    assert own[0] / values.min() > 2 * own[1] / values.max()
    assert error(values, spec, *own, 2) < 0.9 * error(values, spec, *tied, 2)


def test_zeros_have_no_error() -> None:
    assert mse_range(histogram_of(np.zeros(5)), GRIDS["u4"]) == (0, 0)
    some = np.array([0.0] * 1000 + [1.0], np.float32)
    assert mse_range(histogram_of(some), GRIDS["u2"]) == (0, 1)


@pytest.mark.parametrize("p", [0, -1, float("inf"), float("nan")])
def test_an_exponent_that_makes_no_error_is_refused(p: float) -> None:
    with pytest.raises(QuantizationError, match="exponent p"):
        lp_range(histogram_of(sample("bell")), GRIDS["u4"], p)


@pytest.mark.parametrize("steps", [0, 101])
def test_ranges_of_nothing_are_refused(steps: int) -> None:
    with pytest.raises(QuantizationError, match="steps must be"):
        mse_range(histogram_of(sample("bell")), GRIDS["u4"], steps)


def test_the_binary_grid_has_no_range() -> None:
    with pytest.raises(QuantizationError, match="One signed bit"):
        mse_range(histogram_of(sample("bell")), QuantSpec(1, narrow=True))
