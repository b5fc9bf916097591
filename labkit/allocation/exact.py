"""The best allocation within one budget, by dynamic programming over lists of partial choices.

Classes are added one by one. A *state* is a choice for the classes so far: what it costs and what its value is. Of two
states the one that is both dearer and no better is dropped (dominance), so that a list is a staircase. And a state is
dropped if even the linear relaxation of the classes to come, with what is left of the budget, cannot bring it to a value
of at most ``limit``. No answer as good as the limit is lost in this way; where there is none, the limit was too low and
is raised, until one is found: that one is the best. A low limit leaves few states, because the relaxation of a problem
with many classes is nearly exact. Without the limit this is the textbook's table over costs, kept as a list.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.answer import Allocation, answer
from labkit.allocation.bound import lower_bound
from labkit.allocation.grid import WholeCosts, whole_costs
from labkit.allocation.hull import Steps, efficient, hull_steps
from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError

__all__ = ["MOST_STATES", "Options", "States", "extend", "options_of", "solve_exact", "trace_back"]

_SHARES = (0.02, 0.08, 0.3, 1.0)  # of the way from the relaxation to the greedy: limits to try
MOST_STATES = 4_000_000  # in one list; a list of 64 MB, reached only where the relaxation says nothing

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Options:
    """The efficient choices of one class: columns, costs int64 above the least, values float64; cheapest first."""

    columns: Ints
    costs: Ints
    values: Floats


@dataclass(frozen=True, eq=False)
class States:
    """Partial choices, cheapest first: costs int64 [S], values float64 [S], strictly ascending and strictly falling.

    parents : int64 [S], the state without the last class; columns : int64 [S], the last class's choice.
    """

    costs: Ints
    values: Floats
    parents: Ints
    columns: Ints


def options_of(values: Floats, costs: Ints) -> list[Options]:
    """The efficient choices of each class; ``values`` float64 [G, B] and ``costs`` int64 [G, B] as in `hull_steps`."""
    found = []
    for row, kept in enumerate(efficient(values, costs)):
        columns = np.flatnonzero(kept)
        columns = columns[np.argsort(costs[row, columns])]
        found.append(Options(columns, costs[row, columns], values[row, columns]))
    return found


def extend(states: States, options: Options, budget: int) -> States:
    """Every one of ``states`` with every one of the ``options`` of the next class that fits the ``budget``: a staircase."""
    costs = (states.costs[:, None] + options.costs[None, :]).ravel()
    fits = np.flatnonzero(costs <= budget)
    values = (states.values[:, None] + options.values[None, :]).ravel()[fits]
    return _staircase(costs[fits], values, fits, len(options.costs), options.columns)


def trace_back(lists: list[States], last: Ints) -> Ints:
    """The columns of all classes, int64 [N, G], for the states number ``last``, int64 [N], of the last of ``lists``."""
    picks = np.zeros((len(last), len(lists)), np.int64)
    at = last
    for place in range(len(lists) - 1, -1, -1):
        picks[:, place] = lists[place].columns[at]
        at = lists[place].parents[at]
    return picks


def solve_exact(problem: Mckp, most_states: int = MOST_STATES) -> Allocation:
    """The best answer to a ``problem`` with one budget, on the whole costs of `grid.whole_costs`.

    ``most_states`` is how long a list may become.

    Raises
    ------
    QuantizationError
        The budget cannot be met, there are several, or a list of states would become too long.
    """
    problem.one_constraint("The exact method")
    started = time.perf_counter()
    bound = lower_bound(problem)
    optimistic = whole_costs(problem, safe=False)
    picks, states = _best(problem, optimistic, most_states)
    proven: float | None = None
    if not problem.fits(picks):  # its costs had to be rounded, and round to the budget from above
        proven = max(bound.value, problem.value_of(picks))
        picks, more = _best(problem, whole_costs(problem), most_states)
        states += more
    return answer(problem, picks, "exact", proven, started, states=states, relaxation=bound.value)


def _best(problem: Mckp, whole: WholeCosts, most_states: int) -> tuple[Ints, int]:
    """The columns of the best choice within the whole costs, int64 [G], and how many states it took."""
    if whole.budget < 0:  # rounded up, and nothing but the cheapest fits
        return problem.cheapest(), 1
    classes = problem.classes
    steps = hull_steps(classes.values, whole.costs)
    taken = int(np.searchsorted(np.cumsum(steps.costs), whole.budget, side="right"))
    prefix = problem.value_of(steps.picks_after(taken))
    relaxation = _Relaxation(options_of(classes.values, whole.costs), steps)
    tolerance = 1e-12 * (abs(prefix) + float(np.abs(classes.values.min(1)).sum()))  # for sums in another order
    lowest = relaxation.lowest(whole.budget)
    states = 0
    found: Ints | None = None
    for share in _SHARES:
        limit = min(prefix, lowest + share * (prefix - lowest)) + tolerance
        found, made = _within(relaxation, whole.budget, limit, tolerance, most_states)
        states += made
        if found is not None:
            break
    assert found is not None  # the prefix itself is within the last limit
    return found, states


class _Relaxation:
    """The classes in the order in which they are added, and the linear relaxation of those that are still to come."""

    def __init__(self, options: list[Options], steps: Steps) -> None:
        # Large classes first: what the small ones can still change is little, so that states are told apart early.
        sizes = np.array([option.costs[-1] for option in options])
        self.order = np.argsort(-sizes, kind="stable")
        self.options = [options[group] for group in self.order]
        place = np.empty(len(options), np.int64)
        place[self.order] = np.arange(len(options))
        self._places, self._costs, self._values = place[steps.groups], steps.costs, steps.values
        best = np.array([option.values[-1] for option in self.options])
        self._best = np.concatenate([np.cumsum(best[::-1])[::-1], [0.0]])

    def rest(self, added: int) -> tuple[Ints, Floats]:
        """Corners of the least value, over the budget that is left, of the classes after the first ``added``."""
        later = self._places >= added
        costs = np.concatenate([[0], np.cumsum(self._costs[later])])
        # From the best end, where sums are small: the dear steps of few bits must not round away the last ones.
        values = self._best[added] - np.concatenate([np.cumsum(self._values[later][::-1])[::-1], [0.0]])
        return costs, values

    def lowest(self, budget: int) -> float:
        """The relaxation's value of all classes for ``budget``."""
        return float(np.interp(budget, *self.rest(0)))


