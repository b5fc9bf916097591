"""`Mckp`: bit allocation as a multiple-choice knapsack problem. An answer to it is an `answer.Allocation`.

Choose one bit-width for each layer so that the sum of the predicted loss increases is least and the sums of the costs
stay within their budgets (MPQCO: size; HAWQ-V3: size, bit operations and latency at once):

    min  sum_l values[l, b_l]    subject to    sum_l costs[k, l, b_l] <= budgets[k]  for every k

Layers that are tied share their bits: they become one *class*, whose value and costs are sums. Solvers see classes only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import QuantizationError
from labkit.sensitivity.axes import checked_axes, checked_values

__all__ = ["Classes", "Mckp"]

Floats = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Classes:
    """What a solver works on: one choice a class.

    members : of each class, the rows of its layers.
    values : float64 [G, B], infinite where the choice is not allowed.
    costs : float64 [K, G, B], infinite in the same places.
    """

    members: tuple[tuple[int, ...], ...]
    values: Floats
    costs: Floats

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Which choices there are, bool [G, B]; at least one in each row."""
        return np.isfinite(self.values)


@dataclass(frozen=True, eq=False)
class Mckp:
    """A multiple-choice knapsack problem.

    layers : names.
    bits : candidate bit-widths in 1..8, ascending.
    values : float64 [L, B], to be made least; may be negative.
    costs : float64 [K, L, B], not negative, for K constraints.
    budgets : K numbers; a fixed part of a cost must have been taken off.
    tied : groups of layers that share their bits; groups with a common layer are one.
    fixed : bits of layers that have no choice, and of those tied to them.
    names : what the constraints are called, "cost" or "cost 1", "cost 2", ... if left out.
    units : of the costs.
    offsets : what was taken off each budget; messages and answers add it again.

    Raises
    ------
    QuantizationError
        Shapes, names or numbers do not fit each other, or two tied layers are fixed to different bits.
    """

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    values: Floats
    costs: Floats
    budgets: tuple[float, ...]
    tied: tuple[tuple[str, ...], ...] = ()
    fixed: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    offsets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        layers, bits = checked_axes("The problem", self.layers, self.bits)
        values = checked_values("The values", self.values, (layers, bits), negative=True)
        given = np.asarray(self.costs, np.float64)
        if given.ndim != 3 or given.shape[0] < 1:
            raise QuantizationError(f"The costs must have shape (constraints, layers, bits), got {given.shape}.")
        names = tuple(self.names) or _numbered("cost", len(given))
        costs = np.stack(
            [
                checked_values(f"The costs {name!r}", table, (layers, bits), negative=False)
                for name, table in zip(_of_length("names", names, len(given)), given, strict=True)
            ]
        )
        units = _of_length("units", tuple(self.units) or ("",) * len(given), len(given))
        offsets = _of_length("offsets", tuple(self.offsets) or (0.0,) * len(given), len(given))
        budgets = tuple(float(b) for b in _of_length("budgets", tuple(self.budgets), len(given)))
        if not all(math.isfinite(b) for b in budgets):
            raise QuantizationError(f"Budgets must be finite numbers, got {budgets}.")
        tied = tuple(tuple(group) for group in self.tied)
        for name in [*(name for group in tied for name in group), *self.fixed]:
            if name not in layers:
                raise QuantizationError(
                    f"There is no layer {name!r} to tie or to fix; the layers are {', '.join(layers)}."
                )
        for name, b in self.fixed.items():
            if b not in bits:
                raise QuantizationError(
                    f"{name} cannot be fixed to {b!r} bits; the candidates are {', '.join(map(str, bits))}."
                )
        found: dict[str, object] = {"layers": layers, "bits": bits, "values": values, "costs": frozen_array(costs)}
        found |= {"budgets": budgets, "tied": tied, "names": names, "units": units}
        found |= {"fixed": MappingProxyType(dict(self.fixed)), "offsets": tuple(float(o) for o in offsets)}
        for name, got in found.items():
            object.__setattr__(self, name, got)
        _ = self.classes  # raises where tied layers are fixed to different bits

    @cached_property
    def classes(self) -> Classes:
        """The problem with tied layers as one and without the choices that are not allowed.

        Raises
        ------
        QuantizationError
            Tied layers are fixed to different bits.
        """
        members = _components(self.layers, self.tied)
        starts = np.cumsum([0, *(len(rows) for rows in members)])[:-1]
        order = [row for rows in members for row in rows]
        values = np.add.reduceat(self.values[order], starts, axis=0)
        costs = np.add.reduceat(self.costs[:, order], starts, axis=1)
        for at, rows in enumerate(members):
            wanted = {self.fixed[self.layers[r]]: self.layers[r] for r in rows if self.layers[r] in self.fixed}
            if len(wanted) > 1:
                (a, first), (b, second) = list(wanted.items())[:2]
                raise QuantizationError(
                    f"{first} is fixed to {a} bits and {second} to {b}, but they are tied and must share their bits. "
                    f"Fix both to the same, or do not tie them."
                )
            for b in wanted:
                other = [column for column in range(len(self.bits)) if self.bits[column] != b]
                values[at, other] = np.inf
                costs[:, at, other] = np.inf
        return Classes(members, frozen_array(values), frozen_array(costs))

    def columns(self, picks: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """The column of each layer, int64 [L], from ``picks``, the column of each class: integers [G]."""
        found = np.zeros(len(self.layers), np.int64)
        for rows, pick in zip(self.classes.members, picks, strict=True):
            found[list(rows)] = pick
        return found

    def value_of(self, picks: Sequence[int] | NDArray[np.integer]) -> float:
        """The sum of the values, rounded once, with ``picks`` the column of each class: integers [G]."""
        return math.fsum(self.values[np.arange(len(self.layers)), self.columns(picks)])

    def costs_of(self, picks: Sequence[int] | NDArray[np.integer]) -> tuple[float, ...]:
        """The sum of each cost, rounded once, with ``picks`` the column of each class: integers [G]."""
        rows, columns = np.arange(len(self.layers)), self.columns(picks)
        return tuple(math.fsum(table[rows, columns]) for table in self.costs)

    def fits(self, picks: Sequence[int] | NDArray[np.integer]) -> bool:
        """Whether no budget is exceeded with ``picks`` the column of each class: integers [G]."""
        return all(cost <= budget for cost, budget in zip(self.costs_of(picks), self.budgets, strict=True))

    def cheapest(self, constraint: int = 0) -> NDArray[np.int64]:
        """The columns of each class, int64 [G], at which the cost ``constraint`` is least; among equals the least value."""
        classes = self.classes
        table = classes.costs[constraint]
        ties = np.where(table == table.min(1, keepdims=True), classes.values, np.inf)
        columns: NDArray[np.int64] = np.argmin(ties, axis=1)
        return columns

    def refuse_impossible(self) -> None:
        """Look at each budget on its own.

        Raises
        ------
        QuantizationError
            Even the least possible cost exceeds one of them; the message gives that cost.
        """
        for k, (name, unit) in enumerate(zip(self.names, self.units, strict=True)):
            least = self.costs_of(self.cheapest(k))[k]
            if least > self.budgets[k]:
                raise QuantizationError(
                    f"The budget of {self.amount(k, self.budgets[k])}{'' if unit == name else f' for {name}'} cannot be met: "
                    f"the least possible is {self.amount(k, least)}. Give at least that, offer lower bits, or fix and tie "
                    f"fewer layers."
                )

    def amount(self, constraint: int, cost: float) -> str:
        """``cost`` of the constraint number ``constraint`` in words, with what had been taken off."""
        unit = self.units[constraint]
        return f"{cost + self.offsets[constraint]:,.10g}{' ' + unit if unit else ''}"

    def one_constraint(self, method: str) -> None:
        """Refuse a problem with several budgets, for a ``method`` that knows only one.

        Raises
        ------
        QuantizationError
            There are several.
        """
        if len(self.budgets) > 1:
            raise QuantizationError(
                f"{method} knows one budget, got {len(self.budgets)} ({', '.join(self.names)}). Use the method 'ilp'."
            )


def _components(layers: tuple[str, ...], tied: Iterable[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """Rows of the layers by class: those that are tied, directly or through others, together."""
    leader = {name: name for name in layers}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for group in tied:
        for name in group[1:]:
            a, b = find(group[0]), find(name)
            first, second = sorted((a, b), key=layers.index)
            leader[second] = first
    rows: dict[str, list[int]] = {}
    for at, name in enumerate(layers):
        rows.setdefault(find(name), []).append(at)
    return tuple(tuple(found) for found in rows.values())


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name} {k + 1}" for k in range(count))


def _of_length(what: str, values: tuple[T, ...], count: int) -> tuple[T, ...]:
    if len(values) != count:
        raise QuantizationError(f"There must be as many {what} as constraints, {count}, got {len(values)}.")
    return values
