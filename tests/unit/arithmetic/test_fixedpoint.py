"""FixedPointMultiplier against exact fractions: equations 11 and 12."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import oracle_arithmetic as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.errors import BoundError, QuantizationError


def pair(real: float) -> tuple[int, int]:
    made = FixedPointMultiplier.from_real(real)
    assert made.mantissa.dtype == made.exponent.dtype == np.int32
    assert made.mantissa.shape == made.exponent.shape == ()
    return int(made.mantissa), int(made.exponent)


@given(st.floats(2.0**-40, 2.0**29))
def test_from_real_is_equation_12(real: float) -> None:
    assert pair(real) == oracle.quantize_multiplier(real)


@given(st.integers(-34, 29), st.integers(2**30, 2**31 - 1), st.sampled_from([-1, 0, 1]))
def test_ties_of_the_mantissa_go_up(exponent: int, mantissa: int, nudge: int) -> None:
    """Half-way between two mantissas, and one float64 step to either side."""
    real = float((Fraction(mantissa) + Fraction(1, 2)) * Fraction(2) ** (exponent - 31))
    real = float(np.nextafter(real, np.inf * nudge)) if nudge else real
    assert pair(real) == oracle.quantize_multiplier(real)


@given(st.floats(2.0**-31, 2.0**29))
def test_the_relative_error_is_at_most_2_to_the_minus_31(real: float) -> None:
    made = FixedPointMultiplier.from_real(real)
    assert abs(Fraction(float(made.to_real())) - Fraction(real)) <= Fraction(real) / 2**31
    assert Fraction(float(made.to_real())) == oracle.multiplier_value(int(made.mantissa), int(made.exponent))


@pytest.mark.parametrize("power", range(-32, 30))
def test_powers_of_two_are_exact(power: int) -> None:
    assert pair(2.0**power) == (2**30, power + 1)
    assert float(FixedPointMultiplier.from_real(2.0**power).to_real()) == 2.0**power


@pytest.mark.parametrize("power", [-31, -5, 0, 7, 29])
def test_a_mantissa_of_2_to_the_31_is_renormalised(power: int) -> None:
    below = float(np.nextafter(2.0**power, 0))
    assert pair(below) == (2**30, power + 1)
    last = (2**31 - 0.5) * 2.0 ** (power - 31)  # the first number that rounds up to 2**31
    assert pair(last) == (2**30, power + 1)
    assert pair(float(np.nextafter(last, 0))) == (2**31 - 1, power)


def test_what_is_too_small_becomes_0() -> None:
    assert pair(2.0**-32) == (2**30, -31)
    assert pair(float(np.nextafter(2.0**-32, 0))) == (2**30, -31)  # rounds to 2**-32
    assert pair(2.0**-32 * (1 - 2.0**-31)) == (0, 0)
    assert pair(5e-324) == (0, 0)


@pytest.mark.parametrize("real", [2.0**30, float(np.nextafter(2.0**30, 0)), 1e300])
def test_what_is_too_large_is_refused(real: float) -> None:
    with pytest.raises(BoundError, match=r"below 2\*\*30"):
        FixedPointMultiplier.from_real(real)
    assert pair(2.0**30 * (1 - 2.0**-31))[1] == 30


@pytest.mark.parametrize("real", [0.0, -1.0, np.nan, np.inf, [1.0, -0.5]])
def test_what_is_no_multiplier_is_refused(real: object) -> None:
    with pytest.raises(QuantizationError, match="finite and positive"):
        FixedPointMultiplier.from_real(real)  # type: ignore[arg-type]


def test_one_multiplier_for_each_channel() -> None:
    reals = np.array([0.75, 1e-12, 3.0, float(np.nextafter(0.5, 0))])
    made = FixedPointMultiplier.from_real(reals)
    assert list(zip(made.mantissa.tolist(), made.exponent.tolist(), strict=True)) == [pair(r) for r in reals]


@pytest.mark.parametrize(
    ("mantissa", "exponent", "words"),
    [
        (2**29 - 1, 0, "in \\[2\\*\\*29"),
        (1, 0, "in \\[2\\*\\*29"),
        (-(2**30), 0, "in \\[2\\*\\*29"),
        (2**30, 31, r"in -31\.\.30"),
        (2**30, -32, r"in -31\.\.30"),
        ([2**30], 0, "one shape"),
    ],
)
def test_a_multiplier_that_is_not_normalised_is_refused(mantissa: object, exponent: int, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        FixedPointMultiplier(np.array(mantissa, np.int32), np.array(exponent, np.int32))
