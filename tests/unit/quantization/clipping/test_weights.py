"""Weight ranges: those that labkit has always had to the last bit, the others against the functions for one tensor."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import oracle_arithmetic as oracle
import pytest
from unit.quantization.clipping.samples import GRIDS, histogram_of, sample

from labkit.arithmetic.affine import PerAxis, QuantSpec, params_from_range, quantize_tensor
from labkit.errors import QuantizationError
from labkit.quantization.clipping.lp import lp_range_of_values
from labkit.quantization.clipping.methods import CLIPPING, check_options, clipped_range
from labkit.quantization.clipping.weights import WEIGHT_METHODS, weight_range
from labkit.quantization.convert import quantize_weight

WEIGHT = np.random.default_rng(0).standard_t(4, (6, 5, 3, 3)).astype(np.float32) * np.float32(0.1)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("grid", ["s8", "s4", "s2"])
@pytest.mark.parametrize("method", ["minmax", "3sigma"])
def test_the_old_ranges_to_the_last_bit(method: str, grid: str, per_channel: bool) -> None:
    spec = replace(GRIDS[grid], granularity=PerAxis(0)) if per_channel else GRIDS[grid]
    old = quantize_weight("conv", WEIGHT, spec, method)
    new = quantize_tensor(WEIGHT, params_from_range(*weight_range(WEIGHT, spec, method), spec), spec)
    assert np.array_equal(old.params.scale, new.params.scale) and np.array_equal(old.values, new.values)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("grid", ["s8", "s4", "u4"])
@pytest.mark.parametrize("method", CLIPPING)
def test_each_channel_is_a_tensor_of_its_own(method: str, grid: str, axis: int) -> None:
    spec = replace(GRIDS[grid], granularity=PerAxis(axis))
    low, high = weight_range(WEIGHT, spec, method)
    assert low.shape == high.shape == (WEIGHT.shape[axis],)
    for i in range(len(low)):
        alone = weight_range(np.take(WEIGHT, i, axis), GRIDS[grid], method)
        assert (low[i], high[i]) == (float(alone[0]), float(alone[1]))


@pytest.mark.parametrize("method", CLIPPING)
def test_a_tensor_takes_the_methods_of_activations(method: str) -> None:
    low, high = weight_range(WEIGHT, GRIDS["s4"], method)
    if method in ("mse", "l2.4"):
        wanted = lp_range_of_values(WEIGHT, GRIDS["s4"], 2.0 if method == "mse" else 2.4)
    else:
        wanted = clipped_range(method, histogram_of(WEIGHT), GRIDS["s4"])
    assert (float(low), float(high)) == wanted


def test_options_reach_the_method() -> None:
    assert weight_range(WEIGHT, GRIDS["s4"], "percentile", percentile=50)[1] < 0.1
    assert weight_range(WEIGHT, GRIDS["s4"], "mse", steps=2)[1] >= 0.98 * np.abs(WEIGHT).max() * 0.99
    for method in WEIGHT_METHODS:
        with pytest.raises(QuantizationError, match="option"):
            weight_range(WEIGHT, GRIDS["s4"], method, colour=3)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_a_channel_of_zeros_is_refused_by_number(method: str) -> None:
    spec = QuantSpec(4, narrow=True, granularity=PerAxis(0))
    dead = WEIGHT.copy()
    dead[4] = 0
    low, high = weight_range(dead, spec, method)
    assert low[4] == high[4] == 0
    with pytest.raises(QuantizationError, match="channel 4 holds only zeros"):
        params_from_range(low, high, spec)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_weights_are_rounded_inside_the_chosen_ends(method: str, bits: int, per_channel: bool) -> None:
    """Scale and integers in exact fractions, one weight at a time; what lies beyond the ends is clipped."""
    spec = QuantSpec(bits, narrow=True, granularity=PerAxis(0)) if per_channel else QuantSpec(bits, narrow=True)
    low, high = (np.atleast_1d(end) for end in weight_range(WEIGHT, spec, method))
    got = quantize_weight("conv", WEIGHT, spec, method)
    rows = WEIGHT.reshape(len(low), -1)
    scales, integers = np.atleast_1d(got.params.scale), got.values.reshape(rows.shape)
    qmax = 2 ** (bits - 1) - 1
    for i, row in enumerate(rows):
        assert Fraction(float(scales[i])) == oracle.symmetric_scale(float(low[i]), float(high[i]), qmax)
        wanted = [oracle.quantize(r, scales[i], 0, -qmax, qmax) for r in row.tolist()]
        assert integers[i].tolist() == wanted
    again = quantize_weight("conv", WEIGHT, spec, method, ends=weight_range(WEIGHT, spec, method))
    assert np.array_equal(again.values, got.values)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize(("method", "p"), [("mse", 2.0), ("l2.4", 2.4)])
def test_ends_of_least_error_against_trying_them_all(method: str, p: float, bits: int, per_channel: bool) -> None:
    spec = QuantSpec(bits, narrow=True, granularity=PerAxis(0)) if per_channel else QuantSpec(bits, narrow=True)
    low, high = (np.atleast_1d(end) for end in weight_range(WEIGHT, spec, method))
    for i, row in enumerate(WEIGHT.reshape(len(low), -1).astype(np.float64)):
        largest, errors = np.abs(row).max(), []
        for step in range(80):
            scale = float(np.float32(largest * (1 - 0.01 * step) / spec.qmax))
            levels = np.clip(np.rint(row / scale), -spec.qmax, spec.qmax)
            errors.append(float((np.abs(row - levels * scale) ** p).sum()))
        share = max(-low[i], high[i]) / largest
        assert share == pytest.approx(1 - 0.01 * int(np.argmin(errors)), rel=1e-12)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_channels_that_are_gone_get_the_smallest_scale(method: str) -> None:
    spec = QuantSpec(4, narrow=True, granularity=PerAxis(0))
    gone = WEIGHT.copy()
    gone[[1, 4]] = 0
    got = quantize_weight("conv", gone, spec, method, vanished=(1, 4))
    assert got.params.scale[[1, 4]].tolist() == [float(np.finfo(np.float32).tiny)] * 2
    kept = [0, 2, 3, 5]
    assert np.array_equal(got.params.scale[kept], quantize_weight("conv", WEIGHT, spec, method).params.scale[kept])
    assert not got.values[[1, 4]].any()


def test_errors() -> None:
    with pytest.raises(QuantizationError, match="weight ranges must be one of minmax, 3sigma, percentile"):
        weight_range(WEIGHT, GRIDS["s4"], "ema")
    with pytest.raises(QuantizationError, match="One signed bit"):
        weight_range(WEIGHT, QuantSpec(1, narrow=True), "mse")
    with pytest.raises(QuantizationError, match="no axis 7"):
        weight_range(WEIGHT, QuantSpec(4, granularity=PerAxis(7)), "mse")
    with pytest.raises(QuantizationError, match="no weights"):
        weight_range(WEIGHT[:0], GRIDS["s4"], "mse")
    broken = WEIGHT.copy()
    broken[1, 2, 0, 1] = np.inf
    with pytest.raises(QuantizationError, match=r"index \(1, 2, 0, 1\) is inf"):
        weight_range(broken, GRIDS["s4"], "kl")


def test_a_failing_method_names_the_tensor() -> None:
    with pytest.raises(QuantizationError, match="conv7, ranges by kl: variant must be one of"):
        clipped_range("kl", histogram_of(sample("bell")), GRIDS["s8"], "conv7", variant="x")
    with pytest.raises(QuantizationError, match="clipping method must be one of percentile, mse"):
        check_options("minmax", {})
    with pytest.raises(QuantizationError, match="take the options steps, got 'percentile'"):
        clipped_range("mse", histogram_of(sample("bell")), GRIDS["s8"], percentile=3)
