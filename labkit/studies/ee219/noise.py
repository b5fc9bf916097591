"""How much a tensor loses when it is rounded to a grid over a given range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec, params_from_range
from labkit.quantization.histogram import Histogram

__all__ = ["decibels", "error_parts", "histogram_decibels"]


def error_parts(
    values: NDArray[np.floating], counts: NDArray[np.integer], low: float, high: float, spec: QuantSpec
) -> tuple[float, float]:
    """The summed squared error of ``values`` on the grid over [low, high]: of those inside it by rounding, of those cut off.

    Parameters
    ----------
    values : float [K]
    counts : integers [K], how often each occurs
    low, high : the range that the scale is made from
    spec : the grid
    """
    params = params_from_range(low, high, spec)
    scale, zero = float(params.scale), int(params.zero_point)
    reals = np.asarray(values, np.float64)
    levels = np.rint(reals / scale)
    clipped = np.clip(levels, spec.qmin - zero, spec.qmax - zero)
    errors = np.square(reals - clipped * scale) * counts
    inside = clipped == levels
    return float(errors[inside].sum()), float(errors[~inside].sum())


def decibels(
    values: NDArray[np.floating], counts: NDArray[np.integer], low: float, high: float, spec: QuantSpec
) -> float:
    """10 log10(signal power / error power) in dB of ``values`` float [K], each ``counts`` [K] integers times.

    ``low`` and ``high`` are the range, ``spec`` the grid. Infinite where nothing is lost.
    """
    power = float(np.square(np.asarray(values, np.float64)) @ counts)
    noise = sum(error_parts(values, counts, low, high, spec))
    return float("inf") if noise == 0 else 10 * float(np.log10(power / noise))


def histogram_decibels(histogram: Histogram, low: float, high: float, spec: QuantSpec) -> float:
    """`decibels` of the values in ``histogram``, each at the centre of its bin, on the grid ``spec`` over [low, high]."""
    points, counts = histogram.points()
    return decibels(points, counts, low, high, spec)
