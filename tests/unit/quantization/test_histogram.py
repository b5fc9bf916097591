"""Histograms that grow: what they count depends on the values alone."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import InputError, QuantizationError
from labkit.quantization.histogram import BINS, Histogram, StreamingHistogram
from labkit.quantization.observers import Observer

# Magnitudes of very different sizes, whole multiples of powers of two among them (those lie on borders of bins), and zeros.
VALUES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.builds(lambda n, e: math.ldexp(n, e), st.integers(-70, 70), st.integers(-20, 20)),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 5e-324, 1e150]),
)
BATCHES = st.lists(st.lists(VALUES, max_size=8), min_size=1, max_size=6).filter(any)


def counted(*batches: list[float], bins: int = 8) -> StreamingHistogram:
    histogram = StreamingHistogram("conv1", bins=bins)
    for batch in batches:
        histogram.update(np.array(batch, np.float64))
    return histogram


def truth(values: list[float], bins: int) -> tuple[float, list[int], list[int], int]:
    """Width, positive and negative counts and zeros in exact arithmetic: the narrowest power of two that is enough."""
    largest = max(abs(Fraction(v)) for v in values)
    positive, negative = [0] * bins, [0] * bins
    if largest == 0:
        return 0.0, positive, negative, len(values)
    exponent = -1000
    while largest >= bins * Fraction(2) ** exponent:
        exponent += 1
    for value in values:
        if value:
            (positive if value > 0 else negative)[math.floor(abs(Fraction(value)) / Fraction(2) ** exponent)] += 1
    return math.ldexp(1.0, exponent), positive, negative, sum(v == 0 for v in values)


def parts(histogram: Histogram) -> tuple[float, list[int], list[int], int]:
    return histogram.width, histogram.positive.tolist(), histogram.negative.tolist(), histogram.zeros


@given(batches=BATCHES, bins=st.sampled_from([2, 8, 64]))
def test_it_counts_as_if_it_had_known_the_range(batches: list[list[float]], bins: int) -> None:
    values = [value for batch in batches for value in batch]
    got = counted(*batches, bins=bins).result()
    assert parts(got) == truth(values, bins)
    assert got.positive.sum() + got.negative.sum() + got.zeros == len(values) == got.statistics.count
    assert (got.statistics.minimum, got.statistics.maximum) == (min(values), max(values))


@given(batches=BATCHES.filter(lambda b: len(b) > 1), seed=st.integers(0, 99))
def test_the_order_of_merging_does_not_matter(batches: list[list[float]], seed: int) -> None:
    each = [counted(batch) for batch in batches]
    whole = counted(*batches).result()
    left = reduce(StreamingHistogram.merged, each)
    right = reduce(lambda a, b: b.merged(a), reversed(each))
    shuffled = reduce(StreamingHistogram.merged, [each[i] for i in np.random.default_rng(seed).permutation(len(each))])
    for merged in (left, right, shuffled):
        assert parts(merged.result()) == parts(whole)
        assert merged.result().statistics.count == whole.statistics.count


def test_merging_changes_neither_part() -> None:
    a, b = counted([1.0, 2.0]), counted([100.0])
    before = parts(a.result()), parts(b.result())
    merged = a.merged(b)
    merged.update(np.array([5.0]))
    assert (parts(a.result()), parts(b.result())) == before
    with pytest.raises(QuantizationError, match="no moving averages"):
        a.merged(b).observer.average()


@given(batches=st.lists(st.lists(st.floats(-9, 9, width=32), min_size=1), min_size=2, max_size=5))
def test_merged_statistics_are_those_of_all_values(batches: list[list[float]]) -> None:
    merged = reduce(StreamingHistogram.merged, [counted(batch) for batch in batches]).result().statistics
    values = np.concatenate(batches)
    assert merged.mean == pytest.approx(values.mean(), abs=1e-12)
    assert merged.deviation == pytest.approx(values.std(), abs=1e-7)


@given(values=st.lists(st.floats(-50, 50, width=32), min_size=1).filter(any), bins=st.sampled_from([1, 2, 3, 16, 100]))
def test_coarser_bins_count_what_wide_bins_would_have(values: list[float], bins: int) -> None:
    fine = counted(values, bins=128).result()
    coarse = fine.coarsened(bins)
    assert coarse.used <= bins
    ratio = coarse.width / fine.width
    assert ratio == 2 ** round(math.log2(ratio)) and (ratio == 1 or fine.used > bins)
    for value, times in zip(*np.unique(np.array(values), return_counts=True), strict=True):
        if value:
            side = coarse.positive if value > 0 else coarse.negative
            assert side[math.floor(abs(Fraction(float(value))) / Fraction(coarse.width))] >= times
    assert coarse.positive.sum() + coarse.negative.sum() == fine.positive.sum() + fine.negative.sum()


def test_statistics_are_the_observers_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    histogram, observer = StreamingHistogram("x"), Observer("x")
    for size in (7, 64, 1):
        batch = rng.normal(3, 2, (size, 3, 5)).astype(np.float32)
        histogram.update(batch)
        observer.update(batch)
    assert histogram.result().statistics == observer.result()
    assert histogram.observer.average() == observer.average()


def test_memory_does_not_grow() -> None:
    histogram = StreamingHistogram("x")
    for seed in range(5):
        histogram.update(np.random.default_rng(seed).normal(0, 10**seed, 10_000).astype(np.float32))
        assert histogram.result().positive.shape == histogram.result().negative.shape == (BINS,)
    assert BINS // 2 < histogram.result().used <= BINS


def test_views_for_the_searches() -> None:
    seen = counted([0.0, 0.0, 1.0, 1.9, 3.0, -2.5, -1.0, 7.5]).result()
    assert seen.width == 1.0 and seen.used == 8
    assert seen.magnitudes().tolist() == [2, 3, 1, 1, 0, 0, 0, 1]
    counts, edges = seen.signed()
    assert edges.tolist() == list(range(-8, 9))
    assert counts.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 2, 2, 0, 1, 0, 0, 0, 1]
    points, weights = seen.points()
    assert dict(zip(points.tolist(), weights.tolist(), strict=True)) == {7.5: 1, 3.5: 1, -2.5: 1, 1.5: 2, -1.5: 1}
    assert abs(points).tolist() == sorted(abs(points).tolist(), reverse=True)
    assert str(seen).startswith("8 values in [-2.5, 7.5]")


def test_channels_are_kept_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, [[[1]], [[30]], [[0]]], (6, 3, 4, 4)).astype(np.float32)
    histogram = StreamingHistogram("x", axis=1)
    histogram.update(x[:2])
    histogram.update(x[2:])
    for channel, got in enumerate(histogram.channels()):
        alone = StreamingHistogram("x")
        alone.update(x[:, channel])
        assert parts(got) == parts(alone.result())
    assert histogram.channels()[2].width == 0 and histogram.channels()[2].zeros == 96
    again = histogram.merged(histogram)
    assert [h.statistics.count for h in again.channels()] == [192] * 3
    with pytest.raises(InputError, match="use channels"):
        histogram.result()
    with pytest.raises(InputError, match="had 3 channels so far"):
        histogram.update(x[:, :2])
    with pytest.raises(InputError, match="no axis 1"):
        histogram.update(np.zeros(4, np.float32))
    with pytest.raises(InputError, match="can be merged"):
        histogram.merged(StreamingHistogram("x"))
    with pytest.raises(InputError, match="one observer for each"):
        _ = histogram.observer


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_not_counted(value: float) -> None:
    histogram = counted([1.0, 2.0])
    before = parts(histogram.result())
    with pytest.raises(QuantizationError, match=r"activation 'conv1' holds NaN or infinite"):
        histogram.update(np.array([1.0, value]))
    assert parts(histogram.result()) == before
    channels = StreamingHistogram("conv1", axis=0)
    with pytest.raises(QuantizationError, match=r"'conv1, channel 1' holds NaN or infinite"):
        channels.update(np.array([[1.0], [value]]))


def test_nothing_seen_is_said() -> None:
    with pytest.raises(QuantizationError, match="'conv1' was never observed"):
        counted([]).result()
    with pytest.raises(QuantizationError, match="never observed"):
        StreamingHistogram("x", axis=0).channels()


@pytest.mark.parametrize("bins", [0, 1, 3, 100, -4])
def test_bins_that_cannot_be_merged_in_pairs_are_refused(bins: int) -> None:
    with pytest.raises(InputError, match="power of two"):
        StreamingHistogram("x", bins=bins)


def test_it_is_frozen() -> None:
    seen = counted([1.0]).result()
    with pytest.raises(ValueError, match="read-only"):
        seen.positive[0] = 3
    with pytest.raises(InputError, match="at least one bin"):
        seen.coarsened(0)
