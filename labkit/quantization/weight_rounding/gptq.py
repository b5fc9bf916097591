"""GPTQ: round one weight after the other and let those still to come make up for the error (Frantar et al. 2022).

When the weight in column j is rounded with an error, the best change of the weights that are still free follows from
the inverse of G. With ``inv(G) = U^T U``, U upper triangular, all of these updates are rows of U (their section 3.3).
Columns of large G_jj go first: their errors cost most, and most weights are then still free to help.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.errors import QuantizationError
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.grids import RowGrid

__all__ = ["best_weights", "gptq"]

Rows = NDArray[np.float64]

DAMPING = 0.01  # of the mean of the diagonal
BLOCK = 128


def gptq(
    weights: Rows, grid: RowGrid, gram: Gram, damping: float = DAMPING, block: int = BLOCK, ordered: bool = True
) -> Rows:
    """Levels by GPTQ.

    Parameters
    ----------
    weights : float64 [O, K], what the levels shall stand for; `best_weights` for the asymmetric loss
    grid : where to
    gram : the layer's quadratic form; only its G is used
    damping : added to the diagonal of G, as a share of its mean
    block : columns whose updates of later columns are applied together, as one product of matrices
    ordered : columns in falling order of the diagonal of G, else as they stand

    Returns
    -------
    levels float64 [O, K]

    Raises
    ------
    QuantizationError
        G with its damping is not positive definite.
    """
    together = len(weights) // gram.groups
    levels = np.empty(weights.shape)
    for group, matrix in enumerate(gram.gram):
        rows = slice(group * together, (group + 1) * together)
        order = np.argsort(-matrix.diagonal(), kind="stable") if ordered else np.arange(len(matrix))
        damped = matrix[np.ix_(order, order)] + damping * matrix.diagonal().mean() * np.eye(len(matrix))
        try:
            factor = np.linalg.cholesky(np.linalg.inv(damped)).T
        except np.linalg.LinAlgError as error:
            raise QuantizationError(
                "GPTQ needs a positive definite matrix: raise damping (0.01 is usual), or add a ridge."
            ) from error
        part = (grid.scale[rows, 0], grid.low[rows, 0], grid.high[rows, 0], grid.step)
        levels[rows, order] = _round_columns(weights[rows][:, order], factor, *part, block)
    return levels


def best_weights(gram: Gram) -> Rows:
    """The real weights at which the loss of ``gram`` is least, ``r inv(G)``: float64 [O, K].

    They differ from the original weights where earlier layers' errors can be made up for.

    Raises
    ------
    QuantizationError
        Some G is singular: add a ridge.
    """
    grouped = gram.cross.reshape(gram.groups, -1, gram.cross.shape[1])
    try:
        solved = np.linalg.solve(gram.gram, grouped.transpose(0, 2, 1))
    except np.linalg.LinAlgError as error:
        raise QuantizationError("A layer's G is singular, so it has no one best weights: add a ridge.") from error
    return np.asarray(solved.transpose(0, 2, 1).reshape(gram.cross.shape), np.float64)


def _round_columns(weights: Rows, factor: Rows, scale: Rows, low: Rows, high: Rows, step: int, block: int) -> Rows:
    left, levels = weights.copy(), np.empty(weights.shape)
    for start in range(0, weights.shape[1], block):
        end = min(start + block, weights.shape[1])
        errors = np.empty((len(weights), end - start))
        for j in range(start, end):
            steps = np.rint((left[:, j] / scale - low) / step)
            levels[:, j] = np.clip(low + steps * step, low, high)
            errors[:, j - start] = (left[:, j] - levels[:, j] * scale) / factor[j, j]
            left[:, j:end] -= errors[:, j - start, None] * factor[j, j:end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return levels
