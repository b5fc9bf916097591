"""The readable kernels of LiteRT and XNNPACK against exact arithmetic written out here."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.errors import QuantizationError
from labkit.kernels.reference import (
    average_pool_of_valid,
    mean_float32,
    quantize_away_from_zero,
    softmax_by_reciprocal,
    softmax_fixed_point,
)

INT8 = QuantSpec(8, signed=True, symmetric=False)


def grid(scale: float, zero_point: int) -> QParams:
    return QParams(np.array(scale, np.float32), np.array(zero_point, np.int32))


def test_a_border_rounds_ties_away_from_zero() -> None:
    real = np.array([0.25, -0.25, 0.75, -0.75, 0.24, 1e30, -np.inf], np.float32)
    np.testing.assert_array_equal(quantize_away_from_zero(real, grid(0.5, 3), INT8), [4, 2, 5, 1, 3, 127, -128])
    with pytest.raises(QuantizationError, match="Cannot quantize NaN: 1 of 2"):
        quantize_away_from_zero(np.array([0, np.nan], np.float32), grid(0.5, 3), INT8)


def rounded(value: Fraction) -> Fraction:
    """The nearest float32 to ``value``."""
    return Fraction(float(np.float32(float(value))))


def test_a_mean_is_one_product_and_one_sum_in_float32() -> None:
    x = np.random.default_rng(1).integers(-128, 128, (4, 3, 5, 7)).astype(np.int8)
    multiplier, addend = np.float32(0.0231), np.float32(-3.17)
    got = mean_float32(x, axes=(1, 2), multiplier=np.asarray(multiplier), addend=np.asarray(addend), clamp=(-100, 100))
    assert got.shape == (4, 3, 1, 1)
    for image, channel in np.ndindex(4, 3):
        product = rounded(Fraction(int(x[image, channel].sum(dtype=int))) * Fraction(float(multiplier)))
        wanted = round(rounded(product + Fraction(float(addend))))
        assert got[image, channel, 0, 0] == min(max(wanted, -100), 100)


def test_sums_less_128_are_those_of_the_lowered_tensor() -> None:
    x = np.random.default_rng(2).integers(0, 256, (3, 2, 4, 4)).astype(np.uint8)
    low = (x.astype(int) - 128).astype(np.int8)
    numbers = {"axes": (1,), "multiplier": np.float32(0.3), "addend": np.float32(1.5)}
    high_mean = mean_float32(x, **numbers, clamp=(0, 255), offset=128)
    np.testing.assert_array_equal(high_mean - 128, mean_float32(low, **numbers, clamp=(-128, 127)))
    window = {"kernel": (2, 3), "stride": (1, 1), "padding": ((1, 0), (1, 1))}
    high_pool = average_pool_of_valid(x, **window, clamp=(0, 255), offset=128)
    np.testing.assert_array_equal(high_pool - 128, average_pool_of_valid(low, **window, clamp=(-128, 127)))


def test_shares_by_reciprocal_are_summed_in_order() -> None:
    table = np.exp(-0.05 * np.arange(256)).astype(np.float32)
    x = np.random.default_rng(3).integers(-128, 128, (6, 9)).astype(np.int8)
    got = softmax_by_reciprocal(x, axis=0, table=table, output_zero_point=-128, clamp=(-128, 127))
    for row, wanted in zip(x.astype(int), got, strict=True):
        powers = [Fraction(float(table[row.max() - q])) for q in row]
        total = Fraction(0)
        for power in powers:
            total = rounded(total + power)
        reciprocal = rounded(1 / (total / 256))
        shares = [math.floor(rounded(power * reciprocal) + Fraction(1, 2)) - 128 for power in powers]
        assert [min(max(share, -128), 127) for share in shares] == wanted.tolist()
    moved = softmax_by_reciprocal(x.T[None], axis=0, table=table, output_zero_point=-128, clamp=(-128, 127))
    np.testing.assert_array_equal(moved[0].T, got)


def test_fixed_point_shares_are_near_the_real_ones() -> None:
    scale, x = 0.04, np.random.default_rng(4).integers(-128, 128, (200, 12)).astype(np.int8)
    multiplier = FixedPointMultiplier.from_real(scale * 2.0**26)
    lowest = -math.floor(31 * 2.0**26 / 2.0 ** int(multiplier.exponent))
    numbers = {"multiplier": multiplier, "lowest_difference": lowest, "output_zero_point": -128, "clamp": (-128, 127)}
    got = softmax_fixed_point(x, axis=0, **numbers)
    powers = np.exp(scale * x.astype(float))
    real = 256 * powers / powers.sum(1, keepdims=True) - 128
    assert np.abs(got - np.minimum(real, 127)).max() < 0.501  # nearest, but for what lies within 1/500 of a tie
    np.testing.assert_array_equal(softmax_fixed_point(x[:1, :1], axis=0, **numbers), [[127]])
    far = np.array([[-128, 127]], np.int8)
    np.testing.assert_array_equal(
        softmax_fixed_point(far, axis=0, **{**numbers, "lowest_difference": -200}), [[-128, 127]]
    )
