"""Up or down for each weight as a quadratic problem over bits (QUBO), from the local loss or from the Hessian of the task loss.

With ``z`` in {0, 1}^n, 1 for up, and the change of weights ``a + b z``, both losses become ``z Q z + l . z + c``
(Nagel et al. 2020: the task loss after a Taylor expansion in section 3, the local loss in section 3.2). Weights
without a choice, beyond an end of the grid, are no variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import InputError
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.grids import RowGrid

__all__ = ["Qubo", "decisions_qubo", "hessian_qubo"]

Rows = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Qubo:
    """``energy(z) = z Q z + l . z + c`` for bits z.

    matrix : Q, float64 [n, n], symmetric.
    linear : l, float64 [n].
    constant : c.

    Raises
    ------
    InputError
        The shapes do not fit, or the matrix is not symmetric.
    """

    matrix: Rows
    linear: Rows
    constant: float = 0.0

    def __post_init__(self) -> None:
        size = len(self.linear)
        if self.matrix.shape != (size, size) or not np.allclose(self.matrix, self.matrix.T, rtol=1e-9, atol=0):
            raise InputError(
                f"A QUBO over {size} bits has a symmetric {size} x {size} matrix, got {list(self.matrix.shape)}. "
                f"Hand in (Q + Q.T) / 2: it has the same energies."
            )
        object.__setattr__(self, "matrix", frozen_array(self.matrix, np.float64))
        object.__setattr__(self, "linear", frozen_array(self.linear, np.float64))

    @property
    def size(self) -> int:
        """How many bits there are."""
        return len(self.linear)

    def energy(self, bits: NDArray[np.generic]) -> Rows:
        """The energy of ``bits`` [n], or of each of several, [m, n] (0 and 1, any dtype): float64, [] or [m]."""
        z = np.asarray(bits, np.float64)
        return np.asarray(((z @ self.matrix) * z).sum(-1) + z @ self.linear + self.constant, np.float64)


def decisions_qubo(weights: Rows, grid: RowGrid, gram: Gram, row: int) -> tuple[Qubo, NDArray[np.intp]]:
    """The local loss of one output channel over the decisions of its weights; the energy is the channel's squared error.

    Parameters
    ----------
    weights : float64 [O, K], the original ones
    grid : of the layer
    gram : its quadratic form
    row : the output channel

    Returns
    -------
    the problem, and which weights of the row its bits belong to (integers [n])
    """
    down, up = grid.choices(weights)
    matrix = gram.gram[row * gram.groups // len(weights)]
    start, gap = grid.values(down)[row], grid.values(up - down)[row]
    free = np.flatnonzero(gap)
    half = start @ matrix - gram.cross[row]
    constant = float((half - gram.cross[row]) @ start + gram.energy[row])
    return Qubo(matrix[np.ix_(free, free)] * np.outer(gap[free], gap[free]), 2 * half[free] * gap[free], constant), free


def hessian_qubo(
    weights: Rows, grid: RowGrid, hessian: Rows, gradient: Rows | None = None
) -> tuple[Qubo, NDArray[np.intp]]:
    """The task loss after a Taylor expansion, over the decisions of all weights of a layer together.

    The energy is ``g . d + d H d / 2`` for the change of weights d, the expected rise of the loss.

    Parameters
    ----------
    weights : float64 [O, K], the original ones
    grid : of the layer
    hessian : float64 [O * K, O * K], second derivatives of the task loss
    gradient : float64 [O * K], its first derivatives; None for a trained network, where they are about 0

    Returns
    -------
    the problem, and which of the flattened weights its bits belong to (integers [n])

    Raises
    ------
    InputError
        The Hessian is not symmetric or does not fit the weights.
    """
    if hessian.shape != (weights.size, weights.size):
        raise InputError(
            f"The Hessian of {weights.size} weights has that many rows and columns, got {list(hessian.shape)}."
        )
    down, up = grid.choices(weights)
    start, gap = (grid.values(down) - weights).reshape(-1), grid.values(up - down).reshape(-1)
    free = np.flatnonzero(gap)
    slope = hessian @ start + (0 if gradient is None else gradient)
    constant = float(start @ hessian @ start / 2 + (0 if gradient is None else gradient @ start))
    matrix = hessian[np.ix_(free, free)] * np.outer(gap[free], gap[free]) / 2
    return Qubo(matrix, slope[free] * gap[free], constant), free
