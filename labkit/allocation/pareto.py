"""The Pareto front: the least predicted loss for every budget at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.answer import Allocation
from labkit.allocation.exact import MOST_STATES, States, extend, options_of, solve_exact, trace_back
from labkit.allocation.grid import whole_costs
from labkit.allocation.hull import hull_steps
from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError

__all__ = ["Front", "answers_at", "exact_front", "hull_front"]


@dataclass(frozen=True, eq=False)
class Front:
    """Choices of which none is both cheaper and better than another, cheapest first.

    problem : without its budget.
    costs : float64 [P], strictly ascending, what had been taken off the budget included.
    values : float64 [P], strictly falling.
    picks : int8 [P, G], the column of each class.
    method : "hull" or "exact".
    """

    problem: Mckp
    costs: NDArray[np.float64]
    values: NDArray[np.float64]
    picks: NDArray[np.int8]
    method: str

    def __len__(self) -> int:
        return len(self.costs)

    def bits(self, index: int) -> dict[str, int]:
        """Bits by layer of the point number ``index``."""
        columns = self.problem.columns(self.picks[index])
        return {name: self.problem.bits[c] for name, c in zip(self.problem.layers, columns, strict=True)}

    def within(self, budget: float) -> int:
        """The index of the best point whose cost is at most ``budget``.

        Raises
        ------
        QuantizationError
            Every point costs more.
        """
        index = int(np.searchsorted(self.costs, budget, side="right")) - 1
        if index < 0:
            raise QuantizationError(
                f"No point of the front costs {budget:,.10g} or less; the cheapest costs {self.costs[0]:,.10g}. "
                f"Give at least that."
            )
        return index

    def __str__(self) -> str:
        name, unit = self.problem.names[0], self.problem.units[0]
        shown = np.unique(np.linspace(0, len(self) - 1, min(len(self), 12)).astype(int))
        lines = [
            f"Pareto front ({self.method}): {len(self):,} points of {name}{f' in {unit}' if unit else ''} and loss"
        ]
        lines += [f"  {self.costs[i]:>16,.10g}  {self.values[i]:.6g}" for i in shown]
        return "\n".join(lines)


def hull_front(problem: Mckp) -> Front:
    """The points that the greedy passes: each is best for its own cost, and together they are the front's convex hull.

    ``problem`` has one constraint, whose budget does not matter.

    Raises
    ------
    QuantizationError
        There are several constraints.
    """
    problem.one_constraint("A Pareto front")
    steps = hull_steps(problem.classes.values, problem.classes.costs[0])
    points = np.stack([steps.picks_after(taken) for taken in range(len(steps.groups) + 1)])
    return _front(problem, points, "hull")


def exact_front(problem: Mckp, most_states: int = MOST_STATES) -> Front:
    """Every point of the front whose cost is within the budget of ``problem``: dynamic programming without a limit.

    Of points whose costs differ by less than a step of `grid.whole_costs` one is kept. ``most_states`` is how many partial
    choices may be kept at a time; their number grows with the number of different costs, up to the budget.

    Raises
    ------
    QuantizationError
        The budget cannot be met, there are several, or there are too many states.
    """
    problem.one_constraint("A Pareto front")
    problem.refuse_impossible()
    whole = whole_costs(problem, safe=False)
    none = np.zeros(1, np.int64)
    states = States(none, np.zeros(1), none, none)
    lists: list[States] = []
    for options in options_of(problem.classes.values, whole.costs):
        states = extend(states, options, max(whole.budget, 0))
        if len(states.costs) > most_states:
            raise QuantizationError(
                f"The front has more than {most_states:,} partial allocations. Lower the budget, give the costs in a coarser "
                f"unit, or ask for single budgets with answers_at."
            )
        lists.append(states)
    points = trace_back(lists, np.arange(len(states.costs)))
    last = len(points)
    while not problem.fits(points[last - 1]):  # rounded down
        last -= 1
    return _front(problem, points[:last], "exact")


def answers_at(problem: Mckp, budgets: Iterable[float]) -> tuple[Allocation, ...]:
    """The exact answer for each of ``budgets``, in place of the one that ``problem`` has.

    Raises
    ------
    QuantizationError
        A budget cannot be met, or the problem has several constraints.
    """
    problem.one_constraint("A Pareto front")
    offset = problem.offsets[0]
    return tuple(solve_exact(replace(problem, budgets=(budget - offset,))) for budget in budgets)


def _front(problem: Mckp, points: NDArray[np.int64], method: str) -> Front:
    rows = np.arange(len(problem.classes.members))
    costs = problem.classes.costs[0][rows, points].sum(1) + problem.offsets[0]
    values = problem.classes.values[rows, points].sum(1)
    order = np.lexsort((values, costs))
    kept = np.ones(len(order), bool)
    kept[1:] = values[order][1:] < np.minimum.accumulate(values[order])[:-1]
    kept[:-1] &= ~(kept[1:] & (np.diff(costs[order]) <= 0))  # equal costs after rounding: the better one
    order = order[kept]
    return Front(problem, costs[order], values[order], points[order].astype(np.int8), method)
