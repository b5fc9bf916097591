"""`Objective`: the mean loss of a network over some images, as a function of the weights of its layers.

The loss of an image is ``-log p(y | f)`` with f the network's output (Chen et al. 2021, supplement, section 3):

    cross-entropy   p = softmax(f), y a class
    squared-error   p = normal distribution around f with variance 1: ``|y - f|^2 / 2``, less a constant

Without labels the network's own answers stand in: the likeliest class, or the output itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import nn

from labkit.errors import InputError
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.quantization.differentiable import layer_names, layer_op, run_nodes, with_dtype

__all__ = ["LOSSES", "Objective", "image_chunks", "make_objective"]

LOSSES = ("cross-entropy", "squared-error")
CHUNK = 32  # images worked on at a time, of 3 x 32 x 32 numbers; fewer of larger ones


@dataclass(frozen=True, eq=False)
class Objective:
    """A network, images and targets. `make_objective` checks them and makes one.

    graph : the float network, its parameters of the dtype of ``images``.
    layers : the layers whose weights are looked at, in running order.
    images : float32 or float64 [N, ...].
    targets : int64 [N] classes, or [N, M] real numbers of the images' dtype.
    outputs : [N, M], what the float network puts out for the images.
    loss : one of `LOSSES`.
    labels : where the targets come from: "given", "predicted" or "drawn".
    """

    graph: FloatGraph
    layers: tuple[str, ...]
    images: torch.Tensor
    targets: torch.Tensor
    outputs: torch.Tensor
    loss: str
    labels: str = "given"

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of weights of each layer, int64 [L]."""
        return np.array([layer_op(self.graph, name).weight.size for name in self.layers], np.int64)

    def chunks(self) -> Iterator[slice]:
        """Which images to work on at a time."""
        return image_chunks(self.images)

    def losses(self, outputs: torch.Tensor, where: slice = slice(None)) -> torch.Tensor:
        """The loss [N] of each image of ``where`` for ``outputs`` [N, M], both float32 or float64."""
        targets = self.targets[where]
        if self.loss == "cross-entropy":
            return F.cross_entropy(outputs, targets, reduction="none")
        return (outputs - targets).square().sum(1) / 2

    def divergences(self, outputs: torch.Tensor, where: slice = slice(None)) -> torch.Tensor:
        """How far ``outputs`` [N, M] are from the float network's, for each image of ``where``: [N] float32 or float64.

        The Kullback-Leibler divergence of the two distributions p(y | f); it needs no labels.
        """
        own = self.outputs[where]
        if self.loss == "cross-entropy":
            exact = own.log_softmax(1)
            return (exact.exp() * (exact - outputs.log_softmax(1))).sum(1)
        return (outputs - own).square().sum(1) / 2

    def residuals(self, where: slice = slice(None)) -> torch.Tensor:
        """``-d log p / df`` of the images ``where``: probabilities less the label's one, or output less target.

        [N, M], float32 or float64.
        """
        outputs, targets = self.outputs[where], self.targets[where]
        if self.loss == "cross-entropy":
            return outputs.softmax(1) - F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        return outputs - targets

    def curvatures(self, where: slice = slice(None)) -> torch.Tensor:
        """The second derivative of the loss of the images ``where`` by the output: diag(p) - p p^T, or the unit matrix.

        [N, M, M], float32 or float64.
        """
        outputs = self.outputs[where]
        if self.loss == "cross-entropy":
            chance = outputs.softmax(1)
            return torch.diag_embed(chance) - chance[:, :, None] * chance[:, None, :]
        return torch.eye(outputs.shape[1], dtype=outputs.dtype).expand(len(outputs), -1, -1)

    def curvature_factors(self, where: slice = slice(None)) -> torch.Tensor:
        """S [N, M, M], float32 or float64, with S S^T the `curvatures` of the images ``where``.

        Column c is ``sqrt(p_c) (e_c - p)``, the gradient of log p(c) by the output times the root of the chance of c: the
        expectation over the model's own labels is a sum over the columns.
        """
        if self.loss == "cross-entropy":
            chance = self.outputs[where].softmax(1)
            roots = chance.sqrt()
            return torch.diag_embed(roots) - chance[:, :, None] * roots[:, None, :]
        return self.curvatures(where)

    def drawn_targets(self, seed: int) -> torch.Tensor:
        """Targets drawn, with ``seed``, from the model's own distribution: int64 [N] classes, or float32 or float64 [N, M]."""
        generator = torch.Generator().manual_seed(seed)
        if self.loss == "cross-entropy":
            return torch.multinomial(self.outputs.softmax(1), 1, generator=generator)[:, 0]
        noise = torch.randn(self.outputs.shape, generator=generator, dtype=torch.float64)
        return self.outputs + noise.to(self.outputs.dtype)

    def with_labels(self, labels: str, seed: int = 0) -> Objective:
        """The same with other targets.

        Parameters
        ----------
        labels : "given" for those there are, "predicted" for the network's own answers, "drawn" from its distribution
        seed : of what is drawn

        Raises
        ------
        InputError
            There is no such choice, or no labels were given.
        """
        if labels == self.labels != "drawn":
            return self
        if labels == "predicted":
            own = self.outputs.argmax(1) if self.loss == "cross-entropy" else self.outputs
            return replace(self, targets=own, labels=labels)
        if labels == "drawn":
            return replace(self, targets=self.drawn_targets(seed), labels=labels)
        if labels == "given":
            raise InputError(f"The labels here are {self.labels}: hand in the images' labels to compare with them.")
        raise InputError(f"labels must be one of given, predicted, drawn, got {labels!r}.")


