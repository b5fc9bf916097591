"""I-BERT's i-softmax. See `reference_transformer.i_softmax`, and eqs. 46 and 47.

An exponential depends on how far an element lies below the largest one only, and such distances are integers of at most 16
bits: `exponentials` makes a table of all when a network is prepared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import ExpConstants
from labkit.kernels.fast.heads import Groups
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit
from labkit.kernels.reference_transformer import i_exp

__all__ = ["exponentials", "i_softmax"]

Array = NDArray[Any]

_FAR = 1 << 20  # below every element, and farther than any two lie apart
_SHARE_BITS = 32  # of 2**32 / sum


def exponentials(constants: ExpConstants, multiplier: FixedPointMultiplier, farthest: int) -> NDArray[np.int64]:
    """E of eq. 47 for elements 0, 1, ... below the largest: up to ``farthest``, or to the last that is not 0, and a 0.

    ``constants`` and the ``multiplier`` of shape () are those of a SoftmaxPolynomial. int64 [up to farthest + 2].
    """
    below = np.arange(farthest + 1)
    powers, halvings = i_exp(-below, constants)
    shift = 31 - int(multiplier.exponent) + halvings
    within = np.minimum(shift, 62)
    short = (powers * int(multiplier.mantissa) + (np.int64(1) << (within - 1))) >> within
    short = np.where(shift <= 62, short, 0)
    used = np.flatnonzero(short)
    return np.append(short[: used[-1] + 1 if used.size else 0], 0)


@jit
def i_softmax(
    part: int,
    parts: int,
    images: int,
    x: Array,
    mask: Array,
    y: Array,
    work: Array,
    come: Array,
    go: Array,
    groups: Groups,
    table: Array,
    masks: tuple[int, int],
    bits: int,
    zero_y: int,
) -> int:
    """The shares of each group of ``x`` to ``y``.

    part, parts : the share of this call, of all groups of all images
    x, y : int16 or uint8, [N, ...] in any order
    mask : int16 or uint8 [N, 1, 1, lanes]
    work : int32 [2, lanes], scratch
    come, go, groups : from `heads.groups_along`
    table : from `exponentials`, within 0..2**31 - 1
    masks : whether there is a mask, and the number in it that leaves an element out
    bits : of the result
    zero_y : what stands for real 0 in ``y``
    """
    count, length, top = come.shape[0], groups.length, table.shape[0] - 1
    hidden, values = work[0, :length], work[1, :length]
    half, down, most = np.int64(1) << (_SHARE_BITS - 1 - bits), _SHARE_BITS - bits, (np.int64(1) << bits) - 1
    first, end = share(images * count, part, parts)
    for n in range(first // count, (end + count - 1) // count):
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        for k in range(length):
            hidden[k] = _FAR if masks[0] != 0 and mask[n, 0, 0, k] == masks[1] else 0
        for g in range(max(0, first - n * count), min(count, end - n * count)):
            largest = np.int32(-2 * _FAR)
            if groups.step == 1:
                row = source[come[g] : come[g] + length]
                for k in range(length):
                    value = np.int32(np.int32(row[k]) - hidden[k])
                    values[k] = value
                    largest = max(largest, value)
            else:
                for k in range(length):
                    value = np.int32(np.int32(source[come[g] + k * groups.step]) - hidden[k])
                    values[k] = value
                    largest = max(largest, value)
            total: Any = np.int64(0)
            if largest > -_FAR // 2:
                for k in range(length):
                    power = np.int64(table[min(np.int64(largest) - np.int64(values[k]), top)])
                    values[k] = power
                    total += power
            else:  # nothing takes part
                for k in range(length):
                    values[k] = 0
            factor = (np.int64(1) << _SHARE_BITS) // max(total, 1)
            if groups.into_step == 1:
                into = target[go[g] : go[g] + length]
                for k in range(length):
                    into[k] = min((np.int64(values[k]) * factor + half) >> down, most) + zero_y
            else:
                for k in range(length):
                    shares = min((np.int64(values[k]) * factor + half) >> down, most) + zero_y
                    target[go[g] + k * groups.into_step] = shares
    return 0
