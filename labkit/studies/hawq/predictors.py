"""Predictions of what quantizing a layer costs, and how well their order is the order of what it does cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.graph.ir import FloatGraph
from labkit.sensitivity.candidates import Candidates
from labkit.sensitivity.hawq import hawq_sensitivity
from labkit.sensitivity.objective import make_objective
from labkit.sensitivity.perturbation import project_changes
from labkit.sensitivity.slopes import Directions
from labkit.sensitivity.sqnr import noise_to_signal
from labkit.sensitivity.traces import layer_traces
from labkit.studies.correlation import RESAMPLES, spearman
from labkit.studies.hawq.curvature import layer_curvatures

__all__ = ["PREDICTORS", "Order", "mean_order", "order", "predictions"]

Values = NDArray[np.float64]

PREDICTORS = {
    "trace": "average trace, tr(H) / n",
    "change": "squared change, |dw|²",
    "hawq-v2": "HAWQ-V2, tr(H) / n · |dw|²",
    "eigenvalue": "largest eigenvalue of H",
    "gauss-newton": "Gauss-Newton, ½ dw · H dw",
    "mpqco": "MPQCO, ½ mean (g · dw)²",
    "sqnr": "noise to signal at the layer's output",
}
_EIGEN_IMAGES = 64


def predictions(
    graph: FloatGraph, images: NDArray[np.float32], labels: NDArray[np.int64], candidates: Candidates
) -> dict[str, Values]:
    """Each of `PREDICTORS` for the L layers of ``graph`` at the B bits of ``candidates``: float64 [L, B].

    ``images`` float32 [N, ...] and ``labels`` int64 [N] are of the training part; only MPQCO looks at the labels.
    """
    own, given = make_objective(graph, images), make_objective(graph, images, labels)
    few = make_objective(graph, images[:_EIGEN_IMAGES])
    shape = (len(own.layers), len(candidates.bits))
    traces = layer_traces(own)
    averages = np.broadcast_to(traces.averages[:, None], shape)
    hawq = hawq_sensitivity(own, candidates, traces).values
    largest = np.array([found.values[0] for found in layer_curvatures(few)])
    return {
        "trace": averages,
        "change": hawq / averages,
        "hawq-v2": hawq,
        "eigenvalue": np.broadcast_to(largest[:, None], shape),
        "gauss-newton": project_changes(own, candidates, Directions("fisher")).table("gauss-newton").values,
        "mpqco": project_changes(given, candidates, Directions("labels")).table("mpqco").values,
        "sqnr": noise_to_signal(own, candidates).values,
    }


@dataclass(frozen=True)
class Order:
    """A rank correlation with the interval that holds 95 % of its resamples over layers."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def order(predicted: Values, measured: Values) -> Values:
    """Spearman's correlation over layers of ``predicted`` and ``measured``, float64 [L, B], at each of the bits: float64 [B]."""
    return np.array([spearman(a, b) for a, b in zip(predicted.T, measured.T, strict=True)])


def mean_order(
    predicted: Mapping[str, Values], measured: Values, reference: str, resamples: int = RESAMPLES
) -> tuple[dict[str, Order], dict[str, Order]]:
    """The mean over bits of `order`, and how far it is above that of the predictor ``reference``, both by predictor.

    Layers are resampled, the same ones for all predictors (seed 0). A difference is sure where its interval leaves 0 out.

    Parameters
    ----------
    predicted : float64 [L, B] by predictor
    measured : float64 [L, B]
    reference : the name of a predictor
    resamples : how many
    """
    generator = np.random.default_rng(0)
    names = list(predicted)
    exact = np.array([order(predicted[name], measured).mean() for name in names])
    resampled = np.zeros((resamples, len(names)))
    for row in resampled:
        chosen = generator.integers(len(measured), size=len(measured))
        row[:] = [order(predicted[name][chosen], measured[chosen]).mean() for name in names]
    at = names.index(reference)
    return _intervals(names, exact, resampled), _intervals(names, exact - exact[at], resampled - resampled[:, [at]])


def _intervals(names: list[str], exact: Values, resampled: Values) -> dict[str, Order]:
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    return {name: Order(float(exact[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)}
