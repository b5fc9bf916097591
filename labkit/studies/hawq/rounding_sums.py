"""How often a sum of rounded numbers is not the rounded sum: by formula, by enumeration, and on a residual sum's integers.

Int(v) = floor(v + 1/2), as the integer engine rounds; the error e = v - Int(v) lies in [-1/2, 1/2). The rounded parts and the
rounded sum differ where the sum of the errors leaves that interval.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from labkit.graph import int_ops

__all__ = [
    "add_separately",
    "branch_errors",
    "errors",
    "independent",
    "irwin_hall",
    "scaled_errors",
    "uniform_mismatch",
]

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]


def errors(values: Reals) -> Reals:
    """``values`` - Int(``values``), float64 of the same shape, in [-1/2, 1/2)."""
    return values - np.floor(values + 0.5)


def irwin_hall(x: float, n: int) -> float:
    """P(U_1 + ... + U_n <= ``x``) for ``n`` independent numbers, uniform on [0, 1] (Irwin 1927, Hall 1927)."""
    if x <= 0:
        return 0.0
    terms = ((-1) ** k * math.comb(n, k) * (x - k) ** n for k in range(min(n, math.floor(x)) + 1))
    return min(1.0, float(sum(terms)) / math.factorial(n))


def uniform_mismatch(n: int) -> float:
    """P that ``n`` rounded parts do not add up to the rounded sum, for independent errors uniform on [-1/2, 1/2).

    The errors' sum lies in [-1/2, 1/2) with probability F(n/2 + 1/2) - F(n/2 - 1/2), F of Irwin and Hall: 3/4 for two parts.
    """
    return 1 - (irwin_hall(n / 2 + 0.5, n) - irwin_hall(n / 2 - 0.5, n))


def independent(a: Reals, b: Reals) -> float:
    """P(e_a + e_b is not in [-1/2, 1/2)) for independent draws from the samples ``a`` and ``b``, float64 [N] and [M], of errors.

    Exact for these samples: all N M pairs are counted. Where ``b`` is uniform it is the mean of |e_a|: a given e_a leaves a share
    |e_a| of the interval outside.
    """
    ordered = np.sort(b)
    above = len(b) - np.searchsorted(ordered, 0.5 - a, side="left")
    below = np.searchsorted(ordered, -0.5 - a, side="left")
    return float((above + below).mean() / len(b))


def scaled_errors(ratio: float, highest: int = 255) -> Reals:
    """The errors of ``ratio`` * q for q = 0 .. ``highest``, float64 [highest + 1]: an integer branch at another scale."""
    return errors(ratio * np.arange(highest + 1, dtype=np.float64))


def branch_errors(op: int_ops.Add, a: Integers, b: Integers) -> tuple[Reals, Reals, NDArray[np.bool_]]:
    """A residual sum of integers, exactly.

    Parameters
    ----------
    op : gives both multipliers and the shift (eq. 19)
    a, b : int64 of one shape, zero points subtracted

    Returns
    -------
    the errors of both branches rounded to the output's scale, float64 of that shape, and where the rounded branches do not
    add up to the rounded sum
    """
    half, whole = 1 << (op.shift - 1), float(1 << op.shift)
    products = [value * int(multiplier) for value, multiplier in zip((a, b), op.multipliers, strict=True)]
    rounded = [(product + half) >> op.shift for product in products]
    once = (products[0] + products[1] + half) >> op.shift
    first, second = ((p - (r << op.shift)) / whole for p, r in zip(products, rounded, strict=True))
    return first, second, rounded[0] + rounded[1] != once


def add_separately(
    a: NDArray[np.integer],
    b: NDArray[np.integer],
    *,
    zero_points: tuple[int, int],
    multipliers: NDArray[np.int32],
    shift: int,
    output_zero_point: int,
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """In place of `kernels.reference.add`: each branch is rounded to the output's scale by itself, as HAWQ-V3 does.

    Parameters
    ----------
    a, b : integers of one shape
    zero_points, multipliers, shift, output_zero_point, clamp : as of that function

    Returns
    -------
    int32 of the same shape
    """
    half = 1 << (shift - 1)
    parts = (
        ((x.astype(np.int64) - z) * int(m) + half) >> shift
        for x, z, m in zip((a, b), zero_points, multipliers, strict=True)
    )
    return np.clip(sum(parts) + output_zero_point, *clamp).astype(np.int32)
