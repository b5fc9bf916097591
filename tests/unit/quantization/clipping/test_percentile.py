"""The percentile range against sorted values."""

from __future__ import annotations

import numpy as np
import pytest
from unit.quantization.clipping.samples import GRIDS, SHAPES, histogram_of, sample

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.clipping.percentile import percentile_range


@pytest.mark.parametrize("percentile", [50, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_magnitudes_beyond_the_percentile_are_cut(shape: str, percentile: float) -> None:
    values = sample(shape)
    seen = histogram_of(values)
    low, high = percentile_range(seen, GRIDS["s8"], percentile)
    magnitudes = np.sort(np.abs(values.astype(np.float64)))
    needed = int(np.ceil(percentile / 100 * values.size - 1e-9))
    exact = magnitudes[needed - 1]
    limit = max(-low, high)
    assert np.count_nonzero(magnitudes <= limit) >= needed, "no more than the rest may be cut off"
    assert limit <= exact + seen.width, "and the interval is no wider than that takes, but for one bin"
    assert values.min() <= low <= high <= values.max()


@pytest.mark.parametrize("percentile", [50, 99, 99.9, 100])
@pytest.mark.parametrize("shape", ["bell", "laplace", "heavy", "skew", "three"])
def test_an_affine_grid_cuts_half_the_rest_on_either_side(shape: str, percentile: float) -> None:
    values = np.sort(sample(shape).astype(np.float64))
    seen = histogram_of(values)
    low, high = percentile_range(seen, GRIDS["u8"], percentile)
    share = (1 - percentile / 100) / 2 * values.size
    assert np.count_nonzero(values < low) <= share + 1e-6 and np.count_nonzero(values > high) <= share + 1e-6
    cut = int(np.floor(share + 1e-9))
    assert low >= values[cut] - seen.width and high <= values[values.size - 1 - cut] + seen.width


@pytest.mark.parametrize("grid", GRIDS)
def test_all_of_them_is_min_max(grid: str) -> None:
    for shape in SHAPES:
        values = sample(shape)
        low, high = percentile_range(histogram_of(values), GRIDS[grid], 100)
        assert (low, high) == (values.min(), values.max())


def test_mostly_zeros_leave_a_range() -> None:
    low, high = percentile_range(histogram_of(sample("spike")), GRIDS["s8"], 50)
    assert low < 0 < high


@pytest.mark.parametrize("percentile", [0, -1, 100.1, float("nan")])
def test_what_is_no_percentage_is_refused(percentile: float) -> None:
    with pytest.raises(QuantizationError, match="percentile must be"):
        percentile_range(histogram_of(sample("bell")), GRIDS["u8"], percentile)


def test_the_binary_grid_has_no_range() -> None:
    with pytest.raises(QuantizationError, match="One signed bit"):
        percentile_range(histogram_of(sample("bell")), QuantSpec(1, narrow=True))
