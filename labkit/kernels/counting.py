"""Loops over many numbers that prepare a quantization and have no counterpart in an integer network.

They live here because `jit` watches this folder: what it keeps on disk is dropped when a source of it changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.jit import jit

__all__ = ["best_grid", "count_magnitudes"]


@jit
def count_magnitudes(values: NDArray[np.floating], factor: float, counts: NDArray[np.int64]) -> int:
    """Add one to ``counts[k]`` for each value above 0 and to ``counts[B + k]`` for each below, k = floor(|value| * factor).

    Parameters
    ----------
    values : float32 or float64 [K], finite
    factor : 1 / width of a bin, a power of two, so that the product is exact; the caller has made sure that every k < B
    counts : int64 [2 * B], added to

    Returns
    -------
    How many values are 0; they are not in ``counts``.
    """
    zeros = 0
    half = counts.size // 2
    for i in range(values.size):  # no branch depends on a value: signs and zeros come as they please
        value = np.float64(values[i])
        counts[np.uintp(int(abs(value) * factor) + (half if value < 0.0 else 0))] += 1
        zeros += value == 0.0
    counts[0] -= zeros
    return zeros


@jit
def best_grid(
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
    scales: NDArray[np.float64],
    lowest: NDArray[np.float64],
    highest: NDArray[np.float64],
    power: float,
    limit: float,
    errors: NDArray[np.float64],
) -> int:
    """The first grid k with the least error, sum over i of weights[i] * |points[i] - Q_k(points[i])| ** power.

    Q_k(x) = scales[k] * clip(round(x / scales[k]), lowest[k], highest[k]), half to even. A grid is given up as soon as
    its sum exceeds the least so far, which changes nothing in the answer: points far from 0 come first, so that a grid
    that clips too much is given up early.

    Parameters
    ----------
    points, weights : float64 [K], weights not negative
    scales, lowest, highest : float64 [G], the integers less the zero point
    power : more than 0
    limit : an error that some grid is known to reach, or infinity; the search is quicker for it
    errors : float64 [G], filled with the sums, infinity where a grid was given up

    Returns
    -------
    The index of the grid, -1 if all exceed the limit.
    """
    best, least = -1, limit
    for k in range(scales.size):
        scale, low, high = scales[k], lowest[k], highest[k]
        total = 0.0
        for i in range(points.size):
            step = min(max(np.rint(points[i] / scale), low), high)
            error = abs(points[i] - step * scale)
            if power == 2.0:
                total += weights[i] * (error * error)
            elif error > 0.0:
                total += weights[i] * error**power
            if total > least:
                break
        errors[k] = total if total <= least else np.inf
        if total < least or (best < 0 and total == least):
            best, least = k, total
    return best
