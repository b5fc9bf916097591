"""The slips of the EE219 report are found from its numbers, and vanish when the numbers are put right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.studies.ee219.report import PRINTED, PrintedRange, literal_scale_reach, slips, zeros_at_most

ROWS = {(row.kind, row.layer): row for row in PRINTED}


def words(row: PrintedRange) -> str:
    return " | ".join(f"{slip.printed} {slip.problem} {slip.right}" for slip in slips((row,)))


@pytest.mark.parametrize(
    ("kind", "layer", "part"),
    [
        ("weights", "conv1", "it is smaller"),
        ("weights", "conv1", "beyond int8"),
        ("weights", "fc1", "beyond int8"),
        ("activations", "input", "the wrong way round"),
        ("activations", "conv1", "no value lies below 0"),
        ("activations", "conv2", "no value lies below 0"),
        ("activations", "fc1", "minus sign of the lower end is lost"),
        ("activations", "fc2", "minus sign of the lower end is lost"),
    ],
)
def test_slips_of_the_report_are_found(kind: str, layer: str, part: str) -> None:
    assert part in words(ROWS[kind, layer])


@pytest.mark.parametrize("key", [("weights", "conv2"), ("weights", "fc2"), ("weights", "fc3"), ("activations", "fc3")])
def test_rows_without_slips_have_none(key: tuple[str, str]) -> None:
    assert slips((ROWS[key],)) == ()


@pytest.mark.parametrize(
    ("row", "change", "gone"),
    [
        (ROWS["weights", "conv1"], {"said": "smaller"}, "it is smaller"),
        (ROWS["weights", "conv1"], {"high": 0.63}, "beyond int8"),
        (ROWS["activations", "input"], {"said": "smaller"}, "the wrong way round"),
        (ROWS["activations", "conv1"], {"sigma_low": 0.0}, "no value lies below 0"),
        (ROWS["activations", "fc1"], {"sigma_low": -1.5848371084738495}, "minus sign"),
        (ROWS["activations", "fc2"], {"relu": False}, "minus sign"),
    ],
)
def test_slips_vanish_with_their_cause(row: PrintedRange, change: dict[str, object], gone: str) -> None:
    assert gone in words(row)
    assert gone not in words(replace(row, **change))  # type: ignore[arg-type]


def test_the_remark_on_conv1_contradicts_its_own_numbers() -> None:
    row = ROWS["weights", "conv1"]
    assert row.said == "larger" and row.is_inside and row.width_ratio < 1
    assert row.sigma_low > row.low and row.sigma_high < row.high


@given(st.lists(st.one_of(st.just(0.0), st.floats(0.01, 100)), min_size=2, max_size=60))
def test_no_values_have_more_zeros_than_their_mean_and_deviation_allow(values: list[float]) -> None:
    array = np.array(values)
    assert np.mean(array == 0) <= zeros_at_most(float(array.mean()), float(array.std())) + 1e-9


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 10))
def test_the_bound_on_zeros_is_reached_by_two_values(zeros: int, others: int, value: float) -> None:
    array = np.array([0.0] * zeros + [value] * others)
    assert zeros_at_most(float(array.mean()), float(array.std())) == pytest.approx(zeros / len(array))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40).filter(lambda v: max(v) > min(v) + 1e-3))
def test_what_real_values_give_is_possible(values: list[float]) -> None:
    array = np.array(values)
    ends = array.mean() - 3 * array.std(), array.mean() + 3 * array.std()
    row = PrintedRange("weights", "any", array.min(), array.max(), *ends, False, "smaller")
    assert row.is_possible
    assert row.mean == pytest.approx(array.mean(), abs=1e-9)
    assert row.deviation == pytest.approx(array.std(), abs=1e-9)
    assert not replace(row, sigma_low=row.low - 10, sigma_high=row.high + 10).is_possible


@pytest.mark.parametrize(("low", "high", "reach"), [(-0.5, 0.5, 127), (-1.0, 0.5, 254), (-0.25, 0.5, 127)])
def test_literal_reading_of_the_scale(low: float, high: float, reach: float) -> None:
    assert literal_scale_reach(PrintedRange("weights", "any", low, high, low, high, False, "smaller")) == reach
