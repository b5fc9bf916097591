"""The readable tier: what an integer-only transformer needs besides sums of products (I-BERT, sections 3.4 to 3.6).

Everything is exact int64; arrays come in any integer dtype, and no floating-point operation is performed. Constants that
depend on scales are made by `labkit.arithmetic.ibert`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import EXPONENT_SHIFT, GELU_SHIFT, ExpConstants, GeluConstants
from labkit.errors import BoundError

__all__ = ["batch_matmul", "embedding", "i_exp", "i_gelu", "i_layer_norm", "i_softmax", "integer_sqrt"]

Integers = NDArray[np.integer]

_RECIPROCAL_BITS = 31  # of i-LayerNorm's 2**31 / standard deviation
_SHARE_BITS = 32  # of i-softmax's 2**32 / sum


def integer_sqrt(n: Integers) -> NDArray[np.int64]:
    """``floor(sqrt(n))`` of each integer ``n`` of 0..2**62, any shape: int64 of the same shape (I-BERT, algorithm 4).

    Newton's method on integers, from the power of two just above the root: it falls until it would rise again.

    Raises
    ------
    BoundError
        A number is negative or above 2**62.
    """
    n = np.asarray(n, np.int64)
    if n.size and (n.min() < 0 or n.max() > 2**62):
        raise BoundError(f"An integer square root takes 0..2**62, got {n.min()}..{n.max()}.")
    bits = np.zeros(n.shape, np.int64)
    for step in (32, 16, 8, 4, 2, 1):  # the bit length, without a float logarithm, which is off near powers of 2
        long = (n >> bits) >= (np.int64(1) << step)
        bits = bits + np.where(long, step, 0)
    root = np.int64(1) << (bits // 2 + 1)
    while True:
        lower = np.maximum((root + n // root) >> 1, 1)
        if not np.any(lower < root):
            return np.asarray(np.where(n == 0, 0, root), np.int64)
        root = np.minimum(root, lower)


def i_exp(x: Integers, constants: ExpConstants) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``exp`` of ``x`` <= 0 (any shape), as a polynomial's integer and the number of halvings (I-BERT, algorithm 3).

    ``constants`` belong to the scale of ``x``. The result is ``constants.scale * integer / 2**halvings``; inputs below
    -30 ln 2 count as that. Both arrays are int64 of the shape of ``x``, the integer at least 0, the halvings 0..30.
    """
    q = np.maximum(np.asarray(x, np.int64), EXPONENT_SHIFT * constants.ln2)
    halvings = q // constants.ln2  # both are negative
    rest = q - constants.ln2 * halvings
    return np.maximum((rest + constants.b) * rest + constants.c, 0), halvings


def i_softmax(
    x: Integers,
    *,
    mask: NDArray[np.bool_] | None,
    constants: ExpConstants,
    multiplier: FixedPointMultiplier,
    bits: int,
    rounds: bool,
) -> NDArray[np.int64]:
    """The share of each element's exponential in the sum along the last axis (I-BERT, section 3.5).

    Parameters
    ----------
    x : integers [..., n], scores at the scale that ``constants`` belong to
    mask : bool, of a shape that broadcasts to that of ``x``, False for elements that do not take part, or None
    constants : of i-exp
    multiplier : shape (); takes the exponential to 16 bits: ``constants.scale * 32767``
    bits : the output's scale is 2**-bits
    rounds : the share is rounded to nearest, ties up; else it is rounded down, as the authors do

    Returns
    -------
    int64 of the shape of ``x``, 0..2**bits - 1, and 0 where ``mask`` is False. A row with nothing left is 0.
    """
    scores = np.asarray(x, np.int64)
    seen = np.broadcast_to(np.True_ if mask is None else mask, scores.shape)
    lowest = np.iinfo(np.int64).min // 2
    largest = np.where(seen, scores, lowest).max(axis=-1, keepdims=True)
    powers, halvings = i_exp(np.where(seen, scores - largest, 0), constants)
    shift = 31 - int(multiplier.exponent) + halvings
    short = (powers * int(multiplier.mantissa) + (np.int64(1) << (np.minimum(shift, 62) - 1))) >> np.minimum(shift, 62)
    short = np.where(seen & (shift <= 62), short, 0)
    total = short.sum(axis=-1, keepdims=True)
    factor = (np.int64(1) << _SHARE_BITS) // np.maximum(total, 1)
    half = np.int64(1) << (_SHARE_BITS - bits - 1) if rounds else np.int64(0)
    return np.asarray(np.minimum((short * factor + half) >> (_SHARE_BITS - bits), 2**bits - 1), np.int64)


