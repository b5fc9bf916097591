"""The loss around a layer's weights: where they are moved along a few directions, everything else staying as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.quantization.differentiable import dependents, layer_op, run_nodes
from labkit.sensitivity.objective import Objective

__all__ = ["grid", "losses_at"]

Values = NDArray[np.float64]


def grid(radius: float, count: int) -> tuple[Values, Values]:
    """``count`` places from -radius to radius, float64 [count], and all pairs of them, float64 [count * count, 2], x first."""
    places = np.linspace(-radius, radius, count)
    x, y = np.meshgrid(places, places)
    return places, np.stack([x.ravel(), y.ravel()], 1)


def losses_at(objective: Objective, layer: str, directions: Sequence[Values] | Values, points: Values) -> Values:
    """The loss of each image with the weights of ``layer`` at ``w + sum_k points[p, k] directions[k]``: float64 [P, N].

    Parameters
    ----------
    objective : network, images and targets
    layer : its name
    directions : float64 [K, n], each the layer's weights flattened
    points : float64 [P, K]
    """
    graph = objective.graph
    weight = layer_op(graph, layer).weight
    moves = np.asarray(points, np.float64) @ np.stack([np.ravel(one) for one in directions])
    after = dependents(graph, [layer])
    before = frozenset(node.name for node in graph) - after
    border = {name for node in graph if node.name in after for name in node.inputs} - after
    found = np.zeros((len(points), len(objective.images)))
    with torch.no_grad():
        for where in objective.chunks():
            whole = run_nodes(graph, {graph.inputs[0]: objective.images[where]}, needed=before)
            known = {name: whole[name] for name in border}
            for row, move in zip(found, moves, strict=True):
                moved = torch.from_numpy(weight + move.reshape(weight.shape).astype(weight.dtype))
                outputs = run_nodes(graph, known, {layer: moved}, needed=after)[graph.outputs[0]]
                row[where] = objective.losses(outputs, where).double().numpy()
    return found
