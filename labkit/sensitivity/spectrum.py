"""The spectral density of a symmetric operator by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

For a random unit vector v, m steps of Lanczos give m nodes and weights that integrate the density seen by v exactly for
polynomials up to degree 2 m - 1. The mean over several v estimates the density of all eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.sensitivity.eigenvalues import lanczos
from labkit.sensitivity.hessian import HessianOperator, random_signs
from labkit.sensitivity.objective import Objective

__all__ = ["SpectralDensity", "hessian_density", "spectral_density"]

Vectors = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """Nodes and weights of each of k starting vectors.

    nodes : k arrays, float64 [m].
    weights : k arrays, float64 [m], positive, their sum 1.
    size : n, the number of eigenvalues.
    """

    nodes: tuple[Vectors, ...]
    weights: tuple[Vectors, ...]
    size: int

    def moment(self, power: int) -> tuple[float, float]:
        """The mean of the eigenvalues to the ``power``, ``trace(A^power) / n``, and its standard error over starts."""
        found = np.array([float(w @ x**power) for x, w in zip(self.nodes, self.weights, strict=True)])
        return float(found.mean()), float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0

    def density(self, at: Vectors, width: float) -> Vectors:
        """The density at the places ``at`` float64 [g], each node a normal distribution of standard deviation ``width``.

        Float64 [g]; it integrates to 1.

        Raises
        ------
        InputError
            The width is not positive.
        """
        if not width > 0:
            raise InputError(f"The width of the nodes must be positive, got {width}.")
        total = np.zeros(len(at))
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            bells = np.exp(-np.square((at[:, None] - nodes) / width) / 2) / (width * np.sqrt(2 * np.pi))
            total += bells @ weights
        return total / len(self.nodes)

    def grid(self, points: int = 1000, width: float | None = None) -> tuple[Vectors, float]:
        """``points`` places that cover all nodes, float64 [points], and a ``width`` that suits them (None: 1 % of the range)."""
        low, high = min(float(x.min()) for x in self.nodes), max(float(x.max()) for x in self.nodes)
        width = width or max(0.01 * (high - low), 1e-12)
        return np.linspace(low - 5 * width, high + 5 * width, points), width


def spectral_density(
    product: Callable[[Vectors], Vectors],
    size: int,
    starts: int = 8,
    steps: int = 40,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SpectralDensity:
    """The density of the eigenvalues of A.

    Parameters
    ----------
    product : v -> A v, float64 [n]
    size : n
    starts : random vectors, k, with entries -1 and 1
    steps : of Lanczos for each
    seed : of the vectors
    progress : called with how many products are done and how many there are

    Raises
    ------
    InputError
        There is no start or no step.
    """
    if starts < 1 or steps < 1:
        raise InputError(f"The density needs at least one start and one step, got {starts} and {steps}.")
    nodes, weights = [], []
    for index in range(starts):
        start = random_signs(np.random.default_rng((seed, index)), (size,))
        tell = (
            None
            if progress is None
            else (lambda done, most, tell=progress, at=index: tell(at * most + done, starts * most))
        )
        values, vectors = lanczos(product, start, steps, tell).ritz()
        nodes.append(values)
        weights.append(np.square(vectors[0]))
    return SpectralDensity(tuple(nodes), tuple(weights), size)


def hessian_density(
    objective: Objective,
    layers: Sequence[str] | None = None,
    starts: int = 8,
    steps: int = 40,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SpectralDensity:
    """The density of the Hessian's eigenvalues over the weights of some layers.

    Parameters
    ----------
    objective : its mean loss
    layers : names; None for all, with what couples them
    starts, steps, seed, progress : as for `spectral_density`

    Raises
    ------
    InputError
        The objective has no such layer, or there is no start or no step.
    """
    operator = HessianOperator(objective, layers)
    return spectral_density(operator, operator.size, starts, steps, seed, progress)
