"""Budgets said in the words of the field: average bits of a weight, or a place between two uniform bit-widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from labkit.allocation.cost_table import CostTable
from labkit.errors import QuantizationError

__all__ = ["Budget", "average_bits", "between"]


@dataclass(frozen=True)
class Budget:
    """A budget that becomes a number with a cost table at hand: ``of(cost)``; ``words`` say what it is."""

    words: str
    of: Callable[[CostTable], float]


def average_bits(bits: float) -> Budget:
    """The size at which a weight has so many ``bits`` on average; for costs in bytes that `costs.weight_bytes` counts.

    Raises
    ------
    QuantizationError
        The bits are not a number in 0..8; or, later, the costs are no sizes.
    """
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 0 < bits <= 8:
        raise QuantizationError(f"The average must be more than 0 and at most 8 bits, got {bits!r}.")

    def of(cost: CostTable) -> float:
        weights = cost.notes.get("weights")
        if cost.unit != "bytes" or weights is None:
            raise QuantizationError(
                f"An average of bits is a budget for the size in bytes, but the cost is {cost.name} in {cost.unit}. "
                f"Use between(share, 4, 8), or a number."
            )
        return cost.fixed + float(weights) * bits / 8

    return Budget(f"an average of {bits:g} bits", of)


def between(share: float, low: int, high: int) -> Budget:
    """The cost of uniform ``low`` bits, and so large a ``share`` of what uniform ``high`` bits cost more (HAWQ-V3's way).

    Raises
    ------
    QuantizationError
        The share is not a finite number; or, later, the costs have no such bits.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not math.isfinite(share):
        raise QuantizationError(f"The share must be a finite number, 0 for uniform {low} bits, got {share!r}.")

    def of(cost: CostTable) -> float:
        first, last = cost.uniform(low), cost.uniform(high)
        return first + share * (last - first)

    return Budget(f"{share:.0%} of the way from {low} to {high} bits", of)
