"""The parts of the KL and clipping studies: the worked example, thinned curves, untouched logits, clipped weights, ranges."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from labkit.arithmetic.affine import QuantSpec
from labkit.graph import int_ops
from labkit.quantization.calibration import choose_ranges
from labkit.quantization.clipping.divergence import KLCurve
from labkit.quantization.clipping.kl import VARIANTS, kl_curve
from labkit.quantization.convert import convert
from labkit.studies.ee219.clipping import actual_logits
from labkit.studies.ee219.clipping_weights import clipped_weights
from labkit.studies.ee219.kl import thinned
from labkit.studies.ee219.kl_example import EXAMPLE, EXPANDED, example_table
from labkit.studies.ee219.seen import seen_ranges
from labkit.studies.evidence import redrawn
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Settings


@cache
def lab() -> Lab:
    return redrawn(open_lab("lenet", Settings.short()), Settings.short(), 0)


def test_the_example_step_by_step() -> None:
    rows = example_table().rows
    assert [row[1] for row in rows[:-1]] == [str(v) for v in EXAMPLE]
    assert [row[2] for row in rows[:-1]] == ["6"] * 4 + ["16"] * 4
    assert [row[4] for row in rows[:-1]] == [str(v) for v in EXPANDED]
    total = sum(p / 22 * math.log(p / q) for p, q in zip(EXAMPLE, EXPANDED, strict=True) if p)
    assert float(str(rows[-1][-1])) == pytest.approx(total, abs=5e-5)
    assert sum(float(str(row[-1])) for row in rows[:-1]) == pytest.approx(total, abs=4e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["conv1", "fc3"])
def test_thinned_curves_keep_their_lowest_point(variant: str, name: str) -> None:
    curve = kl_curve(lab().calibration.histograms[name], QuantSpec(8, narrow=True), variant)
    at, divergence = thinned(curve, 40)
    assert len(at) <= 40
    assert np.all(np.diff(at) > 0)
    assert divergence.min() == curve.divergence.min()


def test_a_curve_without_a_finite_point_is_thinned_to_nothing() -> None:
    ends = np.array([1.0, 2.0])
    at, divergence = thinned(KLCurve("any", -ends, ends, np.full(2, np.inf), 1))
    assert at.size == divergence.size == 0


@pytest.mark.parametrize("method", ["3sigma", "percentile", "mse", "kl"])
def test_logits_keep_their_actual_range_and_nothing_else_moves(method: str) -> None:
    plan = lab().plan(8, 4)
    chosen = choose_ranges(lab().calibration, lab().graph, plan, method)
    kept = actual_logits(lab().graph, chosen)
    seen = lab().calibration.statistics["fc3"]
    assert kept.ranges["fc3"] == (seen.minimum, seen.maximum)
    assert {n: r for n, r in kept.ranges.items() if n != "fc3"} == {
        n: r for n, r in chosen.ranges.items() if n != "fc3"
    }


@pytest.mark.parametrize("method", ["minmax", "3sigma"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [8, 3])
def test_clipped_weights_are_those_of_the_plan(method: str, per_channel: bool, bits: int) -> None:
    from dataclasses import replace

    plan = lab().plan(bits, 8, per_channel=per_channel)
    own = convert(lab().graph, lab().calibration, replace(plan, weight_ranges=method))
    given = convert(lab().graph, lab().calibration, plan, {}, clipped_weights(lab().graph, plan, method))
    for name in plan.weights:
        one, other = own[name].op, given[name].op
        assert isinstance(one, int_ops.Conv2d | int_ops.Linear) and isinstance(other, int_ops.Conv2d | int_ops.Linear)
        assert np.array_equal(one.weight.values, other.weight.values)
        assert np.array_equal(one.weight.params.scale, other.weight.params.scale)


def test_seen_ranges_are_those_of_the_values() -> None:
    found = {(one.kind, one.layer): one for one in seen_ranges(lab())}
    assert [layer for kind, layer in found if kind == "weights"] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert [layer for kind, layer in found if kind == "activations"] == ["input", "conv1", "conv2", "fc1", "fc2", "fc3"]
    for name in ("conv1", "fc3"):
        weight = lab().graph[name].op.weight.astype(np.float64)  # type: ignore[union-attr]
        one = found["weights", name]
        assert one.actual == (weight.min(), weight.max())
        low, high = weight.mean() - 3 * weight.std(), weight.mean() + 3 * weight.std()
        assert one.three_sigma == (pytest.approx(low), pytest.approx(high))
        assert one.width_ratio == pytest.approx((high - low) / (weight.max() - weight.min()))
        assert one.beyond == pytest.approx(np.mean((weight < low) | (weight > high)), abs=2e-3)
        assert one.decibels(8)[0] > one.decibels(4)[0]
    assert found["activations", "conv1"].zeros > 0.2
