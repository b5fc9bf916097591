"""No approximation: the network is run with one layer quantized, and its answers are compared with the float network's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.quantization.differentiable import dependents, run_nodes
from labkit.sensitivity.candidates import Candidates
from labkit.sensitivity.objective import Objective
from labkit.sensitivity.perturbation import mean_and_error, unit_of
from labkit.sensitivity.table import SensitivityTable

__all__ = ["COMPARISONS", "direct_sensitivity", "loss_change"]

Values = NDArray[np.float64]

COMPARISONS = ("divergence", "loss")


def direct_sensitivity(
    objective: Objective,
    candidates: Candidates,
    compare: str = "divergence",
    progress: Callable[[int, int], None] | None = None,
) -> SensitivityTable:
    """The change of the loss with each layer quantized alone.

    Parameters
    ----------
    objective : network, layers, images and targets
    candidates : the layers' quantized weights
    compare : "divergence" from the float network's answers (Kullback-Leibler, no labels needed, never negative), or "loss"
        with the targets less that of the float network, which may be negative
    progress : called with how many images are done and how many there are

    Raises
    ------
    InputError
        There is no such comparison, or candidates for a layer are missing.
    """
    if compare not in COMPARISONS:
        raise InputError(f"compare must be one of {', '.join(COMPARISONS)}, got {compare!r}.")
    if missing := [name for name in objective.layers if name not in candidates.weights]:
        raise InputError(
            f"There are no candidate weights for {missing[0]!r}; there are for {', '.join(candidates.layers)}."
        )
    graph = objective.graph
    found = {name: np.zeros((len(objective.images), len(candidates.bits))) for name in objective.layers}
    weights = {
        name: [torch.from_numpy(np.array(w)).to(objective.images.dtype) for w in candidates.weights[name].values()]
        for name in objective.layers
    }
    after = {name: dependents(graph, [name]) for name in objective.layers}
    for where in objective.chunks():
        with torch.no_grad():
            whole = run_nodes(graph, {graph.inputs[0]: objective.images[where]})
            for name in objective.layers:
                known = {node: value for node, value in whole.items() if node not in after[name]}
                for column, weight in enumerate(weights[name]):
                    outputs = run_nodes(graph, known, {name: weight}, needed=after[name])[graph.outputs[0]]
                    found[name][where, column] = _compared(objective, outputs, where, compare)
        if progress is not None:
            progress(where.stop, len(objective.images))
    means, errors = zip(*(mean_and_error(samples) for samples in found.values()), strict=True)
    notes = {"images": len(objective.images), "rounding": candidates.rounding, "compare": compare}
    if compare == "loss":
        notes["labels"] = objective.labels
    unit = unit_of(objective)
    return SensitivityTable(tuple(found), candidates.bits, np.stack(means), np.stack(errors), "direct", unit, notes)


def loss_change(
    objective: Objective, weights: Mapping[str, NDArray[np.floating]], compare: str = "loss"
) -> tuple[float, float]:
    """The change of the loss with several layers changed at once, and its standard error over images.

    Parameters
    ----------
    objective : network, images and targets
    weights : real numbers [O, ...] by layer
    compare : as in `direct_sensitivity`

    Raises
    ------
    InputError
        There is no such comparison.
    """
    if compare not in COMPARISONS:
        raise InputError(f"compare must be one of {', '.join(COMPARISONS)}, got {compare!r}.")
    graph, samples = objective.graph, np.zeros((len(objective.images), 1))
    tensors = {name: torch.from_numpy(np.array(w)).to(objective.images.dtype) for name, w in weights.items()}
    with torch.no_grad():
        for where in objective.chunks():
            outputs = run_nodes(graph, {graph.inputs[0]: objective.images[where]}, tensors)[graph.outputs[0]]
            samples[where, 0] = _compared(objective, outputs, where, compare)
    means, errors = mean_and_error(samples)
    return float(means[0]), float(errors[0])


def _compared(objective: Objective, outputs: torch.Tensor, where: slice, compare: str) -> Values:
    if compare == "divergence":
        return objective.divergences(outputs, where).double().numpy()
    exact = objective.losses(objective.outputs[where], where)
    return (objective.losses(outputs, where) - exact).double().numpy()
