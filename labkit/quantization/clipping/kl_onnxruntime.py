"""KL thresholds as onnxruntime computes them.

Source: onnxruntime/quantization/calibrate.py, ``get_entropy_threshold`` (1.31), which follows MXNet's
contrib/quantization.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.clipping.divergence import KLCurve

__all__ = ["onnxruntime_curve"]

_EPSILON = 1e-4  # smooth_distribution


def onnxruntime_curve(counts: NDArray[np.int64], edges: NDArray[np.floating], levels: int = 128) -> KLCurve:
    """The divergence of every range that takes in i bins below the middle one and i above, i = levels // 2 .. B // 2.

    It differs from the slides in six ways. The histogram has both signs, so that ``levels`` are shared by them, and the
    outliers of each side are added to the outermost bin on that side. The last level's remainder is merged but never
    expanded: those bins are 0 in Q. Q is cut to whole numbers. Q is not 0 where P is. Zeros of P and Q are lifted by
    1e-4 and the rest lowered accordingly, so nothing is infinite. All of that happens in float32, and this function does
    it in the same order, so that the divergences are the same to the last bit.

    With onnxruntime's own default of 128 bins for 128 levels there is a single candidate, and the result is the largest
    magnitude (microsoft/onnxruntime, issue 9597); ask it for 2,048 bins.

    Parameters
    ----------
    counts : int64 [B] of values of both signs, 0 at the edge in the middle
    edges : float [B + 1]
    levels : ``num_quantized_bins``, 128 there
    """
    middle = len(counts) // 2
    tried = range(min(levels // 2, middle), middle + 1)
    sums = np.concatenate([[0], np.cumsum(counts)])
    starts = np.array([middle - i for i in tried])
    ends = np.array([min(middle + i + 1, len(counts)) for i in tried])
    divergence = [_divergence(counts, sums, start, end, levels) for start, end in zip(starts, ends, strict=True)]
    return KLCurve("onnxruntime", edges[starts], edges[ends], np.array(divergence), int(np.argmin(divergence)))


def _divergence(counts: NDArray[np.int64], sums: NDArray[np.int64], start: int, end: int, levels: int) -> float:
    p = counts[start:end].copy()
    size = len(p) // levels
    whole = size * levels
    borders = start + np.arange(levels + 1) * size
    merged = np.diff(sums[borders])
    merged[-1] += sums[end] - sums[borders[-1]]
    p[0] += sums[start]
    p[-1] += sums[-1] - sums[end]
    filled = np.count_nonzero(p[:whole].reshape(levels, size), axis=1)
    q = np.zeros(len(p), np.int64)
    q[:whole] = np.repeat((merged / np.maximum(filled, 1)).astype(np.int64) * (filled > 0), size)
    smooth_p, smooth_q = _smoothed(p), _smoothed(q)
    if smooth_p is None or smooth_q is None:
        return float("inf")
    smooth_p, smooth_q = smooth_p / smooth_p.sum(), smooth_q / smooth_q.sum()
    return float((smooth_p * np.log(smooth_p / smooth_q)).sum())


def _smoothed(counts: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """``counts`` with zeros lifted to 1e-4 and the rest lowered by as much in all; None if nothing is counted."""
    empty = counts == 0
    zeros = int(np.count_nonzero(empty))
    if zeros == len(counts):
        return None
    lowered = _EPSILON * zeros / (len(counts) - zeros)
    result = counts.astype(np.float32)
    result += _EPSILON * empty.astype(np.float32) + (-lowered) * (~empty).astype(np.float32)
    return result