def make_objective(
    network: FloatGraph | nn.Module,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    loss: str = "cross-entropy",
    layers: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Objective:
    """The mean loss of a network, to be differentiated by its weights.

    Parameters
    ----------
    network : a FloatGraph of one input whose first output is [N, M], or a module, which is translated and simplified
    images : real numbers [N, ...]
    labels : integers [N]; for "squared-error" real numbers [N, M]; None for the network's own answers
    loss : one of `LOSSES`
    layers : names of layers; None for all
    dtype : torch.float32, or torch.float64 for twice the time and exact small numbers

    Raises
    ------
    InputError
        Something of this does not fit together.
    """
    if loss not in LOSSES:
        raise InputError(f"The loss must be one of {', '.join(LOSSES)}, got {loss!r}.")
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
    x = torch.from_numpy(_array(images)).to(dtype)
    if len(x) == 0:
        raise InputError("The loss needs at least one image.")
    graph = simplify(from_torch(network, tuple(x.shape[1:]))) if isinstance(network, nn.Module) else network
    graph = with_dtype(graph, dtype)
    known = layer_names(graph)
    if unknown := [name for name in layers or () if name not in known]:
        raise InputError(f"There is no layer {unknown[0]!r} with weights. Choose from: {', '.join(known)}.")
    chosen = known if layers is None else tuple(name for name in known if name in layers)
    if not chosen:
        raise InputError("The network has no convolution and no linear layer, so there are no weights to look at.")
    _check_input(graph, x)
    outputs = _outputs(graph, x)
    objective = Objective(graph, chosen, x, outputs, outputs, loss, "none")
    if labels is None:
        return objective.with_labels("predicted")
    return replace(objective, targets=_targets(_array(labels), outputs, loss), labels="given")


def image_chunks(images: torch.Tensor, size: int = CHUNK) -> Iterator[slice]:
    """Pieces of ``images`` float32 or float64 [N, ...], of ``size`` images of 3 x 32 x 32 numbers or fewer larger ones."""
    step = max(1, min(size, size * 3072 // max(1, images[0].numel())))
    for start in range(0, len(images), step):
        yield slice(start, min(start + step, len(images)))


def _array(values: Any) -> NDArray[Any]:
    """A copy of ``values``, which may be a tensor, that torch may write to."""
    return np.array(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def _check_input(graph: FloatGraph, x: torch.Tensor) -> None:
    if len(graph.inputs) != 1:
        raise InputError(f"The network must have one input, got {len(graph.inputs)}: {', '.join(graph.inputs)}.")
    op = graph[graph.inputs[0]].op
    assert isinstance(op, float_ops.Input)
    if op.kind is not float_ops.InputKind.REAL:
        raise InputError(f"The network must take real numbers, {graph.inputs[0]!r} is an {op.kind.value}.")
    if tuple(x.shape[1:]) != tuple(op.shape):
        raise InputError(f"The images have shape {tuple(x.shape[1:])}, the network takes {tuple(op.shape)}.")


def _outputs(graph: FloatGraph, x: torch.Tensor) -> torch.Tensor:
    name, parts = graph.outputs[0], []
    with torch.no_grad():
        for where in image_chunks(x):
            parts.append(run_nodes(graph, {graph.inputs[0]: x[where]})[name])
    outputs = torch.cat(parts)
    if outputs.ndim != 2 or not outputs.is_floating_point() or isinstance(graph[name].op, float_ops.Softmax):
        raise InputError(
            f"The loss needs the real outputs [N, M] of a layer, {name!r} ({type(graph[name].op).__name__}) puts out "
            f"{list(outputs.shape)} of {outputs.dtype}. Hand in the network up to its logits."
        )
    return outputs


def _targets(labels: NDArray[np.generic], outputs: torch.Tensor, loss: str) -> torch.Tensor:
    count, width = outputs.shape
    if loss == "squared-error":
        if labels.shape != (count, width):
            raise InputError(f"Targets must be real numbers {(count, width)} as the outputs are, got {labels.shape}.")
        return torch.from_numpy(labels).to(outputs.dtype)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"There must be one integer label for each of {count} images, got {labels.dtype} {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= width:
        raise InputError(f"Labels must be 0..{width - 1}, got {labels.min()}..{labels.max()}.")
    return torch.from_numpy(labels.astype(np.int64))
