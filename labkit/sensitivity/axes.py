"""What tables of layers by bit-widths have in common: their checks, their look as text, their way from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import QuantizationError

__all__ = ["checked_axes", "checked_values", "made_from", "position", "read_object", "rows_of_text"]

Axes = tuple[tuple[str, ...], tuple[int, ...]]
T = TypeVar("T")


def checked_axes(what: str, layers: Sequence[str], bits: Sequence[int]) -> Axes:
    """``layers`` and ``bits`` as tuples, for a table that messages call ``what``.

    Raises
    ------
    QuantizationError
        There are none, a layer occurs twice, or the bits are not ascending integers in 1..8.
    """
    listed = isinstance(layers, Sequence) and not isinstance(layers, str)
    if not listed or not layers or not all(isinstance(name, str) and name for name in layers):
        raise QuantizationError(f"{what}: layers must be one or more names, got {layers!r}.")
    names = tuple(layers)
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise QuantizationError(f"{what}: the layer {twice[0]!r} occurs twice; every layer has one row.")
    widths = tuple(bits) if isinstance(bits, Sequence) else ()
    whole = all(isinstance(b, int | np.integer) and not isinstance(b, bool) and 1 <= b <= 8 for b in widths)
    if not widths or not whole or any(a >= b for a, b in pairwise(widths)):
        raise QuantizationError(f"{what}: bits must be ascending integers in 1..8, such as (2, 4, 8), got {bits}.")
    return names, tuple(int(b) for b in widths)


def checked_values(what: str, values: Any, axes: Axes, *, negative: bool) -> NDArray[np.float64]:
    """``values`` as a frozen float64 array [L, B] that fits the layers and bits of ``axes``.

    ``what`` is their name in messages, and ``negative`` says whether they may be below 0.

    Raises
    ------
    QuantizationError
        They are no numbers, have another shape, are not finite, or are negative and may not be.
    """
    layers, bits = axes
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise QuantizationError(
            f"{what} must be numbers, one row a layer and one column a bit-width: {error}."
        ) from error
    if array.shape != (len(layers), len(bits)):
        raise QuantizationError(
            f"{what} must have shape ({len(layers)}, {len(bits)}), one row a layer and one column a bit-width, "
            f"got {array.shape}."
        )
    wrong = ~np.isfinite(array) | (False if negative else array < 0)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        allowed = "finite" if negative else "finite and not negative"
        raise QuantizationError(
            f"{what} must be {allowed}, got {array[row, column]} for {layers[row]} at {bits[column]} bits."
        )
    return frozen_array(array)


def position(what: str, axes: Axes, layer: str, bits: int) -> tuple[int, int]:
    """Row of ``layer`` and column of ``bits`` in the table of ``axes`` that messages call ``what``.

    Raises
    ------
    QuantizationError
        The table has no such layer or bits.
    """
    layers, widths = axes
    if layer not in layers:
        raise QuantizationError(f"{what} has no layer {layer!r}; it has {', '.join(layers)}.")
    if bits not in widths:
        raise QuantizationError(f"{what} has no column for {bits} bits; it has {', '.join(map(str, widths))}.")
    return layers.index(layer), widths.index(bits)


def rows_of_text(axes: Axes, values: NDArray[np.float64], errors: NDArray[np.float64] | None = None) -> list[str]:
    """One line for the bits and one for each layer of ``axes``, columns aligned.

    ``values`` and ``errors`` are float64 [L, B]; an error of 0 is not written.
    """
    layers, bits = axes
    errors = np.zeros_like(values) if errors is None else errors
    form = ",.0f" if np.all(values == np.round(values)) else ".4g"
    cells = [
        [f"{v:{form}}" + (f" ± {e:.1g}" if e > 0 else "") for v, e in zip(row, spread, strict=True)]
        for row, spread in zip(values, errors, strict=True)
    ]
    heads = [f"{b} bit{'s' if b > 1 else ''}" for b in bits]
    widths = [max(len(head), *(len(row[at]) for row in cells)) for at, head in enumerate(heads)]
    room = max(len(name) for name in layers)
    lines = ["  ".join([f"  {'':<{room}}", *(f"{head:>{w}}" for head, w in zip(heads, widths, strict=True))])]
    for name, row in zip(layers, cells, strict=True):
        lines.append("  ".join([f"  {name:<{room}}", *(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))]))
    return lines


def made_from(
    values: Mapping[str, Any], make: Callable[..., T], what: str, required: Sequence[str], keys: Sequence[str]
) -> T:
    """What ``make`` makes of ``values`` by name; ``what`` messages call it, ``keys`` it may have, ``required`` it must have.

    Raises
    ------
    QuantizationError
        A required key is missing, one is unknown, or ``make`` refuses them.
    """
    allowed = f"has {', '.join(keys)}"
    if missing := [key for key in required if key not in values]:
        raise QuantizationError(f"This is not a {what}: it has no {missing[0]}. A table {allowed}.")
    if unknown := [key for key in values if key not in keys]:
        raise QuantizationError(f"A {what} has no key {unknown[0]!r}; it {allowed}.")
    try:
        return make(**values)
    except (TypeError, ValueError) as error:
        raise QuantizationError(f"This is not a {what}: {error}. A table {allowed}.") from error


def read_object(path: str | Path, what: str) -> dict[str, Any]:
    """The JSON object in the file at ``path``, which messages call ``what``.

    Raises
    ------
    QuantizationError
        The file cannot be read, or holds something else.
    """
    try:
        values = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise QuantizationError(f"Cannot read the {what} {path}: {error}. Give a JSON file with a {what}.") from error
    if not isinstance(values, dict):
        raise QuantizationError(f"{path} does not hold a {what} but a {type(values).__name__}.")
    return values
