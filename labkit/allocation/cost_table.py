"""`CostTable`: what each layer at each bit-width takes from a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import QuantizationError
from labkit.files import write_atomically
from labkit.sensitivity.axes import Axes, checked_axes, checked_values, made_from, position, read_object, rows_of_text

__all__ = ["CostTable"]

_KIND = "cost table"
_KEYS = ("layers", "bits", "values", "unit", "name", "fixed", "notes")


@dataclass(frozen=True, eq=False)
class CostTable:
    """A cost that is the sum of one entry for each layer and of a ``fixed`` part that no choice of bits changes.

    layers : names of the layers, in the order of the network.
    bits : candidate bit-widths in 1..8, ascending.
    values : float64 [L, B], not negative.
    unit : of the values: "bytes", "bit operations", "microseconds", ...
    name : what is counted: "size", "bit operations", "latency", ...
    fixed : in the same unit, 0 or more.
    notes : plain JSON values that say how the numbers were found.

    Raises
    ------
    QuantizationError
        Shapes, names, bits or numbers make no table.
    """

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    values: NDArray[np.float64]
    unit: str
    name: str
    fixed: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers, bits = checked_axes(f"The {_KIND}", self.layers, self.bits)
        values = checked_values(f"The values of the {_KIND}", self.values, (layers, bits), negative=False)
        for what in ("unit", "name"):
            if not isinstance(text := getattr(self, what), str) or not text:
                raise QuantizationError(f"The {_KIND} needs a {what} in words, got {text!r}.")
        number = isinstance(self.fixed, int | float | np.number) and not isinstance(self.fixed, bool)
        if not number or not 0 <= self.fixed < math.inf:
            raise QuantizationError(
                f"The fixed part of the {_KIND} must be finite and not negative, got {self.fixed!r}."
            )
        kept = MappingProxyType(dict(self.notes))
        fields = {"layers": layers, "bits": bits, "values": values, "fixed": float(self.fixed), "notes": kept}
        for what, got in fields.items():
            object.__setattr__(self, what, got)

    @property
    def axes(self) -> Axes:
        """Layers and bits."""
        return self.layers, self.bits

    def value(self, layer: str, bits: int) -> float:
        """What ``layer`` takes at ``bits``.

        Raises
        ------
        QuantizationError
            The table has no such layer or bits.
        """
        return float(self.values[position(f"The {_KIND}", self.axes, layer, bits)])

    def total(self, weights: Mapping[str, int]) -> float:
        """The whole cost, fixed part included, with each layer at its bits in ``weights``.

        Raises
        ------
        QuantizationError
            A layer of the table is left out, or gets bits that the table does not have.
        """
        if missing := [layer for layer in self.layers if layer not in weights]:
            raise QuantizationError(f"There are no weight bits for {missing[0]!r}, a layer of the {_KIND}.")
        return math.fsum([self.fixed, *(self.value(layer, weights[layer]) for layer in self.layers)])

    def uniform(self, bits: int) -> float:
        """The whole cost, fixed part included, with every layer at ``bits``.

        Raises
        ------
        QuantizationError
            The table has no such bits.
        """
        return self.total(dict.fromkeys(self.layers, bits))

    def __str__(self) -> str:
        notes = ", ".join(f"{key}={value}" for key, value in self.notes.items())
        head = f"Cost: {self.name} in {self.unit}, {self.fixed:,.10g} of them fixed{f' ({notes})' if notes else ''}"
        return "\n".join([head, *rows_of_text(self.axes, self.values)])

    def to_json(self) -> dict[str, Any]:
        """The table as plain JSON values; numbers survive to the last bit."""
        return {
            "layers": list(self.layers),
            "bits": list(self.bits),
            "values": self.values.tolist(),
            "unit": self.unit,
            "name": self.name,
            "fixed": self.fixed,
            "notes": dict(self.notes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CostTable:
        """The table that `to_json` made ``values`` of.

        Raises
        ------
        QuantizationError
            ``values`` is not such a table.
        """
        return made_from(values, cls, _KIND, _KEYS[:5], _KEYS)

    def save(self, path: str | Path) -> None:
        """Write the table to ``path`` as JSON, whole or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read a table from the JSON file at ``path``.

        Raises
        ------
        QuantizationError
            The file cannot be read, or does not hold a table.
        """
        return cls.from_json(read_object(path, _KIND))
