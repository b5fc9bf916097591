"""The ledger of bit widths: how large every intermediate integer of a network can become, for any input, by bounds.

Where a step needs more than 32 bits, its kernel has to compute it in int64; docs/analyse.md says how each bound is had.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import Requantizer
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.reporting.accumulators.results import LayerSums, Span, Step
from labkit.reporting.accumulators.steps import EQUATIONS, SCALED, exponential_steps, gelu_steps, scaled
from labkit.reporting.accumulators.worst_case import channel_ends, worst_case

__all__ = ["SUM", "ledger"]

SUM = "sum"
_OF_SUMS = {
    **{"Conv2d": 7, "Linear": 7, "Add": 19, "AveragePool2d": 21, "Multiply": 24, "AdaptiveAveragePool2d": 27},
    **{"Embedding": 44, "MatMul": 45, "AddFixedPoint": 31, "AveragePoolOfValid": 33, "AddAwayFromZero": 38},
    **{"MeanFloat32": 42, "Concat": 20, "Requantize": 20},
}
_RULES = {"SINGLE": 13, "GEMMLOWP": 14, "GEMMLOWP_UP": 15, "DYADIC": 16}
_ONE, _SHARES = 2**31, 2**32  # over the deviation and over the sum of exponentials


def ledger(graph: IntGraph) -> tuple[Step, ...]:
    """Every intermediate of the operations of ``graph`` that sum, multiply or requantize, in running order.

    A step's `worst` holds for every input on the grid of the operation's own inputs, whatever comes before it. Operations that
    move, compare or look up integers have no steps, and neither have those that other runtimes compute in floating point.
    """
    return tuple(step for node in graph for step in _steps(graph, node))


def _steps(graph: IntGraph, node: IntNode) -> list[Step]:
    op = node.op
    if isinstance(op, int_ops.SoftmaxPolynomial):
        return _named(node, _softmax(graph, node, op))
    if isinstance(op, int_ops.LayerNorm):
        return _named(node, _layer_norm(graph, node, op))
    if isinstance(op, int_ops.Softmax):
        return _softmax_by_table(graph, node, op)
    if isinstance(op, int_ops.GeluPolynomial):
        low, high = _grid(graph, node)
        found = {name: _span(values) for name, values in gelu_steps(op, np.arange(low, high + 1)).items()}
        product = found["times the input"]
        return [*_named(node, found), *_scaled(node, (op.requantizer,), np.array([product.low, product.high]))]
    sums = worst_case(graph, node)
    if sums is None:
        return []
    made = [Step(node.name, sums.operation, SUM, _OF_SUMS.get(sums.operation, 7), _with_half(op, sums.worst))]
    return made + _scaled(node, _requantizers(op), _finished(graph, node, sums))


def _named(node: IntNode, spans: dict[str, Span]) -> list[Step]:
    kind = type(node.op).__name__
    return [Step(node.name, kind, name, equation, spans[name]) for name, equation in EQUATIONS[kind].items()]


def _scaled(node: IntNode, requantizers: tuple[Requantizer, ...], ends: NDArray[np.int64]) -> list[Step]:
    """The product with the multiplier, which rises with the sum: its ``ends``, [2] or [2, C], come from those of the sum."""
    found = [scaled(requantizer, ends, axis=1) for requantizer in requantizers]
    arrays = [array for array in found if array is not None]
    if not arrays:
        return []
    equation = _RULES[requantizers[0].rule.name]
    name = type(node.op).__name__
    return [Step(node.name, name, SCALED, equation, _span(np.concatenate([array.reshape(-1) for array in arrays])))]


def _requantizers(op: Any) -> tuple[Requantizer, ...]:
    if isinstance(op, int_ops.Concat):
        return op.requantizers
    found = getattr(op, "requantizer", None)
    return () if found is None else (found,)


def _with_half(op: int_ops.IntOp, span: Span) -> Span:
    """Eq. 19 adds a half to its sum before it shifts."""
    return Span(span.low, span.high + (1 << (op.shift - 1))) if isinstance(op, int_ops.Add) else span


def _finished(graph: IntGraph, node: IntNode, sums: LayerSums) -> NDArray[np.int64]:
    """The ends of finished sums, [2], or [2, C] of each channel, bias included."""
    op = node.op
    if isinstance(op, int_ops.Conv2d | int_ops.Linear | int_ops.Embedding):
        return np.stack(channel_ends(graph, node))
    return np.array([[sums.worst.low], [sums.worst.high]])


def _softmax(graph: IntGraph, node: IntNode, op: int_ops.SoftmaxPolynomial) -> dict[str, Span]:
    """Every difference that two scores can have is tried; the sums follow from the largest exponential, that of 0."""
    low, high = _grid(graph, node)
    found = {name: _span(values) for name, values in exponential_steps(op, np.arange(low - high, 1)).items()}
    largest, count = found["exponential"].high, graph.inputs_of(node)[0].shape[-1]
    top = int(exponential_steps(op, np.zeros(1, np.int64))["exponential"][0])
    nothing = len(node.inputs) == 2  # a mask may leave nothing of a row
    half = 1 << (31 - op.bits)
    found["exponential"] = Span(0, largest)
    found["sum of exponentials"] = Span(0 if nothing else top, top + (count - 1) * largest)
    found["dividend"] = Span(_SHARES, _SHARES)
    found["reciprocal of the sum"] = Span(
        _SHARES // max(top + (count - 1) * largest, 1), _SHARES // (1 if nothing else max(top, 1))
    )
    found["times the reciprocal"] = Span(half, _SHARES + half)
    return found


def _layer_norm(graph: IntGraph, node: IntNode, op: int_ops.LayerNorm) -> dict[str, Span]:
    """D features in a grid of R steps: differences up to R (D - 1) / D, squares up to D R**2 / 4 in all (docs/analyse.md)."""
    low, high = _grid(graph, node)
    features, reach = graph.inputs_of(node)[0].shape[0], high - low
    farthest = -(-reach * (features - 1) // features)  # a mean is rounded to nearest, towards the one or the other
    squares = features * reach * reach // 4 + features // 4 + 1 + op.epsilon
    normalised = Span(-(_ONE >> 1), _ONE >> 1)
    half = 1 << (op.shift - 1)
    gains = [int(m) * (_ONE >> 1) for m in op.multipliers]
    ends = [sign * gain + int(b) + half for gain, b in zip(gains, op.addends, strict=True) for sign in (-1, 1)]
    return {
        "sum of features": Span(features * low, features * high),
        "difference to the mean": Span(-farthest, farthest),
        "its square": Span(0, farthest * farthest),
        "sum of squares": Span(op.epsilon, squares),
        "deviation": Span(0, math.isqrt(squares)),
        "dividend": Span(_ONE, _ONE),
        "reciprocal": Span(_ONE // max(math.isqrt(squares), 1), _ONE),
        "times the reciprocal": Span(-_ONE, _ONE),
        "normalised": normalised,
        "times gamma, and beta": Span(min(ends), max(ends)),
    }


def _softmax_by_table(graph: IntGraph, node: IntNode, op: int_ops.Softmax) -> list[Step]:
    """Eq. 26: the largest element contributes the first entry of the table, the largest."""
    count, first = graph.inputs_of(node)[0].shape[op.axis], int(op.table[0])
    largest = int(op.table.max())
    total = Span(first, first + (count - 1) * largest)
    dividend = Span(total.low, (largest << (op.bits + 1)) + total.high)
    return [
        Step(node.name, "Softmax", "sum of exponentials", 26, total),
        Step(node.name, "Softmax", "dividend", 26, dividend),
        Step(node.name, "Softmax", "divisor", 26, Span(2 * total.low, 2 * total.high)),
    ]


def _grid(graph: IntGraph, node: IntNode) -> tuple[int, int]:
    spec, params = graph.inputs_of(node)[0].quantized
    return spec.qmin - int(params.zero_point), spec.qmax - int(params.zero_point)


def _span(values: NDArray[np.int64]) -> Span:
    return Span(int(values.min()), int(values.max()))
