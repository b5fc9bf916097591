"""KL thresholds as the TensorRT slides describe them.

Source: Migacz, "8-bit inference with TensorRT", GTC 2017, "Entropy calibration - pseudocode"; EE219 lab, section V.E.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.clipping.divergence import KLCurve, clipped_divergences

__all__ = ["tensorrt_curve"]


def tensorrt_curve(counts: NDArray[np.int64], width: float, levels: int = 128, start: int = 128) -> KLCurve:
    """The divergence of every threshold (i + 0.5) * width, i = start .. B - 1.

    For each i: P is the bins 0 .. i - 1 with all counts beyond them (the outliers) added to bin i - 1; Q is the bins
    0 .. i - 1 *without* the outliers, merged into ``levels`` groups of i // levels bins (the last takes the remainder) and
    expanded over the bins that were not empty; both are normalised. The first least divergence wins.

    The slides leave open what happens where bin i - 1 was empty before the outliers came: then Q = 0 and P > 0, and the
    divergence is infinite. Such a candidate is refused here. If all are, or if there are not more than ``start`` bins,
    the whole range is taken, which the slides' loop (i < 2048) never tries otherwise.

    Parameters
    ----------
    counts : int64 [B] of magnitudes; 2,048 bins in the slides
    width : of a bin
    levels : 128 for signed 8 bits
    start : the first i, 128 in the slides; never below ``levels``
    """
    whole = len(counts) * width
    ends = np.arange(max(start, levels), len(counts), dtype=np.int64)
    borders = np.concatenate([np.arange(levels) * (ends[:, None] // levels), ends[:, None]], 1)
    divergence = clipped_divergences(counts, borders) if len(ends) else np.empty(0)
    high: NDArray[np.float64] = np.asarray((ends + 0.5) * width)
    if not np.any(np.isfinite(divergence)):
        high, divergence = np.append(high, whole), np.append(divergence, np.inf)
        return KLCurve("tensorrt", -high, high, divergence, len(high) - 1)
    return KLCurve("tensorrt", -high, high, divergence, int(np.argmin(divergence)))
