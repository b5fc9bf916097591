"""The readable kernels of PyTorch's operations against exact rationals: every float32 rounding is the nearest one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.errors import QuantizationError
from labkit.kernels.reference_torch import (
    add_away_from_zero,
    add_dequantized,
    fused_multiply_add,
    quantize_by_reciprocal,
)

U8 = QuantSpec(8, signed=False)


def nearest_float32(exact: Fraction) -> np.float32:
    """The float32 number nearest to ``exact``, ties to even, among the neighbours of its float64 approximation."""
    guess = np.float32(float(exact))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(np.asarray(x).view(np.int32)) & 1))


def test_a_fused_multiply_add_rounds_once() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(4000) * 2.0 ** rng.integers(-30, 8, 4000)).astype(np.float32)
    factor = (rng.standard_normal(4000) * 2.0 ** rng.integers(-8, 8, 4000)).astype(np.float32)
    addend = np.float32(rng.integers(0, 256))
    got = fused_multiply_add(x, factor, addend)
    expected = [
        nearest_float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(addend)))
        for a, b in zip(x, factor, strict=True)
    ]
    np.testing.assert_array_equal(got, np.array(expected, np.float32))


def test_a_sum_rounded_twice_would_be_another() -> None:
    """The product lies so near to half of the last place that float64 rounds it onto it, and float32 then to even."""
    x, factor, addend = np.float32(1 + 2.0**-23), np.float32(2.0**-25 + 2.0**-48), np.float32(2)
    x = np.float32(2.0**-23) * x
    exact = Fraction(float(x)) * Fraction(float(factor)) + 2
    assert fused_multiply_add(x[None], factor, addend)[0] == nearest_float32(exact)
    near = np.float32(1) + np.float32(2.0**-23)
    tie = Fraction(float(near)) + Fraction(1, 2**24) + Fraction(1, 2**80)
    a, b = np.float32(2.0**-40), np.float32(2.0**-40)
    assert Fraction(float(a)) * Fraction(float(b)) == Fraction(1, 2**80)
    start = np.float32(1) + np.float32(2.0**-23)
    got = fused_multiply_add(np.array([a]), b, start)[0]
    assert got == start
    assert nearest_float32(tie) > start


@pytest.mark.parametrize("zero_point", [0, 7, 255])
def test_a_border_by_reciprocal(zero_point: int) -> None:
    rng = np.random.default_rng(zero_point)
    for scale in (np.float32(0.25), np.float32(0.0123), np.float32(2 / 255)):
        real = (rng.integers(-600, 600, 500) * (scale / np.float32(2))).astype(np.float32)
        got = quantize_by_reciprocal(real, QParams(np.asarray(scale), np.asarray(zero_point, np.int32)), U8)
        reciprocal = Fraction(float(np.float32(1) / scale))
        for x, q in zip(real, got, strict=True):
            moved = nearest_float32(Fraction(float(x)) * reciprocal + zero_point)
            assert q == min(max(round(Fraction(float(moved))), 0), 255)


def test_a_border_takes_no_nan_and_clips_infinity() -> None:
    params = QParams(np.asarray(np.float32(0.5)), np.asarray(3, np.int32))
    got = quantize_by_reciprocal(np.array([np.inf, -np.inf, 3e38, -3e38], np.float32), params, U8)
    assert got.tolist() == [255, 0, 255, 0]
    with pytest.raises(QuantizationError, match="NaN: 1 of 2"):
        quantize_by_reciprocal(np.array([0, np.nan], np.float32), params, U8)


@pytest.mark.parametrize("fused", [0, 5, 12])
def test_a_sum_of_dequantized_tensors(fused: int) -> None:
    rng = np.random.default_rng(fused)
    shape = (2, 3, 2, 2)
    a, b = (rng.integers(-128, 128, shape).astype(np.int8) for _ in range(2))
    scales, reciprocal = np.array([0.25, 0.037], np.float32), np.float32(1) / np.float32(0.125)
    zero_points, output = (-3, 11), -7
    got = add_dequantized(
        a,
        b,
        zero_points=zero_points,
        scales=scales,
        reciprocal=np.asarray(reciprocal),
        output_zero_point=output,
        clamp=(-128, 127),
        fused=fused,
    )

    def f32(exact: Fraction) -> Fraction:
        return Fraction(float(nearest_float32(exact)))

    for index in np.ndindex(shape):
        _, channel, row, column = index
        is_fused = (row * 2 + column) * 3 + channel < fused
        parts = []
        for x, zero, scale in zip((a, b), zero_points, scales, strict=True):
            q, z, s = int(x[index]) + 128, zero + 128, Fraction(float(scale))
            parts.append(f32(q * s - f32(s * z)) if is_fused else f32((q - z) * s))
        v = f32(f32(parts[0] + parts[1]) * Fraction(float(reciprocal)))
        real = round(v) + output if is_fused else round(f32(v + output + 128)) - 128
        assert got[index] == min(max(real, -128), 127), index


def test_a_sum_that_rounds_away_from_zero() -> None:
    a = np.arange(256, dtype=np.uint8)
    b = np.full(256, 100, np.uint8)
    got = add_away_from_zero(
        a,
        b,
        zero_points=(128, 100),
        multipliers=np.array([2**21, 2**21], np.int32),
        shift=22,
        output_zero_point=50,
        clamp=(0, 255),
    )
    for q, result in zip(a, got, strict=True):
        half = Fraction(int(q) - 128, 2)
        away = int(abs(half) + Fraction(1, 2)) * (1 if half >= 0 else -1)
        assert result == max(away + 50, 0)
