"""The percentile range: cut off a fixed share of the values, whatever they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.clipping.interval import check_grid, cut_to_seen, is_one_sided
from labkit.quantization.histogram import Histogram

__all__ = ["percentile_range"]


def percentile_range(histogram: Histogram, spec: QuantSpec, percentile: float = 99.99) -> tuple[float, float]:
    """The interval that holds at least ``percentile`` per cent of the values, to the precision of one bin.

    On a symmetric grid, and for values of one sign, the magnitudes beyond the percentile are cut off; on an affine grid
    half of the rest on either side. The default is that of NVIDIA's pytorch-quantization (calib/histogram.py,
    ``compute_amax``), the two sides are those of onnxruntime's ``compute_percentile``. Both tools return the inner edge
    of the bin in which the percentile lies, this function the outer one, so that the promise holds.

    Parameters
    ----------
    histogram : of the tensor
    spec : its grid
    percentile : more than 0, at most 100

    Raises
    ------
    QuantizationError
        The percentile is out of range, or the grid is {-1, +1}.
    """
    check_grid(spec)
    if not 0 < percentile <= 100:
        raise QuantizationError(f"percentile must be more than 0 and at most 100, got {percentile!r}.")
    share = percentile / 100
    if spec.symmetric or is_one_sided(histogram):
        limit = (_first_reaching(histogram.magnitudes(), share) + 1) * histogram.width
        return cut_to_seen(histogram, -limit, limit)
    counts, edges = histogram.signed()
    tail = (1 - share) / 2
    high = edges[_first_reaching(counts, 1 - tail) + 1]
    low = edges[len(counts) - 1 - _first_reaching(counts[::-1], 1 - tail)]
    return cut_to_seen(histogram, float(low), float(high))


def _first_reaching(counts: NDArray[np.int64], share: float) -> int:
    """The first k for which counts[0] + ... + counts[k] is at least ``share`` of all."""
    sums = np.cumsum(counts)
    return int(np.argmax(sums >= share * (1 - 1e-12) * sums[-1]))  # 0.999 * 20000 is a little more than 19980
