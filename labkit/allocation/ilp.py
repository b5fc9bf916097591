"""Allocation as an integer linear program, solved by HiGHS (through SciPy): any number of budgets at once.

This is the formulation of HAWQ-V3 with its constraints: size, bit operations and latency together, tied residual partners,
fixed first and last layers. One variable in {0, 1} for each class and choice, one equation for each class.

A solver in floating point keeps constraints up to a tolerance, about a millionth of what is left of a budget when every
class takes its least. An answer that exceeds a budget by it is cut off by one more inequality, which excludes this choice
and no other, and the program is solved again; after some of these the budgets are lowered by the tolerance instead, and the
answer keeps the lower bound that was proven before.
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
_CUTS = 30
_TOLERANCE = 2e-6  # twice the solver's
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
    possible, rows = _rows(problem)
    groups, columns = np.nonzero(possible)
    count = len(groups)
    least = classes.values.min(1)
    above = (classes.values - least[:, None])[possible]
    reach = bound.value - math.fsum(least)  # how far above the least values the relaxation lies
    unit = (reach if reach > 1e-9 * above.max(initial=0.0) else float(above.max(initial=0.0))) / _RESOLUTION or 1.0
    one_each = csr_array((np.ones(count), (groups, np.arange(count))), shape=(len(least), count))
    inequalities = [(csr_array(row[None, :]), high) for row, high in rows]
    best = bound.value
    for cuts in range(_CUTS + 2):
        tightened = cuts > _CUTS
        highs = [
            high - (_TOLERANCE if tightened and at < len(rows) else 0.0) for at, (_, high) in enumerate(inequalities)
        ]
        solved = milp(
            above / unit,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(vstack([row for row, _ in inequalities]), -np.inf, np.array(highs)),
            ],
            options={"mip_rel_gap": 0.0, "time_limit": max(seconds - (time.perf_counter() - started), 0.01)},
        )
        if solved.status == _INFEASIBLE:
            raise QuantizationError(not_together(problem))
        if solved.x is None:
            raise QuantizationError(
                f"The integer program has found no answer ({solved.message}) in {seconds:g} s. Give it more seconds, or "
                f"fix some layers."
            )
        if not tightened:
            best = max(best, _dual(solved.mip_dual_bound, unit, least))
        chosen = np.flatnonzero(solved.x > 0.5)
        picks = np.zeros(len(least), np.int64)
        picks[groups[chosen]] = columns[chosen]
        if problem.fits(picks):
            proven = solved.status != _LIMIT and not tightened
            notes = {"relaxation": bound.value, "multipliers": list(bound.multipliers), "cuts": cuts}
            return answer(problem, picks, "ilp", None if proven else best, started, **notes)
        inequalities.append((csr_array((columns == picks[groups]).astype(np.float64)[None, :]), len(least) - 1.0))
    raise QuantizationError(
        f"{_CUTS} answers of the integer program exceeded a budget by its tolerance. Change the budgets by a millionth, or "
        f"use the method 'exact' where there is one budget."
    )


def _rows(problem: Mckp) -> tuple[NDArray[np.bool_], list[tuple[NDArray[np.float64], float]]]:
    """Choices that can be part of an answer, bool [G, B], and for each budget their costs, float64, with what they may sum to.

    Costs count from the least of their class and budgets from the sum of these, and the rest of the budget is 1: the
    solver drops coefficients that are small next to 1.
    """
    classes = problem.classes
    possible = classes.allowed.copy()
    more, rests, scales = [], [], []
    for k, (table, budget) in enumerate(zip(classes.costs, problem.budgets, strict=True)):
        noise = 1e-12 * max(abs(budget), 1e-290)
        rests.append(max(budget - problem.costs_of(problem.cheapest(k))[k], 0.0))
        more.append(table - table.min(1, keepdims=True))
        scales.append(max(rests[-1], noise))
        possible &= more[-1] <= rests[-1] + noise
    if not possible.any(1).all():
        raise QuantizationError(not_together(problem))
    return possible, [
        (above[possible] / scale, rest / scale) for above, rest, scale in zip(more, rests, scales, strict=True)
    ]


def _dual(scaled: float | None, unit: float, least: NDArray[np.float64]) -> float:
    return -math.inf if scaled is None else scaled * unit + math.fsum(least)
