"""Products of the loss's Hessian with vectors, over the weights of one layer or of several, and the whole matrix of small ones.

The gradient is computed once with its own graph; each product is one backward pass through that graph (Pearlmutter 1994).
Everything before the first layer in question is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.quantization.differentiable import dependents, layer_op, run_nodes
from labkit.sensitivity.objective import Objective

__all__ = ["LARGEST_MATRIX", "HessianOperator", "check_small", "chosen_layers", "full_hessian", "random_signs"]

Vectors = NDArray[np.float64]

LARGEST_MATRIX = 500  # weights
_KEPT = 2**28  # bytes: larger gradient graphs are made again for every product

_Piece = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]  # gradients with their graph, and the weights


class HessianOperator:
    """``v -> H v`` for the weights of some layers: the diagonal block of one layer, or of several with what couples them.

    objective : its mean loss is differentiated.
    layers : names; None for all of the objective's. Their weights, flattened, stand one after the other.

    Raises
    ------
    InputError
        The objective has no such layer.
    """

    def __init__(self, objective: Objective, layers: Sequence[str] | None = None) -> None:
        self.objective = objective
        self.layers = chosen_layers(objective, layers)
        self._weights = [torch.from_numpy(layer_op(objective.graph, name).weight) for name in self.layers]
        sizes = [weight.numel() for weight in self._weights]
        self.size = sum(sizes)
        ends = np.cumsum([0, *sizes])
        self.slices = {name: slice(int(a), int(b)) for name, a, b in zip(self.layers, ends[:-1], ends[1:], strict=True)}
        graph = objective.graph
        self._after = dependents(graph, self.layers)
        self._border = {name for node in graph if node.name in self._after for name in node.inputs} - self._after
        before = frozenset(node.name for node in graph) - self._after
        self._known: list[tuple[slice, dict[str, torch.Tensor]]] = []
        with torch.no_grad():
            for where in objective.chunks():
                found = run_nodes(graph, {graph.inputs[0]: objective.images[where]}, needed=before)
                self._known.append((where, {name: found[name] for name in self._border}))
        self._pieces: list[_Piece] | None = None
        self._small: bool | None = None

    def gradient(self) -> Vectors:
        """The gradient of the mean loss: float64 [n]."""
        total = np.zeros(self.size)
        for slopes, _ in self._graphs():
            total += torch.cat([slope.detach().reshape(-1) for slope in slopes]).double().numpy()
        return total / len(self.objective.images)

    def products(self, vectors: Vectors) -> Vectors:
        """``H v`` for each of ``vectors`` float64 [K, n]: float64 [K, n]."""
        total = np.zeros(vectors.shape)
        dtype = self.objective.images.dtype
        for slopes, weights in self._graphs():
            curved = [(at, slope) for at, slope in enumerate(slopes) if slope.requires_grad]
            if not curved:  # the loss is linear in the weights
                continue
            for row, vector in enumerate(
                torch.from_numpy(vectors).to(dtype)
            ):  # batched, a pass takes longer on a processor
                parts = [
                    vector[where].reshape(weight.shape)
                    for where, weight in zip(self.slices.values(), weights, strict=True)
                ]
                found = torch.autograd.grad(
                    [slope for _, slope in curved],
                    weights,
                    [parts[at] for at, _ in curved],
                    retain_graph=True,
                    materialize_grads=True,
                )
                total[row] += torch.cat([part.reshape(-1) for part in found]).double().numpy()
        return total / len(self.objective.images)

    def __call__(self, vector: Vectors) -> Vectors:
        """``H v`` for one ``vector`` float64 [n]: float64 [n]."""
        return np.asarray(self.products(vector[None])[0])

    def _graphs(self) -> Iterator[_Piece]:
        if self._pieces is not None:
            yield from self._pieces
            return
        kept: list[_Piece] = []
        for where, known in self._known:
            weights = tuple(weight.clone().requires_grad_() for weight in self._weights)
            replaced = dict(zip(self.layers, weights, strict=True))
            with torch.enable_grad():
                found = run_nodes(self.objective.graph, known, replaced, needed=self._after)
                loss = self.objective.losses(found[self.objective.graph.outputs[0]], where).sum()
                slopes = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            if self._small is None:  # a gradient's graph holds each result a few times
                numbers = sum(result.numel() for result in found.values()) * len(self._known)
                self._small = 4 * numbers * loss.element_size() <= _KEPT
            if self._small:
                kept.append((slopes, weights))
            yield slopes, weights
        if self._small:
            self._pieces = kept


def full_hessian(objective: Objective, layers: Sequence[str] | None = None) -> Vectors:
    """The Hessian of the mean loss by the weights of ``layers`` (None: all of ``objective``), float64 [n, n].

    Raises
    ------
    InputError
        There are more than `LARGEST_MATRIX` weights.
    """
    names = chosen_layers(objective, layers)
    size = check_small(objective, names)
    matrix = HessianOperator(objective, names).products(np.eye(size))
    return (matrix + matrix.T) / 2  # both halves are rounded a little differently


def chosen_layers(objective: Objective, layers: Sequence[str] | None) -> tuple[str, ...]:
    """``layers`` in the order of ``objective``, all of them for None.

    Raises
    ------
    InputError
        The objective has no such layer, or none is named.
    """
    if layers is None:
        return objective.layers
    if unknown := [name for name in layers if name not in objective.layers]:
        raise InputError(f"There is no layer {unknown[0]!r} here. Choose from: {', '.join(objective.layers)}.")
    if not layers:
        raise InputError(f"At least one layer must be named. Choose from: {', '.join(objective.layers)}.")
    return tuple(name for name in objective.layers if name in layers)


def check_small(objective: Objective, layers: Sequence[str]) -> int:
    """The number of weights of ``layers`` of ``objective``, if a matrix with so many rows may be formed.

    Raises
    ------
    InputError
        There are more than `LARGEST_MATRIX`.
    """
    size = sum(layer_op(objective.graph, name).weight.size for name in layers)
    if size > LARGEST_MATRIX:
        raise InputError(
            f"A full matrix is formed for at most {LARGEST_MATRIX} weights, {', '.join(layers)} have {size}. Take fewer or "
            f"smaller layers, or what needs no matrix: layer_traces, top_eigenvalues, spectral_density, project_changes."
        )
    return size


def random_signs(generator: np.random.Generator, shape: tuple[int, ...]) -> Vectors:
    """Independent -1 and 1, drawn by ``generator``, each as likely as the other (Rademacher): float64 of ``shape``."""
    return np.asarray(generator.integers(0, 2, shape) * 2 - 1, np.float64)
