"""`measure_sensitivity`: one call from a network and some images to a `SensitivityTable`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from labkit.errors import InputError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.sensitivity.candidates import Candidates, nearest_candidates
from labkit.sensitivity.direct import direct_sensitivity
from labkit.sensitivity.hawq import hawq_sensitivity
from labkit.sensitivity.objective import Objective, make_objective
from labkit.sensitivity.perturbation import project_changes
from labkit.sensitivity.slopes import Directions
from labkit.sensitivity.sqnr import noise_to_signal
from labkit.sensitivity.table import SensitivityTable
from labkit.sensitivity.traces import layer_traces

__all__ = ["METHODS", "measure_sensitivity"]

METHODS = ("gauss-newton", "fisher", "mpqco", "hawq-v2", "direct", "sqnr")


def measure_sensitivity(
    network: FloatGraph | nn.Module,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    method: str = "gauss-newton",
    loss: str = "cross-entropy",
    layers: Sequence[str] | None = None,
    candidates: Candidates | Mapping[str, Mapping[int, NDArray[np.float32]]] | None = None,
    ranges: str = "minmax",
    per_channel: bool = True,
    label_choice: str | None = None,
    draws: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> SensitivityTable:
    """What each layer is expected to cost at each number of bits, when only its weights are quantized.

    Parameters
    ----------
    network : a simplified FloatGraph of one input whose first output is [N, M], or a module
    images : real numbers [N, ...]; a few hundred
    labels : integers [N], or real numbers [N, M] for "squared-error"; None for the network's own answers
    bits : each in 1..8
    method : "gauss-newton", the second-order loss change, with an exact sum over the classes;
        "fisher", the same from ``draws`` labels an image, drawn from the model: many classes, same expectation;
        "mpqco", from each image's own label;
        "hawq-v2", the average trace of the Hessian times the squared change;
        "direct", the network run with each layer quantized alone, against the labels or, without, the float network;
        "sqnr", noise to signal at the layer's output
    loss : "cross-entropy" or "squared-error"
    layers : names; None for all
    candidates : quantized weights by layer and bits; None for weights rounded to nearest
    ranges, per_channel : of these, as in `nearest_candidates`
    label_choice : of "mpqco", "given", "predicted" or "drawn"; None for given ones where there are any, else predicted
    draws : of "fisher"
    seed : of all that is drawn
    dtype : torch.float32 or torch.float64
    progress : called with what is done and what there is

    Raises
    ------
    InputError
        There is no such method, or something does not fit together.
    QuantizationError
        Bits are out of range, or a scale cannot be chosen.
    """
    if method not in METHODS:
        raise InputError(f"The method must be one of {', '.join(METHODS)}, got {method!r}.")
    started = time.perf_counter()
    if isinstance(network, nn.Module):
        network = simplify(from_torch(network, tuple(np.shape(images)[1:])))
    objective = make_objective(network, images, labels, loss, layers, dtype)
    if candidates is None:
        candidates = nearest_candidates(network, bits, ranges, per_channel, objective.layers)
    elif not isinstance(candidates, Candidates):
        candidates = Candidates(candidates)
    table = _measured(objective, candidates, method, label_choice, draws, seed, progress)
    notes: dict[str, Any] = {**table.notes, "loss": loss, "seconds": round(time.perf_counter() - started, 1)}
    return replace(table, notes=notes)


def _measured(
    objective: Objective,
    candidates: Candidates,
    method: str,
    label_choice: str | None,
    draws: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> SensitivityTable:
    if method == "gauss-newton":
        return project_changes(objective, candidates, Directions("fisher"), progress).table(method)
    if method == "fisher":
        return project_changes(objective, candidates, Directions("drawn", draws, seed), progress).table(method)
    if method == "mpqco":
        chosen = objective if label_choice is None else objective.with_labels(label_choice, seed)
        return project_changes(chosen, candidates, Directions("labels"), progress).table(method)
    if method == "hawq-v2":
        return hawq_sensitivity(objective, candidates, layer_traces(objective, seed=seed, progress=progress))
    if method == "direct":
        compare = "loss" if objective.labels == "given" else "divergence"
        return direct_sensitivity(objective, candidates, compare, progress)
    return noise_to_signal(objective, candidates, "outputs", progress)
