"""LAPQ: ranges that are best for the network's loss, not for each tensor.

Nahshan et al. 2019, "Loss aware post-training quantization".
How much one tensor may be cut depends on how the others are cut, and at few bits the loss is steep and far from a sum
over tensors. Three steps, as in section 4 of the paper and in its code (ynahshan/nn-quantization-pytorch, lapq/lapq_v2.py):

1. For some exponents p every tensor takes the range of least E|x - Q(x)|^p, and the loss of the network is measured.
2. A parabola through those losses gives the exponent in between that should be best, and with it the start.
3. Powell's method moves all ranges together, one factor for each, from there to where the loss is least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.clipping.interval import cut_to_seen
from labkit.quantization.clipping.lp import lp_range
from labkit.quantization.histogram import Histogram

__all__ = ["EXPONENTS", "LapqResult", "Loss", "Ranges", "best_exponent", "lapq"]

Ranges = Mapping[str, tuple[float, float]]
Loss = Callable[[Ranges], float]

EXPONENTS = tuple(float(p) for p in np.linspace(2, 4, 10))  # of lapq_v2.py
_NARROWEST = 0.2  # of a start: no range is made narrower than that


@dataclass(frozen=True)
class LapqResult:
    """What `lapq` found.

    ranges : (low, high) by tensor, those of the least loss that was measured.
    loss : with them.
    by_exponent : loss by exponent, the one that the parabola gave included.
    exponent : that the start was made with.
    start_loss : before Powell's method.
    evaluations : how often the loss was measured.
    """

    ranges: Ranges
    loss: float
    by_exponent: Mapping[float, float]
    exponent: float
    start_loss: float
    evaluations: int


def lapq(
    histograms: Mapping[str, Histogram],
    specs: Mapping[str, QuantSpec],
    loss: Loss,
    exponents: Sequence[float] = EXPONENTS,
    iterations: int = 1,
    max_evaluations: int = 1000,
) -> LapqResult:
    """Choose the ranges of all tensors together, so that the loss of the network is small.

    The result is never worse than the best start: every range that was measured is remembered. Each tensor has one
    factor, which moves both ends. The published code moves the ends themselves; factors make every direction equally long.

    Parameters
    ----------
    histograms : by tensor
    specs : grids by tensor, for the same names
    loss : called with (low, high) by tensor; a number that is not finite counts as infinitely bad
    exponents : those of step 1, at least one; the code takes ten from 2 to 4
    iterations : of Powell's method, each a line search along every direction; 0 stops after step 2. The code's README
        takes 1 or 2
    max_evaluations : stop Powell's method after so many calls of ``loss``

    Raises
    ------
    QuantizationError
        There are no tensors or exponents, a grid is missing, or no start has a finite loss.
    """
    if not histograms or not exponents:
        raise QuantizationError("LAPQ needs at least one tensor and one exponent to start from.")
    if missing := [name for name in histograms if name not in specs]:
        raise QuantizationError(f"LAPQ was given no grid for {missing[0]!r}; it has {', '.join(specs)}.")
    measured = _Measured(loss)
    by_exponent: dict[float, float] = {}
    starts: dict[float, Ranges] = {}

    def start_with(p: float) -> None:
        starts[p] = {name: lp_range(seen, specs[name], p, tied=True) for name, seen in histograms.items()}
        by_exponent[p] = measured(starts[p])

    for p in exponents:
        start_with(float(p))
    between = best_exponent(by_exponent)
    if between not in by_exponent:
        start_with(between)
    exponent = min(by_exponent, key=lambda p: by_exponent[p])
    start_loss = by_exponent[exponent]
    if not math.isfinite(start_loss):
        raise QuantizationError(
            "LAPQ found no start with a finite loss. Check that the loss is a number for min-max ranges."
        )
    if iterations > 0:
        _powell(measured, histograms, starts[exponent], iterations, max_evaluations)
    assert measured.best is not None
    return LapqResult(
        MappingProxyType(dict(measured.best)),
        measured.least,
        MappingProxyType(by_exponent),
        exponent,
        start_loss,
        measured.calls,
    )


def best_exponent(by_exponent: Mapping[float, float]) -> float:
    """The exponent at the bottom of the parabola fitted to ``by_exponent``, loss by exponent, by least squares.

    A parabola that opens downwards, or has its bottom beyond the exponents that were tried, says nothing: then it is the
    best of those. So it is with fewer than three finite losses.
    """
    finite = {p: loss for p, loss in by_exponent.items() if math.isfinite(loss)}
    best = min(by_exponent, key=lambda p: by_exponent[p])
    if len(finite) < 3:
        return best
    a, b, _ = (float(c) for c in np.polyfit(list(finite), list(finite.values()), 2))
    if a <= 0 or not min(finite) <= -b / (2 * a) <= max(finite):
        return best
    return -b / (2 * a)


class _Measured:
    """The loss, with a memory of the best."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self.calls = 0
        self.least = math.inf
        self.best: Ranges | None = None

    def __call__(self, ranges: Ranges) -> float:
        self.calls += 1
        value = float(self._loss(MappingProxyType(dict(ranges))))
        if not math.isfinite(value):
            return math.inf
        if value < self.least:
            self.least, self.best = value, dict(ranges)
        return value


def _powell(
    measured: _Measured, histograms: Mapping[str, Histogram], start: Ranges, iterations: int, max_evaluations: int
) -> None:
    from scipy.optimize import minimize

    def moved(factors: NDArray[np.float64]) -> Ranges:
        return {
            name: cut_to_seen(histograms[name], float(factor) * low, float(factor) * high)
            for factor, (name, (low, high)) in zip(factors, start.items(), strict=True)
        }

    bounds = [(_NARROWEST, _full(histograms[name], *ends)) for name, ends in start.items()]
    worst = 10 * abs(measured.least) + 1  # Powell's parabolas cannot take infinity

    minimize(
        lambda factors: min(measured(moved(factors)), worst),
        np.ones(len(start)),
        method="Powell",
        bounds=bounds,
        options={"maxiter": iterations, "maxfev": max_evaluations, "xtol": 1e-2, "ftol": 1e-4},
    )


def _full(histogram: Histogram, low: float, high: float) -> float:
    """The factor at which [low, high] reaches all that was seen, and a little more for ranges that already do."""
    seen = histogram.statistics
    return max(1.01, *(end / part for end, part in ((seen.minimum, low), (seen.maximum, high)) if part))
