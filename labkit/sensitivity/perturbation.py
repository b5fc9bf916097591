"""What a change of the weights does to the loss, to second order, from the outputs' derivatives along that change.

`project_changes` finds ``u . J dw`` for every image, layer and number of bits, in time linear in the number of images. With d
= J dw, r the residual and A the loss's curvature by the outputs, everything else is a few sums:

    gauss-newton   dL = 1/2 mean of  d . A d                     (= the Hessian's, for one layer where nothing after it bends)
    fisher         the same number as an expectation over the model's labels, or over labels drawn from it
    mpqco          dL = 1/2 mean of  (g . dw)^2,  g = J^T r      (Chen et al. 2021, supplement, equations 5, 6 and section 4)
    first order    mean of  g . dw

In mpqco g is the gradient of one image. The square of the mean gradient along dw is something else: it is near 0 in a
trained network, whatever the change costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.sensitivity.candidates import Candidates
from labkit.sensitivity.objective import Objective
from labkit.sensitivity.slopes import Directions, output_slopes
from labkit.sensitivity.table import SensitivityTable

__all__ = ["Projections", "mean_and_error", "project_changes", "unit_of"]

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Projections:
    """``u . J dw`` of N images along R directions, for each layer alone at each of B bits.

    bits : ascending.
    values : float64 [N, R, B] by layer.
    directions : what the u are.
    objective : network, images and targets.
    rounding : of the weights, in words.
    """

    bits: tuple[int, ...]
    values: Mapping[str, Values]
    directions: Directions
    objective: Objective
    rounding: str

    def terms(self) -> dict[str, Values]:
        """The second-order term ``1/2 sum over u of (u . J dw)^2`` of each image: float64 [N, B] by layer.

        Raises
        ------
        InputError
            The directions are the outputs' unit vectors, which are no factor of a curvature.
        """
        self._check_squares()
        return {name: np.square(found).sum(1) / 2 for name, found in self.values.items()}

    def table(self, method: str) -> SensitivityTable:
        """The mean of the `terms` over images, with standard errors, as a table that says ``method``.

        Raises
        ------
        InputError
            As `terms`.
        """
        means, errors = zip(*(mean_and_error(found) for found in self.terms().values()), strict=True)
        notes = {
            "images": len(self.objective.images),
            "labels": self.objective.labels,
            "rounding": self.rounding,
            "directions": self.directions.kind,
            "seed": self.directions.seed,
        }
        unit = unit_of(self.objective)
        return SensitivityTable(tuple(self.values), self.bits, np.stack(means), np.stack(errors), method, unit, notes)

    def joint(self, weights: Mapping[str, int]) -> tuple[float, float]:
        """The second-order term with several layers changed at once, and its standard error.

        ``weights`` gives the bits of some layers, the others stay as they are. Unlike the sum of the layers' own terms it has
        what couples them (supplement, section 4: the approximation without "block").

        Raises
        ------
        InputError
            As `terms`; or a layer or its bits are not here.
        """
        self._check_squares()
        means, errors = mean_and_error(np.square(self.moved(weights)).sum(1)[:, None] / 2)
        return float(means[0]), float(errors[0])

    def moved(self, weights: Mapping[str, int]) -> Values:
        """``u . J dw``, float64 [N, R], with the layers in ``weights`` changed to their bits there at once.

        Raises
        ------
        InputError
            A layer or its bits are not here.
        """
        if not weights:
            raise InputError(f"At least one layer must be named. There are {', '.join(self.values)}.")
        total = np.zeros(next(iter(self.values.values())).shape[:2])
        for name, bits in weights.items():
            if name not in self.values or bits not in self.bits:
                raise InputError(
                    f"There is nothing for {name!r} at {bits} bits; there is for {', '.join(self.values)} at {self.bits}."
                )
            total += self.values[name][:, :, self.bits.index(bits)]
        return total

    def _check_squares(self) -> None:
        if self.directions.kind == "outputs":
            raise InputError(
                "The sum of squares along the outputs is no loss. Project along 'fisher', 'labels', 'drawn' or 'probes'."
            )


def project_changes(
    objective: Objective,
    candidates: Candidates,
    directions: Directions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Projections:
    """The derivatives of each image's output along each change of weights.

    Parameters
    ----------
    objective : network, layers, images and targets
    candidates : the changed weights of the objective's layers
    directions : None for the columns of the curvature's factor, whose sum of squares is the Gauss-Newton form
    progress : called with how many images are done and how many there are

    Raises
    ------
    InputError
        Candidates for a layer are missing, or have another shape.
    """
    directions = directions or Directions("fisher")
    if missing := [name for name in objective.layers if name not in candidates.weights]:
        raise InputError(
            f"There are no candidate weights for {missing[0]!r}; there are for {', '.join(candidates.layers)}."
        )
    dtype = objective.images.dtype
    changes = {name: torch.from_numpy(candidates.changes(objective.graph, name)).to(dtype) for name in objective.layers}
    width = directions.number(objective.outputs.shape[1])
    shape = (len(objective.images), width, len(candidates.bits))
    values = {name: np.zeros(shape) for name in objective.layers}
    for part in output_slopes(objective, directions, progress):
        for column, change in enumerate(changes[part.layer]):
            values[part.layer][part.where, :, column] = part.along(change).double().numpy()
    return Projections(candidates.bits, MappingProxyType(values), directions, objective, candidates.rounding)


def mean_and_error(samples: Values) -> tuple[Values, Values]:
    """The mean of ``samples`` float64 [N, B] over images and its standard error, each float64 [B]; one image: 0."""
    spread = samples.std(0, ddof=1) if len(samples) > 1 else np.zeros(samples.shape[1])
    return samples.mean(0), spread / np.sqrt(len(samples))


def unit_of(objective: Objective) -> str:
    """What the loss of ``objective`` is counted in."""
    return "nats an image" if objective.loss == "cross-entropy" else "squared units of the output, halved, an image"
