"""Costs as whole numbers, so that sums have no rounding error and a budget is kept exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.problem import Mckp

__all__ = ["NEVER", "WholeCosts", "whole_costs"]

NEVER = 2**60  # the cost of a choice that is not allowed: more than any budget
_EXACT = 2**50  # sums up to here, so that float64 and int64 both hold them
_HALVINGS = 24  # costs in eighths (bytes) or 1/1024 (microseconds) are whole after a few
_STEPS = 2**45


@dataclass(frozen=True, eq=False)
class WholeCosts:
    """Whole costs of one constraint.

    costs : int64 [G, B] above the least of each class; `NEVER` where a choice is not allowed.
    budget : what is left of the budget when every class takes its least; below 0 where not even that fits.
    unit : what 1 stands for.
    exact : whether a choice fits these costs if and only if it fits the original ones.
    """

    costs: NDArray[np.int64]
    budget: int
    unit: float
    exact: bool


def whole_costs(problem: Mckp, constraint: int = 0, *, safe: bool = True) -> WholeCosts:
    """The costs of the classes of ``problem`` as whole numbers.

    Costs that are whole multiples of a power of two are so exactly, and their greatest common divisor becomes 1: bytes,
    bit operations, latencies in 1/1024 microsecond. Other costs are rounded in steps of 2**-45 of the largest possible sum.
    Where ``safe``, up, and their budget down: a choice that fits then fits the original costs too. Else the other way
    round: a choice that fits the original costs then fits these.

    Parameters
    ----------
    problem : with any number of constraints
    constraint : which one
    safe : which way to round where rounding cannot be avoided
    """
    table = problem.classes.costs[constraint]
    allowed = problem.classes.allowed
    largest = float(np.where(allowed, table, 0.0).max(1).sum())
    lift = max(0, -900 - math.frexp(largest)[1])  # numbers next to 0 have too few digits to divide
    largest = math.ldexp(largest, lift)
    budget = math.ldexp(min(problem.budgets[constraint], 1e9 if lift else math.inf), lift)
    budget = min(budget, 2 * largest or 1.0)  # more changes nothing
    used = np.ldexp(table[allowed], lift)
    for halvings in range(_HALVINGS + 1):
        scaled = np.ldexp(used, halvings)
        if np.all(scaled == np.floor(scaled)) and np.ldexp(largest, halvings) < _EXACT:
            divisor = int(np.gcd.reduce(scaled.astype(np.int64))) or 1
            unit = math.ldexp(divisor, -halvings - lift)
            whole = np.full(table.shape, NEVER, np.int64)
            whole[allowed] = scaled.astype(np.int64) // divisor
            return _above_least(whole, allowed, math.floor(math.ldexp(budget, halvings)) // divisor, unit, True)
    unit = largest / _STEPS
    whole = np.full(table.shape, NEVER, np.int64)
    towards = 2.0**-50 if safe else -(2.0**-50)  # the division itself is rounded either way
    whole[allowed] = (np.ceil if safe else np.floor)(used / unit * (1 + towards)).astype(np.int64)
    return _above_least(
        whole, allowed, math.floor(budget / unit - abs(budget / unit) * towards), math.ldexp(unit, -lift), False
    )


def _above_least(
    whole: NDArray[np.int64], allowed: NDArray[np.bool_], budget: int, unit: float, exact: bool
) -> WholeCosts:
    least = whole.min(1, keepdims=True)
    return WholeCosts(np.where(allowed, whole - least, NEVER), budget - int(least.sum()), unit, exact)
