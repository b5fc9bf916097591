"""What a saved net says of its rules, beside what those rules make of its scales: `compare_parameters`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.graph.ir import IntGraph
from labkit.parity.tally import Tally

__all__ = ["compare_parameters"]


def compare_parameters(tally: Tally, remade: IntGraph, saved: IntGraph) -> None:
    """Note in ``tally`` each parameter of the operations of ``saved``, expected as in ``remade``, a graph of the same nodes.

    They are multipliers, shifts, zero points, clamps, rules, tables and windows, named as in
    ``conv1.requantizer.multiplier.mantissa``. Weights, and biases that the rules take as they are, say nothing and are left out.
    """
    for node in remade:
        expected, got = dict(_parts(node.op, node.name)), dict(_parts(saved[node.name].op, node.name))
        if expected.keys() != got.keys():
            kinds = (type(node.op).__name__, type(saved[node.name].op).__name__)
            tally.missing(f"{node.name}.operation", *kinds)
            continue
        for name, value in expected.items():
            if np.shares_memory(value, got[name]):
                continue
            if value.dtype != got[name].dtype:
                tally.missing(name, str(value.dtype), str(got[name].dtype))
            else:
                tally.parameter(name, value, got[name])


def _parts(value: Any, name: str) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Every number and name in ``value`` and what it is made of, as arrays."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _parts(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        for index, part in enumerate(value):
            yield from _parts(part, f"{name}[{index}]")
    elif value is not None:
        yield name, np.asarray(value.value if isinstance(value, Enum) else value)
