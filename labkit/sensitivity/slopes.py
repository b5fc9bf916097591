"""Per-image derivatives of a network's output, for all layers in one go and without forming a gradient where none is needed.

Let ``u`` be a direction in the output space of one image, f its output and w the weights of a layer whose output before the
activation is z. One backward pass for ``u`` gives the slopes ``d = (df/dz)^T u`` of every layer at once, and from them

    u . J dw        = <d, layer(x; dw)>          the layer is linear in its weights: one more forward pass of that layer
    J^T u           = d X^T                      X: the windows that the layer multiplies
    |J^T u|^2       = <d^T d, X^T X>             without the gradient, where there are fewer places than windows are long

All loss curvatures that are sums of squares (Gauss-Newton, Fisher) follow, exactly, with as many directions as there are
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from labkit.errors import InputError
from labkit.graph import float_ops
from labkit.quantization.differentiable import layer_op, layer_windows, run_nodes, weight_slopes
from labkit.quantization.weight_rounding.adaround_images import apply_layer
from labkit.sensitivity.hessian import random_signs
from labkit.sensitivity.objective import Objective, image_chunks

__all__ = ["DIRECTIONS", "Directions", "LayerSlopes", "output_slopes"]

DIRECTIONS = ("outputs", "fisher", "labels", "drawn", "probes")
_PASSES = 160  # images times directions worked on at a time

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Directions:
    """Which R directions in the output space [M] of each image to look along.

    kind : "outputs", the M unit vectors; "fisher", the M columns of the curvature's factor; "labels", the residual of the
        image's own target, R = 1; "drawn", residuals of targets drawn from the model's distribution; "probes", random
        combinations, with signs, of the columns of "fisher". Sums of squares over "drawn" or "probes" have those over
        "fisher" as their expectation.
    count : R, of "drawn" and "probes".
    seed : of "drawn" and "probes".

    Raises
    ------
    InputError
        There is no such kind, or the count is below 1.
    """

    kind: str = "fisher"
    count: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in DIRECTIONS:
            raise InputError(f"Directions must be one of {', '.join(DIRECTIONS)}, got {self.kind!r}.")
        if self.count < 1:
            raise InputError(f"There must be at least one direction, got {self.count}.")

    def number(self, outputs: int) -> int:
        """R for a network with so many ``outputs``."""
        return {"outputs": outputs, "fisher": outputs, "labels": 1}.get(self.kind, self.count)

    def of(self, objective: Objective, where: slice) -> torch.Tensor:
        """Float32 or float64 [N, M, R] for the images ``where`` of ``objective``."""
        outputs = objective.outputs[where]
        if self.kind == "outputs":
            return torch.eye(outputs.shape[1], dtype=outputs.dtype).expand(len(outputs), -1, -1)
        if self.kind == "labels":
            return objective.residuals(where)[:, :, None]
        factors = objective.curvature_factors(where)
        if self.kind == "fisher":
            return factors
        generator, scale = np.random.default_rng((self.seed, where.start)), float(self.count) ** -0.5
        if self.kind == "probes":
            signs = random_signs(generator, (len(outputs), outputs.shape[1], self.count)) * scale
            return factors @ torch.from_numpy(signs).to(outputs.dtype)
        if objective.loss == "squared-error":  # a target drawn around the output: its residual is the noise
            noise = generator.standard_normal((len(outputs), outputs.shape[1], self.count)) * scale
            return torch.from_numpy(noise).to(outputs.dtype)
        chance = outputs.double().softmax(1).numpy()
        ends = chance.cumsum(1)
        draws = generator.random((len(outputs), self.count))
        labels = (draws[:, :, None] > ends[:, None, :-1]).sum(2)  # [N, R]
        hits = labels[:, None] == np.arange(outputs.shape[1])[:, None]  # [N, M, R]
        return torch.from_numpy((chance[:, :, None] - hits) * scale).to(outputs.dtype)


@dataclass(frozen=True, eq=False)
class LayerSlopes:
    """Of one layer, for N images and R directions in output space.

    objective : what is differentiated.
    layer : its name.
    where : the N images, a slice of the objective's.
    inputs : what the layer takes, [N, ...], float32 or float64.
    slopes : derivatives by its output before the activation, [R, N, ...], of the same dtype.
    """

    objective: Objective
    layer: str
    where: slice
    inputs: torch.Tensor
    slopes: torch.Tensor

    def along(self, change: torch.Tensor) -> torch.Tensor:
        """``u . J dw`` [N, R] for ``change`` dw, of the weight's shape and dtype float32 or float64."""
        response = apply_layer(layer_op(self.objective.graph, self.layer), self.inputs, change, None)
        return torch.einsum("rnz,nz->nr", self.slopes.flatten(2), response.flatten(1))

    def gradients(self) -> torch.Tensor:
        """``J^T u`` [N, R, n], float32 or float64, n weights."""
        op = layer_op(self.objective.graph, self.layer)
        windows = layer_windows(op, self.inputs)
        return torch.stack([weight_slopes(op, part, windows) for part in self.slopes], 1)

    def squared_norms(self) -> torch.Tensor:
        """The sum over directions of ``|J^T u|^2``: float64 [N]."""
        op = layer_op(self.objective.graph, self.layer)
        windows = layer_windows(op, self.inputs)  # [N, G, K, P]
        _, groups, length, places = windows.shape
        slopes = self.slopes.movedim(0, 1)  # [N, R, ...]
        if isinstance(op, float_ops.Linear):
            placed = (
                slopes.reshape(*slopes.shape[:2], -1, slopes.shape[-1]).permute(0, 1, 3, 2).flatten(1, 2).unsqueeze(1)
            )
        else:
            flat = slopes.flatten(3)
            placed = flat.reshape(*flat.shape[:2], groups, -1, flat.shape[3]).movedim(2, 1).flatten(2, 3)
        rows = placed.shape[2]  # [N, G, R O / G, P]
        if places * (length + rows) < rows * length:
            products = (placed.transpose(2, 3) @ placed) * (windows.transpose(2, 3) @ windows)
            return products.flatten(1).double().sum(1)
        return (placed @ windows.transpose(2, 3)).flatten(1).double().square().sum(1)


def output_slopes(objective: Objective, wanted: Directions, progress: Progress | None = None) -> Iterator[LayerSlopes]:
    """The slopes of each layer for some images, then for the next, until all images have had their turn.

    Parameters
    ----------
    objective : network, layers and images
    wanted : the directions
    progress : called with how many images are done and how many there are
    """
    graph, source = objective.graph, objective.graph.inputs[0]
    width = wanted.number(objective.outputs.shape[1])
    for where in image_chunks(objective.images, max(1, _PASSES // width)):
        along = wanted.of(objective, where).permute(2, 0, 1)  # [R, N, M]
        with torch.enable_grad():
            sums: dict[str, torch.Tensor] = {}
            found = run_nodes(graph, {source: objective.images[where]}, sums=sums)
            tops = [sums[name] for name in objective.layers]
            slopes = torch.autograd.grad(
                found[graph.outputs[0]], tops, along, is_grads_batched=True, materialize_grads=True
            )
        for name, part in zip(objective.layers, slopes, strict=True):
            yield LayerSlopes(objective, name, where, found[graph[name].inputs[0]].detach(), part)
        if progress is not None:
            progress(where.stop, len(objective.images))
