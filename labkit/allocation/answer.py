"""`Allocation`: the bits that a method chose, what they cost, and how far from the best they can be at most."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError
from labkit.graph.ir import FloatGraph
from labkit.quantization.plan import BitPlan

__all__ = ["Allocation", "answer"]

_KEYS = ("layers", "bits", "value", "lower_bound", "costs", "budgets", "names", "units", "method", "seconds", "notes")


@dataclass(frozen=True)
class Allocation:
    """An answer to an `Mckp`.

    layers : names.
    bits : of each layer.
    value : the sum of the predicted loss increases.
    lower_bound : no choice within the budgets has a smaller value.
    costs, budgets : of each constraint, fixed parts included.
    names, units : of the constraints.
    method : that found it.
    seconds : that it took, by the clock.
    notes : plain JSON values of the method: steps, states, evaluations, ...
    """

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    value: float
    lower_bound: float
    costs: tuple[float, ...]
    budgets: tuple[float, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    method: str
    seconds: float
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", MappingProxyType(dict(self.notes)))

    @property
    def weights(self) -> dict[str, int]:
        """Bits by layer, as a `BitPlan` takes them."""
        return dict(zip(self.layers, self.bits, strict=True))

    @property
    def gap(self) -> float:
        """How much smaller than this value the best one can be at most, in the unit of the value; 0 means proven best."""
        return self.value - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap as a share of the value, as solvers report it; infinite where the value is 0 and the gap is not."""
        if self.gap == 0:
            return 0.0
        return self.gap / abs(self.value) if self.value else math.inf

    def plan(self, graph: FloatGraph, activations: int | Mapping[str, int] | BitPlan = 8, **options: Any) -> BitPlan:
        """The allocation as a plan for the simplified ``graph``.

        Parameters
        ----------
        graph : whose layers were allocated
        activations : bits of all activations (8 at input and output), bits by tensor, or a plan that says them
        options : the other fields of a BitPlan: per_channel, activation_scheme, weight_ranges

        Raises
        ------
        QuantizationError
            The graph has other layers than the allocation, or bits are out of range.
        """
        from labkit.allocation.costs import weight_layers  # it needs torch, an allocation does not

        if missing := set(weight_layers(graph)) ^ set(self.layers):
            raise QuantizationError(
                f"The allocation and the network differ in the layer {min(missing)!r}: the allocation has "
                f"{', '.join(self.layers)}, the network {', '.join(weight_layers(graph))}."
            )
        if isinstance(activations, BitPlan):
            table: Mapping[str, int] = activations.activations
        elif isinstance(activations, Mapping):
            table = activations
        else:
            table = BitPlan.uniform(graph, activations=activations).activations
        tables = {n: bits for n, bits in BitPlan.uniform(graph).weights.items() if n not in self.layers}  # embeddings
        return BitPlan({**self.weights, **tables}, table, **options)

    def __str__(self) -> str:
        gap = "proven best" if self.gap == 0 else f"at most {self.gap:.3g} ({self.relative_gap:.2%}) above the best"
        lines = [f"Allocation by {self.method} in {self.seconds:.3f} s: value {self.value:.6g}, {gap}"]
        for name, unit, cost, budget in zip(self.names, self.units, self.costs, self.budgets, strict=True):
            lines.append(f"  {name}: {cost:,.10g} of {budget:,.10g}{' ' + unit if unit else ''}")
        room = max(len(name) for name in self.layers)
        lines += [
            f"  {name:<{room}}  {'#' * bits:<8} {bits}" for name, bits in zip(self.layers, self.bits, strict=True)
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The answer as plain JSON values; numbers survive to the last bit."""
        values = {key: getattr(self, key) for key in _KEYS}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()} | {
            "notes": dict(self.notes)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Allocation:
        """The answer that `to_json` made ``values`` of.

        Raises
        ------
        QuantizationError
            ``values`` is not such an answer.
        """
        if set(values) != set(_KEYS):
            odd = min(set(values) ^ set(_KEYS))
            raise QuantizationError(f"This is not an allocation: look at {odd!r}. It has the keys {', '.join(_KEYS)}.")
        fields: dict[str, Any] = {key: tuple(got) if isinstance(got, list) else got for key, got in values.items()}
        return cls(**fields)


def answer(
    problem: Mckp,
    picks: Sequence[int] | NDArray[np.integer],
    method: str,
    lower_bound: float | None,
    started: float,
    **notes: Any,
) -> Allocation:
    """The `Allocation` for ``problem``.

    Parameters
    ----------
    problem : that was solved
    picks : the column of each class, integers [G]
    method : that found them
    lower_bound : of the value; None says that this answer is proven best
    started : `time.perf_counter` at the beginning
    notes : to keep

    Raises
    ------
    QuantizationError
        The choice exceeds a budget, which would be a fault of the method.
    """
    value, costs = problem.value_of(picks), problem.costs_of(picks)
    for k, (cost, budget) in enumerate(zip(costs, problem.budgets, strict=True)):
        if cost > budget:
            raise QuantizationError(
                f"{method} chose {problem.names[k]} of {problem.amount(k, cost)} for a budget of "
                f"{problem.amount(k, budget)}. Report this as a fault of labkit."
            )
    return Allocation(
        problem.layers,
        tuple(problem.bits[column] for column in problem.columns(picks)),
        value,
        value if lower_bound is None else min(lower_bound, value),
        tuple(cost + offset for cost, offset in zip(costs, problem.offsets, strict=True)),
        tuple(budget + offset for budget, offset in zip(problem.budgets, problem.offsets, strict=True)),
        problem.names,
        problem.units,
        method,
        time.perf_counter() - started,
        notes,
    )
