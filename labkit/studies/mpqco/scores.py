"""How well predictions meet the truth: a line through the origin, correlations, relative errors, and what is chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.studies.correlation import RESAMPLES, pearson, spearman

__all__ = ["Interval", "Line", "line", "median_interval", "power", "relative_errors", "straightness"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Predictions against the truth: ``slope`` of the line through the origin, ``r`` (Pearson) and ``rho`` (Spearman)."""

    slope: float
    r: float
    rho: float

    def __str__(self) -> str:
        return f"{self.slope:.2f} / {self.r:.2f} / {self.rho:.2f}"


@dataclass(frozen=True)
class Interval:
    """A ``value`` and the interval from ``low`` to ``high`` that holds 95 % of its resamples."""

    value: float
    low: float
    high: float

    def text(self, form: str = ".1f") -> str:
        """The three numbers, each in ``form``."""
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


def line(truth: Numbers, predicted: Numbers) -> Line:
    """Of ``predicted`` over ``truth``, both float64 [n]: the least-squares line through the origin, and correlations."""
    size = float(truth @ truth)
    slope = float(truth @ predicted) / size if size > 0 else 0.0
    return Line(slope, pearson(truth, predicted), spearman(truth, predicted))


def relative_errors(truth: Numbers, predicted: Numbers) -> Numbers:
    """``|truth - predicted| / |truth|`` in per cent, float64 [n], of float64 [n] each."""
    return np.asarray(100 * np.abs(truth - predicted) / np.abs(truth))


def median_interval(values: Numbers, seed: int = 0) -> Interval:
    """The median over rows of ``values`` float64 [n], or the difference of the medians of two columns [n, 2].

    Rows are drawn again, with ``seed``, so that columns stay paired (percentile interval, Efron 1979).
    """
    columns = values.reshape(len(values), -1)
    signs = np.array([1.0, -1.0])[: columns.shape[1]]
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(columns), size=(RESAMPLES, len(columns)))
    found = np.median(columns[chosen], axis=1) @ signs
    low, high = np.percentile(found, (2.5, 97.5))
    return Interval(float(np.median(columns, axis=0) @ signs), float(low), float(high))


def power(x: Numbers, y: Numbers) -> float:
    """The exponent k of the best ``y = c x^k``: the slope of log y over log x, both float64 [n] above 0."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def straightness(x: Numbers, y: Numbers) -> float:
    """R^2 of the best straight line, with an intercept, of ``y`` over ``x``, float64 [n]."""
    return pearson(x, y) ** 2
