"""What a rounding did to the weights, counted: how soft decisions became hard ones, who did not go to the nearest level.

These are the numbers behind figure 3 of Nagel et al. 2020; :mod:`labkit.reporting.rounding_plots` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.options import RoundedWeights
from labkit.quantization.weight_rounding.problem import weight_rows
from labkit.quantization.weight_rounding.simple import up_share

__all__ = ["DecisionCounts", "LayerChoices", "LayerErrors", "decision_counts", "layer_choices", "layer_errors"]

BINS = 20
DECIDED = 0.01  # an h this near 0 or 1 counts as decided


@dataclass(frozen=True, eq=False)
class DecisionCounts:
    """Soft decisions h after one iteration, of the weights that have a choice.

    iteration : 0 for before the first.
    counts : int64 [bins], how many h lie in each of as many equal parts of 0..1.
    down, up : how many are exactly 0, and exactly 1.
    undecided : how many are further than 0.01 from both.
    """

    iteration: int
    counts: NDArray[np.int64]
    down: int
    up: int
    undecided: int

    @property
    def total(self) -> int:
        """How many there are."""
        return int(self.counts.sum())


@dataclass(frozen=True, eq=False)
class LayerChoices:
    """Where the weights of a layer lay between two levels, and where they went.

    name : of the layer.
    weights : how many there are.
    moved : how many are not at the level nearest to the original weight, on the grid that they have.
    beyond : how many are at neither of the two levels next to it.
    starts : int64 [bins], weights with a choice by their place between the level below (0) and the one above (1).
    ups : int64 [bins], those of them that are at the level above, or higher.
    strays : int64 [bins], those of them that are not at the nearest level.
    """

    name: str
    weights: int
    moved: int
    beyond: int
    starts: NDArray[np.int64]
    ups: NDArray[np.int64]
    strays: NDArray[np.int64]


@dataclass(frozen=True)
class LayerErrors:
    """The squared error of a layer's output as a share of its variance.

    before : rounded to nearest, on the grid of the weights' range.
    after : as chosen.
    """

    name: str
    before: float
    after: float


def decision_counts(
    rounded: RoundedWeights, layers: Sequence[str] | None = None, bins: int = BINS
) -> tuple[DecisionCounts, ...]:
    """The soft decisions that a rounding kept, iteration by iteration.

    Weights beyond an end of their grid have no choice, and are not counted.

    Parameters
    ----------
    rounded : made with ``RoundingOptions(history=...)`` by a method that has soft decisions
    layers : which ones, together; None for all
    bins : parts of 0..1

    Raises
    ------
    InputError
        A layer is unknown or has no decisions.
    """
    names = tuple(rounded.weights if layers is None else layers)
    for name in names:
        if name not in rounded.history or not rounded.history[name].decisions:
            raise InputError(
                f"There are no soft decisions of {name!r}. Round by a method that has them, such as 'adaround', with "
                f"RoundingOptions(history=(0, 500, 1000)) for those after 0, 500 and 1000 iterations."
            )
    found = []
    for iteration in sorted(rounded.history[names[0]].decisions):
        parts = [rounded.history[name].decisions[iteration][_has_choice(rounded, name)] for name in names]
        h = np.concatenate([part.reshape(-1) for part in parts]).astype(np.float64)
        counts = np.histogram(h, bins, (0.0, 1.0))[0].astype(np.int64)
        undecided = int(np.sum((h > DECIDED) & (h < 1 - DECIDED)))
        found.append(DecisionCounts(iteration, counts, int(np.sum(h == 0)), int(np.sum(h == 1)), undecided))
    return tuple(found)


def layer_choices(rounded: RoundedWeights, bins: int = BINS) -> tuple[LayerChoices, ...]:
    """For each layer of ``rounded`` which weights went where; ``bins`` are parts of the way from one level to the next."""
    return tuple(_choices(rounded, name, bins) for name in rounded.weights)


def layer_errors(rounded: RoundedWeights) -> tuple[LayerErrors, ...]:
    """The output errors of each layer that ``rounded`` measured, in the order of the network."""
    return tuple(LayerErrors(name, rounded.error_before[name], rounded.error_after[name]) for name in rounded.weights)


def _grid_of(rounded: RoundedWeights, name: str) -> tuple[NDArray[np.float64], RowGrid]:
    """The original weights of a layer as rows, and the grid that they were rounded to."""
    weight = rounded.weights[name]
    return weight_rows(rounded.graph[name].op), RowGrid(weight.spec, weight.params, len(weight.values))  # type: ignore[arg-type]


def _has_choice(rounded: RoundedWeights, name: str) -> NDArray[np.bool_]:
    weights, grid = _grid_of(rounded, name)
    down, up = grid.choices(weights)
    return np.asarray(up > down)


def _choices(rounded: RoundedWeights, name: str, bins: int) -> LayerChoices:
    weights, grid = _grid_of(rounded, name)
    tensor = rounded.weights[name]
    zero_points = tensor.params.zero_point.astype(np.float64).reshape(-1, 1)
    levels = tensor.values.reshape(len(weights), -1) - zero_points
    down, up = grid.choices(weights)
    moved, free = levels != grid.nearest(weights), up > down
    places = up_share(weights, grid)

    def count(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.histogram(places[mask], bins, (0.0, 1.0))[0].astype(np.int64)

    return LayerChoices(
        name,
        weights.size,
        int(moved.sum()),
        int(np.sum((levels < down) | (levels > up))),
        count(free),
        count(free & (levels >= up)),
        count(free & moved),
    )
