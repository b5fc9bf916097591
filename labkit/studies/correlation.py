"""Pearson's and Spearman's correlation, and how far chance could have moved them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Correlation", "correlate", "pearson", "ranks", "spearman"]

Numbers = NDArray[np.float64]

RESAMPLES = 2000


@dataclass(frozen=True)
class Correlation:
    """A correlation ``value`` in -1..1 and the interval from ``low`` to ``high`` that holds 95 % of its resamples."""

    value: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def pearson(x: Numbers, y: Numbers) -> float:
    """Pearson's correlation of ``x`` and ``y``, float64 [n]; 0 where one of them does not vary."""
    a, b = x - x.mean(), y - y.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def spearman(x: Numbers, y: Numbers) -> float:
    """Spearman's correlation of ``x`` and ``y``, float64 [n]: that of their `ranks`."""
    return pearson(ranks(x), ranks(y))


def ranks(values: Numbers) -> Numbers:
    """The place of each of ``values`` float64 [n] when sorted, from 1; equal ones share the mean of theirs: float64 [n]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def correlate(x: Numbers, y: Numbers, measure: Callable[[Numbers, Numbers], float] = spearman) -> Correlation:
    """The correlation of two measurements with a percentile interval of resamples (Efron 1979), drawn with seed 0.

    Parameters
    ----------
    x, y : float64 [n], pair by pair
    measure : `spearman` or `pearson`
    """
    generator = np.random.default_rng(0)
    drawn = (generator.integers(len(x), size=len(x)) for _ in range(RESAMPLES))
    found = [measure(x[chosen], y[chosen]) for chosen in drawn]
    low, high = np.percentile(found, (2.5, 97.5))
    return Correlation(measure(x, y), float(low), float(high))
