"""Up or down as a number between 0 and 1: the pieces of AdaRound, and the way back from them to integers.

Each weight has one variable V. Its soft decision is the rectified sigmoid ``h(V) = clip(sigmoid(V / T) (zeta - gamma)
+ gamma, 0, 1)``, and the soft weight is ``scale * (down + h (up - down))``. The penalty ``1 - |2 h - 1|^beta`` draws
h to 0 or 1; beta falls from 20, where only values near 0 and 1 are drawn, to 2 (Nagel et al. 2020, section 3.3). Then
V >= 0 means up:

    V --decide--> up or down --decided_levels--> levels --RowGrid.tensor--> integers
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.simple import up_share

__all__ = [
    "GAMMA",
    "ZETA",
    "annealed_beta",
    "annealed_temperature",
    "decide",
    "decided_levels",
    "initial_variables",
    "penalty",
    "rectified_sigmoid",
    "soft_weights",
]

Rows = NDArray[np.float64]

ZETA, GAMMA = 1.1, -0.1  # the sigmoid is stretched over 0 and 1, so that h reaches both and its slope there is not 0
BETA_START, BETA_END = 20.0, 2.0


def rectified_sigmoid(variables: Rows, zeta: float = ZETA, gamma: float = GAMMA, temperature: float = 1.0) -> Rows:
    """Soft decisions h in 0..1.

    Parameters
    ----------
    variables : float64, any shape, V
    zeta, gamma : the stretch; 1 and 0 make it the plain sigmoid
    temperature : T; near 0 it is a step (Hopfield)

    Returns
    -------
    float64, the shape of ``variables``
    """
    squashed = 1 / (1 + np.exp(-np.clip(variables / temperature, -60, 60)))
    return np.asarray(np.clip(squashed * (zeta - gamma) + gamma, 0, 1), np.float64)


def initial_variables(weights: Rows, grid: RowGrid, zeta: float = ZETA, gamma: float = GAMMA) -> Rows:
    """The variables at which each soft weight is the weight itself: the inverse of the rectified sigmoid at `up_share`.

    A weight beyond an end of the grid has no choice, and its variable no effect.

    Parameters
    ----------
    weights : float64 [O, K]
    grid : of the layer
    zeta, gamma : the stretch

    Returns
    -------
    float64 [O, K]
    """
    share = np.clip(up_share(weights, grid), 1e-3, 1 - 1e-3)
    return np.asarray(-np.log((zeta - gamma) / (share - gamma) - 1), np.float64)


def annealed_beta(step: int, iterations: int, warm_up: float) -> float | None:
    """The exponent of the penalty after ``step`` of ``iterations`` steps: from 20 to 2 in a straight line.

    For the share ``warm_up`` of the steps there is no penalty: None.
    """
    progress = (step / iterations - warm_up) / max(1e-9, 1 - warm_up)
    return None if progress < 0 else BETA_END + (BETA_START - BETA_END) * (1 - min(progress, 1.0))


def annealed_temperature(step: int, iterations: int, last: float, cooling: str) -> float:
    """The temperature after ``step`` of ``iterations`` steps: from 1 to ``last``.

    ``cooling`` is "geometric" (by the same factor each step) or "linear".
    """
    progress = step / iterations
    return last**progress if cooling == "geometric" else 1 + (last - 1) * progress


def penalty(decisions: Rows, beta: float) -> float:
    """How undecided soft ``decisions`` (float64, any shape) are: the sum of ``1 - |2 h - 1|^beta``."""
    return float((1 - np.abs(2 * decisions - 1) ** beta).sum())


def soft_weights(weights: Rows, decisions: Rows, grid: RowGrid) -> Rows:
    """The weights between the lower and the upper choice that soft decisions stand for.

    Parameters
    ----------
    weights : float64 [O, K], the original ones, which say what the choices are
    decisions : float64 [O, K] in 0..1
    grid : of the layer

    Returns
    -------
    float64 [O, K]
    """
    down, up = grid.choices(weights)
    return grid.values(down + decisions * (up - down))


def decide(variables: Rows) -> NDArray[np.bool_]:
    """True for up where a variable (float64, any shape) is at least 0, which is h >= 1/2; the same shape."""
    return np.asarray(variables >= 0)


def decided_levels(weights: Rows, ups: NDArray[np.bool_], grid: RowGrid) -> Rows:
    """The levels that decisions stand for.

    Parameters
    ----------
    weights : float64 [O, K], the original ones, which say what the choices are
    ups : bool [O, K], True for the upper choice
    grid : of the layer

    Returns
    -------
    float64 [O, K], whole numbers
    """
    down, up = grid.choices(weights)
    return np.where(ups, up, down)
