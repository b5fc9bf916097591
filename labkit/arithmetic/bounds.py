"""How large a sum of products can become, so that 32 bits are known to suffice (docs/arithmetic.md, section 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.errors import BoundError

__all__ = ["INT32_LIMIT", "accumulator_bound", "check_accumulator"]

INT32_LIMIT = 2**31 - 1


def accumulator_bound(
    weights: NDArray[np.integer], input_low: int, input_high: int, bias: NDArray[np.integer]
) -> NDArray[np.int64]:
    """The largest magnitude that any partial sum of each output channel can reach, in any order (eq. 9).

    Parameters
    ----------
    weights : integer array [O, ...], weight zero points subtracted
    input_low, input_high : lowest and highest input, zero point subtracted
    bias : integer array [O]

    Returns
    -------
    int64 [O]: ``sum |w| * max |x| + |bias|``
    """
    magnitude = np.abs(weights.astype(np.int64)).reshape(weights.shape[0], -1).sum(axis=1)
    bound: NDArray[np.int64] = magnitude * max(abs(input_low), abs(input_high)) + np.abs(bias.astype(np.int64))
    return bound


def check_accumulator(
    name: str, weights: NDArray[np.integer], input_low: int, input_high: int, bias: NDArray[np.integer]
) -> None:
    """Refuse a layer whose sums could leave int32 (eq. 9).

    Parameters
    ----------
    name : of the layer, for the error
    weights, input_low, input_high, bias : as `accumulator_bound`; integer arrays [O, ...] and [O]

    Raises
    ------
    BoundError
        Some channel's bound exceeds 2**31 - 1.
    """
    bound = accumulator_bound(weights, input_low, input_high, bias)
    if bound.size and bound.max() > INT32_LIMIT:
        channel = int(bound.argmax())
        raise BoundError(
            f"{name}: the accumulator of output channel {channel} can reach {int(bound.max()):,}, more than int32 holds "
            f"(2,147,483,647). Use fewer bits for this layer's weights or input, or a larger weight scale."
        )