def _within(
    relaxation: _Relaxation, budget: int, limit: float, tolerance: float, most_states: int
) -> tuple[Ints | None, int]:
    """The best choice of a value of at most ``limit``, or None where there is none; and how many states it took."""
    none = np.zeros(1, np.int64)
    states = States(none, np.zeros(1), none, none)
    lists: list[States] = []
    made = 0
    for place, options in enumerate(relaxation.options):
        corners = relaxation.rest(place + 1)
        costs = (states.costs[:, None] + options.costs[None, :]).ravel()
        values = (states.values[:, None] + options.values[None, :]).ravel()
        hopeful = np.flatnonzero(costs <= budget)
        reachable = values[hopeful] + np.interp(budget - costs[hopeful], *corners)
        hopeful = hopeful[reachable <= limit + tolerance]
        if not len(hopeful):
            return None, made
        states = _staircase(costs[hopeful], values[hopeful], hopeful, len(options.costs), options.columns)
        if len(states.costs) > most_states:
            raise QuantizationError(
                f"The exact method would keep more than {most_states:,} partial allocations for these costs. "
                f"Use the method 'ilp', or give the costs in a coarser unit."
            )
        made += len(states.costs)
        lists.append(states)
    picks = np.empty(len(lists), np.int64)
    picks[relaxation.order] = trace_back(lists, np.array([len(states.costs) - 1]))[0]
    return picks, made


def _staircase(costs: Ints, values: Floats, origin: Ints, count: int, columns: Ints) -> States:
    """Sorted by cost, without what another one beats; ``origin`` numbers pairs of a state and one of ``count`` options."""
    order = np.lexsort((values, costs))
    values = values[order]
    kept = np.ones(len(order), bool)
    kept[1:] = values[1:] < np.minimum.accumulate(values)[:-1]
    order = order[kept]
    return States(costs[order], values[kept], origin[order] // count, columns[origin[order] % count])
