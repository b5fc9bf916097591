"""Gradient and Hessian of the task loss by all weights of one layer: what equation 13 of Nagel et al. 2020 rounds by.

The loss is the mean cross-entropy of the float network. Two exact ways lead to the same Hessian:

    double-backward   row i is the gradient of ``g_i``: one backward pass through the gradient's own graph for each weight
    jacobian          ``H = mean J^T (diag(p) - p p^T) J`` with J the derivatives of an image's logits and p its class
                      probabilities; one backward pass for each class

The second holds where logits are piecewise linear in the layer's weights, as they are where only convolutions, linear layers,
ReLU, pooling, sums and the like follow: the term that it leaves out, the logits' own second derivatives, is then zero. It does
not depend on the labels. Both see the loss at the weights themselves, and hence not the kinks of ReLU beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import InputError
from labkit.frontends.float_run import run_node
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.quantization.differentiable import bending_nodes, dependents, layer_windows, weight_slopes, with_dtype
from labkit.quantization.weight_rounding.adaround_images import apply_layer
from labkit.quantization.weight_rounding.gram import Layer
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.qubo import Qubo, hessian_qubo

__all__ = ["LARGEST_LAYER", "WAYS", "TaskHessian", "task_hessian"]

Rows = NDArray[np.float64]

WAYS = ("auto", "double-backward", "jacobian")
LARGEST_LAYER = 8192  # weights: their Hessian takes 512 MB

_IMAGES, _PROBES = 32, 64  # images, and rows of the Hessian, computed at a time


@dataclass(frozen=True, eq=False)
class TaskHessian:
    """The task loss around a layer's weights, to second order.

    gradient : float64 [n], first derivatives, weights flattened.
    hessian : float64 [n, n], second derivatives, symmetric.
    loss : the mean cross-entropy at the weights themselves, in nats.
    images : how many it is the mean over.
    """

    gradient: Rows
    hessian: Rows
    loss: float
    images: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "gradient", frozen_array(self.gradient, np.float64))
        object.__setattr__(self, "hessian", frozen_array(self.hessian, np.float64))

    def first_order(self, change: Rows) -> float:
        """``g . d``, the expected rise of the loss by ``change`` float64 (n numbers, any shape) to first order."""
        return float(self.gradient @ change.reshape(-1))

    def second_order(self, change: Rows) -> float:
        """``d H d / 2`` for ``change`` float64 (n numbers, any shape): the cost of equation 13, with its factor of 1/2."""
        flat = change.reshape(-1)
        return float(flat @ self.hessian @ flat / 2)

    def qubo(self, weights: Rows, grid: RowGrid, with_gradient: bool = False) -> tuple[Qubo, NDArray[np.intp]]:
        """The layer's rounding as a problem over bits, as `hessian_qubo` makes it.

        Parameters
        ----------
        weights : float64 [O, K], the original ones
        grid : of the layer
        with_gradient : keep the first order; the paper leaves it out, since it is about 0 in a trained network
        """
        return hessian_qubo(weights, grid, self.hessian, self.gradient if with_gradient else None)


def task_hessian(
    graph: FloatGraph,
    name: str,
    images: NDArray[np.float32],
    labels: NDArray[np.int64] | None = None,
    way: str = "auto",
    dtype: torch.dtype = torch.float64,
    progress: Callable[[int, int], None] | None = None,
) -> TaskHessian:
    """The expected gradient and Hessian of the cross-entropy with respect to the weights of one layer.

    Parameters
    ----------
    graph : a network of one input whose first output are logits [N, classes]
    name : of a convolution or linear layer
    images : float32 [N, ...]
    labels : int64 [N]; None for the classes that the network itself finds likeliest, which need no labelled data
    way : "double-backward" for any network; "jacobian", many times faster; "auto" for the faster one that is exact here
    dtype : torch.float64, or torch.float32 for half the time; sums over images are float64 always
    progress : called with how many images are done and how many there are

    Raises
    ------
    InputError
        There is no such layer or way, it has more than `LARGEST_LAYER` weights, images and labels do not fit, the output is
        not [N, classes], or "jacobian" is not exact for this network.
    """
    node = _checked(graph, name, images, labels, way)
    bent = bending_nodes(graph, name)
    if bent and way == "jacobian":
        raise InputError(
            f"{name}: logits are not piecewise linear in its weights, since {bent[0]!r} follows. Take way='double-backward'."
        )
    add = _add_double_backward if bent or way == "double-backward" else _add_jacobian
    split = _Split(with_dtype(graph, dtype), name, dependents(graph, [name]))
    size = node.op.weight.size  # type: ignore[union-attr]
    gradient, hessian, loss = np.zeros(size), np.zeros((size, size)), 0.0
    for start in range(0, len(images), _IMAGES):
        chunk = slice(start, start + _IMAGES)
        results = split.before(torch.from_numpy(np.array(images[chunk])).to(dtype))
        wanted = None if labels is None else torch.from_numpy(np.array(labels[chunk]))
        loss += add(split, results, wanted, gradient, hessian)
        if progress is not None:
            progress(min(start + _IMAGES, len(images)), len(images))
    hessian = (hessian + hessian.T) / 2  # both halves are rounded a little differently
    return TaskHessian(gradient / len(images), hessian / len(images), loss / len(images), len(images))


class _Split:
    """A network cut at the layer ``name``, whose ``dependents`` (itself included) come after its weights."""

    def __init__(self, graph: FloatGraph, name: str, dependents: frozenset[str]) -> None:
        self.graph, self.node = graph, graph[name]
        self.op: Layer = self.node.op  # type: ignore[assignment]
        self.dependents = dependents
        self.weight = torch.from_numpy(self.op.weight)
        self.bias = None if self.op.bias is None else torch.from_numpy(self.op.bias)

    def before(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """All results that do not depend on the layer's weights."""
        results: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for node in self.graph:
                if node.name in self.dependents:
                    continue
                inputs = [results[name] for name in node.inputs]
                results[node.name] = images if isinstance(node.op, float_ops.Input) else run_node(node, inputs)
        return results

    def layer(self, results: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
        """What the layer puts out with ``weight``, before its activation."""
        return apply_layer(self.op, results[self.node.inputs[0]], weight, self.bias)

    def logits(self, results: dict[str, torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] for what the layer puts out, differentiable in it.

        Raises
        ------
        InputError
            They have another shape.
        """
        activate = FloatNode(self.node.name, float_ops.Identity(), self.node.inputs, self.node.activation)
        found = {**results, self.node.name: run_node(activate, [output])}
        for node in self.graph:
            if node.name in self.dependents and node.name != self.node.name:
                found[node.name] = run_node(node, [found[name] for name in node.inputs])
        logits = found[self.graph.outputs[0]]
        if logits.ndim != 2 or not logits.is_floating_point():
            raise InputError(
                f"The task loss needs logits [N, classes] as the first output, {self.graph.outputs[0]!r} puts out "
                f"{list(logits.shape)} of {logits.dtype}."
            )
        return logits


def _add_double_backward(
    split: _Split, results: dict[str, torch.Tensor], labels: torch.Tensor | None, gradient: Rows, hessian: Rows
) -> float:
    """Add the sums over some images to ``gradient`` and ``hessian``; returns the sum of their losses."""
    weight = split.weight.clone().requires_grad_()
    logits = split.logits(results, split.layer(results, weight))
    labels = logits.detach().argmax(1) if labels is None else labels
    loss = F.cross_entropy(logits, labels, reduction="sum")
    slope = torch.autograd.grad(loss, weight, create_graph=True)[0].reshape(-1)
    gradient += slope.detach().double().numpy()
    for start in range(0, len(slope), _PROBES):
        probes = torch.eye(len(slope), dtype=slope.dtype)[start : start + _PROBES]
        rows = torch.autograd.grad(slope, weight, probes, retain_graph=True, is_grads_batched=True)[0]
        hessian[start : start + _PROBES] += rows.flatten(1).double().numpy()
    return float(loss.detach())


def _add_jacobian(
    split: _Split, results: dict[str, torch.Tensor], labels: torch.Tensor | None, gradient: Rows, hessian: Rows
) -> float:
    """As `_add_double_backward`, from the derivatives of each image's logits."""
    with torch.no_grad():
        output = split.layer(results, split.weight)
    output.requires_grad_()
    logits = split.logits(results, output)
    windows = layer_windows(split.op, results[split.node.inputs[0]])
    classes = logits.shape[1]
    jacobian = torch.empty(len(logits), classes, split.weight.numel(), dtype=logits.dtype)
    for label in range(classes):
        slopes = torch.autograd.grad(logits[:, label].sum(), output, retain_graph=label + 1 < classes)[0]
        jacobian[:, label] = weight_slopes(split.op, slopes, windows)
    with torch.no_grad():
        chance = logits.softmax(1)
        labels = logits.argmax(1) if labels is None else labels
        residual = chance - F.one_hot(labels, classes)
        gradient += torch.einsum("nc,ncw->w", residual, jacobian).double().numpy()
        # diag(p) - p p^T = S S^T with S = diag(sqrt p) - p sqrt(p)^T, so that H is a square and has no negative direction
        root = chance.sqrt()
        factor = root[:, :, None] * (jacobian - torch.einsum("nc,ncw->nw", chance, jacobian)[:, None])
        rows = factor.flatten(0, 1)
        hessian += (rows.T @ rows).double().numpy()
        return float(F.cross_entropy(logits, labels, reduction="sum"))


def _checked(
    graph: FloatGraph, name: str, images: NDArray[np.float32], labels: NDArray[np.int64] | None, way: str
) -> FloatNode:
    layers = [node.name for node in graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)]
    if name not in layers:
        raise InputError(f"There is no layer {name!r} with weights. Choose one of: {', '.join(layers)}.")
    if way not in WAYS:
        raise InputError(f"The way to a Hessian must be one of {', '.join(WAYS)}, got {way!r}.")
    size = graph[name].op.weight.size  # type: ignore[union-attr]
    if size > LARGEST_LAYER:
        raise InputError(
            f"{name}: a Hessian of {size} weights would take {8e-9 * size**2:.1f} GB; at most {LARGEST_LAYER} weights. "
            f"Take the local loss (collect_gram), whose matrix is as large as one row of weights."
        )
    if len(images) == 0 or (labels is not None and len(labels) != len(images)):
        got = f"{len(images)} images" + ("" if labels is None else f" and {len(labels)} labels")
        raise InputError(f"{name}: the task loss needs at least one image and one label for each, got {got}.")
    return graph[name]