def i_gelu(x: Integers, constants: GeluConstants) -> NDArray[np.int64]:
    """GELU of ``x`` (any shape) by a polynomial for the error function (I-BERT, section 3.4).

    ``constants`` belong to the scale of ``x``. Returns int64 of the same shape at the scale ``constants.scale``.
    """
    q = np.asarray(x, np.int64)
    near = np.minimum(np.abs(q), -constants.b) + constants.b
    erf = (np.sign(q) * (near * near + constants.c)) >> GELU_SHIFT
    return np.asarray(q * (erf + constants.one), np.int64)


def i_layer_norm(x: Integers, *, bias: NDArray[np.int64], shift: int, epsilon: int = 0) -> NDArray[np.int64]:
    """Each row of ``x`` [..., n] less its mean, over its standard deviation (I-BERT, section 3.6).

    Parameters
    ----------
    x : integers [..., n]; their scale drops out
    bias : int64 [n] or [], added at the end: ``floor((beta / gamma) / scale)`` at the result's scale, sqrt(n) / 2**30
    shift : bits that each difference loses before it is squared; 0 is exact, and what int64 allows
    epsilon : added to the sum of squares, which keeps rows of nearly equal numbers small; I-BERT leaves it out

    Returns
    -------
    int64 [..., n] at the scale sqrt(n) / 2**30; a factor gamma belongs into the scale. A row of equal numbers gives the bias.

    Raises
    ------
    BoundError
        The squares of a row sum to more than 2**62.
    """
    q = np.asarray(x, np.int64)
    centred = q - _mean(q)
    size = int(np.abs(centred).max(initial=0)) >> shift
    if size * size * q.shape[-1] + epsilon > 2**62:
        raise BoundError(
            f"i-LayerNorm: {q.shape[-1]} squares of up to {size} do not fit 62 bits. Requantize to 22 bits or fewer, or shift."
        )
    squares = centred >> shift
    deviation = integer_sqrt((squares * squares).sum(axis=-1, keepdims=True) + epsilon) << shift
    factor = (np.int64(1) << _RECIPROCAL_BITS) // np.maximum(deviation, 1)
    return np.asarray(((centred * factor) >> 1) + bias, np.int64)


def batch_matmul(a: Integers, b: Integers, *, zero_points: tuple[int, int]) -> NDArray[np.int32]:
    """One matrix product for each index of the leading axes, exact.

    Parameters
    ----------
    a, b : int8 or uint8 of the shapes [..., m, k] and [..., k, n]
    zero_points : of ``a`` and ``b``, two ints, subtracted before multiplying

    Returns
    -------
    int32 [..., m, n]

    Raises
    ------
    BoundError
        A sum of ``k`` products could leave int32.
    """
    left = a.astype(np.int64) - zero_points[0]
    right = b.astype(np.int64) - zero_points[1]
    largest = int(np.abs(left).max(initial=0)) * int(np.abs(right).max(initial=0)) * a.shape[-1]
    if largest > np.iinfo(np.int32).max:
        raise BoundError(f"A sum of {a.shape[-1]} products can reach {largest:,}, more than int32 holds.")
    product: NDArray[Any] = left @ right
    return product.astype(np.int32)


def embedding(indices: Integers, *, table: Integers) -> Integers:
    """Row ``i`` of ``table`` [V, n], int8 or uint8, for each index ``i`` of ``indices``, integers [...]: [..., n].

    Raises
    ------
    BoundError
        An index is outside 0..V - 1.
    """
    if indices.size and (indices.min() < 0 or indices.max() >= len(table)):
        raise BoundError(f"Indices must be in 0..{len(table) - 1}, got {indices.min()}..{indices.max()}.")
    return table[indices]


def _mean(x: NDArray[np.int64]) -> NDArray[np.int64]:
    """The mean along the last axis, rounded half to even."""
    n = x.shape[-1]
    whole, rest = np.divmod(x.sum(axis=-1, keepdims=True), n)
    up = (2 * rest > n) | ((2 * rest == n) & (whole % 2 == 1))
    mean: NDArray[np.int64] = whole + up
    return mean
