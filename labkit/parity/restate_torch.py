"""Run an `IntGraph`'s own integers in PyTorch: what a certificate compares with when the float module is not at hand.

This proves the engine's execution, not the conversion: parameters are taken from the net as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from labkit.arithmetic.affine import QTensor
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.graph.shapes import Padding
from labkit.parity import torch_arithmetic as arithmetic

__all__ = ["run_graph"]

_WINDOWED = (
    *(int_ops.Conv2d, int_ops.MaxPool2d, int_ops.AveragePool2d, int_ops.AdaptiveAveragePool2d),
    *(int_ops.Pad, int_ops.UpsampleNearest2d),
)


def run_graph(graph: IntGraph, x: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every node's name and result, one after the other: int64 [N, C, H, W], float32 after a Dequantize node.

    A result that no later node takes is let go, so that little is held.

    Parameters
    ----------
    graph : the integer network
    x : float32 [N, ...] by input name

    Raises
    ------
    UnsupportedOperation
        A requantizer has another rule than SINGLE.
    """
    last_use = {name: node.name for node in graph for name in node.inputs}
    results: dict[str, torch.Tensor] = {}
    for node in graph:
        with torch.inference_mode():
            results[node.name] = _execute(graph, node, x, [results[name] for name in node.inputs])
        yield node.name, results[node.name]
        for name in {*node.inputs, node.name}:
            if last_use.get(name, node.name) == node.name:
                del results[name]


def _execute(graph: IntGraph, node: IntNode, x: dict[str, torch.Tensor], arrays: list[torch.Tensor]) -> torch.Tensor:
    op = node.op
    if isinstance(op, int_ops.Quantize):
        spec, params = node.output.quantized
        return arithmetic.real_to_integer(
            x[node.name], torch.tensor(params.scale), int(params.zero_point), (spec.qmin, spec.qmax)
        )
    if isinstance(op, int_ops.Flatten):
        return arrays[0].flatten(1)
    if isinstance(op, int_ops.Softmax):
        return arithmetic.softmax(
            arrays[0], 1 + op.axis, torch.tensor(op.table).long(), op.bits, op.zero_point, op.clamp
        )
    if isinstance(op, int_ops.ArgMax):
        return arithmetic.first_largest(arrays[0], 1 + op.axis, op.keepdims)
    if isinstance(op, int_ops.Reshape):
        return arrays[0].reshape(len(arrays[0]), *op.shape)
    if isinstance(op, int_ops.Transpose):
        return arrays[0].permute(0, *(1 + axis for axis in op.axes))
    if arrays[0].ndim == 3 and isinstance(op, _WINDOWED):  # sequences are images of height 1
        return _execute(graph, node, x, [array.unsqueeze(2) for array in arrays]).squeeze(2)
    if isinstance(op, int_ops.UpsampleNearest2d):
        images, channels, height, width = arrays[0].shape
        (down, across), pixels = op.factor, arrays[0][:, :, :, None, :, None]
        repeated = pixels.expand(images, channels, height, down, width, across)
        return repeated.reshape(images, channels, height * down, width * across)
    if isinstance(op, int_ops.MaxPool2d):
        return _max_pool(op, arrays[0], (*(1, 1, 1), *node.output.shape[1:])[-3:])
    sources = [tensor.quantized[1] for tensor in graph.inputs_of(node)]
    centred = [q - int(source.zero_point) for q, source in zip(arrays, sources, strict=True)]
    if isinstance(op, int_ops.Dequantize):
        return centred[0].float() * torch.tensor(sources[0].scale)
    if isinstance(op, int_ops.Add):
        total = centred[0] * int(op.multipliers[0]) + centred[1] * int(op.multipliers[1])
        return (((total + (1 << (op.shift - 1))) >> op.shift) + op.zero_point).clamp(*op.clamp)
    if isinstance(op, int_ops.Pad):
        return _padded(centred[0], op.padding, 0) + int(sources[0].zero_point)
    if isinstance(op, int_ops.Multiply):
        return _requantize(node.name, centred[0] * centred[1], op.requantizer)
    if isinstance(op, int_ops.Concat):
        return torch.cat([_requantize(node.name, c, r) for c, r in zip(centred, op.requantizers, strict=True)], 1)
    if isinstance(op, int_ops.AveragePool2d):
        window = torch.ones(centred[0].shape[1], 1, *op.kernel, dtype=torch.float64)
        sums = F.conv2d(_padded(centred[0].double(), op.padding, 0.0), window, stride=op.stride, groups=len(window))
        return _requantize(node.name, sums.long(), op.requantizer)
    if isinstance(op, int_ops.AdaptiveAveragePool2d):
        means = F.adaptive_avg_pool2d(centred[0].double(), op.output_size)
        areas = arithmetic.window_areas(
            lambda image: F.adaptive_avg_pool2d(image, op.output_size), centred[0].shape[2:]
        )
        return _requantize(node.name, arithmetic.sums_of_means(means, areas), op.requantizer)
    if isinstance(op, int_ops.Conv2d):
        padded = _padded(centred[0].double(), op.padding, 0.0)
        sums = F.conv2d(padded, _centred(op.weight), None, op.stride, 0, op.dilation, op.groups)
        return _requantize(node.name, sums.long() + torch.tensor(op.bias).long().reshape(-1, 1, 1), op.requantizer)
    if isinstance(op, int_ops.Linear):
        sums = F.linear(centred[0].double(), _centred(op.weight))
        return _requantize(node.name, sums.long() + torch.tensor(op.bias).long(), op.requantizer)
    assert isinstance(op, int_ops.Requantize)
    return _requantize(node.name, centred[0], op.requantizer)


def _requantize(name: str, sums: torch.Tensor, requantizer: Requantizer) -> torch.Tensor:
    if requantizer.rule is not RoundingRule.SINGLE or not isinstance(requantizer.multiplier, FixedPointMultiplier):
        raise UnsupportedOperation(f"{name}: PyTorch emulates the rounding rule SINGLE, not {requantizer.rule.name}.")
    mantissa = torch.tensor(requantizer.multiplier.mantissa).long()
    exponent = torch.tensor(requantizer.multiplier.exponent).long()
    return arithmetic.requantized(sums, mantissa, exponent, requantizer.zero_point, requantizer.clamp)


def _centred(weight: QTensor) -> torch.Tensor:
    zero_point = torch.tensor(np.asarray(weight.params.zero_point)).double()
    return torch.tensor(weight.values).double() - zero_point.reshape([-1] + [1] * (weight.values.ndim - 1))


def _max_pool(op: int_ops.MaxPool2d, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    need = [(shape[1 + a] - 1) * op.stride[a] + op.dilation[a] * (op.kernel[a] - 1) + 1 for a in range(2)]
    after = [max(op.padding[a][1], need[a] - x.shape[2 + a] - op.padding[a][0]) for a in range(2)]
    padded = _padded(x.double(), ((op.padding[0][0], after[0]), (op.padding[1][0], after[1])), -torch.inf)
    return F.max_pool2d(padded, op.kernel, op.stride, 0, op.dilation)[:, :, : shape[1], : shape[2]].long()


def _padded(x: torch.Tensor, padding: Padding, value: float) -> torch.Tensor:
    (top, bottom), (left, right) = padding
    return F.pad(x, (left, right, top, bottom), value=value)
