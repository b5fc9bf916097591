"""One element of a layer at a time in Python integers and fractions: what a difference's two values must be."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode

__all__ = ["conv_element", "nearest", "tie_count"]

_MULTIPLIES_NOTHING = (
    int_ops.ArgMax
    | int_ops.Softmax
    | int_ops.Flatten
    | int_ops.Pad
    | int_ops.Reshape
    | int_ops.Transpose
    | int_ops.UpsampleNearest2d
)


def nearest(value: Fraction) -> int:
    """The nearest integer, ties up."""
    return floor(value + Fraction(1, 2))


def conv_element(graph: IntGraph, name: str, x: NDArray[Any], index: tuple[int, ...], pad: int | None = None) -> int:
    """The element ``index`` (n, channel, row, column) of the convolution ``name`` for its input integers ``x``.

    ``pad`` is the integer that padding holds: by default the one that stands for real 0.
    """
    node = graph[name]
    op = node.op
    assert isinstance(op, int_ops.Conv2d)
    _, source = graph.inputs_of(node)[0].quantized
    zero_point = int(source.zero_point)
    n, o, i, j = index
    outputs, depth, height, width = op.weight.values.shape
    first = o // (outputs // op.groups) * depth
    total = int(op.bias[o])
    for c in range(depth):
        for k in range(height):
            for m in range(width):
                row = i * op.stride[0] + k * op.dilation[0] - op.padding[0][0]
                column = j * op.stride[1] + m * op.dilation[1] - op.padding[1][0]
                inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
                value = int(x[n, first + c, row, column]) if inside else (zero_point if pad is None else pad)
                total += int(op.weight.values[o, c, k, m]) * (value - zero_point)
    requantizer: Any = op.requantizer
    mantissa, exponent = (np.broadcast_to(part, outputs)[o].item() for part in vars(requantizer.multiplier).values())
    scaled = nearest(total * mantissa * Fraction(2) ** (exponent - 31)) + requantizer.zero_point
    low, high = requantizer.clamp
    return max(low, min(high, scaled))


def tie_count(graph: IntGraph, node: IntNode, trace: dict[str, NDArray[Any]]) -> int:
    """How many sums of ``node`` lie exactly between two integers after scaling, and not beyond the clamp."""
    op: Any = node.op
    if isinstance(op, int_ops.Quantize | int_ops.Dequantize | int_ops.MaxPool2d | _MULTIPLIES_NOTHING):
        return 0
    inputs = [
        torch.from_numpy(trace[name].astype(np.float64)) - int(graph[name].output.quantized[1].zero_point)
        for name in node.inputs
    ]
    if isinstance(op, int_ops.Add):
        pairs = [(inputs[0] * int(op.multipliers[0]) + inputs[1] * int(op.multipliers[1]), None)]
        return _halves(pairs[0][0].long(), torch.tensor(1), torch.tensor(op.shift), op.zero_point, op.clamp)
    if isinstance(op, int_ops.Multiply):
        return _requantized_halves((inputs[0] * inputs[1]).long(), op.requantizer)
    if isinstance(op, int_ops.Concat):
        return sum(
            _requantized_halves(x.long(), requantizer) for x, requantizer in zip(inputs, op.requantizers, strict=True)
        )
    x = inputs[0]
    if x.ndim == 3:
        x = x.unsqueeze(2)  # a sequence: an image of height 1
    if isinstance(op, int_ops.Conv2d):
        (top, bottom), (left, right) = op.padding
        weight = torch.from_numpy(op.weight.values.astype(np.float64))
        x = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, op.stride, 0, op.dilation, op.groups)
        x = x + torch.tensor(op.bias).double().reshape(-1, 1, 1)
    elif isinstance(op, int_ops.Linear):
        x = x @ torch.from_numpy(op.weight.values.astype(np.float64)).T + torch.tensor(op.bias).double()
    elif isinstance(op, int_ops.AdaptiveAveragePool2d):
        return 0
    elif isinstance(op, int_ops.AveragePool2d):
        (top, bottom), (left, right) = op.padding
        x = F.avg_pool2d(F.pad(x, (left, right, top, bottom)), op.kernel, op.stride) * (op.kernel[0] * op.kernel[1])
        x = x.round()
    return _requantized_halves(x.long(), op.requantizer)


def _requantized_halves(sums: torch.Tensor, requantizer: Any) -> int:
    shape = [-1] + [1] * (sums.ndim - 2) if requantizer.channels else []
    mantissa, exponent = (torch.from_numpy(np.asarray(part)).long() for part in vars(requantizer.multiplier).values())
    return _halves(
        sums, mantissa.reshape(shape), 31 - exponent.reshape(shape), requantizer.zero_point, requantizer.clamp
    )


def _halves(
    sums: torch.Tensor, mantissa: torch.Tensor, shift: torch.Tensor, zero_point: int, clamp: tuple[int, int]
) -> int:
    product, one = sums * mantissa, torch.ones_like(shift)
    tie = (product & ((one << shift) - 1)) == (one << (shift - 1))
    below = (
        product >> shift
    ) + zero_point  # ties up gives one more; both must be inside, or no rule makes a difference
    return int((tie & (below >= clamp[0]) & (below < clamp[1])).sum())
