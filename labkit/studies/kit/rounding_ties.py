"""How often a network's numbers lie half-way between two integers before they are rounded, exactly or in float32 alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor

__all__ = ["ties_of"]

Reals = NDArray[np.float64]
_NEAR = 1e-6  # of a step times the number itself: float64 errs by far less, and Fractions decide


def ties_of(graph: IntGraph, node: IntNode, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, int, int]:
    """Elements of ``node``, those whose exact number is a tie, and those whose number is one in float32 alone.

    ``arrays`` holds the integers [N, ...] of every node of ``graph`` by name, and under the name of its border, with "real "
    in front, the real numbers that enter. Exact is the product of the integer sum and the scales as rational numbers.
    """
    sources = graph.inputs_of(node)
    scale = np.float32(node.output.quantized[1].scale)
    if isinstance(node.op, int_ops.Quantize):
        real = arrays[f"real {node.name}"]
        near = real.astype(np.float64) / np.float64(scale)
        return _count(near, real / scale, lambda at: Fraction(float(real[at])) / _exactly(scale))
    if isinstance(node.op, int_ops.Add):
        return _sum(node, sources, [_centred(t, arrays[n]) for n, t in zip(node.inputs, sources, strict=True)], scale)
    sums, factors = _sums(node, sources[0], _centred(sources[0], arrays[node.inputs[0]]))
    exact = [factor / _exactly(scale) for factor in factors]
    column = (-1, *(1,) * (sums.ndim - 2)) if len(factors) > 1 else ()
    ratio = np.array([float(one) for one in exact]).reshape(column)
    rounded = sums.astype(np.float32) * ratio.astype(np.float32)
    return _count(sums * ratio, rounded, lambda at: int(sums[at]) * exact[at[1] if len(exact) > 1 else 0])


def _sums(node: IntNode, source: Tensor, x: Reals) -> tuple[Reals, list[Fraction]]:
    """Integer sums [N, ...] in float64, exact, and the scale for which 1 of them stands: one, or one a channel."""
    op, scale = node.op, _exactly(np.float32(source.quantized[1].scale))
    values = torch.from_numpy(x)
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        weight = torch.from_numpy(op.weight.values.astype(np.float64))
        bias = torch.from_numpy(op.bias.astype(np.float64))
        scales = [_exactly(one) * scale for one in op.weight.params.scale.reshape(-1)]
        if isinstance(op, int_ops.Linear):
            return F.linear(values, weight, bias).numpy(), scales
        (top, bottom), (left, right) = op.padding
        padded = F.pad(values, (left, right, top, bottom))
        return F.conv2d(padded, weight, bias, op.stride, 0, op.dilation, op.groups).numpy(), scales
    if isinstance(op, int_ops.AveragePool2d):
        (top, bottom), (left, right) = op.padding
        padded = F.pad(values, (left, right, top, bottom))
        area = op.kernel[0] * op.kernel[1]
        return torch.round(F.avg_pool2d(padded, op.kernel, op.stride) * area).numpy(), [scale / area]
    return x, [scale]  # a change of scale


def _sum(node: IntNode, sources: tuple[Tensor, ...], parts: list[Reals], scale: np.float32) -> tuple[int, int, int]:
    scales = [np.float32(tensor.quantized[1].scale) for tensor in sources]
    ratios = [_exactly(one) / _exactly(scale) for one in scales]
    a, b = parts
    near = a * float(ratios[0]) + b * float(ratios[1])
    real = a.astype(np.float32) * scales[0] + b.astype(np.float32) * scales[1]
    return _count(near, real * (np.float32(1) / scale), lambda at: int(a[at]) * ratios[0] + int(b[at]) * ratios[1])


def _count(
    near: Reals, rounded: NDArray[np.floating], exact: Callable[[tuple[Any, ...]], Fraction]
) -> tuple[int, int, int]:
    """``near`` is the number in float64, ``rounded`` in float32, ``exact`` gives it for an index."""
    in_float32 = _is_half(rounded.astype(np.float64))
    asked = in_float32 | (np.abs(near - np.floor(near) - 0.5) <= _NEAR * np.maximum(np.abs(near), 1) * 2.0**-10)
    ties = 0
    alone = 0
    for place in np.argwhere(asked):
        at = tuple(int(i) for i in place)
        is_tie = exact(at).denominator == 2
        ties += is_tie
        alone += bool(in_float32[at]) and not is_tie
    return near.size, ties, alone


def _is_half(x: Reals) -> NDArray[np.bool_]:
    return np.asarray(x - np.floor(x) == 0.5)


def _centred(tensor: Tensor, x: NDArray[Any]) -> Reals:
    return x.astype(np.float64) - int(tensor.quantized[1].zero_point)


def _exactly(number: Any) -> Fraction:
    return Fraction(float(number))
