"""The error of every tensor of integer networks against the float network, summed up a few images at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.arithmetic.affine import dequantize
from labkit.frontends.float_run import run_float
from labkit.graph.ir import FloatGraph
from labkit.net import IntegerNet
from labkit.quantization.batches import image_batches
from labkit.quantization.plan import tensor_names

__all__ = ["BATCH", "sqnr_by_tensor"]

BATCH = 16  # images of 3 x 32 x 32 at a time, and fewer large ones: memory holds the tensors of one batch


def sqnr_by_tensor(
    graph: FloatGraph,
    nets: Mapping[str, IntegerNet],
    images: Any,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """``10 log10(sum r^2 / sum (r - r^)^2)`` in dB over all ``images``, by net and by tensor in running order.

    Parameters
    ----------
    graph : the float network, simplified
    nets : integer nets made from it, by name
    images : array or tensor [N, ...], or any iterable of them
    progress : called with the number of images done so far

    Returns
    -------
    a ratio for each tensor with a scale of its own: infinite where no element differs, minus infinite where the float
    tensor is 0 throughout and the integer one is not
    """
    power = dict.fromkeys(tensor_names(graph), 0.0)
    noise = {net: dict.fromkeys(power, 0.0) for net in nets}
    done = 0
    for batch in image_batches(images, BATCH):
        traces = {name: net.trace(batch) for name, net in nets.items()}

        def note(tensor: str, value: torch.Tensor, traces: Mapping[str, Mapping[str, Any]] = traces) -> torch.Tensor:
            if tensor in power:
                signal = value.numpy()
                power[tensor] += float(np.square(signal, dtype=np.float64).sum())
                for name, net in nets.items():
                    difference = signal - _real(net, tensor, traces[name][tensor])
                    noise[name][tensor] += float(np.square(difference, dtype=np.float64).sum())
            return value

        run_float(graph, {graph.inputs[0]: batch}, note, only_outputs=True)
        done += len(batch)
        if progress is not None:
            progress(done)
    return {name: {tensor: _decibel(power[tensor], found[tensor]) for tensor in power} for name, found in noise.items()}


def _real(net: IntegerNet, tensor: str, values: NDArray[np.generic]) -> NDArray[np.float32]:
    spec, params = net.graph[tensor].output.quantized
    return dequantize(values.astype(np.int32), params, spec)


def _decibel(power: float, noise: float) -> float:
    if noise == 0 or power == 0:
        return float("inf") if noise == 0 else float("-inf")
    return 10 * float(np.log10(power / noise))
