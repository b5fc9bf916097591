"""Statistics that are gathered batch by batch, and the ranges chosen from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import QuantizationError
from labkit.quantization.observers import Observer, TensorStatistics
from labkit.quantization.ranges import RANGES, choose_range


def seen(*batches: np.ndarray) -> TensorStatistics:
    observer = Observer("conv1")
    for batch in batches:
        observer.update(batch)
    return observer.result()


@given(
    cuts=st.lists(st.integers(0, 999), max_size=12),
    offset=st.sampled_from([0.0, 3.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_many_batches_are_one(cuts: list[int], offset: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(offset, 2, 1000)
    merged, whole = seen(*np.split(values, sorted(cuts))), seen(values)
    assert (merged.minimum, merged.maximum, merged.count) == (values.min(), values.max(), 1000)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-12)
    # sums of squares would lose all digits at an offset of 1e6
    assert merged.deviation == pytest.approx(whole.deviation, rel=1e-12 * max(1.0, offset))
    exact_mean = math.fsum(values) / 1000
    assert whole.mean == pytest.approx(exact_mean, rel=1e-12, abs=1e-12)
    exact = math.sqrt(math.fsum((v - exact_mean) ** 2 for v in values) / 1000)
    assert whole.deviation == pytest.approx(exact, rel=1e-9)


def test_the_deviation_is_that_of_the_population() -> None:
    assert seen(np.array([[1.0, 3.0]]), np.array([5.0, 7.0])) == TensorStatistics(1, 7, 4, math.sqrt(5), 4)


def test_an_empty_batch_changes_nothing() -> None:
    assert seen(np.zeros((0, 3)), np.ones(4), np.zeros(0)) == TensorStatistics(1, 1, 1, 0, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    observer = Observer("conv1")
    with pytest.raises(QuantizationError, match=r"activation 'conv1' holds NaN or infinite"):
        observer.update(np.array([1.0, value, 2.0]))
    with pytest.raises(QuantizationError, match="never observed"):
        observer.result()


def test_minmax_is_all_that_was_seen() -> None:
    assert choose_range("minmax", TensorStatistics(-2, 5, 1, 0.1, 9), "x") == (-2, 5)


@pytest.mark.parametrize(
    ("statistics", "wanted"),
    [
        (TensorStatistics(-10, 12, 1, 2, 9), (-5, 7)),  # tails are cut
        (TensorStatistics(0, 12, 1, 2, 9), (0, 7)),  # after a ReLU nothing below 0 is promised
        (TensorStatistics(-10, 3, 1, 2, 9), (-5, 3)),
        (TensorStatistics(-1, 1, 0, 0.9, 9), (-1, 1)),  # three sigma beyond what occurs
        (TensorStatistics(4, 4, 4, 0, 9), (4, 4)),
    ],
)
def test_three_sigma_is_cut_to_what_was_seen(statistics: TensorStatistics, wanted: tuple[float, float]) -> None:
    assert choose_range("3sigma", statistics, "x") == wanted


def test_a_constant_activation_has_a_range_under_every_method() -> None:
    for value in (0.1, -3.7e-5, 1e7):
        constant = np.full(1001, value, np.float32)
        for method in RANGES:
            assert choose_range(method, seen(constant[:17], constant[17:]), "x") == (constant[0], constant[0])


@pytest.mark.parametrize("method", RANGES)
def test_an_activation_that_is_always_0_is_named(method: str) -> None:
    with pytest.raises(QuantizationError, match=r"'relu3' was 0 for every calibration image"):
        choose_range(method, seen(np.zeros(5)), "relu3")


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"ranges must be one of minmax, 3sigma, got 'kl2'"):
        choose_range("kl2", TensorStatistics(0, 1, 0, 1, 1), "x")


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_moving_averages_follow_the_batches(momentum: float) -> None:
    batches = [np.random.default_rng(i).normal(i, 1 + i, 50) for i in range(6)]
    observer = Observer("x", momentum)
    low, high = batches[0].min(), batches[0].max()
    for i, batch in enumerate(batches):
        observer.update(batch)
        if i:
            low, high = momentum * low + (1 - momentum) * batch.min(), momentum * high + (1 - momentum) * batch.max()
        assert observer.average() == pytest.approx((low, high), rel=1e-12)
    if momentum == 0:
        assert observer.average() == (batches[-1].min(), batches[-1].max())


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2, float("nan")])
def test_a_momentum_that_never_settles_is_refused(momentum: float) -> None:
    with pytest.raises(QuantizationError, match="momentum"):
        Observer("x", momentum)


def test_moving_averages_of_nothing_are_refused() -> None:
    with pytest.raises(QuantizationError, match="no moving averages"):
        Observer("x").average()


def test_merging_with_one_that_saw_nothing() -> None:
    some = Observer("x")
    some.update(np.array([1.0, 2.0, 6.0]))
    assert some.merged(Observer("x")).result() == Observer("x").merged(some).result() == some.result()
