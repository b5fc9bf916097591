"""The table of exponentials that makes a softmax integer-only (docs/arithmetic.md, section 9)."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array

__all__ = ["EXPONENT_BITS", "TABLE_SIZE", "exponential_table"]

EXPONENT_BITS = 30  # fractional bits of the table: its largest entry is 2**30
TABLE_SIZE = 256  # differences of two integers of eight bits

_CONTEXT = Context(prec=50)  # its exp is rounded correctly, so that every machine makes the same table


def exponential_table(scale: float) -> NDArray[np.int32]:
    """``round(2**30 * exp(-scale * d))`` for d = 0..255 (eq. 25): int32 [256], from 2**30 downwards.

    ``scale`` is that of the input, a positive float32 number, and is taken exactly.
    """
    step = Decimal(scale)
    one = Decimal(2**EXPONENT_BITS)
    entries = []
    for difference in range(TABLE_SIZE):
        power = _CONTEXT.exp(_CONTEXT.multiply(-step, Decimal(difference)))
        entries.append(int(_CONTEXT.multiply(one, power).to_integral_value(ROUND_HALF_UP)))
    return frozen_array(np.array(entries, np.int32))
