"""The largest eigenvalues of a layer's Hessian block, exact for the given images, without a product with the Hessian.

Where nothing after a layer bends, its block is ``H = mean J^T S S^T J = B^T B`` with as many rows in B as there are images
times classes (J: derivatives of an image's outputs by the weights; S S^T: curvature of the loss by the outputs). ``B B^T`` is
small, has the same eigenvalues but 0, and an eigenvector u of it gives ``B^T u / sqrt(value)`` as one of H.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.sensitivity.objective import Objective
from labkit.sensitivity.slopes import Directions, output_slopes
from labkit.sensitivity.traces import is_piecewise_linear

__all__ = ["LayerCurvature", "layer_curvatures"]

_NUMBERS = 50_000_000  # of B at a time: 200 MB


@dataclass(frozen=True, eq=False)
class LayerCurvature:
    """What is known of the Hessian's block of one ``layer``.

    trace : of the block.
    values : float64 [k], its largest eigenvalues, largest first.
    vectors : float64 [k, n], unit eigenvectors.
    size : n, the layer's weights.
    """

    layer: str
    trace: float
    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    size: int


def layer_curvatures(objective: Objective, count: int = 1) -> Iterator[LayerCurvature]:
    """The ``count`` largest eigenvalues of each layer of ``objective``, layer by layer in running order.

    Raises
    ------
    InputError
        The outputs are not piecewise linear in the weights of a layer.
    """
    if bent := [name for name in objective.layers if not is_piecewise_linear(objective, name)]:
        raise InputError(f"The outputs bend in the weights of {bent[0]!r}: take top_eigenvalues.")
    width = len(objective.images) * objective.outputs.shape[1]
    group: list[str] = []
    sizes = dict(zip(objective.layers, objective.sizes.tolist(), strict=True))
    for name in objective.layers:
        if group and width * sum(sizes[one] for one in (*group, name)) > _NUMBERS:
            yield from _group(objective, group, count)
            group = []
        group.append(name)
    yield from _group(objective, group, count)


def _group(objective: Objective, layers: list[str], count: int) -> Iterator[LayerCurvature]:
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for part in output_slopes(replace(objective, layers=tuple(layers)), Directions("fisher")):
        gradients = part.gradients()
        rows[part.layer].append(gradients.reshape(-1, gradients.shape[-1]))
    for name in layers:
        factor = torch.cat(rows.pop(name))
        gram = (factor @ factor.T).double().numpy() / len(objective.images)
        values, vectors = np.linalg.eigh(gram)
        top = vectors[:, ::-1][:, :count].T  # [k, rows]
        found = torch.from_numpy(np.array(top)).to(factor.dtype) @ factor
        directions = found.double().numpy()
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        yield LayerCurvature(name, float(np.trace(gram)), values[::-1][:count].copy(), directions, factor.shape[1])
