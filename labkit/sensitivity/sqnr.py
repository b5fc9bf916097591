"""How large the rounding of a layer's weights is beside the weights, or beside what the layer puts out; no loss is looked at.

The values are noise to signal, the reciprocal of SQNR, so that more is worse as in every table here; `decibels` turns them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.quantization.differentiable import layer_op, run_nodes
from labkit.quantization.weight_rounding.adaround_images import apply_layer
from labkit.sensitivity.candidates import Candidates
from labkit.sensitivity.objective import Objective
from labkit.sensitivity.table import SensitivityTable

__all__ = ["SIGNALS", "decibels", "noise_to_signal"]

SIGNALS = ("weights", "outputs")
UNIT = "noise to signal"


def noise_to_signal(
    objective: Objective,
    candidates: Candidates,
    signal: str = "outputs",
    progress: Callable[[int, int], None] | None = None,
) -> SensitivityTable:
    """``|dw|^2 / |w|^2``, or ``mean |layer(x; dw)|^2 / mean |layer(x; w)|^2`` over images, without the bias.

    Parameters
    ----------
    objective : network, layers and images
    candidates : the layers' quantized weights
    signal : "weights", or "outputs" on the float network's activations
    progress : called with how many images are done and how many there are

    Raises
    ------
    InputError
        There is no such signal, candidates for a layer are missing, or a signal is 0.
    """
    if signal not in SIGNALS:
        raise InputError(f"The signal must be one of {', '.join(SIGNALS)}, got {signal!r}.")
    if missing := [name for name in objective.layers if name not in candidates.weights]:
        raise InputError(
            f"There are no candidate weights for {missing[0]!r}; there are for {', '.join(candidates.layers)}."
        )
    graph, layers, bits = objective.graph, objective.layers, candidates.bits
    changes = {name: candidates.changes(graph, name) for name in layers}
    notes = {"rounding": candidates.rounding, "signal": signal}
    if signal == "weights":
        noise = np.stack([np.square(change).reshape(len(bits), -1).sum(1) for change in changes.values()])
        power = np.array([np.square(layer_op(graph, name).weight.astype(np.float64)).sum() for name in layers])
        _check_power(layers, power)
        return SensitivityTable(layers, bits, noise / power[:, None], np.zeros_like(noise), "sqnr", UNIT, notes)
    count, dtype = len(objective.images), objective.images.dtype
    tensors = {name: torch.from_numpy(change).to(dtype) for name, change in changes.items()}
    powers, noises = np.zeros((len(layers), count)), np.zeros((len(layers), len(bits), count))
    with torch.no_grad():
        for where in objective.chunks():
            found = run_nodes(graph, {graph.inputs[0]: objective.images[where]})
            for row, name in enumerate(layers):
                op, x = layer_op(graph, name), found[graph[name].inputs[0]]
                powers[row, where] = _power(apply_layer(op, x, torch.from_numpy(op.weight), None))
                for column, change in enumerate(tensors[name]):
                    noises[row, column, where] = _power(apply_layer(op, x, change, None))
            if progress is not None:
                progress(where.stop, count)
    power = powers.mean(1)
    _check_power(layers, power)
    ratios = noises.mean(2) / power[:, None]
    gaps = (noises - ratios[:, :, None] * powers[:, None]) / power[:, None, None]  # a quotient of means, to first order
    errors = gaps.std(2, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(ratios)
    return SensitivityTable(layers, bits, ratios, errors, "sqnr", UNIT, {**notes, "images": count})


def decibels(table: SensitivityTable) -> NDArray[np.float64]:
    """SQNR in dB, ``-10 log10`` of the values of a ``table`` by `noise_to_signal`: float64 [L, B], infinite without noise.

    Raises
    ------
    InputError
        The table holds something else.
    """
    if table.unit != UNIT:
        raise InputError(f"Decibels are those of a table of {UNIT}, this one holds {table.unit}.")
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(table.values))


def _power(values: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(values.flatten(1).double().square().mean(1).numpy())


def _check_power(layers: tuple[str, ...], power: NDArray[np.float64]) -> None:
    if not np.all(power > 0):
        name = layers[int(np.argmin(power > 0))]
        raise InputError(
            f"{name}: the signal is 0, so there is no noise to signal. Look at the layer's weights and inputs."
        )
