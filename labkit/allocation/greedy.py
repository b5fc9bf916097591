"""The greedy of MPQCO: one step of one layer at a time, the one with the best rate of loss for cost.

Upwards it starts with every class at its cheapest choice and takes the step that lowers the loss most for a unit of
cost, as long as there is one that fits. Downwards it starts with every class at its best choice and takes the step that
raises the loss least for a unit of cost, until the budget is met. Either way there are at most |B| L steps (MPQCO,
supplement, section 2). Direction and priority are not in the supplement; both directions are here.

On the lower convex hull the best steps come in sorted order, so that one sort replaces the search for the best of L
layers in each step. There, down ends where the sorted steps exceed the budget, and up goes on with the steps that still
fit: it is never worse. Without the hull a step leads to the next efficient choice, as in a walk from bit-width to
bit-width; a step that gains little then hides a good one behind it.
"""

from __future__ import annotations

import heapq
import time

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.answer import Allocation, answer
from labkit.allocation.bound import lower_bound
from labkit.allocation.grid import NEVER, WholeCosts, whole_costs
from labkit.allocation.hull import Steps, efficient, hull_steps
from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError

__all__ = ["DIRECTIONS", "solve_greedy"]

DIRECTIONS = ("up", "down")

Picks = NDArray[np.int64]


def solve_greedy(problem: Mckp, direction: str = "up", *, hull: bool = True) -> Allocation:
    """The greedy's answer to a ``problem`` with one budget.

    Parameters
    ----------
    problem : with one constraint
    direction : "up" from the cheapest choices, "down" from the best ones
    hull : step along the lower convex hull of each class, or through all its efficient choices

    Raises
    ------
    QuantizationError
        The budget cannot be met, there are several, or the direction is unknown.
    """
    if direction not in DIRECTIONS:
        raise QuantizationError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}.")
    problem.one_constraint("The greedy")
    started = time.perf_counter()
    bound = lower_bound(problem)
    for safe in (False, True):  # the same costs both times, unless they had to be rounded
        picks, count = _choose(problem, whole_costs(problem, safe=safe), direction, hull)
        if problem.fits(picks):
            break
    method = f"greedy-{direction}{'' if hull else ' without hull'}"
    return answer(problem, picks, method, bound.value, started, steps=count, multipliers=list(bound.multipliers))


def _choose(problem: Mckp, whole: WholeCosts, direction: str, hull: bool) -> tuple[Picks, int]:
    if whole.budget < 0:  # rounded up, and nothing but the cheapest fits
        return problem.cheapest(), 0
    if hull:
        return _along_hull(hull_steps(problem.classes.values, whole.costs), whole.budget, direction)
    return _walk(problem.classes.values, whole, direction)


def _along_hull(steps: Steps, budget: int, direction: str) -> tuple[Picks, int]:
    spent = np.cumsum(steps.costs)
    taken = int(np.searchsorted(spent, budget, side="right"))
    picks = steps.picks_after(taken)
    if direction == "down":
        return picks, len(spent) - taken
    left = budget - (int(spent[taken - 1]) if taken else 0)
    count, closed = taken, set()
    for group, to, cost in zip(
        steps.groups[taken:].tolist(), steps.to[taken:].tolist(), steps.costs[taken:].tolist(), strict=True
    ):
        if group in closed:
            continue
        if cost <= left:
            picks[group] = to
            left -= cost
            count += 1
        else:
            closed.add(group)
    return picks, count


def _walk(values: NDArray[np.float64], whole: WholeCosts, direction: str) -> tuple[Picks, int]:
    """Step by step with a heap of one step a class; the heap's smallest rate is the best step."""
    useful = efficient(values, whole.costs)
    ways: list[list[tuple[int, float, int]]] = []  # of each class its efficient choices, cheapest first
    for row, kept in enumerate(useful):
        columns = np.flatnonzero(kept)
        columns = columns[np.argsort(whole.costs[row, columns])]
        ways.append([(int(whole.costs[row, j]), float(values[row, j]), int(j)) for j in columns])
    stride = 1 if direction == "up" else -1
    at = [0 if direction == "up" else len(way) - 1 for way in ways]
    left = whole.budget - sum(way[place][0] for way, place in zip(ways, at, strict=True))
    heap: list[tuple[float, int]] = []

    def offer(group: int) -> None:
        way, here = ways[group], at[group]
        if 0 <= here + stride < len(way):
            (cost, value, _), (next_cost, next_value, _) = way[here], way[here + stride]
            rate = (next_value - value) / (next_cost - cost)  # below 0 either way
            heapq.heappush(heap, (rate * stride, group))

    for group in range(len(ways)):
        offer(group)
    count = 0
    while heap and (direction == "up" or left < 0):
        group = heapq.heappop(heap)[1]
        more = ways[group][at[group] + stride][0] - ways[group][at[group]][0]
        if direction == "up" and more > left:
            continue  # it does not fit now and never will
        at[group] += stride
        left -= more
        count += 1
        offer(group)
    assert all(way[place][0] < NEVER for way, place in zip(ways, at, strict=True))
    return np.array([way[place][2] for way, place in zip(ways, at, strict=True)], np.int64), count
