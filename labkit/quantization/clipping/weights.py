"""Ranges of weights: the same methods, for a whole tensor or for each output channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, QuantSpec, exact_mean
from labkit.errors import QuantizationError
from labkit.quantization.clipping.interval import check_grid
from labkit.quantization.clipping.lp import lp_range_of_values
from labkit.quantization.clipping.methods import CLIPPING, check_options, clipped_range
from labkit.quantization.histogram import StreamingHistogram

__all__ = ["DERIVED", "WEIGHT_METHODS", "weight_ends", "weight_range"]

DERIVED = ("minmax", "3sigma")  # ends that any other computation finds to the last bit
WEIGHT_METHODS = (*DERIVED, *CLIPPING)
_SMALLEST_SCALE = np.finfo(np.float32).tiny
_EXPONENTS = {"mse": 2.0, "l2.4": 2.4}


def weight_range(
    values: NDArray[np.floating], spec: QuantSpec, method: str = "minmax", **options: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval (low, high) for the weights ``values``, one for each channel where ``spec`` is per axis.

    The sums of "3sigma" are rounded once, so that it gives the same ends everywhere. "mse" and "l2.4" measure the error on
    the weights themselves; the others look at a histogram, which for a channel of a few dozen weights is a coarse thing.
    A channel of zeros has the interval [0, 0], which `params_from_range` refuses by number.

    Parameters
    ----------
    values : float array of any shape that has the axis, finite
    spec : the grid and its granularity
    method : "minmax", "3sigma", "percentile", "mse", "l2.4", "kl" or "aciq"
    options : of the method

    Returns
    -------
    Two float64 arrays of shape () or (C,).

    Raises
    ------
    QuantizationError
        The method or an option is unknown, the grid is {-1, +1}, there is no such axis, or a weight is not finite.
    """
    if method not in WEIGHT_METHODS:
        raise QuantizationError(f"weight ranges must be one of {', '.join(WEIGHT_METHODS)}, got {method!r}.")
    if method in CLIPPING:
        check_options(method, options)
    elif options:
        raise QuantizationError(f"Weight ranges by {method!r} take no options, got {', '.join(options)}.")
    check_grid(spec)
    rows = _rows(np.asarray(values), spec)
    if method == "minmax":
        low, high = rows.min(1), rows.max(1)
    elif method == "3sigma":
        means = exact_mean(rows)
        spread = 3 * np.sqrt(exact_mean(np.square(rows - means[:, None])))
        low, high = np.maximum(rows.min(1), means - spread), np.minimum(rows.max(1), means + spread)
    else:
        low, high = np.array([_clipped(row, spec, method, options) for row in rows]).T
    return (low, high) if isinstance(spec.granularity, PerAxis) else (low[0], high[0])


def weight_ends(
    weight: NDArray[np.floating], spec: QuantSpec, method: str = "minmax", vanished: Sequence[int] = ()
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`weight_range` of a layer's weights, of which some channels may be zeros on purpose.

    Parameters
    ----------
    weight : float array [O, ...], finite
    spec : the grid; per tensor or per channel (axis 0)
    method : one of `WEIGHT_METHODS`
    vanished : channels that a batch norm has taken away. Per channel their ends give the smallest scale

    Returns
    -------
    Two float64 arrays of shape () or (O,).

    Raises
    ------
    QuantizationError
        As `weight_range`.
    """
    low, high = weight_range(weight, spec, method)
    if len(vanished) and isinstance(spec.granularity, PerAxis):
        low, high = low.copy(), high.copy()
        low[list(vanished)] = high[list(vanished)] = _SMALLEST_SCALE * spec.qmax
    return low, high


def _rows(values: NDArray[np.floating], spec: QuantSpec) -> NDArray[np.float64]:
    reals = values.astype(np.float64)
    if reals.size == 0:
        raise QuantizationError(f"Cannot choose a range for no weights: the array has shape {reals.shape}.")
    if not np.all(np.isfinite(reals)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(reals))[0])
        raise QuantizationError(f"Cannot choose a range: the weight at index {where} is {reals[where]}.")
    if not isinstance(spec.granularity, PerAxis):
        return reals.reshape(1, -1)
    if not 0 <= spec.granularity.axis < reals.ndim:
        raise QuantizationError(f"There is no axis {spec.granularity.axis} in weights of shape {reals.shape}.")
    channels = np.moveaxis(reals, spec.granularity.axis, 0)
    return channels.reshape(len(channels), -1)


def _clipped(row: NDArray[np.float64], spec: QuantSpec, method: str, options: dict[str, Any]) -> tuple[float, float]:
    if not row.any():
        return 0.0, 0.0
    if method in _EXPONENTS:
        return lp_range_of_values(row, spec, _EXPONENTS[method], **options)
    counted = StreamingHistogram("weights")
    counted.update(row)
    return clipped_range(method, counted.result(), spec, **options)
