"""`allocate`: from a sensitivity table, costs and budgets to a `BitPlan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.allocation.answer import Allocation
from labkit.allocation.budgets import Budget
from labkit.allocation.cost_table import CostTable
from labkit.allocation.exact import solve_exact
from labkit.allocation.greedy import solve_greedy
from labkit.allocation.ilp import solve_ilp
from labkit.allocation.problem import Mckp
from labkit.allocation.search import evolutionary_search, random_search
from labkit.errors import QuantizationError
from labkit.graph.ir import FloatGraph
from labkit.quantization.plan import BitPlan
from labkit.sensitivity.table import SensitivityTable

__all__ = ["METHODS", "AllocatedPlan", "allocate", "make_problem"]

METHODS = ("exact", "greedy-up", "greedy-down", "ilp", "random", "evolutionary")

Amount = float | Budget


@dataclass(frozen=True, eq=False)
class AllocatedPlan:
    """What `allocate` found.

    plan : the bits, ready for `labkit.quantization.convert`.
    allocation : value, costs, bound and how they were found.
    problem : that was solved.
    """

    plan: BitPlan
    allocation: Allocation
    problem: Mckp

    @property
    def gap(self) -> float:
        """How much smaller than this plan's predicted loss the best one can be at most."""
        return self.allocation.gap

    @property
    def average_bits(self) -> float:
        """Mean bits of the layers, each layer counted once."""
        return float(np.mean(self.allocation.bits))

    def __str__(self) -> str:
        return str(self.allocation)


def allocate(
    sensitivity: SensitivityTable,
    cost: CostTable | Sequence[CostTable],
    budget: Amount | Sequence[Amount],
    method: str = "exact",
    *,
    graph: FloatGraph,
    activations: int | Mapping[str, int] | BitPlan = 8,
    fixed: Mapping[str, int] | None = None,
    tied: Iterable[Sequence[str]] = (),
    plan_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> AllocatedPlan:
    """Choose bits for the weights of each layer so that the predicted loss is least within the budget.

    Parameters
    ----------
    sensitivity : predicted loss increases; its bits are the candidates
    cost : a table with the same layers and at least these bits; several only for "ilp", "random" and "evolutionary"
    budget : for each cost a number in its unit, fixed part included, or `budgets.average_bits` or `budgets.between`
    method : "exact" (the best within one budget), "greedy-up", "greedy-down", "ilp" (the best within several),
        "random" or "evolutionary" (yardsticks)
    graph : the simplified FloatGraph
    activations : bits of all activations (8 at input and output), bits by tensor, or a plan that says them
    fixed : bits of layers that have no choice; `constraints.first_and_last`
    tied : groups of layers that share their bits; `constraints.residual_partners`
    plan_options : the other fields of the BitPlan: per_channel, activation_scheme, weight_ranges
    options : of the method: most_states ("exact"), hull (greedy), seconds ("ilp"), evaluations, seed, evaluate and
        population (search)

    Raises
    ------
    QuantizationError
        The tables do not fit each other or the graph, the budget cannot be met, or a method or option is unknown.
    """
    if method not in METHODS:
        raise QuantizationError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if unknown := [name for name in options if name not in _OPTIONS[method]]:
        allowed = ", ".join(_OPTIONS[method])
        raise QuantizationError(f"The method {method!r} has no option {unknown[0]!r}; it has {allowed}.")
    problem = make_problem(sensitivity, cost, budget, fixed=fixed, tied=tied)
    if method == "exact":
        found = solve_exact(problem, **options)
    elif method in ("greedy-up", "greedy-down"):
        found = solve_greedy(problem, method.removeprefix("greedy-"), **options)
    elif method == "ilp":
        found = solve_ilp(problem, **options)
    else:
        found = (random_search if method == "random" else evolutionary_search)(problem, **options)
    return AllocatedPlan(found.plan(graph, activations, **dict(plan_options or {})), found, problem)


_OPTIONS = {
    "exact": ("most_states",),
    "greedy-up": ("hull",),
    "greedy-down": ("hull",),
    "ilp": ("seconds",),
    "random": ("evaluations", "seed", "evaluate"),
    "evolutionary": ("evaluations", "seed", "evaluate", "population"),
}


def make_problem(
    sensitivity: SensitivityTable,
    cost: CostTable | Sequence[CostTable],
    budget: Amount | Sequence[Amount],
    *,
    fixed: Mapping[str, int] | None = None,
    tied: Iterable[Sequence[str]] = (),
) -> Mckp:
    """The knapsack problem of these tables.

    Parameters
    ----------
    sensitivity : predicted loss increases; its bits are the candidates
    cost : one table or several, each with the same layers and at least these bits
    budget : for each cost, fixed part included
    fixed : bits of layers that have no choice
    tied : groups of layers that share their bits

    Raises
    ------
    QuantizationError
        The tables do not fit each other, or there are not as many budgets as costs.
    """
    tables = [cost] if isinstance(cost, CostTable) else list(cost)
    amounts = [budget] if isinstance(budget, int | float | Budget) else list(budget)
    if not tables or len(tables) != len(amounts):
        raise QuantizationError(f"Each cost needs a budget, got {len(tables)} costs and {len(amounts)} budgets.")
    pairs = list(zip(tables, amounts, strict=True))
    numbers = [amount.of(table) if isinstance(amount, Budget) else float(amount) for table, amount in pairs]
    return Mckp(
        sensitivity.layers,
        sensitivity.bits,
        sensitivity.values,
        np.stack([_aligned(table, sensitivity) for table in tables]),
        tuple(number - table.fixed for number, table in zip(numbers, tables, strict=True)),
        tuple(tuple(group) for group in tied),
        dict(fixed or {}),
        tuple(table.name for table in tables),
        tuple(table.unit for table in tables),
        tuple(table.fixed for table in tables),
    )


def _aligned(cost: CostTable, sensitivity: SensitivityTable) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The entries of ``cost`` in the order of ``sensitivity``, float64 [L, B]."""
    if odd := set(cost.layers) ^ set(sensitivity.layers):
        raise QuantizationError(
            f"The sensitivity table and the costs ({cost.name}) differ in the layer {min(odd)!r}: the first has "
            f"{', '.join(sensitivity.layers)}, the second {', '.join(cost.layers)}."
        )
    if missing := [b for b in sensitivity.bits if b not in cost.bits]:
        raise QuantizationError(
            f"The costs ({cost.name}) have no column for {missing[0]} bits, which the sensitivity table offers; they have "
            f"{', '.join(map(str, cost.bits))}."
        )
    rows = [cost.layers.index(layer) for layer in sensitivity.layers]
    columns = [cost.bits.index(b) for b in sensitivity.bits]
    return cost.values[np.ix_(rows, columns)]
