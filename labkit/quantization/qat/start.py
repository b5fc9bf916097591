"""Where fine-tuning begins: the float weights, or the weights that the best rounding would choose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan, observed_names
from labkit.quantization.qat.network import TrainableNet
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.qat.weights import starting_grid
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.options import RoundedWeights

__all__ = ["trainable"]

_INSIDE = 0.45  # of a step: how far from its level a weight may begin, so that it still rounds to it


def trainable(
    raw: FloatGraph,
    graph: FloatGraph,
    plan: BitPlan,
    calibration: Calibration,
    images: NDArray[np.float32],
    options: FineTuning,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainableNet:
    """The network as training finds it.

    Parameters
    ----------
    raw : the network as traced, batch norms in place
    graph : the same, simplified
    plan : bits and grids
    calibration : min-max ranges of ``images``
    images : float32 [M, ...], about 1,000
    options : which start, and which scales are learned
    progress : called with (step, done, total) while the best rounding works
    """
    if options.start == "best":
        tell = None if progress is None else partial(progress, "Round weights")
        best = round_weights(graph, calibration, plan, images, BEST_METHOD, BEST, options.seed, progress=tell)
        grids = {name: _row_grid(best, name) for name in best.weights}
        net = TrainableNet(raw, graph, plan, _ranges(graph, best.calibration), grids, options)
        for name in best.weights:
            if net.is_trained(name):
                _begin_at(net, best, name)
        return net
    grids = {}
    for node in graph:
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            grids[node.name] = starting_grid(node.op.weight, plan.weight_spec(node.name), options.wide_up_to)
    return TrainableNet(raw, graph, plan, _ranges(graph, calibration), grids, options)


def _ranges(graph: FloatGraph, calibration: Calibration) -> dict[str, tuple[float, float]]:
    return {name: calibration.ranges[name] for name in observed_names(graph)}


def _row_grid(best: RoundedWeights, name: str) -> RowGrid:
    weight = best.weights[name]
    return RowGrid(weight.spec, weight.params, len(weight.values))


def _begin_at(net: TrainableNet, best: RoundedWeights, name: str) -> None:
    """The float weights, each moved into the cell of the level that was chosen for it, and the bias that was found with them."""
    op = net.graph[name].op
    assert isinstance(op, float_ops.Conv2d | float_ops.Linear)
    chosen, grid = best.weights[name], _row_grid(best, name)
    rows = op.weight.reshape(len(op.weight), -1).astype(np.float64)
    levels = chosen.dequantized().reshape(rows.shape) / grid.scale
    moved = np.clip(rows / grid.scale, levels - _INSIDE, levels + _INSIDE) * grid.scale
    bias = best.layers[name].bias
    weight = torch.from_numpy(moved.astype(np.float32).reshape(op.weight.shape))
    net.set_folded(name, weight, torch.from_numpy(np.array(bias)))
