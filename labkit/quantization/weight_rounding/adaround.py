"""AdaRound on the quadratic form: gradient descent on soft decisions without an image in sight.

One step multiplies the soft weights by G, which gives the gradient of the output error of all samples at once; Adam
does the rest. The same loop, with other settings, is the plain sigmoid with the penalty, and the Hopfield method: a
sigmoid whose temperature falls, without a penalty (Nagel et al. 2020, section 5.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.jit import jit
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.options import LayerHistory
from labkit.quantization.weight_rounding.relaxation import (
    GAMMA,
    ZETA,
    annealed_beta,
    annealed_temperature,
    decide,
    decided_levels,
    initial_variables,
    rectified_sigmoid,
)

__all__ = ["HOPFIELD", "RECTIFIED", "SIGMOID", "Relaxation", "adaround", "adaround_loss"]

Rows = NDArray[np.float64]

ITERATIONS, LEARNING_RATE = 1000, 0.01


@dataclass(frozen=True)
class Relaxation:
    """Which h: its stretch ``zeta``, ``gamma``; whether its temperature falls (``anneals``), whether there is a ``penalty``.

    last_temperature, cooling : how far it falls from 1, and how (`annealed_temperature`).
    """

    zeta: float = ZETA
    gamma: float = GAMMA
    anneals: bool = False
    penalty: bool = True
    last_temperature: float = 0.05
    cooling: str = "geometric"

    def temperature(self, step: int, iterations: int) -> float:
        """T after ``step`` of ``iterations`` steps."""
        return annealed_temperature(step, iterations, self.last_temperature, self.cooling) if self.anneals else 1.0


RECTIFIED = Relaxation()
SIGMOID = Relaxation(1.0, 0.0)
HOPFIELD = Relaxation(1.0, 0.0, anneals=True, penalty=False)


def adaround(
    weights: Rows,
    grid: RowGrid,
    gram: Gram,
    relaxation: Relaxation = RECTIFIED,
    iterations: int = ITERATIONS,
    learning_rate: float = LEARNING_RATE,
    regularization: float = 0.01,
    warm_up: float = 0.2,
    keep: tuple[int, ...] = (),
) -> tuple[Rows, LayerHistory]:
    """Levels by AdaRound on the quadratic form.

    Parameters
    ----------
    weights : float64 [O, K], the original ones
    grid : of the layer
    gram : its quadratic form
    relaxation : which soft decision
    iterations, learning_rate : of Adam
    regularization : lambda, the weight of the penalty; the error is summed over channels and a mean over samples
    warm_up : the share of iterations without the penalty
    keep : iterations after which the soft decisions are kept (0: before the first)

    Returns
    -------
    levels float64 [O, K], and the history: the output error of each iteration's soft weights, the decisions asked for,
    and the variables
    """
    small = np.float32
    down, up = (np.ascontiguousarray(level, small) for level in grid.choices(weights))
    reach = np.ascontiguousarray((up - down) * grid.scale, small)  # what going up changes
    base = np.ascontiguousarray(down * grid.scale, small)
    variables = np.ascontiguousarray(initial_variables(weights, grid, relaxation.zeta, relaxation.gamma), small)
    first, second = np.zeros_like(variables), np.zeros_like(variables)
    soft, squashed = np.empty_like(variables), np.empty_like(variables)
    matrices, cross, energy = gram.gram.astype(small), gram.cross.astype(small), float(gram.energy.sum())
    losses, kept = np.empty(iterations), {}
    stretch = (small(relaxation.zeta - relaxation.gamma), small(relaxation.gamma))
    for step in range(iterations):
        temperature = relaxation.temperature(step, iterations)
        if step in keep:
            kept[step] = _decisions(variables, relaxation, temperature)
        _soften(soft, squashed, variables, base, reach, *stretch, small(temperature))
        half = (soft.reshape(len(matrices), -1, soft.shape[1]) @ matrices).reshape(soft.shape)
        half -= cross
        losses[step] = float(np.einsum("ok,ok->", half - cross, soft, dtype=np.float64)) + energy
        beta = annealed_beta(step, iterations, warm_up) if relaxation.penalty else None
        draw = (small(0), small(2)) if beta is None else (small(regularization), small(beta))
        told = (small(temperature), *draw, small(learning_rate))
        correction = (small(1 - 0.9 ** (step + 1)), small(1 - 0.999 ** (step + 1)))
        _adam(variables, first, second, squashed, half, reach, *stretch, *told, *correction)
    if iterations in keep:
        kept[iterations] = _decisions(variables, relaxation, relaxation.temperature(iterations, iterations))
    levels = decided_levels(weights, decide(variables.astype(np.float64)), grid)
    return levels, LayerHistory(losses, kept, variables)


def adaround_loss(
    variables: Rows, weights: Rows, grid: RowGrid, gram: Gram, regularization: float, beta: float | None
) -> tuple[float, Rows]:
    """The loss that `adaround` descends, and its gradient: the error of the soft weights, plus the penalty.

    Parameters
    ----------
    variables : float64 [O, K], V
    weights : float64 [O, K], the original ones
    grid : of the layer
    gram : its quadratic form
    regularization, beta : of the penalty; None for none

    Returns
    -------
    the loss, and its gradient float64 [O, K] with respect to ``variables``
    """
    down, up = grid.choices(weights)
    squashed = 1 / (1 + np.exp(-variables))
    stretched = squashed * (ZETA - GAMMA) + GAMMA
    h = np.clip(stretched, 0, 1)
    soft = grid.values(down + h * (up - down))
    loss, slope = float(gram.error(soft).sum()), 2 * gram.half_gradient(soft) * grid.values(up - down)
    if beta is not None:
        apart = 2 * h - 1
        loss += regularization * float((1 - np.abs(apart) ** beta).sum())
        slope -= regularization * beta * np.abs(apart) ** (beta - 1) * 2 * np.sign(apart)
    inside = (stretched > 0) & (stretched < 1)
    return loss, np.asarray(slope * np.where(inside, (ZETA - GAMMA) * squashed * (1 - squashed), 0), np.float64)


def _decisions(variables: NDArray[np.float32], relaxation: Relaxation, temperature: float) -> NDArray[np.float32]:
    soft = rectified_sigmoid(variables.astype(np.float64), relaxation.zeta, relaxation.gamma, temperature)
    return soft.astype(np.float32)


Small = NDArray[np.float32]


@jit
def _soften(
    soft: Small,
    squashed: Small,
    variables: Small,
    base: Small,
    reach: Small,
    width: np.float32,
    gamma: np.float32,
    temperature: np.float32,
) -> None:
    """``squashed`` = sigmoid(variables / temperature), ``soft`` = base + h * reach; all [O, K]."""
    one, zero = np.float32(1), np.float32(0)
    for row in range(soft.shape[0]):
        for k in range(soft.shape[1]):
            squashed[row, k] = one / (one + np.exp(-variables[row, k] / temperature))
            soft[row, k] = base[row, k] + min(max(squashed[row, k] * width + gamma, zero), one) * reach[row, k]


@jit
def _adam(
    variables: Small,
    first: Small,
    second: Small,
    squashed: Small,
    half: Small,
    reach: Small,
    width: np.float32,
    gamma: np.float32,
    temperature: np.float32,
    regularization: np.float32,
    beta: np.float32,
    rate: np.float32,
    correct_first: np.float32,
    correct_second: np.float32,
) -> None:
    """One step of Adam on ``variables`` [O, K], given half of the gradient with respect to the soft weights.

    This is `adaround_loss` element by element; float32 throughout, which is twice as fast.
    """
    one, zero, two = np.float32(1), np.float32(0), np.float32(2)
    keep_first, keep_second, tiny = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
    for row in range(variables.shape[0]):
        for k in range(variables.shape[1]):
            h = squashed[row, k] * width + gamma
            slope = zero
            if h > zero and h < one:
                slope = two * half[row, k] * reach[row, k]
                apart = two * h - one
                if regularization > zero and abs(apart) > np.float32(1e-6):
                    draw = regularization * beta * np.exp((beta - one) * np.log(abs(apart))) * two
                    slope -= draw if apart > zero else -draw
                slope *= width * squashed[row, k] * (one - squashed[row, k]) / temperature
            first[row, k] = keep_first * first[row, k] + (one - keep_first) * slope
            second[row, k] = keep_second * second[row, k] + (one - keep_second) * slope * slope
            update = (first[row, k] / correct_first) / (np.sqrt(second[row, k] / correct_second) + tiny)
            variables[row, k] -= rate * update
