"""LAPQ on losses whose least value is known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from unit.quantization.clipping.samples import GRIDS, histogram_of, sample

from labkit.errors import QuantizationError
from labkit.quantization.clipping.lapq import EXPONENTS, Ranges, best_exponent, lapq
from labkit.quantization.clipping.lp import lp_range

HISTOGRAMS = {"a": histogram_of(sample("relu")), "b": histogram_of(sample("heavy")), "c": histogram_of(sample("skew"))}
SPECS = {"a": GRIDS["u4"], "b": GRIDS["s4"], "c": GRIDS["u2"]}


def bowl(targets: Mapping[str, float], coupling: float = 0.0) -> object:
    """A quadratic in the upper ends; with a coupling, one tensor's best end depends on the others'."""

    def loss(ranges: Ranges) -> float:
        off = np.array([ranges[name][1] / target - 1 for name, target in targets.items()])
        return float(off @ off + coupling * off.sum() ** 2)

    return loss


@pytest.mark.parametrize("coupling", [0.0, 3.0])
def test_the_joint_search_finds_the_bottom(coupling: float) -> None:
    starts = {name: lp_range(seen, SPECS[name], 3, tied=True) for name, seen in HISTOGRAMS.items()}
    targets = {"a": starts["a"][1] * 0.6, "b": starts["b"][1] * 1.2, "c": starts["c"][1] * 0.8}
    found = lapq(HISTOGRAMS, SPECS, bowl(targets, coupling), iterations=8)  # type: ignore[arg-type]
    assert found.loss < 1e-3 < found.start_loss
    for name, target in targets.items():
        assert found.ranges[name][1] == pytest.approx(target, rel=0.03)


def test_starts_are_the_ranges_of_least_lp_error() -> None:
    calls: list[Ranges] = []

    def loss(ranges: Ranges) -> float:
        calls.append(ranges)
        return 5.0

    found = lapq(HISTOGRAMS, SPECS, loss, exponents=(2.0, 3.0), iterations=0)
    assert [dict(c) for c in calls] == [
        {name: lp_range(seen, SPECS[name], p, tied=True) for name, seen in HISTOGRAMS.items()} for p in (2.0, 3.0)
    ]
    assert found.evaluations == 2 and found.loss == found.start_loss == 5 and found.exponent == 2
    with pytest.raises(TypeError):
        calls[0]["a"] = (0, 1)  # type: ignore[index]


def test_the_parabola_gives_the_exponent_between() -> None:
    assert best_exponent({p: (p - 2.7) ** 2 + 4 for p in EXPONENTS}) == pytest.approx(2.7)
    assert best_exponent({2.0: 1.0, 3.0: 2.0, 4.0: 1.5}) == 2.0, "it opens downwards"
    assert best_exponent({2.0: 9.0, 3.0: 4.0, 4.0: 1.0}) == 4.0, "its bottom lies beyond"
    assert best_exponent({2.0: math.inf, 3.0: 2.0, 4.0: 1.5}) == 4.0, "two points are no parabola"

    p_by_width = {lp_range(HISTOGRAMS["b"], SPECS["b"], p, tied=True)[1]: p for p in np.linspace(2, 4, 41)}

    def loss(ranges: Ranges) -> float:  # a parabola in p, as the paper finds it
        return (p_by_width.get(ranges["b"][1], 2.0) - 2.7) ** 2

    found = lapq({"b": HISTOGRAMS["b"]}, {"b": SPECS["b"]}, loss, iterations=0)
    assert len(found.by_exponent) == 11 and found.loss <= min(found.by_exponent.values())


def test_it_is_never_worse_than_its_start_and_counts_its_calls() -> None:
    rng = np.random.default_rng(0)
    calls = [0]

    def noisy(ranges: Ranges) -> float:
        calls[0] += 1
        return float(rng.uniform(1, 2))

    found = lapq(HISTOGRAMS, SPECS, noisy, exponents=(2.0, 3.0, 4.0), iterations=1, max_evaluations=40)
    assert found.loss <= found.start_loss == min(found.by_exponent.values())
    assert calls[0] == found.evaluations <= 4 + 40 + 5  # scipy finishes the line it is on


def test_losses_that_are_no_numbers_are_avoided() -> None:
    start = lp_range(HISTOGRAMS["b"], SPECS["b"], 3, tied=True)[1]

    def loss(ranges: Ranges) -> float:
        high = ranges["b"][1]
        return math.nan if high < 0.8 * start else (high / start - 0.9) ** 2

    found = lapq({"b": HISTOGRAMS["b"]}, {"b": SPECS["b"]}, loss, iterations=4)
    assert found.ranges["b"][1] == pytest.approx(0.9 * start, rel=0.02)
    with pytest.raises(QuantizationError, match="no start with a finite loss"):
        lapq(HISTOGRAMS, SPECS, lambda ranges: math.nan)


def test_errors() -> None:
    with pytest.raises(QuantizationError, match="at least one tensor"):
        lapq({}, {}, lambda ranges: 0.0)
    with pytest.raises(QuantizationError, match="at least one tensor and one exponent"):
        lapq(HISTOGRAMS, SPECS, lambda ranges: 0.0, exponents=())
    with pytest.raises(QuantizationError, match="no grid for 'b'"):
        lapq(HISTOGRAMS, {"a": SPECS["a"]}, lambda ranges: 0.0)
