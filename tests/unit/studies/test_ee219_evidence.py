"""Differences of accuracies and their errors, errors of grids, and tables of rules, against direct computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.arithmetic.affine import QuantSpec, dequantize, params_from_range, quantize
from labkit.quantization.histogram import StreamingHistogram
from labkit.studies.ee219.ablation import Ablation
from labkit.studies.ee219.noise import decibels, error_parts, histogram_decibels
from labkit.studies.evidence import Contrast, contrast, spread

SPECS = (
    QuantSpec(8, narrow=True),
    QuantSpec(4, narrow=True),
    QuantSpec(8, signed=False, symmetric=False),
    QuantSpec(3),
)


@pytest.mark.parametrize(("draws", "images"), [(1, 50), (3, 200), (2, 2)])
def test_contrast_is_the_paired_difference(draws: int, images: int) -> None:
    generator = np.random.default_rng(draws)
    one, other = generator.random((2, draws, images)) < 0.6
    found = contrast(one, other)
    gaps = [[100.0 * (int(a) - int(b)) for a, b in zip(x, y, strict=True)] for x, y in zip(one, other, strict=True)]
    assert found.points == pytest.approx(np.mean(gaps))
    by_image = np.mean(gaps, axis=0)
    error = math.sqrt(sum((g - by_image.mean()) ** 2 for g in by_image) / (images - 1) / images)
    if draws > 1:
        by_draw = np.mean(gaps, axis=1)
        error = math.hypot(error, math.sqrt(sum((g - by_draw.mean()) ** 2 for g in by_draw) / (draws - 1) / draws))
    assert found.error == pytest.approx(error)


def test_contrast_takes_one_draw_against_many() -> None:
    many = np.array([[True, True, False, True], [True, False, False, True]])
    assert contrast(many, many[:1]).points == -12.5
    assert spread(many) == "62.50 ± 17.68"
    assert spread(many[:1]) == "75.00"


@pytest.mark.parametrize(
    ("points", "error", "better", "worse"),
    [(1.0, 0.4, True, False), (1.0, 0.6, False, False), (-1.0, 0.4, False, True), (0.0, 0.0, False, False)],
)
def test_two_standard_errors_decide(points: float, error: float, better: bool, worse: bool) -> None:
    found = Contrast(points, error)
    assert (found.is_better, found.is_worse) == (better, worse)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=30), st.floats(0.25, 4), st.data())
def test_error_parts_are_those_of_rounding(
    spec: QuantSpec, values: list[float], limit: float, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(1, 5), min_size=len(values), max_size=len(values)))
    reals, numbers = np.array(values, np.float32), np.array(counts)
    params = params_from_range(-limit, limit, spec)
    again = dequantize(quantize(reals, params, spec), params, spec)
    expected = float((np.square(reals.astype(np.float64) - again) * numbers).sum())
    assert sum(error_parts(reals, numbers, -limit, limit, spec)) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_error_parts_tell_rounding_from_cutting_off() -> None:
    values, counts = np.array([0.4, 3.0]), np.array([2, 1])
    rounding, cut = error_parts(values, counts, -1.0, 1.0, QuantSpec(2, narrow=True))  # levels -1, 0, 1
    assert (rounding, cut) == (pytest.approx(2 * 0.4**2), pytest.approx(4.0))
    assert decibels(values, counts, -1.0, 1.0, QuantSpec(2, narrow=True)) == pytest.approx(
        10 * math.log10((2 * 0.16 + 9) / (2 * 0.16 + 4))
    )
    assert decibels(np.array([1.0, -1.0]), counts, -1.0, 1.0, QuantSpec(2, narrow=True)) == math.inf


def test_histogram_decibels_are_close_to_those_of_the_values() -> None:
    values = np.random.default_rng(0).normal(size=20000).astype(np.float32)
    counted = StreamingHistogram("values")
    counted.update(values)
    for spec, limit in ((QuantSpec(8, narrow=True), 4.0), (QuantSpec(4, narrow=True), 2.5)):
        exact = decibels(values, np.ones(len(values), np.int64), -limit, limit, spec)
        assert histogram_decibels(counted.result(), -limit, limit, spec) == pytest.approx(exact, abs=0.1)


def ablation() -> Ablation:
    right = np.ones((2, 100), bool)
    fallen = right.copy()
    fallen[:, :20] = False
    rest = {("base", 4): fallen, ("good", 4): right, ("bad", 8): fallen}
    return Ablation("net", "grid of a kind", 100.0, "base", {("base", 8): right, ("good", 8): right, **rest})


def test_ablation_finds_what_falls_and_what_is_best() -> None:
    found = ablation()
    assert found.rules == ("base", "good", "bad")
    assert found.bits == (8, 4)
    assert found.collapsed(8) == {"bad": pytest.approx(-20.0)}
    assert found.collapsed(4) == {"base": pytest.approx(-20.0)}
    assert found.best(4) == "good"
    assert found.change("good", 4).points == pytest.approx(20.0)


def test_ablation_shows_what_is_clear_and_leaves_gaps() -> None:
    table = ablation().table()
    assert table.rows[0] == ("base", "100.00 ± 0.00", "80.00 ± 0.00")
    assert table.rows[1] == ("good", "100.00 ± 0.00 (+0.00)", "100.00 ± 0.00 (+20.00 *)")
    assert table.rows[2] == ("bad", "80.00 ± 0.00 (-20.00 *)", "")
    figure = ablation().figure("stem")
    assert [len(series.x) for series in figure.series] == [3, 2]
