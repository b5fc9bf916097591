"""The readable tier: softmax, mean and border as LiteRT's and XNNPACK's kernels compute them (docs/arithmetic.md, section 10).

`labkit.kernels.reference` offers them too. Each float32 operation is rounded by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import round_half_away
from labkit.errors import QuantizationError

__all__ = [
    "fixed_point_exponentials",
    "mean_float32",
    "quantize_away_from_zero",
    "softmax_by_reciprocal",
    "softmax_fixed_point",
]

Integers = NDArray[np.integer]
Wide = NDArray[np.int64]

_EXPONENT_BITS = 26  # fractional bits of an exponent; five integer bits and a sign stand before them
_SUM_BITS = 12  # integer bits of the sum of exponentials
_QUARTER = 1 << (_EXPONENT_BITS - 2)
# exp(-1/8) and 1/3, then exp(-1/4), exp(-1/2), exp(-1), ..., exp(-16): numbers with 31 fractional bits, as gemmlowp has them.
_EXP_EIGHTH, _THIRD = 1895147668, 715827883
_EXP_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def quantize_away_from_zero(real: NDArray[np.float32], params: QParams, spec: QuantSpec) -> Integers:
    """``real`` (float32, any shape) divided by the scale in float32, rounded half away from zero (eq. 41).

    ``params`` and ``spec`` say scale, zero point and grid of the result, which has the dtype of ``spec``.

    Raises
    ------
    QuantizationError
        ``real`` holds a NaN.
    """
    values = np.asarray(real, np.float32)
    if np.isnan(values).any():
        raise QuantizationError(
            f"Cannot quantize NaN: {int(np.isnan(values).sum())} of {values.size} values. "
            f"Find where they come from and remove them."
        )
    with np.errstate(over="ignore"):  # a quotient beyond float32 is infinite and is clipped like any other
        quotient = np.clip(values / params.scale, -1024, 1024)
    clipped: NDArray[Any] = np.clip(round_half_away(quotient) + params.zero_point, spec.qmin, spec.qmax)
    return np.asarray(clipped, spec.dtype)


def mean_float32(
    x: Integers,
    *,
    axes: tuple[int, ...],
    multiplier: NDArray[np.float32],
    addend: NDArray[np.float32],
    clamp: tuple[int, int],
    offset: int = 0,
) -> NDArray[np.int32]:
    """``rint(s m + c) + offset`` in float32 for the sums s of ``x - offset`` along ``axes``, as XNNPACK takes a mean (eq. 42).

    Parameters
    ----------
    x : integers [N, ...], summed as they are, zero point included
    axes : along which the mean is taken; the batch axis is not counted
    multiplier, addend : float32 [], m and c
    clamp : of the result
    offset : 128 where ``x`` counts from 0, because XNNPACK counts from -128

    Returns
    -------
    int32 of the shape of ``x`` with 1 in place of each of ``axes``
    """
    sums = (x.astype(np.int64) - offset).sum(axis=tuple(1 + axis for axis in axes), keepdims=True).astype(np.float32)
    return np.asarray(np.clip(np.rint(sums * multiplier + addend) + offset, *clamp), np.int32)


def softmax_by_reciprocal(
    x: Integers, *, axis: int, table: NDArray[np.float32], output_zero_point: int, clamp: tuple[int, int]
) -> NDArray[np.int32]:
    """The share of each element's exponential in the sum along ``axis``, as LiteRT's optimised kernel has it (eq. 43).

    Parameters
    ----------
    x : integers [N, ...]; their zero point does not matter, because only differences enter
    axis : along which the shares add up to 1; the batch axis is not counted
    table : float32 [256], exponentials by difference from the largest element
    output_zero_point, clamp : of the result

    Returns
    -------
    int32 of the same shape
    """
    integers = np.moveaxis(x.astype(np.int64), 1 + axis, -1)
    powers = table[integers.max(axis=-1, keepdims=True) - integers]
    total = np.zeros(powers.shape[:-1], np.float32)
    for i in range(powers.shape[-1]):  # one after the other: the order is part of the definition
        total += powers[..., i]
    reciprocal = np.float32(1) / (total * np.float32(2.0**-8))
    shares = round_half_away(powers * reciprocal[..., None]) + output_zero_point
    return np.asarray(np.moveaxis(np.clip(shares, *clamp), -1, 1 + axis), np.int32)


def softmax_fixed_point(
    x: Integers,
    *,
    axis: int,
    multiplier: FixedPointMultiplier,
    lowest_difference: int,
    output_zero_point: int,
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """The share of each element's exponential in the sum along ``axis``, as LiteRT's reference kernel has it (eq. 35).

    Parameters
    ----------
    x : integers [N, ...]; their zero point does not matter, because only differences enter
    axis : along which the shares add up to 1; the batch axis is not counted
    multiplier : of shape (), takes a difference to an exponent with 26 fractional bits
    lowest_difference : an element whose difference from the largest is below it has no share
    output_zero_point, clamp : of the result

    Returns
    -------
    int32 of the same shape
    """
    integers = x.astype(np.int64)
    differences = integers - integers.max(axis=1 + axis, keepdims=True)
    counts = differences >= lowest_difference
    powers = fixed_point_exponentials(multiplier, lowest_difference)[-differences]
    total = np.where(counts, _divide(powers, _SUM_BITS), 0).sum(axis=1 + axis, keepdims=True)
    zeros = 31 - np.floor(np.log2(total)).astype(np.int64)  # total is at least 2**19 and below 2**31: exact
    reciprocal = _reciprocal((total << zeros) - (1 << 31))
    shares = _divide(_high_product(reciprocal, powers), _SUM_BITS - zeros + 31 - 8)
    return np.asarray(np.clip(np.where(counts, shares, 0) + output_zero_point, *clamp), np.int32)


def fixed_point_exponentials(multiplier: FixedPointMultiplier, lowest_difference: int) -> Wide:
    """The exponentials of `softmax_fixed_point` by how far an element is below the largest one: int64 [256], 31 fractional bits.

    ``multiplier`` and ``lowest_difference`` as there; what is farther below has the exponential of 0, which does not count.
    """
    differences = -np.arange(256, dtype=np.int64)
    lifted = np.where(differences >= lowest_difference, differences, 0) << np.int64(multiplier.exponent)
    return _exp_of_negative(_high_product(lifted, np.int64(multiplier.mantissa)))


def _high_product(a: Wide, b: Wide | np.int64) -> Wide:
    """The rounding, doubling high half of a product of two int32: ``a b / 2**31``, truncated after a nudge (gemmlowp)."""
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))


def _divide(x: Wide, exponent: Wide | int) -> Wide:
    """``x / 2**exponent`` to nearest, ties away from zero."""
    half = (np.int64(1) << np.asarray(exponent, np.int64)) >> 1
    return np.where(x >= 0, (x + half) >> exponent, -((half - x) >> exponent))


def _exp_of_negative(a: Wide) -> Wide:
    """e**a with 31 fractional bits for ``a`` at most 0 with 26 of them: a polynomial near 0, then a factor a bit of ``a``."""
    rest = (a & (_QUARTER - 1)) - _QUARTER  # in [-1/4, 0)
    result = _exp_near_zero(rest << 5)
    missing = rest - a
    for bit, factor in enumerate(_EXP_POWERS):
        result = np.where(missing >> (_EXPONENT_BITS - 2 + bit) & 1, _high_product(result, np.int64(factor)), result)
    return np.where(a == 0, (1 << 31) - 1, result)


def _exp_near_zero(a: Wide) -> Wide:
    """e**a for ``a`` in [-1/4, 0), both with 31 fractional bits: Taylor's polynomial of degree four about -1/8."""
    x = a + (1 << 28)
    square = _high_product(x, x)
    cube, fourth = _high_product(square, x), _high_product(square, square)
    high_terms = _divide(_high_product(_divide(fourth, 2) + cube, np.int64(_THIRD)) + square, 1)
    return _EXP_EIGHTH + _high_product(x + high_terms, np.int64(_EXP_EIGHTH))


def _reciprocal(x: Wide) -> Wide:
    """1 / (1 + x) for ``x`` in [0, 1), both with 31 fractional bits: three Newton steps on 2 / (1 + x) with 29 of them."""
    one = (1 << 31) - 1
    half = (x + one + 1) >> 1  # (1 + x) / 2
    estimate = 1515870810 + _high_product(half, np.int64(-1010580540))  # 48/17 - 32/17 (1 + x) / 2
    for _ in range(3):
        error = (1 << 29) - _high_product(half, estimate)
        estimate = estimate + _saturate(_high_product(estimate, error) << 2)
    return _saturate(estimate << 1)


def _saturate(x: Wide) -> Wide:
    return np.clip(x, -(1 << 31), (1 << 31) - 1)
