"""The loss of a network as a function of its activations' ranges: what LAPQ makes small."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.arithmetic.affine import QParams, QuantSpec, params_from_range
from labkit.errors import InputError
from labkit.frontends.float_run import run_float
from labkit.graph.ir import FloatGraph
from labkit.quantization.calibration import Calibration
from labkit.quantization.convert import convert
from labkit.quantization.inputs import only_input
from labkit.quantization.plan import BitPlan
from labkit.quantization.simulate import simulate_weights

__all__ = ["quantized_loss"]


def quantized_loss(
    graph: FloatGraph,
    calibration: Calibration,
    plan: BitPlan,
    x: NDArray[np.float32],
    labels: NDArray[np.integer] | None = None,
) -> Callable[[Mapping[str, tuple[float, float]]], float]:
    """A function from ranges (low, high) by tensor to the mean cross-entropy of the network with those ranges.

    Weights are rounded once; every call rounds the activations to their grids and runs the network in float.

    Parameters
    ----------
    graph : a simplified FloatGraph whose first output is logits [N, classes]
    calibration : any ranges of it, for the weights' biases
    plan : bits and grids
    x : float32 [N, ...], a few hundred images
    labels : integers [N]; None compares with the float network's own probabilities, for images without labels

    Raises
    ------
    InputError
        There are not as many labels as images, or the network takes several inputs.
    """
    if labels is not None and len(labels) != len(x):
        raise InputError(f"There must be one label for each image, got {len(labels)} labels for {len(x)} images.")
    source = only_input(graph, "A loss of ranges is")
    rounded_weights = simulate_weights(graph, convert(graph, calibration, plan))
    output = graph.outputs[0]
    exact = torch.from_numpy(run_float(graph, {source: x}, only_outputs=True)[output])
    target = torch.softmax(exact, 1) if labels is None else torch.as_tensor(np.asarray(labels, np.int64))

    def loss(ranges: Mapping[str, tuple[float, float]]) -> float:
        grids = {name: _grid(plan.activation_spec(name), ends) for name, ends in ranges.items()}

        def rounded(name: str, value: torch.Tensor) -> torch.Tensor:
            if name not in grids:
                return value
            spec, params = grids[name]
            scale, zero = float(params.scale), int(params.zero_point)
            return (value / scale).round_().clamp_(spec.qmin - zero, spec.qmax - zero).mul_(scale)

        logits = run_float(rounded_weights, {source: x}, rounded, only_outputs=True)[output]
        return float(F.cross_entropy(torch.from_numpy(logits), target))

    return loss


def _grid(spec: QuantSpec, ends: tuple[float, float]) -> tuple[QuantSpec, QParams]:
    return spec, params_from_range(*ends, spec)
