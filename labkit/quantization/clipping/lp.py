"""The range with the least expected error E|x - Q(x)|^p: the trade between cutting off and rounding, by trying it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec, params_from_range
from labkit.errors import QuantizationError
from labkit.kernels.counting import best_grid
from labkit.quantization.clipping.interval import check_grid, cut_to_seen, is_one_sided
from labkit.quantization.histogram import Histogram

__all__ = ["STEPS", "l24_range", "lp_range", "lp_range_of_values", "mse_range"]

STEPS = 80  # BRECQ, quant/quant_layer.py: 80 candidates, each 1 % of the full range narrower than the last
_STEP = 0.01
_COARSE = 2048  # bins of each sign where the square of ``steps`` ranges is tried: still 8 or more a step at 8 bits


def mse_range(histogram: Histogram, spec: QuantSpec, steps: int = STEPS) -> tuple[float, float]:
    """The range of least mean squared error on ``histogram`` and the grid ``spec``: `lp_range` with p = 2.

    ``steps`` are the candidates for each end.

    Raises
    ------
    QuantizationError
        As `lp_range`.
    """
    return lp_range(histogram, spec, 2.0, steps)


def l24_range(histogram: Histogram, spec: QuantSpec, steps: int = STEPS) -> tuple[float, float]:
    """The range of least E|x - Q(x)|^2.4 on ``histogram`` and the grid ``spec``: `lp_range` with p = 2.4.

    That is the exponent of BRECQ (quant/quant_layer.py, ``lp_loss(..., p=2.4)``), which cuts off a little less than the
    mean square does. ``steps`` are the candidates for each end.

    Raises
    ------
    QuantizationError
        As `lp_range`.
    """
    return lp_range(histogram, spec, 2.4, steps)


def lp_range(
    histogram: Histogram, spec: QuantSpec, p: float = 2.0, steps: int = STEPS, tied: bool = False
) -> tuple[float, float]:
    """The range with the least E|x - Q(x)|^p among all those whose ends are full ones shortened by whole per cents.

    A value stands at the centre of its bin, a zero at 0. A symmetric grid and values of one sign have one end to move
    (BRECQ's search); for values of both signs an affine grid moves both, each on its own unless they are tied. Of equal
    errors the wider range wins.

    Parameters
    ----------
    histogram : of the tensor
    spec : its grid
    p : the exponent, more than 0
    steps : candidates for each end, 1..100: 1, 0.99, 0.98, ... of the farthest value on that side
    tied : shorten both ends by the same factor, as BRECQ does, which tries ``steps`` ranges and not their square

    Raises
    ------
    QuantizationError
        p or steps are out of range, or the grid is {-1, +1}.
    """
    seen = histogram.statistics
    both_ends = not (spec.symmetric or tied or is_one_sided(histogram))
    points, counts = (histogram.coarsened(_COARSE) if both_ends else histogram).points()
    return cut_to_seen(histogram, *_search(points, counts, seen.minimum, seen.maximum, spec, p, steps, tied))


def lp_range_of_values(
    values: NDArray[np.floating], spec: QuantSpec, p: float = 2.0, steps: int = STEPS
) -> tuple[float, float]:
    """`lp_range` on the values themselves instead of a histogram, for tensors as small as weights.

    Parameters
    ----------
    values : float array of any shape, finite
    spec : their grid
    p : the exponent, more than 0
    steps : candidates for each end, 1..100

    Raises
    ------
    QuantizationError
        As `lp_range`.
    """
    points = np.asarray(values, np.float64).reshape(-1)
    points = points[np.argsort(-np.abs(points), kind="stable")]
    lowest, highest = float(points.min()), float(points.max())
    low, high = _search(points, np.ones(points.size, np.int64), lowest, highest, spec, p, steps, False)
    return max(low, lowest), min(high, highest)


def _search(
    points: NDArray[np.float64],
    counts: NDArray[np.int64],
    minimum: float,
    maximum: float,
    spec: QuantSpec,
    p: float,
    steps: int,
    tied: bool,
) -> tuple[float, float]:
    check_grid(spec)
    if not 0 < p < np.inf:
        raise QuantizationError(f"The exponent p of an error must be positive and finite, got {p!r}.")
    if not 1 <= steps <= 100:
        raise QuantizationError(f"steps must be in 1..100, each is 1 % of the range, got {steps!r}.")
    if points.size == 0:  # nothing but zeros
        return minimum, maximum
    ratios = np.asarray(1 - _STEP * np.arange(steps), np.float64)
    weights, limit = counts.astype(np.float64), np.inf

    def best(lows: NDArray[np.float64], highs: NDArray[np.float64]) -> tuple[int, float]:
        params = params_from_range(lows, highs, spec)
        zero, scales = params.zero_point.astype(np.float64), params.scale.astype(np.float64)
        errors = np.empty(len(lows))
        at = best_grid(points, weights, scales, spec.qmin - zero, spec.qmax - zero, float(p), limit, errors)
        return int(at), float(errors[at])

    lows, highs = _candidates(minimum, maximum, spec, ratios, tied)
    if len(lows) > steps:  # a good one on the diagonal lets most of the square be given up early
        _, limit = best(*_candidates(minimum, maximum, spec, ratios, tied=True))
    at, _ = best(lows, highs)
    return float(lows[at]), float(highs[at])


def _candidates(
    minimum: float, maximum: float, spec: QuantSpec, ratios: NDArray[np.float64], tied: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends float64 [G] of the ranges to try, wide ones first."""
    if spec.symmetric:
        limits = ratios * max(-minimum, maximum)
        return -limits, limits
    low, high = ratios * min(minimum, 0.0), ratios * max(maximum, 0.0)
    if tied or minimum >= 0 or maximum <= 0:
        return low, high
    # the corner (i, j) by i + j, so that of equal errors the wider range comes first and good ones come early
    i, j = np.divmod(np.arange(len(ratios) ** 2), len(ratios))
    order = np.lexsort((i, i + j))
    return low[i[order]], high[j[order]]
