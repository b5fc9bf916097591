"""The exact number behind one element of a node's result: the integer sum, and the real number that is then rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.windows import adaptive_windows
from labkit.graph import int_ops
from labkit.graph.ir import IntNode, Tensor

__all__ = ["Exact", "exact_value"]

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Exact:
    """What is behind one element, in front of its rounding and clamp.

    accumulator : the integer that is multiplied, or the integers, if each has a multiplier of its own; in words.
    value : the real number in steps of the output, its zero point included.
    pair : the largest sum of two of the products that are added, with activations counted from 0; 0 where there are none. A
        kernel that multiplies 8-bit integers in pairs saturates where it leaves 16 bits.
    """

    accumulator: str
    value: Fraction
    pair: int = 0

    @property
    def is_tie(self) -> bool:
        """Whether the number lies exactly half-way between two integers."""
        return (2 * self.value).denominator == 1 and self.value.denominator == 2

    def __str__(self) -> str:
        """The real number with 12 decimals, and whether it is a tie."""
        scaled = round(self.value * 10**12)
        whole, rest = divmod(abs(scaled), 10**12)
        text = f"{'-' if scaled < 0 else ''}{whole}.{rest:012d}".rstrip("0").rstrip(".")
        return f"{text}, a tie" if self.is_tie else text


def exact_value(node: IntNode, inputs: Sequence[Tensor], arrays: Arrays, index: tuple[int, ...]) -> Exact | None:
    """The number behind element ``index`` of ``node``, by scales, weights and biases; None where none says it.

    Parameters
    ----------
    node : of a graph with integer biases (`labkit.runtimes.canonical.without_torch`)
    inputs : the tensors that go in
    arrays : what they hold, integers [N, C, H, W] or [N, ...]
    index : of the result, in the layout (N, C, H, W), the image first
    """
    if node.output.spec is None or not arrays:
        return None
    if len(index) == 3 and len(node.output.shape) == 2:  # a sequence is an image of height 1
        arrays = [array[:, :, None] if array.ndim == 3 else array for array in arrays]
        index = (*index[:2], 0, index[2])
    image, *place = index
    op, scale = node.op, _scale(node.output)
    sources = [(array[image].astype(np.int64), tensor) for array, tensor in zip(arrays, inputs, strict=True)]
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        taps, weights = _taps(op, sources[0], place)
        total = int(((taps - _zero(sources[0][1])) * weights).sum()) + int(op.bias[place[0]])
        weight_scales = op.weight.params.scale.reshape(-1)
        factor = _exactly(weight_scales[place[0] if len(weight_scales) > 1 else 0]) * _scale(sources[0][1])
        lowest = int(np.iinfo(sources[0][1].dtype).min)
        return replace(_of(total, factor / scale, node), pair=_largest_pair((taps - lowest) * weights))
    if isinstance(op, int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32):
        subtracts = op.subtracts if isinstance(op, int_ops.AddFixedPoint) else False
        if isinstance(op, int_ops.Add):
            subtracts = bool(op.multipliers[1] < 0)
        a, b = (int(x[tuple(place)]) - _zero(tensor) for x, tensor in sources)
        ratios = [_scale(tensor) / scale for _, tensor in sources]
        real = a * ratios[0] + (-b if subtracts else b) * ratios[1]
        return Exact(f"{a} and {b}", real + _zero(node.output))
    if isinstance(op, int_ops.Multiply):
        a, b = (
            int(x[tuple(i if n > 1 else 0 for i, n in zip(place, x.shape, strict=True))]) - _zero(t) for x, t in sources
        )
        return _of(a * b, _scale(sources[0][1]) * _scale(sources[1][1]) / scale, node)
    if isinstance(op, int_ops.Requantize) or (isinstance(op, int_ops.Lookup) and op.function == "rescale"):
        x, tensor = sources[0]
        return _of(int(x[tuple(place)]) - _zero(tensor), _scale(tensor) / scale, node)
    if isinstance(op, int_ops.MatMul):
        a, b = (x.astype(np.int64) - _zero(tensor) for x, tensor in sources)
        row = a[place[0], :, place[1]] if op.transpose_a else a[place[0], place[1]]
        column = b[place[0], place[2]] if op.transpose_b else b[place[0], :, place[2]]
        multiplier = op.requantizer.multiplier  # the scales alone do not say by which factor the product was multiplied
        reals = multiplier.to_real() if isinstance(multiplier, FixedPointMultiplier) else multiplier
        return _of(int((row * column).sum()), _exactly(reals), node)
    if isinstance(op, int_ops.Concat):
        return _joined(node, sources, place)
    return _mean(node, sources[0], place)


def _joined(node: IntNode, sources: Sequence[tuple[NDArray[np.int64], Tensor]], place: list[int]) -> Exact | None:
    channel, *rest = place
    for x, tensor in sources:
        if channel < len(x):
            value = int(x[(channel, *rest)]) - _zero(tensor)
            return _of(value, _scale(tensor) / _scale(node.output), node)
        channel -= len(x)
    return None


def _mean(node: IntNode, source: tuple[NDArray[np.int64], Tensor], place: list[int]) -> Exact | None:
    op, (x, tensor) = node.op, source
    factor = _scale(tensor) / _scale(node.output)
    if isinstance(op, int_ops.AdaptiveAveragePool2d):
        (top, bottom), (left, right) = (
            adaptive_windows(x.shape[1 + axis], op.output_size[axis])[place[1 + axis]] for axis in range(2)
        )
        window = x[place[0], top:bottom, left:right] - _zero(tensor)
        return _of(int(window.sum()), factor / window.size, node)
    if isinstance(op, int_ops.AveragePool2d | int_ops.AveragePoolOfValid | int_ops.AveragePoolFloat32):
        starts = [place[1 + a] * op.stride[a] - op.padding[a][0] for a in range(2)]
        ends = [start + size for start, size in zip(starts, op.kernel, strict=True)]
        window = x[place[0], max(starts[0], 0) : ends[0], max(starts[1], 0) : ends[1]] - _zero(tensor)
        counts_all = isinstance(op, int_ops.AveragePool2d) or getattr(op, "counts_padding", False)
        return _of(int(window.sum()), factor / (math.prod(op.kernel) if counts_all else window.size), node)
    return None


def _taps(
    op: int_ops.Conv2d | int_ops.Linear, source: tuple[NDArray[np.int64], Tensor], place: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The integers that are multiplied, padding left out, and their weights less the zero point, in the same order."""
    x, _ = source
    zeros = op.weight.params.zero_point.reshape(-1)
    weight = op.weight.values[place[0]].astype(np.int64) - int(zeros[place[0] if len(zeros) > 1 else 0])
    if isinstance(op, int_ops.Linear):
        return x, weight
    outputs, depth = op.weight.values.shape[:2]
    first = place[0] // (outputs // op.groups) * depth
    taps, weights = [], []
    for i in range(weight.shape[1]):
        row = place[1] * op.stride[0] - op.padding[0][0] + i * op.dilation[0]
        for j in range(weight.shape[2]):
            column = place[2] * op.stride[1] - op.padding[1][0] + j * op.dilation[1]
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                taps.append(x[first : first + depth, row, column])
                weights.append(weight[:, i, j])
    nothing = np.zeros(0, np.int64)
    return np.concatenate([nothing, *taps]), np.concatenate([nothing, *weights])


def _largest_pair(products: NDArray[np.int64]) -> int:
    """The sum of two of ``products`` that is furthest from 0."""
    ordered = np.sort(products)
    if len(ordered) < 2:
        return 0
    low, high = int(ordered[:2].sum()), int(ordered[-2:].sum())
    return high if high >= -low else low


def _of(accumulator: int, factor: Fraction, node: IntNode) -> Exact:
    return Exact(f"{accumulator}", accumulator * factor + _zero(node.output))


def _exactly(number: Any) -> Fraction:
    return Fraction(float(number))


def _scale(tensor: Tensor) -> Fraction:
    return _exactly(tensor.quantized[1].scale)


def _zero(tensor: Tensor) -> int:
    return int(tensor.quantized[1].zero_point)
