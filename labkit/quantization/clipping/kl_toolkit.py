"""KL thresholds as NVIDIA's pytorch-quantization toolkit computes them.

Source: the TensorRT repository, tools/pytorch-quantization/pytorch_quantization/calib/histogram.py,
``_compute_amax_entropy``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.clipping.divergence import KLCurve, clipped_divergences, even_borders

__all__ = ["toolkit_curve"]


def toolkit_curve(counts: NDArray[np.int64], width: float, levels: int = 128, start: int = 128) -> KLCurve:
    """The divergence of every threshold i * width, i = start .. B.

    It differs from the slides in five ways. Bin 0 is given the count of bin 1, which removes the zeros of a ReLU (the
    toolkit does so in the caller's histogram; here it is left alone). The bins are divided into the levels evenly, by
    ``linspace``, so that groups differ by at most one bin. i = B, that is no clipping, is a candidate. Of equal
    divergences the largest threshold wins. The threshold is the edge of the bin.

    Parameters
    ----------
    counts : int64 [B] of magnitudes; the toolkit takes 2,048 bins
    width : of a bin
    levels : the toolkit's ``1 << (num_bits - 1 + unsigned)``; 128 for signed 8 bits
    start : the first i, 128 there whatever the levels
    """
    bins = np.array(counts, np.int64)
    if len(bins) > 1:
        bins[0] = bins[1]
    ends = np.arange(min(start, len(bins)), len(bins) + 1, dtype=np.int64)
    divergence = clipped_divergences(bins, even_borders(ends, levels)) if bins.any() else np.full(len(ends), np.inf)
    best = len(ends) - 1 - int(np.argmin(divergence[::-1]))
    high = np.asarray(ends * width, np.float64)
    return KLCurve("toolkit", -high, high, divergence, best)
