"""Eigenvalues of a symmetric operator that is only known by its products with vectors.

Power iteration with deflation finds the eigenvalues of largest magnitude one after another. Lanczos finds several at once from
far fewer products, here with full reorthogonalisation: without it, rounding brings converged eigenvalues back as copies (Golub
and Van Loan 2013, section 10.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.sensitivity.hessian import HessianOperator
from labkit.sensitivity.objective import Objective

__all__ = ["Eigenpairs", "Krylov", "lanczos", "lanczos_eigenvalues", "power_iteration", "top_eigenvalues"]

Vectors = NDArray[np.float64]
Product = Callable[[Vectors], Vectors]
Progress = Callable[[int, int], None]

METHODS = ("lanczos", "power")


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues of largest magnitude.

    values : float64 [k], by magnitude, largest first.
    vectors : float64 [k, n], of length 1.
    residuals : float64 [k], ``|A v - value v|``: an eigenvalue lies within this distance of the value.
    products : how many products with vectors it took.
    """

    values: Vectors
    vectors: Vectors
    residuals: Vectors
    products: int


@dataclass(frozen=True, eq=False)
class Krylov:
    """What m steps of Lanczos leave: ``A Q^T = Q^T T`` but for the last column.

    diagonal : float64 [m], of T.
    beside : float64 [m - 1], beside its diagonal.
    basis : float64 [m, n], Q, orthonormal rows.
    last : length of the next, unmade row: 0 where the basis spans an invariant space.
    """

    diagonal: Vectors
    beside: Vectors
    basis: Vectors
    last: float

    def ritz(self) -> tuple[Vectors, Vectors]:
        """Eigenvalues of T, float64 [m], ascending, and its eigenvectors, float64 [m, m], as columns."""
        matrix = np.diag(self.diagonal) + np.diag(self.beside, 1) + np.diag(self.beside, -1)
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors


def lanczos(product: Product, start: Vectors, steps: int, progress: Progress | None = None) -> Krylov:
    """At most ``steps`` steps of Lanczos; fewer where the space that they span is invariant.

    Parameters
    ----------
    product : v -> A v, float64 [n]
    start : float64 [n], any length but 0
    steps : products to make
    progress : called after each product with how many are done and how many there are at most

    Raises
    ------
    InputError
        There is no step to make, or the start is 0.
    """
    length = float(np.linalg.norm(start))
    if steps < 1 or not length > 0:
        raise InputError(f"Lanczos needs at least one step and a start that is not 0, got {steps} and length {length}.")
    steps = min(steps, len(start))
    basis, diagonal, beside = [start / length], [], []
    largest = last = 0.0
    for step in range(steps):
        after = product(basis[-1])
        diagonal.append(float(after @ basis[-1]))
        done = np.stack(basis)
        for _ in range(2):  # once leaves a share of the rounding errors in, twice is enough
            after = after - done.T @ (done @ after)
        last = float(np.linalg.norm(after))
        largest = max(largest, abs(diagonal[-1]), last)
        if progress is not None:
            progress(step + 1, steps)
        if last <= 1e-10 * largest:  # beside float64 products of this size it is rounding, no new direction
            last = 0.0
            break
        if step + 1 < steps:
            beside.append(last)
            basis.append(after / last)
    if progress is not None:
        progress(steps, steps)
    return Krylov(np.array(diagonal), np.array(beside), np.stack(basis), last)


def lanczos_eigenvalues(
    product: Product, size: int, count: int = 1, steps: int = 40, seed: int = 0, progress: Progress | None = None
) -> Eigenpairs:
    """The ``count`` eigenvalues of largest magnitude, by one run of Lanczos from a random start.

    Parameters
    ----------
    product : v -> A v, float64 [n]
    size : n
    count : how many; an eigenvalue that several vectors share is found once
    steps : products to make
    seed : of the start
    progress : as for `lanczos`

    Raises
    ------
    InputError
        More eigenvalues are asked for than there are steps or than the space has.
    """
    if not 1 <= count <= min(steps, size):
        raise InputError(f"count must be 1..{min(steps, size)} for {steps} steps and size {size}, got {count}.")
    found = lanczos(product, np.random.default_rng(seed).standard_normal(size), steps, progress)
    values, vectors = found.ritz()
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    residuals = found.last * np.abs(vectors[-1, order])
    return Eigenpairs(values[order], vectors[:, order].T @ found.basis, residuals, len(found.diagonal))


def power_iteration(
    product: Product,
    size: int,
    count: int = 1,
    iterations: int = 100,
    tolerance: float = 1e-6,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The ``count`` eigenvalues of largest magnitude, one after another, each orthogonal to those before it.

    Parameters
    ----------
    product : v -> A v, float64 [n]
    size : n
    count : how many
    iterations : products for each at most
    tolerance : stop where the residual is below this share of the eigenvalue
    seed : of the starts
    progress : called with how many eigenvalues are done and how many there are

    Raises
    ------
    InputError
        More eigenvalues are asked for than the space has, or no iteration.
    """
    if not 1 <= count <= size or iterations < 1:
        raise InputError(f"count must be 1..{size} and iterations at least 1, got {count} and {iterations}.")
    generator, made = np.random.default_rng(seed), 0
    values, residuals, known = np.zeros(count), np.zeros(count), np.zeros((0, size))

    def deflated(vector: Vectors) -> Vectors:
        for _ in range(2):
            vector = vector - known.T @ (known @ vector)
        return vector

    for index in range(count):
        vector = deflated(generator.standard_normal(size))
        vector /= np.linalg.norm(vector)
        for _ in range(iterations):
            after = deflated(product(vector))
            made += 1
            values[index] = float(vector @ after)
            residuals[index] = float(np.linalg.norm(after - values[index] * vector))
            length = float(np.linalg.norm(after))
            if residuals[index] <= tolerance * abs(values[index]) or length == 0:
                break
            vector = after / length
        known = np.concatenate([known, vector[None]])
        if progress is not None:
            progress(index + 1, count)
    order = np.argsort(-np.abs(values), kind="stable")
    return Eigenpairs(values[order], known[order], residuals[order], made)


def top_eigenvalues(
    objective: Objective,
    layers: Sequence[str] | None = None,
    count: int = 1,
    method: str = "lanczos",
    iterations: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The eigenvalues of largest magnitude of the Hessian by the weights of some layers.

    Parameters
    ----------
    objective : its mean loss
    layers : names; None for all, with what couples them
    count : how many
    method : "lanczos", or "power" with deflation
    iterations : products for Lanczos in all, for power iteration with each eigenvalue; None for 20 + 4 count and 100
    seed : of the starts
    progress : called with what is done and what there is

    Raises
    ------
    InputError
        There is no such method or layer, or too many eigenvalues are asked for.
    """
    if method not in METHODS:
        raise InputError(f"The method must be one of {', '.join(METHODS)}, got {method!r}.")
    operator = HessianOperator(objective, layers)
    if method == "power":
        return power_iteration(operator, operator.size, count, iterations or 100, seed=seed, progress=progress)
    return lanczos_eigenvalues(operator, operator.size, count, iterations or 20 + 4 * count, seed, progress)
