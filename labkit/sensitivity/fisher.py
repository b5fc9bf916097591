"""Fisher, Gauss-Newton and empirical Fisher matrix: three sums of squares that are often taken for one another.

With g_y the gradient of ``log p(y | x)`` by the weights, J the derivatives of an image's outputs and A = S S^T the second
derivatives of its loss by the outputs (Chen et al. 2021, supplement, equations 5, 6 and 9 to 11):

    true           mean of  E[g_y g_y^T], y from the model's own distribution: an exact sum over the classes
    gauss-newton   mean of  J^T A J
    empirical      mean of  g_y g_y^T, y the image's target
    drawn          the same, with targets drawn from the model: the true one on average

For softmax with cross-entropy and for least squares the first two are equal, and equal the Hessian of one layer where the
outputs are piecewise linear in its weights. The empirical one is something else: it tends to 0 faster than the
Hessian as the targets are fitted (Kunstner, Balles and Hennig 2019), unless targets are really distributed as the model says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.sensitivity.hessian import check_small, chosen_layers
from labkit.sensitivity.objective import Objective
from labkit.sensitivity.slopes import Directions, output_slopes

__all__ = ["KINDS", "fisher_diagonals", "fisher_matrix", "fisher_traces", "output_jacobian", "sample_gradients"]

Values = NDArray[np.float64]
Progress = Callable[[int, int], None]

KINDS = ("true", "gauss-newton", "empirical", "drawn")


def output_jacobian(objective: Objective, layers: Sequence[str] | None = None) -> Values:
    """The derivatives of each image's outputs by the weights of ``layers`` (None: all of ``objective``), float64 [N, M, n].

    Raises
    ------
    InputError
        There are more weights than a full matrix is formed for.
    """
    return _gradients(objective, Directions("outputs"), layers)


def sample_gradients(objective: Objective, layers: Sequence[str] | None = None) -> Values:
    """The gradient of each image's own loss by the weights of ``layers`` (None: all of ``objective``), float64 [N, n].

    Raises
    ------
    InputError
        There are more weights than a full matrix is formed for.
    """
    return _gradients(objective, Directions("labels"), layers)[:, 0]


def fisher_matrix(
    objective: Objective, kind: str = "true", layers: Sequence[str] | None = None, draws: int = 1, seed: int = 0
) -> Values:
    """One of the three matrices, whole, for a net or a layer with few weights.

    Parameters
    ----------
    objective : network, images and targets
    kind : one of `KINDS`
    layers : names; None for all, with the blocks that couple them
    draws : targets drawn for each image, of "drawn"
    seed : of them

    Returns
    -------
    float64 [n, n]

    Raises
    ------
    InputError
        There is no such kind, or there are more weights than a full matrix is formed for.
    """
    wanted = _directions(kind, draws, seed)
    count = len(objective.images)
    if kind == "gauss-newton":
        jacobian = output_jacobian(objective, layers)
        bent = np.einsum("nab,nbw->naw", objective.curvatures().double().numpy(), jacobian)
        return np.asarray(np.einsum("naw,nav->wv", jacobian, bent) / count)
    rows = _gradients(objective, wanted, layers).reshape(-1, check_small(objective, chosen_layers(objective, layers)))
    return rows.T @ rows / count


def fisher_traces(
    objective: Objective, kind: str = "true", draws: int = 1, seed: int = 0, progress: Progress | None = None
) -> tuple[Values, Values]:
    """The trace of each layer's diagonal block, and its standard error over images.

    Parameters
    ----------
    objective : network, layers, images and targets
    kind : one of `KINDS`
    draws : targets drawn for each image, of "drawn"
    seed : of them
    progress : called with how many images are done and how many there are

    Returns
    -------
    float64 [L] and float64 [L]

    Raises
    ------
    InputError
        There is no such kind.
    """
    found = {name: np.zeros(len(objective.images)) for name in objective.layers}
    for part in output_slopes(objective, _directions(kind, draws, seed), progress):
        found[part.layer][part.where] = part.squared_norms().numpy()
    samples = np.stack([found[name] for name in objective.layers])
    spread = samples.std(1, ddof=1) if samples.shape[1] > 1 else np.zeros(len(samples))
    return samples.mean(1), spread / np.sqrt(samples.shape[1])


def fisher_diagonals(
    objective: Objective, kind: str = "true", draws: int = 1, seed: int = 0, progress: Progress | None = None
) -> dict[str, Values]:
    """The diagonal of each layer's block, in the shape of its weight: float64 [O, ...] by layer.

    Parameters
    ----------
    objective : network, layers, images and targets
    kind : one of `KINDS`
    draws : targets drawn for each image, of "drawn"
    seed : of them
    progress : called with how many images are done and how many there are

    Raises
    ------
    InputError
        There is no such kind.
    """
    shapes = {name: objective.graph[name].op.weight.shape for name in objective.layers}  # type: ignore[union-attr]
    found = {name: np.zeros(int(np.prod(shape))) for name, shape in shapes.items()}
    for part in output_slopes(objective, _directions(kind, draws, seed), progress):
        found[part.layer] += part.gradients().double().square().sum((0, 1)).numpy()
    return {name: (found[name] / len(objective.images)).reshape(shape) for name, shape in shapes.items()}


def _directions(kind: str, draws: int, seed: int) -> Directions:
    if kind not in KINDS:
        raise InputError(f"The kind of Fisher matrix must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind == "empirical":
        return Directions("labels")
    return Directions("drawn", draws, seed) if kind == "drawn" else Directions("fisher")


def _gradients(objective: Objective, wanted: Directions, layers: Sequence[str] | None) -> Values:
    """``J^T u`` of every image and direction, float64 [N, R, n]."""
    names = chosen_layers(objective, layers)
    check_small(objective, names)
    found: dict[str, list[Values]] = {name: [] for name in names}
    for part in output_slopes(objective, wanted):
        if part.layer in found:
            found[part.layer].append(part.gradients().double().numpy())
    return np.concatenate([np.concatenate(parts) for parts in found.values()], 2)
