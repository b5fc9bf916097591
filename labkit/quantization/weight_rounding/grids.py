"""The grid that a layer's weights are rounded to, and four ways to choose its scale.

Weights are rows, [O, K]. A weight stands at ``scale * level`` with a whole ``level`` between ``low`` and ``high``:
the integer less its zero point. There are three sets of levels for b bits: the narrow one, -n .. n with n = 2**(b -
1) - 1; the full one, with -n - 1 too; and the mirrored one, the full set or its mirror image -n .. n + 1, whichever
suits a row better. A zero point of -1 mirrors
a row. Up to 3 bits that costs nothing at run time: the engine subtracts the zero points of weights once, beforehand, and
keeps what is left in 4 bits as before. A mirrored row of 4 bits holds 8, which needs 5, and one of 8 bits holds 128, which
needs 9. At 2 bits it is the step from three levels to four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerTensor, QParams, QTensor, QuantSpec, params_from_values
from labkit.errors import QuantizationError
from labkit.quantization.weight_rounding.gram import Gram

__all__ = ["LEVELS", "RowGrid", "grid_spec", "minmax_grid", "mse_grid", "output_mse_grid", "refit_scale"]

Rows = NDArray[np.float64]

LEVELS = ("narrow", "full", "mirrored")
SHARES = np.linspace(0.2, 1.05, 86)  # of the scale that holds the largest weight: steps of one per cent


@dataclass(frozen=True, eq=False)
class RowGrid:
    """The grid of ``rows`` rows of weights: ``spec`` and ``params`` as their `QTensor` will have them."""

    spec: QuantSpec
    params: QParams
    rows: int

    @property
    def scale(self) -> Rows:
        """Float64 [O, 1]: the scale of each row."""
        return np.broadcast_to(self.params.scale.astype(np.float64).reshape(-1), (self.rows,))[:, None]

    @property
    def low(self) -> Rows:
        """Float64 [O, 1]: the lowest level of each row."""
        return self.spec.qmin - self._zero_point

    @property
    def high(self) -> Rows:
        """Float64 [O, 1]: the highest level of each row."""
        return self.spec.qmax - self._zero_point

    @property
    def step(self) -> int:
        """How far levels are apart: 2 on the binary grid {-1, +1}, else 1."""
        return 2 if self.spec.is_binary else 1

    def choices(self, weights: Rows) -> tuple[Rows, Rows]:
        """The levels next below and next above each of ``weights`` float64 [O, K]; both have the same shape.

        A weight on a level has that one and the next one up; one beyond an end of the grid has no choice, and both
        are that end.
        """
        exact = weights / self.scale
        down = self.low + self.step * np.floor((exact - self.low) / self.step)
        low, high = np.clip(down, self.low, self.high), np.clip(down + self.step, self.low, self.high)
        return low, high

    def nearest(self, weights: Rows) -> Rows:
        """The level nearest to each of ``weights`` float64 [O, K], ties to even; the same shape."""
        if self.step == 1:
            return np.asarray(np.clip(np.rint(weights / self.scale), self.low, self.high), np.float64)
        return np.where(weights >= 0, 1.0, -1.0)

    def values(self, levels: Rows) -> Rows:
        """The weights that ``levels`` float64 [O, K] stand for; the same shape."""
        return levels * self.scale

    def tensor(self, levels: Rows, shape: tuple[int, ...]) -> QTensor:
        """``levels`` float64 [O, K] as the integers of a weight of ``shape`` [O, ...].

        Raises
        ------
        QuantizationError
            A level is not whole, or not on the grid.
        """
        if not np.array_equal(levels, np.rint(levels)):
            raise QuantizationError("A weight's level must be a whole number: decide up or down first.")
        if np.any(levels < self.low) or np.any(levels > self.high):
            raise QuantizationError(
                f"A weight's level must be on the grid {self.spec}, got {levels.min():g} to {levels.max():g}."
            )
        integers = (levels + self._zero_point).astype(np.int8)  # weights are signed
        return QTensor(integers.reshape(shape), self.params, self.spec)

    @property
    def _zero_point(self) -> Rows:
        return np.broadcast_to(self.params.zero_point.astype(np.float64).reshape(-1), (self.rows,))[:, None]


def grid_spec(spec: QuantSpec, levels: str) -> QuantSpec:
    """``spec`` of a weight with other ``levels``, one of `LEVELS`; a binary grid stays as it is.

    Raises
    ------
    QuantizationError
        There is no such set of levels.
    """
    if levels not in LEVELS:
        raise QuantizationError(f"levels must be one of {', '.join(LEVELS)}, got {levels!r}.")
    if spec.is_binary:
        return spec
    return replace(spec, narrow=levels == "narrow", symmetric=levels != "mirrored")


def minmax_grid(weights: Rows, spec: QuantSpec) -> RowGrid:
    """The smallest scale whose grid covers every one of ``weights`` float64 [O, K], by row or for all as ``spec`` says.

    On a mirrored grid the longer side of a row gets the additional level. One bit: the mean magnitude.

    Raises
    ------
    QuantizationError
        A row (or, with one scale, every weight) is zero.
    """
    narrow = params_from_values(weights, grid_spec(spec, "narrow"))  # also checks the weights
    if spec.narrow or spec.is_binary:
        return RowGrid(spec, narrow, len(weights))
    low, high = _ends(weights, spec)
    mirrored = np.asarray((not spec.symmetric) & (high > -low))
    reach = np.where(
        mirrored, np.maximum(high / -spec.qmin, -low / spec.qmax), np.maximum(high / spec.qmax, low / spec.qmin)
    )
    return RowGrid(spec, _params(reach, -mirrored.astype(np.int32)), len(weights))


def mse_grid(weights: Rows, spec: QuantSpec, importance: Rows | None = None) -> RowGrid:
    """The scale with the least squared error of the rounded weights, of 86 shares of the one that covers all.

    This is the grid of Nagel et al. 2020, section 5 (the norm of W - W rounded to nearest).

    Parameters
    ----------
    weights : float64 [O, K]
    spec : bits, levels and granularity
    importance : float64 [O, K] or None, a factor for each weight's squared error (the diagonal of its G, say)

    Raises
    ------
    QuantizationError
        A row (or, with one scale, every weight) is zero.
    """

    def error(values: Rows) -> Rows:
        squares = np.square(values - weights)
        return np.asarray((squares if importance is None else squares * importance).sum(1), np.float64)

    return _best_grid(weights, spec, error)


def output_mse_grid(weights: Rows, spec: QuantSpec, gram: Gram) -> RowGrid:
    """The scale with the least squared error of the layer's output when weights are rounded to nearest.

    This is the other grid of Nagel et al. 2020, section 5 (the norm of W x - W rounded x^).

    Parameters
    ----------
    weights : float64 [O, K]
    spec : bits, levels and granularity
    gram : the layer's quadratic form

    Raises
    ------
    QuantizationError
        A row (or, with one scale, every weight) is zero.
    """
    return _best_grid(weights, spec, gram.error)


def refit_scale(grid: RowGrid, levels: Rows, gram: Gram) -> RowGrid:
    """The best scale for fixed levels: ``s = (q . r) / (q G q)`` by row, or the quotient of the sums for one scale.

    A row whose best scale is not positive keeps its own.

    Parameters
    ----------
    grid : the grid of ``levels``
    levels : float64 [O, K], q
    gram : the layer's quadratic form
    """
    along, square = (levels * gram.cross).sum(1), (gram.times(levels) * levels).sum(1)
    if isinstance(grid.spec.granularity, PerTensor):
        along, square = along.sum(), square.sum()
    usable = (along > 0) & (square > 0)
    best = np.where(usable, along / np.where(usable, square, 1), grid.params.scale)
    usable = best.astype(np.float32) >= np.finfo(np.float32).tiny
    return replace(grid, params=_params(np.where(usable, best, grid.params.scale), grid.params.zero_point))


def _best_grid(weights: Rows, spec: QuantSpec, error: Callable[[Rows], Rows]) -> RowGrid:
    start = minmax_grid(weights, spec)
    per_tensor = isinstance(spec.granularity, PerTensor)
    zero_points = (0, -1) if not (spec.symmetric or spec.is_binary) else (0,)
    largest = minmax_grid(weights, grid_spec(spec, "full") if len(zero_points) == 2 else spec).params.scale
    least = np.full(largest.shape, np.inf)
    scale, zero_point = start.params.scale, start.params.zero_point
    for share in SHARES:
        for at in zero_points:
            params = _params(share * largest.astype(np.float64), np.full(largest.shape, at, np.int32))
            grid = RowGrid(spec, params, len(weights))
            found = error(grid.values(grid.nearest(weights)))
            found = found.sum() if per_tensor else found
            better = found < least
            least, scale = np.where(better, found, least), np.where(better, params.scale, scale)
            zero_point = np.where(better, params.zero_point, zero_point)
    return RowGrid(spec, _params(scale, zero_point), len(weights))


def _ends(weights: Rows, spec: QuantSpec) -> tuple[Rows, Rows]:
    axis = None if isinstance(spec.granularity, PerTensor) else 1
    return np.asarray(np.minimum(weights.min(axis), 0)), np.asarray(np.maximum(weights.max(axis), 0))


def _params(scale: NDArray[np.floating], zero_point: NDArray[np.integer]) -> QParams:
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32))
