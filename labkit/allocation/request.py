"""What is asked of a plan: budgets, and how it is to be found. Frozen data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from labkit.allocation.allocate import METHODS as SOLVERS
from labkit.allocation.budgets import average_bits
from labkit.allocation.cost_table import CostTable
from labkit.errors import QuantizationError
from labkit.quantization.plan import ACTIVATION_SCHEMES, WEIGHT_RANGES

__all__ = ["BITS", "ROUNDINGS", "SENSITIVITIES", "SOLVERS", "Budgets", "PlanOptions"]

BITS = (2, 3, 4, 5, 6, 8)
ROUNDINGS = ("best", "nearest")
SENSITIVITIES = ("gauss-newton", "fisher", "mpqco", "hawq-v2", "direct", "sqnr")
_ONE_BUDGET = ("exact", "greedy-up", "greedy-down")


@dataclass(frozen=True)
class Budgets:
    """What the network may take at most; at least one of these.

    average_bits : bits of a weight on average, all weights counted alike.
    bytes : of weights, biases and scales, weights as if their bits lay end to end.
    bit_operations : multiply-accumulates x weight bits x input bits, of one image.
    microseconds : of one image on one thread of this processor.

    Raises
    ------
    QuantizationError
        None is given, or one is not a finite positive number.
    """

    average_bits: float | None = None
    bytes: float | None = None
    bit_operations: float | None = None
    microseconds: float | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise QuantizationError(
                "A plan needs a budget: average bits, bytes, bit operations or microseconds, or several of them."
            )
        for name, value in self.given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise QuantizationError(
                    f"The budget of {name.replace('_', ' ')} must be a number above 0, got {value!r}."
                )
        if self.average_bits is not None:
            average_bits(self.average_bits)  # refuses more than 8

    @property
    def given(self) -> dict[str, float]:
        """Those that are given, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) is not None}

    @property
    def kinds(self) -> int:
        """How many different things they limit; an average of bits and bytes both limit the size."""
        return len({"bytes" if name == "average_bits" else name for name in self.given})

    def size(self, table: CostTable) -> float | None:
        """The bytes of ``table`` that may be taken: the least of what the average and the bytes allow; None for any."""
        limits = [] if self.average_bits is None else [average_bits(self.average_bits).of(table)]
        if self.bytes is not None:
            limits.append(float(self.bytes))
        return min(limits, default=None)


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is found.

    bits : candidate widths of the weights, in 1..8.
    sensitivity : how the damage of each layer is predicted, one of `SENSITIVITIES`.
    rounding : "best" or "nearest": how the weights that the table compares are rounded; as they will be in the network.
    solver : one of `allocate`'s methods; None for "exact", or "ilp" where there are several budgets.
    first_and_last : bits of the first and the last layer, which then have no choice.
    tie_residual : layers whose results are added get the same bits.
    activations : bits of all activations (8 at input and output).
    per_channel, activation_scheme, weight_ranges : the other fields of the plan.
    images : the first so many are used for the table; None for as many as its method needs.
    seed : of all that is drawn.

    Raises
    ------
    QuantizationError
        A name or number is unknown or out of range.
    """

    bits: Sequence[int] = BITS
    sensitivity: str = "gauss-newton"
    rounding: str = "best"
    solver: str | None = None
    first_and_last: int | None = None
    tie_residual: bool = False
    activations: int = 8
    per_channel: bool = True
    activation_scheme: str = "affine"
    weight_ranges: str = "minmax"
    images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what, got, allowed in (
            ("sensitivity", self.sensitivity, SENSITIVITIES),
            ("rounding", self.rounding, ROUNDINGS),
            ("solver", self.solver, (*SOLVERS, None)),
        ):
            if got not in allowed:
                names = ", ".join(name for name in allowed if name is not None)
                raise QuantizationError(f"The {what} must be one of {names}, got {got!r}.")
        if self.activations not in range(2, 9) or isinstance(self.activations, bool):
            raise QuantizationError(f"Activations must have 2..8 bits, got {self.activations!r}.")
        for what, got, known in (
            ("activation_scheme", self.activation_scheme, ACTIVATION_SCHEMES),
            ("weight_ranges", self.weight_ranges, WEIGHT_RANGES),
        ):
            if got not in known:
                raise QuantizationError(f"{what} must be one of {', '.join(known)}, got {got!r}.")
        if self.images is not None and self.images < 1:
            raise QuantizationError(f"The table needs at least one image, got {self.images}.")
        wanted = [*self.bits, *(() if self.first_and_last is None else (self.first_and_last,))]
        whole = all(isinstance(b, int | np.integer) and not isinstance(b, bool) and 1 <= b <= 8 for b in wanted)
        if not self.bits or not whole:
            raise QuantizationError(
                f"Candidate bits, and those of the first and the last layer, must be integers in 1..8, got {wanted}."
            )
        object.__setattr__(self, "bits", tuple(sorted({int(b) for b in wanted})))

    def solver_for(self, budgets: Budgets) -> str:
        """The solver that is used for ``budgets``.

        Raises
        ------
        QuantizationError
            It knows one budget only, and there are several.
        """
        if self.solver is None:
            return "exact" if budgets.kinds == 1 else "ilp"
        if self.solver in _ONE_BUDGET and budgets.kinds > 1:
            raise QuantizationError(
                f"The solver {self.solver!r} knows one budget, got {budgets.kinds} ({', '.join(budgets.given)}). Use 'ilp'."
            )
        return self.solver
