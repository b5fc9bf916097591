"""The choices of each class that matter: the efficient ones, and those on the lower convex hull.

A choice is *efficient* if none is both cheaper and better. Drawn as value over cost, the efficient choices go down
from the cheapest to the best. Those on the lower convex hull are what the linear relaxation of the problem uses:
each *step* from one to the next buys less value for a unit of cost than the one before. Sorted by that rate, the steps
of all classes are the greedy's order, and the prefix that fits the budget, with a part of the next step, is the optimum
of the relaxation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Steps", "efficient", "hull_steps"]

_STEEPEST = -float(np.finfo(np.float64).max)  # of a step that costs next to nothing

Costs = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps along the hulls of all classes, steepest first.

    start : int64 [G], the cheapest choice of each class.
    groups : int64 [S], the class that takes the step; its steps come in their order.
    to : int64 [S], the choice that it leads to.
    costs : [S], what it adds to the cost, above 0; of the type of the costs.
    values : float64 [S], what it adds to the value, below 0.
    """

    start: NDArray[np.int64]
    groups: NDArray[np.int64]
    to: NDArray[np.int64]
    costs: Costs
    values: NDArray[np.float64]

    def picks_after(self, taken: int) -> NDArray[np.int64]:
        """The choice of each class, int64 [G], when the first ``taken`` steps are made."""
        picks = self.start.copy()
        picks[self.groups[:taken]] = self.to[:taken]  # the last of equal indices counts, and steps come in order
        return picks


def efficient(values: NDArray[np.float64], costs: Costs) -> NDArray[np.bool_]:
    """Which choices of each class no other one beats in both: bool [G, B]; of equals only the first.

    ``values`` are float64 [G, B], infinite where there is no choice; ``costs`` int64 or float64 [G, B].
    """
    order = np.lexsort((values, costs), axis=1)
    sorted_values = np.take_along_axis(values, order, 1)
    best_before = np.minimum.accumulate(sorted_values, axis=1)
    kept = np.isfinite(sorted_values)
    kept[:, 1:] &= sorted_values[:, 1:] < best_before[:, :-1]
    found = np.zeros_like(kept)
    np.put_along_axis(found, order, kept, 1)
    return found


def hull_steps(values: NDArray[np.float64], costs: Costs) -> Steps:
    """The steps along the lower convex hull of each class.

    ``values`` are float64 [G, B], infinite where there is no choice; ``costs`` int64 or float64 [G, B]. Choices on a
    straight line between two others are passed over.
    """
    rows = np.arange(len(values))
    useful = efficient(values, costs)
    dear = np.iinfo(np.int64).max if np.issubdtype(costs.dtype, np.integer) else np.inf
    at = np.argmin(np.where(useful, costs, dear), axis=1)
    start = at.copy()
    found: list[tuple[NDArray[np.int64], ...]] = []
    rates: list[NDArray[np.float64]] = []
    parts: list[tuple[Costs, NDArray[np.float64]]] = []
    active, last = rows, np.full(len(rows), -np.inf)
    for _ in range(values.shape[1] - 1):
        here = at[active]
        more = costs[active] - costs[active, here][:, None]
        later = useful[active] & (more > 0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slopes = np.where(later, (values[active] - values[active, here][:, None]) / more, np.inf)
        slopes = np.maximum(slopes, _STEEPEST)
        steepest = slopes.min(1, keepdims=True)
        reach = np.where(slopes <= steepest, more, -1)  # of equal slopes the farthest
        to = np.argmax(reach, axis=1)
        moving = np.isfinite(steepest[:, 0])
        active, to, here = active[moving], to[moving], here[moving]
        if not len(active):
            break
        found.append((active, to))
        parts.append((costs[active, to] - costs[active, here], values[active, to] - values[active, here]))
        last[active] = np.maximum(
            last[active], steepest[moving, 0]
        )  # on an almost straight hull rounding could turn them
        rates.append(last[active])
        at[active] = to
    if not found:
        none = np.zeros(0, np.int64)
        return Steps(start, none, none, costs[:0, 0], values[:0, 0])
    groups, tos = (np.concatenate([part[i] for part in found]) for i in range(2))
    order = np.argsort(np.concatenate(rates), kind="stable")  # stable: within a class the rates never fall
    return Steps(
        start,
        groups[order],
        tos[order],
        np.concatenate([part[0] for part in parts])[order],
        np.concatenate([part[1] for part in parts])[order],
    )
