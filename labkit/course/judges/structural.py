"""Judges of structure: an answer may be any that obeys the rules and is good enough, not only the one expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from labkit.course.judges.base import Difference, as_array
from labkit.course.judges.values import Exact, shortened

__all__ = ["BestPlan", "RoundingChoice", "plan_difference"]


@dataclass(frozen=True)
class RoundingChoice:
    """Integers, each the floor or the ceiling of a real number, with a small quadratic error.

    The inputs named ``real`` (real numbers [n] or [rows, n], in steps of the grid) and ``gram`` (float64 [n, n]) belong to it;
    the error of a row is d G d for d = integers - real. Up to ``slack`` times the error of the expected answer is allowed.
    Where ``low`` and ``high`` are inputs' names, integers beyond them are refused.
    """

    kind: ClassVar[str] = "rounding choice"
    real: str
    gram: str
    slack: float = 1.0
    low: str | None = None
    high: str | None = None

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """What is wrong with ``got``: its shape or type, a forbidden choice, an error too large beside that of ``expected``.

        ``inputs`` are the case's.
        """
        have, want = as_array(got), np.asarray(expected)
        if have is None or have.shape != want.shape:
            return Exact().compare(got, expected, inputs)
        if have.dtype.kind not in "iu":
            return Difference("Integers are wanted.", "", "integers", str(have.dtype))
        real, gram = np.asarray(inputs[self.real], np.float64), np.asarray(inputs[self.gram], np.float64)
        lowest, highest = np.floor(real), np.ceil(real)
        if self.low is not None:
            lowest, highest = np.maximum(lowest, inputs[self.low]), np.maximum(highest, inputs[self.low])
        if self.high is not None:
            lowest, highest = np.minimum(lowest, inputs[self.high]), np.minimum(highest, inputs[self.high])
        wrong = (have != lowest) & (have != highest)
        if np.any(wrong):
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            allowed = f"{lowest[index]:g} or {highest[index]:g}"
            place = f"[{', '.join(map(str, index))}]"
            return Difference("Only the neighbours on the grid are allowed.", place, allowed, str(have[index]))

        def error(values: Any) -> float:
            d = np.atleast_2d(values - real)
            return float(np.einsum("ri,ij,rj->", d, gram, d))

        allowed_error = self.slack * error(want) + 1e-9
        if error(have) > allowed_error:
            return Difference(
                "The quadratic error d G d is too large.", "", f"at most {allowed_error:.6g}", f"{error(have):.6g}"
            )
        return None

    def same(self, got: Any, other: Any) -> bool:
        """``got`` has the integers of ``other``."""
        return Exact().same(got, other)


@dataclass(frozen=True)
class BestPlan:
    """One choice for each layer, within a budget, with the least total loss (up to ``slack`` times, for heuristics).

    The inputs named ``losses`` and ``costs`` are tables [layers, choices], ``budget`` a number; an answer is one index a layer.
    """

    kind: ClassVar[str] = "best plan"
    losses: str = "losses"
    costs: str = "costs"
    budget: str = "budget"
    slack: float = 1.0

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """What is wrong with ``got``: no plan, over the budget of ``inputs``, or a loss above that of ``expected``."""
        return plan_difference(
            got, expected, inputs[self.losses], [inputs[self.costs]], [inputs[self.budget]], self.slack
        )

    def same(self, got: Any, other: Any) -> bool:
        """``got`` has the indices of ``other``."""
        return Exact().same(got, other)


def plan_difference(
    got: Any, expected: Any, losses: ArrayLike, tables: ArrayLike, budgets: Sequence[float], slack: float
) -> Difference | None:
    """What is wrong with the plan ``got``: no plan, over a budget, or a loss above ``slack`` times that of ``expected``.

    Parameters
    ----------
    got, expected : one index a layer
    losses : real numbers [layers, choices]
    tables : costs, real numbers [budgets, layers, choices]
    budgets : the largest total of each table
    slack : 1 or more
    """
    lost, costs = np.asarray(losses, np.float64), np.asarray(tables, np.float64)
    have, want = as_array(got), np.asarray(expected)
    if have is None or have.shape != want.shape or have.dtype.kind not in "iu":
        return Exact().compare(got, expected, {})
    layers, choices = lost.shape
    if np.any((have < 0) | (have >= choices)):
        return Difference("An index must name a choice.", "", f"0 to {choices - 1}", shortened(got))
    rows = np.arange(layers)
    for number, (table, budget) in enumerate(zip(costs, budgets, strict=True)):
        if (spent := float(table[rows, have].sum())) > float(budget):
            which = "the budget" if len(costs) == 1 else f"budget number {number}"
            return Difference(f"The plan is over {which}.", "", f"a cost of at most {float(budget):g}", f"{spent:g}")
    loss, best = float(lost[rows, have].sum()), float(lost[rows, want].sum())
    if loss > best + (slack - 1) * abs(best) + 1e-9 * max(1.0, abs(best)):
        within = "the budget" if len(costs) == 1 else "the budgets"
        return Difference(f"A plan within {within} loses less.", "", f"a loss of {best:.6g}", f"{loss:.6g}")
    return None
