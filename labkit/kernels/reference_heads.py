"""The readable tier: what stands at the end of a network, softmax and argmax. `labkit.kernels.reference` offers them too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["argmax", "softmax"]

Integers = NDArray[np.integer]


def softmax(
    x: Integers,
    *,
    axis: int,
    table: NDArray[np.int32],
    bits: int,
    output_zero_point: int,
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """The share of each element's exponential in the sum along ``axis``, in integers only (eq. 26).

    Parameters
    ----------
    x : integers [N, ...]; their zero point does not matter, because only differences enter
    axis : along which the shares add up to 1; the batch axis is not counted
    table : int32 [256], exponentials of the input's scale by difference from the largest element (eq. 25)
    bits : the output's scale is 2**-bits, 1..8
    output_zero_point, clamp : of the result

    Returns
    -------
    int32 of the same shape
    """
    integers = x.astype(np.int64)
    powers = table.astype(np.int64)[integers.max(axis=1 + axis, keepdims=True) - integers]
    total = powers.sum(axis=1 + axis, keepdims=True)
    shares: NDArray[np.int64] = ((powers << (bits + 1)) + total) // (
        2 * total
    )  # to nearest, ties up; everything is positive
    return np.asarray(np.clip(shares + output_zero_point, *clamp), np.int32)


def argmax(x: Integers, *, axis: int, keepdims: bool) -> NDArray[np.int32]:
    """The index of the largest element along ``axis``, the lowest where several are; the batch axis is not counted.

    ``x`` is integers [N, ...]. Returns int32 without that axis, or with length 1 there if ``keepdims``.
    """
    return np.asarray(np.argmax(x, axis=1 + axis, keepdims=keepdims), np.int32)
