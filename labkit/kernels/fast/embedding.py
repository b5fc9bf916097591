"""Rows of a table at the scale of the result. See `reference_transformer.embedding`, and eq. 44."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast.elementwise import Corner
from labkit.kernels.fast.requantize import RULES
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["embedding_kernel"]

Array = NDArray[Any]


@cache
def embedding_kernel(rule: RoundingRule) -> Callable[..., int]:
    """The kernel for tables that are requantized by ``rule``, as `finish.finish_rule` names it."""
    scale = RULES[rule]

    def embedding(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        table: Array,
        mantissa: Array,
        exponent: Array,
        real: Array,
        inside: int,
        zero_point: int,
        stored_zero: int,
        clamp: tuple[int, int],
        length: int,
        corner: Corner,
    ) -> int:
        """Row ``x[t]`` of ``table`` to pixel t of ``y``, requantized, for ``length`` indices of each image.

        part, parts : the share of this call, of all indices of all images
        x : int32 [N, 1, 1, lanes]; y : int16 or uint8 [N, 1, W, C]
        table : int8 or uint8 [V, D]
        mantissa, exponent, real : from `requantize.multiplier_tables`, for V rows or one for all
        inside, zero_point, stored_zero, clamp : as `requantize.REQUANTIZE` takes them

        Returns how many indices are outside the table, which are not looked up, and elements that the rule does not take.
        """
        refused = 0
        rows, features = table.shape
        first, end = share(images * length, part, parts)
        for at in range(first, end):
            n, t = at // length, at % length
            index = np.int64(x[n, 0, 0, t])
            if index < 0 or index >= rows:
                refused += 1
                continue
            source, target = table[index], y[n, corner.top, corner.left + t]
            own = index if mantissa.shape[0] > 1 else 0
            factor, power, reals = mantissa[own], exponent[own], real[own]
            for d in range(features):
                number: Any = np.int64(source[d])
                rounded, fits = scale(number, factor, power, reals, inside)
                refused += 0 if fits else 1
                q = min(max(rounded + zero_point - inside, clamp[0]), clamp[1])
                target[d] = q - zero_point + stored_zero
        return refused

    embedding.__name__ = embedding.__qualname__ = f"embedding_{rule.value}"
    return jit(embedding)
