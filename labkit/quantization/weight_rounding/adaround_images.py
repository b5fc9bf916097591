"""AdaRound as published: batches of images, PyTorch's gradients, and if wanted the activation function in the loss."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.quantization.weight_rounding.gram import Layer
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.options import LayerHistory, RoundingOptions
from labkit.quantization.weight_rounding.problem import LayerProblem
from labkit.quantization.weight_rounding.relaxation import (
    GAMMA,
    ZETA,
    annealed_beta,
    decide,
    decided_levels,
    initial_variables,
)

__all__ = ["SoftWeights", "adaround_images", "apply_layer"]

Rows = NDArray[np.float64]

ITERATIONS, LEARNING_RATE = 1000, 0.01  # the paper takes 10,000 and 0.001


class SoftWeights:
    """The soft weights of one layer as a function of torch variables, ``variables`` float32 [O, K].

    weights : float64 [O, K], the original ones.
    grid : of the layer.
    shape : of the layer's weight.
    """

    def __init__(self, weights: Rows, grid: RowGrid, shape: tuple[int, ...]) -> None:
        down, up = grid.choices(weights)
        self.variables = _small(initial_variables(weights, grid)).requires_grad_()
        self._base, self._reach, self._shape = _small(grid.values(down)), _small(grid.values(up - down)), shape
        self._weights, self._grid = weights, grid

    def decisions(self) -> torch.Tensor:
        """The soft decision of each variable: float32 [O, K] in 0..1."""
        return (torch.sigmoid(self.variables) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def weight(self, decisions: torch.Tensor) -> torch.Tensor:
        """The layer's soft weight for ``decisions`` float32 [O, K]: float32 in the weight's own shape."""
        return (self._base + decisions * self._reach).reshape(self._shape)

    def penalty(self, decisions: torch.Tensor, beta: float) -> torch.Tensor:
        """``sum of 1 - |2 h - 1|^beta`` over ``decisions`` float32 [O, K]; a scalar."""
        return (1 - (2 * decisions - 1).abs().pow(beta)).sum()

    def levels(self) -> Rows:
        """The levels decided for: float64 [O, K]."""
        decided = decide(self.variables.detach().numpy().astype(np.float64))
        return decided_levels(self._weights, decided, self._grid)


def adaround_images(
    problem: LayerProblem, grid: RowGrid, options: RoundingOptions, seed: int
) -> tuple[Rows, LayerHistory]:
    """Levels by AdaRound on batches of images (Nagel et al. 2020, section 3.3).

    The error is summed over channels and a mean over images and places, to which lambda of the penalty refers.

    Parameters
    ----------
    problem : the layer
    grid : of its weights
    options : iterations, learning rate, batch size, lambda, warm-up, and whether the activation function is in the loss
    seed : of the batches

    Returns
    -------
    levels float64 [O, K], and the history: the output error of each batch
    """
    iterations = options.iterations or ITERATIONS
    soft = SoftWeights(problem.weights, grid, problem.op.weight.shape)
    optimizer = torch.optim.Adam([soft.variables], lr=options.learning_rate or LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    bias = None if problem.op.bias is None else torch.from_numpy(problem.op.bias)
    activation = problem.activation if options.with_activation else Activation.NONE
    losses, kept = np.empty(iterations), {}
    for step in range(iterations):
        if step in options.history:
            kept[step] = soft.decisions().detach().numpy().copy()
        chosen = torch.randint(len(problem.inputs), (options.batch_size,), generator=generator)
        decisions = soft.decisions()
        output = apply_layer(problem.op, problem.inputs[chosen], soft.weight(decisions), bias)
        gap = _activated(output, activation) - _activated(problem.target[chosen], activation)
        loss = gap.square().sum(1 if isinstance(problem.op, float_ops.Conv2d) else -1).mean()
        losses[step] = loss.item()
        beta = annealed_beta(step, iterations, options.warm_up)
        if beta is not None:
            loss = loss + options.regularization * soft.penalty(decisions, beta)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if iterations in options.history:
        kept[iterations] = soft.decisions().detach().numpy().copy()
    return soft.levels(), LayerHistory(losses, kept, soft.variables.detach().numpy().copy())


def apply_layer(op: Layer, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The layer ``op`` with another weight and bias, so that gradients reach these.

    Parameters
    ----------
    op : a convolution or linear layer
    x : float32 [N, ...]
    weight, bias : float32, of the shapes of ``op``'s own

    Returns
    -------
    float32 [N, ...], before the activation
    """
    if isinstance(op, float_ops.Linear):
        return F.linear(x, weight, bias)
    (top, bottom), (left, right) = op.padding
    if x.ndim == 3:  # a sequence is an image of height 1
        padded = F.pad(x.unsqueeze(2), (left, right, top, bottom))
        return F.conv2d(padded, weight, bias, op.stride, 0, op.dilation, op.groups).squeeze(2)
    padded = F.pad(x, (left, right, top, bottom)) if any((top, bottom, left, right)) else x
    return F.conv2d(padded, weight, bias, op.stride, 0, op.dilation, op.groups)


def _activated(value: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation is Activation.NONE:
        return value
    return F.relu(value) if activation is Activation.RELU else F.relu6(value)


def _small(values: Rows) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
