"""The equations of docs/arithmetic.md once more, in Python integers and fractions: exact, slow, and independent.

Nothing of labkit is imported here, and neither is NumPy: every function takes and returns ints and Fractions (or floats, which
are fractions). What a float32 is, is spelled out too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

HALF = Fraction(1, 2)
Real = Fraction | float | int


def float32(value: Real) -> Fraction | float:
    """The float32 number nearest to ``value``, ties to even; an infinity where it is beyond the largest."""
    if isinstance(value, float) and math.isinf(value):
        return value
    exact = _exact(value)
    if exact == 0:
        return Fraction(0)
    exponent = _exponent(exact)
    step = Fraction(2) ** (max(exponent, -126) - 23)  # below 2**-126 the steps stop shrinking: subnormal numbers
    rounded = half_even(exact / step) * step
    if abs(rounded) >= Fraction(2) ** 128:
        return math.copysign(math.inf, exact)
    return rounded


def float64(value: Fraction) -> Fraction:
    """The float64 number nearest to ``value``, ties to even."""
    return Fraction(value.numerator / value.denominator)  # Python rounds the quotient of two integers correctly


def half_even(value: Fraction) -> int:
    whole = math.floor(value)
    rest = value - whole
    return whole + (rest > HALF or (rest == HALF and whole % 2 == 1))


def half_up(value: Fraction) -> int:
    return math.floor(value + HALF)


def half_away(value: Fraction) -> int:
    return math.floor(value + HALF) if value >= 0 else -math.floor(-value + HALF)


def truncated(numerator: int, denominator: int) -> int:
    """C's division of integers."""
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


# Section 1


