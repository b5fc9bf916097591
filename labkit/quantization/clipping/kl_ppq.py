"""KL thresholds as PPQ computes them.

Source: OpenPPL/ppq, ppq/quantization/observer/range.py, ``hist_to_scale_offset``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.clipping.divergence import KLCurve, clipped_divergences, even_borders

__all__ = ["ppq_curve"]

_CLEARED = 0.002  # share of the bins next to 0 that are emptied; "crucial", says the source
_EPSILON = 1e-30  # added before the logarithm (ppq/quantization/measure, torch_KL_divergence)


def ppq_curve(counts: NDArray[np.int64], width: float, levels: int = 128) -> KLCurve:
    """The divergence, in units of log 10, of every threshold i * width for multiples i of ``levels`` up to B.

    It differs from the slides in four ways. The first 0.2 % of the bins are emptied and the next one is set to 1, which
    removes the zeros of a ReLU and what is near them. Only multiples of ``levels`` are tried, so that every group has
    equally many bins. Where Q = 0 and P > 0, Q counts as 1e-30 and the candidate is dear, not impossible. The threshold
    is the edge of the bin, and stands for ``levels``, not for ``levels`` - 1, times PPQ's scale.

    A candidate within the emptied bins (the first one at 4 bits) has no Q at all. PPQ's divergence is then not a number,
    stays in front when the candidates are sorted, and is chosen, which cuts off almost everything; here it is refused.

    Parameters
    ----------
    counts : int64 [B] of magnitudes; PPQ takes 4,096 bins (8,192 in older versions)
    width : of a bin
    levels : 2**(bits - 1); only signed symmetric grids are known there
    """
    bins = np.array(counts, np.int64)
    cleared = int(len(bins) * _CLEARED)
    bins[:cleared] = 0
    bins[cleared] = 1
    ends = np.arange(levels, len(bins) + 1, levels, dtype=np.int64)
    if not len(ends):
        ends = np.array([len(bins)])
    divergence = clipped_divergences(bins, even_borders(ends, levels), _EPSILON) / np.log(10)
    high = np.asarray(ends * width, np.float64)
    return KLCurve("ppq", -high, high, divergence, int(np.argmin(divergence)))
