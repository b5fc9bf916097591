"""Judges of bit allocation: plans under several budgets, and problems on which the greedy is to fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labkit.course.judges.base import Difference, as_array
from labkit.course.judges.structural import plan_difference
from labkit.course.judges.values import Exact, shortened
from labkit.errors import QuantizationError

__all__ = ["BestPlanWithin", "GreedyTrap"]

_MOST_LAYERS, _MOST_CHOICES = 6, 8


@dataclass(frozen=True)
class BestPlanWithin:
    """One choice for each layer, within every budget, with the least total loss (up to ``slack`` times).

    The inputs named ``losses`` [layers, choices], ``costs`` [budgets, layers, choices] and ``budgets`` [budgets] belong to it;
    an answer is one index a layer.
    """

    kind: ClassVar[str] = "best plan within"
    losses: str = "losses"
    costs: str = "costs"
    budgets: str = "budgets"
    slack: float = 1.0

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """No plan, or one over a budget of ``inputs``, or ``got`` loses more than ``expected``."""
        return plan_difference(got, expected, inputs[self.losses], inputs[self.costs], inputs[self.budgets], self.slack)

    def same(self, got: Any, other: Any) -> bool:
        """Whether ``got`` and ``other`` are the same indices."""
        return Exact().same(got, other)


@dataclass(frozen=True)
class GreedyTrap:
    """An allocation problem (losses, costs, budget) on which the greedy loses ``factor`` times what the best plan loses.

    ``factor`` is the name of the input that says how many times. The expected value is one such problem and is not compared.
    """

    kind: ClassVar[str] = "greedy trap"
    factor: str = "factor"

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """``got`` is no problem, has no answer, or the greedy does too well on it.

        ``inputs`` hold the factor; ``expected`` is one right answer of many and is not looked at.
        """
        wanted = "(losses, costs, budget)"
        if not isinstance(got, tuple | list) or len(got) != 3:
            return Difference("Three values are wanted, as a tuple.", "", wanted, shortened(got))
        losses, costs, budget = (as_array(part) for part in got)
        if fault := _fault_of(losses, costs, budget):
            return fault
        assert losses is not None and costs is not None and budget is not None
        try:
            greedy, best = _solved(losses, costs, float(budget))
        except QuantizationError as error:
            return Difference(
                f"The problem has no answer: {error}", "[2]", "a budget that some plan meets", f"{budget:g}"
            )
        if best <= 0:
            return Difference(
                "The best plan must lose something, else no factor says how bad the greedy is.", "", "> 0", "0"
            )
        times = float(inputs[self.factor])
        if greedy < times * best * (1 - 1e-9):
            said = f"greedy {greedy:.6g}, best {best:.6g}, {greedy / best:.6g} times as much"
            return Difference("The greedy does too well here.", "", f"at least {times:g} times the best loss", said)
        return None

    def same(self, got: Any, other: Any) -> bool:
        """Whether ``got`` and ``other`` hold the same numbers."""
        return (
            isinstance(got, tuple | list)
            and len(got) == len(other) == 3
            and all(
                mine is not None and theirs is not None and np.array_equal(mine, theirs)
                for mine, theirs in zip(map(as_array, got), map(as_array, other), strict=True)
            )
        )


def _fault_of(
    losses: NDArray[Any] | None, costs: NDArray[Any] | None, budget: NDArray[Any] | None
) -> Difference | None:
    """What keeps these from being a problem of allocation, if anything does."""
    if losses is None or losses.ndim != 2 or not (0 < losses.shape[0] <= _MOST_LAYERS):
        return Difference(
            "The losses must be a table.", "[0]", f"1 to {_MOST_LAYERS} layers by choices", shortened(losses)
        )
    if not 2 <= losses.shape[1] <= _MOST_CHOICES:
        return Difference("A layer needs choices.", "[0]", f"2 to {_MOST_CHOICES} choices", f"{losses.shape[1]}")
    if costs is None or costs.shape != losses.shape:
        shape = None if costs is None else costs.shape
        return Difference("The costs must be a table of the same shape.", "[1]", str(losses.shape), str(shape))
    if budget is None or budget.ndim != 0:
        return Difference("The budget must be one number.", "[2]", "a number", shortened(budget))
    for place, table in enumerate((losses, costs)):
        if not np.all(np.isfinite(table)) or np.any(table < 0):
            return Difference(
                "Losses and costs must be finite and not negative.", f"[{place}]", ">= 0", shortened(table)
            )
    if np.any(np.diff(costs.astype(np.float64), axis=1) <= 0):
        return Difference(
            "The costs of a layer must rise from choice to choice.", "[1]", "rising rows", shortened(costs)
        )
    return None if np.isfinite(budget) else Difference("The budget must be finite.", "[2]", "a number", f"{budget}")


def _solved(losses: NDArray[Any], costs: NDArray[Any], budget: float) -> tuple[float, float]:
    """What the greedy (upwards, on the hull) and the best plan lose.

    Raises
    ------
    QuantizationError
        No plan meets the budget.
    """
    from labkit.allocation.exact import solve_exact
    from labkit.allocation.greedy import solve_greedy
    from labkit.allocation.problem import Mckp

    layers, choices = losses.shape
    names, bits = tuple(f"layer {i}" for i in range(layers)), tuple(range(1, choices + 1))
    problem = Mckp(names, bits, losses.astype(np.float64), costs.astype(np.float64)[None], (budget,))
    return solve_greedy(problem).value, solve_exact(problem).value
