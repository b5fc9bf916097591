"""`SensitivityTable`: what each layer at each bit-width is expected to cost in loss."""

from __future__ import annotations

import json
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

__all__ = ["SensitivityTable"]

_KIND = "sensitivity table"
_KEYS = ("layers", "bits", "values", "errors", "method", "unit", "notes")


@dataclass(frozen=True, eq=False)
class SensitivityTable:
    """Predicted increase of the loss when the weights of one layer get so many bits and all else stays as it is.

    layers : names of the layers, in the order of the network.
    bits : candidate bit-widths in 1..8, ascending.
    values : float64 [L, B]; an estimate may come out below 0.
    errors : float64 [L, B], standard errors of the values, 0 where they are exact.
    method : how they were found, such as "fisher".
    unit : of the values, such as "nats an image".
    notes : plain JSON values that say where they came from: images, seed, seconds, ...

    Raises
    ------
    QuantizationError
        Shapes, names, bits or numbers make no table.
    """

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    method: str
    unit: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers, bits = checked_axes(f"The {_KIND}", self.layers, self.bits)
        values = checked_values(f"The values of the {_KIND}", self.values, (layers, bits), negative=True)
        errors = checked_values(f"The errors of the {_KIND}", self.errors, (layers, bits), negative=False)
        for name in ("method", "unit"):
            if not isinstance(text := getattr(self, name), str) or not text:
                raise QuantizationError(f"The {_KIND} needs a {name} in words, got {text!r}.")
        kept = MappingProxyType(dict(self.notes))
        for name, got in (("layers", layers), ("bits", bits), ("values", values), ("errors", errors), ("notes", kept)):
            object.__setattr__(self, name, got)

    @property
    def axes(self) -> Axes:
        """Layers and bits."""
        return self.layers, self.bits

    def value(self, layer: str, bits: int) -> float:
        """The predicted increase of the loss with ``layer`` at ``bits``.

        Raises
        ------
        QuantizationError
            The table has no such layer or bits.
        """
        return float(self.values[position(f"The {_KIND}", self.axes, layer, bits)])

    def predicted(self, weights: Mapping[str, int]) -> float:
        """The sum over all layers, each at its bits in ``weights``: what an allocation minimises.

        Raises
        ------
        QuantizationError
            A layer of the table is left out, or gets bits that the table does not have.
        """
        if missing := [layer for layer in self.layers if layer not in weights]:
            raise QuantizationError(f"There are no weight bits for {missing[0]!r}, a layer of the {_KIND}.")
        return float(sum(self.value(layer, weights[layer]) for layer in self.layers))

    def __str__(self) -> str:
        notes = ", ".join(f"{key}={value}" for key, value in self.notes.items())
        head = f"Loss increase by {self.method}, in {self.unit}{f' ({notes})' if notes else ''}"
        return "\n".join([head, *rows_of_text(self.axes, self.values, self.errors)])

    def to_json(self) -> dict[str, Any]:
        """The table as plain JSON values; numbers survive to the last bit."""
        return {
            "layers": list(self.layers),
            "bits": list(self.bits),
            "values": self.values.tolist(),
            "errors": self.errors.tolist(),
            "method": self.method,
            "unit": self.unit,
            "notes": dict(self.notes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SensitivityTable:
        """The table that `to_json` made ``values`` of.

        Raises
        ------
        QuantizationError
            ``values`` is not such a table.
        """
        return made_from(values, cls, _KIND, _KEYS[:-1], _KEYS)

    def save(self, path: str | Path) -> None:
        """Write the table to ``path`` as JSON, whole or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> SensitivityTable:
        """Read a table from the JSON file at ``path``.

        Raises
        ------
        QuantizationError
            The file cannot be read, or does not hold a table.
        """
        return cls.from_json(read_object(path, _KIND))
