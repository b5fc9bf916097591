"""A lower bound of what any allocation can reach: how good an answer is, without knowing the best one.

Budgets become prices: for multipliers m_k >= 0 the Lagrangian

    L(m) = sum over classes of min_j (v_j + sum_k m_k c_kj)  -  sum_k m_k budget_k

is at most the value of every choice within the budgets, because such a choice pays no more than the budgets. The best
multipliers give the bound of the linear relaxation. For one budget they are the rate of the step at which the relaxation
breaks off (`hull`); for several, the dual solution of the linear program. Whatever the multipliers, L(m) itself is
evaluated here, so that the bound holds however exactly they were found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.hull import hull_steps
from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError

__all__ = ["Bound", "lagrangian", "lower_bound", "not_together"]

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Bound:
    """value : no choice within the budgets has a smaller one. multipliers : the price of a unit of each cost."""

    value: float
    multipliers: tuple[float, ...]


def lagrangian(problem: Mckp, multipliers: Sequence[float]) -> float:
    """L(``multipliers``) of ``problem``, lowered by as much as its sums may have been rounded up.

    Raises
    ------
    QuantizationError
        There are not as many multipliers as constraints, or one is negative.
    """
    if len(multipliers) != len(problem.budgets) or min(multipliers) < 0:
        raise QuantizationError(
            f"There must be one multiplier of 0 or more for each of {len(problem.budgets)} constraints, "
            f"got {tuple(multipliers)}."
        )
    classes = problem.classes
    prices = np.asarray(multipliers, np.float64)
    priced = np.where(classes.allowed, classes.values, 0.0)
    magnitude = np.abs(priced)
    for price, table in zip(prices, classes.costs, strict=True):
        paid = price * np.where(classes.allowed, table, 0.0)
        priced, magnitude = priced + paid, magnitude + paid
    priced = np.where(classes.allowed, priced, np.inf)
    best = np.argmin(priced, axis=1)
    rows = np.arange(len(best))
    spent = [price * budget for price, budget in zip(prices, problem.budgets, strict=True)]
    total = math.fsum([*priced[rows, best], *(-s for s in spent)])
    # Each term was made by at most K products and K sums, and tied values by as many sums as there are members.
    operations = 2 * len(prices) + max(len(m) for m in classes.members) + 2
    doubt = operations * _EPS * (float(magnitude[rows, best].sum()) + sum(abs(s) for s in spent))
    return float(total - doubt)


def lower_bound(problem: Mckp) -> Bound:
    """The best Lagrangian bound of ``problem``.

    Raises
    ------
    QuantizationError
        The budgets cannot be met.
    """
    problem.refuse_impossible()
    candidates: list[tuple[float, ...]] = [(0.0,) * len(problem.budgets)]
    if len(problem.budgets) == 1:
        candidates.append((_breaking_rate(problem),))
    else:
        candidates.append(_dual_prices(problem))
    return max((Bound(lagrangian(problem, m), m) for m in candidates), key=lambda bound: bound.value)


def _breaking_rate(problem: Mckp) -> float:
    classes = problem.classes
    table = classes.costs[0]
    steps = hull_steps(classes.values, table)
    base = float(table[np.arange(len(table)), steps.start].sum())
    spent = base + np.cumsum(steps.costs)
    over = np.flatnonzero(spent > problem.budgets[0])
    if not len(over):
        return 0.0
    first = over[0]
    with np.errstate(over="ignore"):
        rate = float(-steps.values[first] / steps.costs[first])
    return rate if math.isfinite(rate) else 0.0  # any price gives a bound


def _dual_prices(problem: Mckp) -> tuple[float, ...]:
    """Multipliers from the linear relaxation, each variable and constraint scaled to about 1.

    Raises
    ------
    QuantizationError
        Not even fractions of choices meet all budgets together.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    classes = problem.classes
    allowed = classes.allowed
    groups = np.nonzero(allowed)[0]
    value_unit = float(np.ptp(classes.values[allowed])) or 1.0
    cost_units = np.array([max(float(t[allowed].max()), 1e-300) for t in classes.costs])
    upper = np.stack([t[allowed] / unit for t, unit in zip(classes.costs, cost_units, strict=True)])
    one_each = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
    solved = linprog(
        classes.values[allowed] / value_unit,
        A_ub=upper,
        b_ub=np.minimum(np.array(problem.budgets) / cost_units, len(classes.members) + 1.0),  # more changes nothing
        A_eq=one_each,
        b_eq=np.ones(len(classes.members)),
        bounds=(0, None),
        method="highs",
    )
    if solved.status == 2:
        raise QuantizationError(not_together(problem))
    if solved.status != 0:  # the bound of no prices still holds
        return (0.0,) * len(problem.budgets)
    with np.errstate(over="ignore"):
        prices: NDArray[np.float64] = np.maximum(-solved.ineqlin.marginals, 0.0) * value_unit / cost_units
    prices[~np.isfinite(prices)] = 0.0  # costs near the end of the float64 numbers; any prices give a bound
    return tuple(float(p) for p in prices)


def not_together(problem: Mckp) -> str:
    """The message for a ``problem`` whose budgets can be met one by one, but not together."""
    least = ", ".join(
        f"{name} {problem.amount(k, problem.costs_of(problem.cheapest(k))[k])} of {problem.amount(k, budget)}"
        for k, (name, budget) in enumerate(zip(problem.names, problem.budgets, strict=True))
    )
    return (
        f"The budgets cannot be met together, though each can be alone (least possible: {least}). "
        f"Raise one of them, or fix and tie fewer layers."
    )
