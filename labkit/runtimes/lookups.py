"""Functions of one integer as tables of 256 entries (eq. 36): the real function, and how a runtime computes and rounds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import Requantizer
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import Tensor
from labkit.runtimes.bounds import RealBounds
from labkit.runtimes.labkit_rules import requantizer, scale_of

__all__ = ["RELU_BOUNDS", "inputs_of", "labkit_lookup", "lookup_of", "requantized"]

RELU_BOUNDS: Mapping[str, RealBounds] = MappingProxyType(
    {"relu": (0.0, None), "relu6": (0.0, 6.0), "relu_n1_to_1": (-1.0, 1.0), "rescale": (None, None)}
)
"""The functions that change the scale and keep the number within bounds."""

_CUBE = 0.044715  # of the approximation of GELU by a hyperbolic tangent


def _gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + _CUBE * x**3)))


_REAL: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "gelu": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),  # erfc: no cancellation where x is far below 0
        "gelu_tanh": _gelu_tanh,
        "logistic": lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0,
        "tanh": math.tanh,
    }
)


def inputs_of(source: Tensor) -> NDArray[np.int64]:
    """The integers that the dtype of ``source`` has, less the zero point, shape (256,): what the entries of a table stand for."""
    spec, params = source.quantized
    return np.arange(256) + int(np.iinfo(spec.dtype).min) - int(params.zero_point)


def lookup_of(function: str, table: NDArray[Any], output: Tensor) -> int_ops.Lookup:
    """The operation of ``function`` with the integers ``table`` [256], clamped to the grid of ``output``."""
    spec, _ = output.quantized
    return int_ops.Lookup(function, np.clip(table, spec.qmin, spec.qmax).astype(np.int32))


def requantized(function: str, source: Tensor, output: Tensor, by: Requantizer) -> int_ops.Lookup:
    """The operation of ``function``, one of `RELU_BOUNDS`, that ``by`` computes from integers of ``source`` for ``output``."""
    return lookup_of(function, by.apply(inputs_of(source)), output)


def labkit_lookup(function: str, source: Tensor, output: Tensor) -> int_ops.Lookup:
    """``function`` of `int_ops.Lookup` from ``source`` to ``output`` under labkit's rules: one rounding, ties up.

    Raises
    ------
    UnsupportedOperation
        There is no such function.
    """
    if function in RELU_BOUNDS:
        made = requantizer(scale_of(source) / scale_of(output), output, RELU_BOUNDS[function])
        return requantized(function, source, output, made)
    if function not in _REAL:
        raise UnsupportedOperation(f"There is no function {function!r}; {', '.join((*_REAL, *RELU_BOUNDS))} are known.")
    real = np.array([_REAL[function](x) for x in (inputs_of(source) * scale_of(source)).tolist()])
    table = np.floor(real / scale_of(output) + 0.5) + int(output.quantized[1].zero_point)
    return lookup_of(function, table, output)