def grid(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Eq. 3."""
    if not signed:
        return 0, (1 << bits) - 1
    if bits == 1:
        return -1, 1
    top = (1 << (bits - 1)) - 1
    return (-top if narrow else -top - 1), top


def quantize(real: Real, scale: Real, zero_point: int, low: int, high: int) -> int:
    """Eq. 2 for one float32 number."""
    quotient = math.copysign(math.inf, real) if math.isinf(real) else float32(_exact(real) / _exact(scale))
    if isinstance(quotient, float):
        return high if quotient > 0 else low
    return min(max(half_even(quotient) + zero_point, low), high)


def dequantize(q: int, scale: Real, zero_point: int) -> Fraction | float:
    """Eq. 1, the product rounded to float32."""
    return float32(_exact(scale) * (q - zero_point))


def symmetric_scale(low: Real, high: Real, qmax: int) -> Fraction | float:
    """Eq. 4; like labkit the quotient is rounded to float64 first."""
    return float32(float64(max(abs(_exact(low)), abs(_exact(high))) / qmax))


def affine_parameters(low: Real, high: Real, qmin: int, qmax: int) -> tuple[Fraction | float, int]:
    """Eq. 5; every single operation is rounded to float64, the scale then to float32."""
    bottom, top = min(_exact(low), Fraction(0)), max(_exact(high), Fraction(0))
    scale = float32(float64(float64(top - bottom) / (qmax - qmin)))
    zero_point = half_even(float64(qmin - float64(bottom / _exact(scale))))
    return scale, min(max(zero_point, qmin), qmax)


def binary_scale(values: Sequence[Real]) -> Fraction | float:
    """Eq. 6: the sum and the quotient are rounded to float64 once each, the mean then to float32."""
    total = sum((abs(_exact(value)) for value in values), Fraction(0))
    return float32(float64(float64(total) / len(values)))


# Section 3


def quantize_multiplier(real: Real) -> tuple[int, int]:
    """Eqs. 11 and 12: mantissa and exponent of a positive number; (0, 0) below the smallest exponent, -31."""
    exact = _exact(real)
    exponent = _exponent(exact) + 1  # exact = fraction * 2**exponent, fraction in [1/2, 1)
    mantissa = half_up(exact / Fraction(2) ** exponent * 2**31)
    if mantissa == 2**31:
        mantissa, exponent = 2**30, exponent + 1
    return (mantissa, exponent) if exponent >= -31 else (0, 0)


def multiplier_value(mantissa: int, exponent: int) -> Fraction:
    return Fraction(mantissa) * Fraction(2) ** (exponent - 31)


# Section 4: its six rules. ``accumulator`` is an int32; the first four take the multiplier as mantissa and exponent.


def single(accumulator: int, mantissa: int, exponent: int) -> int:
    """Eq. 13."""
    return half_up(accumulator * multiplier_value(mantissa, exponent))


def gemmlowp(accumulator: int, mantissa: int, exponent: int) -> int:
    """Eq. 14, written as gemmlowp's two functions are specified."""
    product = accumulator * 2 ** max(exponent, 0) * mantissa
    nudge = 2**30 if product >= 0 else 1 - 2**30
    return half_away(Fraction(truncated(product + nudge, 2**31), 2 ** max(-exponent, 0)))


def gemmlowp_up(accumulator: int, mantissa: int, exponent: int) -> int:
    """Eq. 15."""
    high = half_up(Fraction(accumulator * 2 ** max(exponent, 0) * mantissa, 2**31))
    return half_up(Fraction(high, 2 ** max(-exponent, 0)))


def dyadic(accumulator: int, mantissa: int, exponent: int) -> int:
    """Eq. 16."""
    return half_even(accumulator * multiplier_value(mantissa, exponent))


def float32_even(accumulator: int, multiplier: Real, inside: int = 0) -> int:
    """Eq. 17; ``inside`` is a zero point that is added, in float32, before rounding."""
    product = float32(_exact(float32(accumulator)) * _exact(multiplier))
    return half_even(_exact(float32(_exact(product) + inside)))


def float32_biased(accumulator: int, multiplier: Real, bias: Real, inside: int = 0) -> int:
    """Eq. 28: eq. 17 with ``bias`` added to the sum in float32; ``inside`` as there."""
    total = float32(_exact(float32(accumulator)) + _exact(bias))
    product = float32(_exact(total) * _exact(multiplier))
    return half_even(_exact(float32(_exact(product) + inside)))


def float32_twice(accumulator: int, first: Real, bias: Real, second: Real, inside: int = 0) -> int:
    """Eq. 29: two products and two sums, each rounded to float32."""
    product = float32(_exact(float32(accumulator)) * _exact(first))
    shifted = float32(_exact(product) + _exact(bias))
    scaled = float32(_exact(shifted) * _exact(second))
    return half_even(_exact(float32(_exact(scaled) + inside)))


def float64_away(accumulator: int, multiplier: Real, inside: int = 0) -> int:
    """Eq. 18; ``inside`` is a zero point that is added, in float64, before rounding."""
    return half_away(float64(float64(accumulator * _exact(multiplier)) + inside))


# Section 10: other runtimes. ``rule`` is `gemmlowp` or `gemmlowp_up`; multipliers are mantissa and exponent.


def mean_multiplier(mantissa: int, exponent: int, count: int) -> tuple[int, int]:
    """Eq. 30: the multiplier over ``count``, cut off; mantissa at least 2**29."""
    shift = min(count.bit_length() - 1, 32, 31 + exponent)
    return math.floor(Fraction(mantissa * 2**shift, count)), exponent - shift


def add_fixed_point(a, b, rule, left_shift, first, second, output, subtracts=False):  # type: ignore[no-untyped-def]
    """Eq. 31 for centred integers ``a`` and ``b``, before zero point and clamp."""
    left, right = rule(a * 2**left_shift, *first), rule(b * 2**left_shift, *second)
    return rule(left - right if subtracts else left + right, *output)


def add_float32(a: int, b: int, multipliers: Sequence[Real], addend: Real) -> int:
    """Eq. 32, before the clamp."""
    first = float32(b * _exact(multipliers[1]) + _exact(addend))
    return half_even(_exact(float32(a * _exact(multipliers[0]) + _exact(first))))


def mean_of_valid(values: Sequence[int]) -> int:
    """Eq. 33 for the elements of one window that lie in the image."""
    return half_away(Fraction(sum(values), len(values)))


def mean_float32(  # type: ignore[no-untyped-def]
    values: Sequence[int], count: int, scale: Real, zero_point: int, output_scale: Real, output_zero_point: int
):
    """Eq. 34 for the elements of one window in their order, before the clamp."""
    total: Real = Fraction(0)
    for value in values:
        total = float32(_exact(total) + _exact(float32((value - zero_point) * _exact(scale))))
    mean = float32(_exact(total) / count)
    return half_even(_exact(float32(_exact(float32(_exact(mean) / _exact(output_scale))) + output_zero_point)))


# Section 6


def pack_int4(values: Sequence[int]) -> list[int]:
    """Two half-bytes a byte, the first in the low half."""
    halves = [value % 16 for value in values] + [0] * (len(values) % 2)
    return [low + 16 * high for low, high in zip(halves[0::2], halves[1::2], strict=True)]


def _exact(value: Real) -> Fraction:
    return Fraction(value) if isinstance(value, Fraction | int) else Fraction(float(value))


def _exponent(value: Fraction) -> int:
    """The e with 2**e <= |value| < 2**(e + 1)."""
    magnitude = abs(value)
    e = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return e if magnitude >= Fraction(2) ** e else e - 1
