"""Allocation as an integer linear program, solved by HiGHS (through SciPy): any number of budgets at once.

This is the formulation of HAWQ-V3 with its constraints: size, bit operations and latency together, tied residual partners,
fixed first and last layers. One variable in {0, 1} for each class and choice, one equation for each class.

A solver in floating point keeps constraints up to a tolerance. An answer that exceeds a budget by it is cut off by one more
inequality, which excludes this choice and no other, and the program is solved again.
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.answer import Allocation, answer
from labkit.allocation.bound import lower_bound, not_together
from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError

__all__ = ["SECONDS", "solve_ilp"]

SECONDS = 60.0
_CUTS = 100
_RESOLUTION = 1e4  # the relaxation's value in the solver's unit, whose absolute gap is 1e-6
_INFEASIBLE, _LIMIT = 2, 1  # scipy.optimize.milp


def solve_ilp(problem: Mckp, seconds: float = SECONDS) -> Allocation:
    """The best answer to ``problem`` within all its budgets, or the best one found in so many ``seconds`` of the clock.

    Raises
    ------
    QuantizationError
        The budgets cannot be met together, or no answer was found in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    started = time.perf_counter()
    bound = lower_bound(problem)
    classes = problem.classes
    allowed = classes.allowed
    groups, columns = np.nonzero(allowed)
    count = len(groups)
    least = classes.values.min(1)
    above = (classes.values - least[:, None])[allowed]
    reach = bound.value - math.fsum(least)  # how far above the least values the relaxation lies
    unit = (reach if reach > 1e-9 * above.max(initial=0.0) else float(above.max(initial=0.0))) / _RESOLUTION or 1.0
    one_each = csr_array((np.ones(count), (groups, np.arange(count))), shape=(len(least), count))
    rows = [csr_array(_scaled(table[allowed])[None, :]) for table in classes.costs]
    highs = [b / _unit(table[allowed]) for table, b in zip(classes.costs, problem.budgets, strict=True)]
    for cuts in range(_CUTS):
        left = seconds - (time.perf_counter() - started)
        solved = milp(
            above / unit,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(vstack(rows), -np.inf, np.array(highs))],
            options={"mip_rel_gap": 0.0, "time_limit": max(left, 0.01)},
        )
        if solved.status == _INFEASIBLE:
            raise QuantizationError(not_together(problem))
        if solved.x is None:
            raise QuantizationError(
                f"The integer program has found no answer ({solved.message}) in {seconds:g} s. Give it more seconds, or "
                f"fix some layers."
            )
        picks = _picks(solved.x, groups, columns, len(least))
        if problem.fits(picks):
            proven = solved.status != _LIMIT
            value = None if proven else max(bound.value, _dual(solved.mip_dual_bound, unit, least))
            notes = {"relaxation": bound.value, "multipliers": list(bound.multipliers), "cuts": cuts}
            return answer(problem, picks, "ilp", value, started, **notes)
        rows.append(csr_array((columns == picks[groups]).astype(np.float64)[None, :]))
        highs.append(len(least) - 1.0)
    raise QuantizationError(
        f"{_CUTS} answers of the integer program exceeded a budget by its tolerance. Lower the budgets by a millionth, or "
        f"use the method 'exact' where there is one budget."
    )


def _unit(costs: NDArray[np.float64]) -> float:
    return float(costs.max(initial=0.0)) or 1.0


def _scaled(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    return costs / _unit(costs)


def _picks(
    x: NDArray[np.float64], groups: NDArray[np.int64], columns: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    chosen = np.flatnonzero(x > 0.5)
    picks = np.zeros(count, np.int64)
    picks[groups[chosen]] = columns[chosen]
    return picks


def _dual(scaled: float | None, unit: float, least: NDArray[np.float64]) -> float:
    return -math.inf if scaled is None else scaled * unit + math.fsum(least)
