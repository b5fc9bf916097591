"""The product of two tensors. See `reference.multiply`.

Under the rule SINGLE (eq. 13) each product is requantized as it is made: it has 17 bits and the mantissa 31, so 64 bits hold
all of it. Every other rule is looked up: two numbers of at most eight bits have at most 65,536 products, whose
results `product_table` asks of the requantizer itself when a network is prepared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["Operands", "multiply", "multiply_by_table", "product_table"]

Array = NDArray[Any]

_NO_RESULT = -(2**15)  # of a product that the rule would shift out of int32


class Operands(NamedTuple):
    """The size of the result, and where it and its operands lie: row and column of the first pixel.

    ``step_a`` and ``step_b`` are 1, or 0 where one pixel serves the whole image.
    """

    height: int
    width: int
    channels: int
    a_top: int
    a_left: int
    step_a: int
    b_top: int
    b_left: int
    step_b: int
    into_top: int
    into_left: int


@jit
def multiply(
    part: int,
    parts: int,
    images: int,
    a: Array,
    b: Array,
    y: Array,
    mantissa: int,
    shift: int,
    clamp: tuple[int, int],
    zeros: tuple[int, int, int],
    at: Operands,
) -> int:
    """``y = clamp((a b mantissa + 2**(shift - 1)) >> shift)`` (eqs. 13 and 24), zero points subtracted.

    part, parts : the share of this call, of all rows of all images
    a, b, y : [N, H, W, C] of any integer dtype
    shift : 1..62
    clamp : zero point subtracted
    zeros : the numbers that stand for real 0 in ``a``, ``b`` and ``y``
    """
    half = np.int64(1) << (shift - 1)
    zero_a, zero_b = np.int32(zeros[0]), np.int32(zeros[1])
    first, end = share(images * at.height, part, parts)
    for line in range(first, end):
        n, i = line // at.height, line % at.height
        for j in range(at.width):
            left = a[n, at.a_top + i * at.step_a, at.a_left + j * at.step_a]
            right = b[n, at.b_top + i * at.step_b, at.b_left + j * at.step_b]
            target = y[n, at.into_top + i, at.into_left + j]
            for c in range(at.channels):
                product = np.int32(np.int32(left[c]) - zero_a) * np.int32(np.int32(right[c]) - zero_b)
                rounded: Any = (np.int64(product) * mantissa + half) >> shift
                target[c] = np.int32(min(max(rounded, clamp[0]), clamp[1])) + np.int32(zeros[2])
    return 0


@jit
def multiply_by_table(
    part: int,
    parts: int,
    images: int,
    a: Array,
    b: Array,
    y: Array,
    table: Array,
    low: tuple[int, int],
    zero_y: int,
    at: Operands,
) -> int:
    """``y`` from ``table`` int16 [number of a, number of b], whose results have the zero point subtracted.

    part, parts : the share of this call, of all rows of all images
    low : what stands in ``a`` and ``b`` for the lowest integer of their grids
    zero_y : the number that stands for real 0 in ``y``

    Returns how many products the rule would shift out of int32.
    """
    overflows = 0
    first, end = share(images * at.height, part, parts)
    for line in range(first, end):
        n, i = line // at.height, line % at.height
        for j in range(at.width):
            left = a[n, at.a_top + i * at.step_a, at.a_left + j * at.step_a]
            right = b[n, at.b_top + i * at.step_b, at.b_left + j * at.step_b]
            target = y[n, at.into_top + i, at.into_left + j]
            for c in range(at.channels):
                result = table[np.int64(left[c]) - low[0], np.int64(right[c]) - low[1]]
                overflows += result == _NO_RESULT
                target[c] = result + zero_y
    return overflows


def product_table(requantizer: Requantizer, a: tuple[int, int], b: tuple[int, int]) -> NDArray[np.int16]:
    """The results of all products: int16 [a high - a low + 1, b high - b low + 1], the output's zero point subtracted.

    Its shape is given by the grids: ``a`` and ``b`` are the lowest and the highest integer of each operand, zero point
    subtracted. A product that a rule
    of gemmlowp shifts out of int32 has the result -2**15.
    """
    products = np.multiply.outer(np.arange(a[0], a[1] + 1), np.arange(b[0], b[1] + 1))
    fits = np.ones(products.shape, np.bool_)
    if requantizer.rule in (RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP):
        assert isinstance(requantizer.multiplier, FixedPointMultiplier)
        lifted = products << max(int(requantizer.multiplier.exponent), 0)
        fits = (lifted >= -(2**31)) & (lifted < 2**31)
    results = requantizer.apply(np.where(fits, products, 0)) - requantizer.zero_point
    return np.where(fits, results, _NO_RESULT).astype(np.int16)
