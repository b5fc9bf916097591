"""The intermediate integers of an operation, each as its equation has it: what the ledger of bit widths measures.

Everything is exact in int64: a network's checks keep every number here below 2**62. No step is rounded or clamped in another
way than by the kernels, so that the last step of each operation is what its kernel shifts and clamps.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import EXPONENT_SHIFT, GELU_SHIFT
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.graph import int_ops
from labkit.kernels.reference_transformer import integer_sqrt

__all__ = ["EQUATIONS", "SCALED", "exponential_steps", "gelu_steps", "layer_norm_steps", "scaled", "softmax_steps"]

Integers = NDArray[np.int64]
Steps = dict[str, Integers]

SCALED = "times the multiplier"
EQUATIONS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "SoftmaxPolynomial": {
            **dict.fromkeys(("difference to the largest", "product of the polynomial", "polynomial"), 46),
            **dict.fromkeys((SCALED, "exponential", "sum of exponentials"), 47),
            **dict.fromkeys(("dividend", "reciprocal of the sum", "times the reciprocal"), 47),
        },
        "GeluPolynomial": dict.fromkeys(
            ("square", "square and constant", "error function and 1", "times the input"), 48
        ),
        "LayerNorm": {
            **dict.fromkeys(("sum of features", "difference to the mean", "its square", "sum of squares"), 49),
            **dict.fromkeys(("deviation", "dividend", "reciprocal", "times the reciprocal", "normalised"), 49),
            "times gamma, and beta": 50,
        },
    }
)
"""By operation, its steps in running order with their equations in docs/arithmetic.md."""

_RECIPROCAL, _SHARE, _LONGEST = 31, 32, 62  # bits: of eqs. 49 and 47, and the longest shift


def scaled(requantizer: Requantizer, sums: NDArray[Any], axis: int = 1) -> Integers | None:
    """``sums`` times the multiplier of ``requantizer``, what a rule adds before it shifts included (eqs. 13 to 16).

    Parameters
    ----------
    requantizer : with one multiplier, or one for each index of ``axis``
    sums : integers of any shape
    axis : of the channels in ``sums``

    Returns
    -------
    int64 of the shape of ``sums``; None where the rule multiplies in floating point
    """
    multiplier, rule = requantizer.multiplier, requantizer.rule
    if not isinstance(multiplier, FixedPointMultiplier):
        return None
    x = np.asarray(sums, np.int64)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)] if multiplier.mantissa.ndim else ()
    mantissa, exponent = (part.astype(np.int64).reshape(shape) for part in (multiplier.mantissa, multiplier.exponent))
    if rule is RoundingRule.SINGLE:
        return np.asarray(x * mantissa + (np.int64(1) << (30 - exponent)), np.int64)
    if rule is RoundingRule.DYADIC:
        return np.asarray(x * mantissa, np.int64)
    product = (x << np.maximum(exponent, 0)) * mantissa
    half = np.int64(1) << 30
    nudge = np.where((product >= 0) | (rule is RoundingRule.GEMMLOWP_UP), half, 1 - half)
    return np.asarray(product + nudge, np.int64)


def exponential_steps(op: int_ops.SoftmaxPolynomial, differences: NDArray[Any]) -> Steps:
    """From ``differences`` to the largest score, integers of at most 0, to exponentials of 16 bits (eqs. 46 and 47).

    Each step has the shape of ``differences``. ``op`` has the constants.
    """
    x = np.asarray(differences, np.int64)
    q = np.maximum(x, EXPONENT_SHIFT * op.ln2)
    halvings = q // op.ln2
    rest = q - op.ln2 * halvings
    product = (rest + op.b) * rest
    polynomial = np.maximum(product + op.c, 0)
    shift = 31 - int(op.multiplier.exponent) + halvings
    short = np.minimum(shift, _LONGEST)
    before = polynomial * int(op.multiplier.mantissa) + (np.int64(1) << (short - 1))
    return {
        "difference to the largest": x,
        "product of the polynomial": product,
        "polynomial": polynomial,
        SCALED: before,
        "exponential": np.where(shift <= _LONGEST, before >> short, 0),
    }


def softmax_steps(op: int_ops.SoftmaxPolynomial, x: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> Steps:
    """All steps of an i-softmax of the scores ``x`` [..., n] along the last axis (eqs. 46 and 47).

    Parameters
    ----------
    op : the operation
    x : integers
    mask : broadcasts to the shape of ``x``, False for what takes no part; None for nothing left out

    Returns
    -------
    By name, int64 in the shape of ``x``, or with a last axis of length 1 for what a row has once
    """
    scores = np.asarray(x, np.int64)
    seen = np.broadcast_to(np.True_ if mask is None else mask, scores.shape)
    largest = np.where(seen, scores, np.iinfo(np.int64).min // 2).max(axis=-1, keepdims=True)
    found = exponential_steps(op, np.where(seen, scores - largest, 0))
    exponentials = np.where(seen, found["exponential"], 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    reciprocal = (np.int64(1) << _SHARE) // np.maximum(total, 1)
    share = exponentials * reciprocal + (np.int64(1) << (_SHARE - op.bits - 1))
    dividend = np.full_like(total, 1 << _SHARE)
    sums = {"sum of exponentials": total, "dividend": dividend, "reciprocal of the sum": reciprocal}
    return found | {"exponential": exponentials} | sums | {"times the reciprocal": share}


def gelu_steps(op: int_ops.GeluPolynomial, x: NDArray[Any]) -> Steps:
    """All steps of an i-GELU of ``x``, integers of any shape, up to what is requantized (eq. 48); ``op`` has the constants."""
    q = np.asarray(x, np.int64)
    near = np.minimum(np.abs(q), -op.b) + op.b
    square = near * near
    polynomial = np.sign(q) * (square + op.c)
    erf = (polynomial >> GELU_SHIFT) + op.one
    return {
        "square": square,
        "square and constant": polynomial,
        "error function and 1": erf,
        "times the input": -(q * erf),
    }


def layer_norm_steps(op: int_ops.LayerNorm, x: NDArray[Any]) -> Steps:
    """All steps of an i-LayerNorm of ``x``, integers [..., D], up to what is shifted and clamped (eqs. 49 and 50).

    Each step has the shape of ``x``, or a last axis of length 1 for what a row has once. ``op`` has gamma and beta.
    """
    q = np.asarray(x, np.int64)
    total, count = q.sum(axis=-1, keepdims=True), q.shape[-1]
    whole, rest = np.divmod(total, count)
    mean = whole + ((2 * rest > count) | ((2 * rest == count) & (whole % 2 == 1)))
    centred = q - mean
    squares = centred * centred
    of_row = squares.sum(axis=-1, keepdims=True) + op.epsilon
    deviation = integer_sqrt(of_row)
    reciprocal = (np.int64(1) << _RECIPROCAL) // np.maximum(deviation, 1)
    product = centred * reciprocal
    normalised = product >> 1
    gained = normalised * op.multipliers + op.addends + (np.int64(1) << (op.shift - 1))
    return {
        "sum of features": total,
        "difference to the mean": centred,
        "its square": squares,
        "sum of squares": of_row,
        "deviation": deviation,
        "dividend": np.full_like(deviation, 1 << _RECIPROCAL),
        "reciprocal": reciprocal,
        "times the reciprocal": product,
        "normalised": normalised,
        "times gamma, and beta": gained,
    }
