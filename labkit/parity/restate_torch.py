"""Run an `IntGraph`'s own integers in PyTorch: what a certificate compares with when the float module is not at hand.

This proves the engine's execution, not the conversion: parameters are taken from the net as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.graph.shapes import Padding
from labkit.parity import torch_arithmetic as arithmetic
from labkit.parity import torch_rules as rules
from labkit.parity import torch_runtimes as runtimes
from labkit.parity import torch_sequences as sequences

__all__ = ["run_graph"]

_WINDOWED = (
    *(int_ops.Conv2d, int_ops.MaxPool2d, int_ops.AveragePool2d, int_ops.AdaptiveAveragePool2d),
    *(int_ops.Pad, int_ops.UpsampleNearest2d, int_ops.AveragePoolOfValid, int_ops.AveragePoolFloat32),
)


def run_graph(graph: IntGraph, x: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every node's name and result, one after the other: int64 [N, C, H, W], float32 after a Dequantize node.

    A result that no later node takes is let go, so that little is held.

    Parameters
    ----------
    graph : the integer network
    x : [N, C, H, W] or [N, ...] by input name: integers for an Input node, else float32
    """
    last_use = {name: node.name for node in graph for name in node.inputs}
    results: dict[str, torch.Tensor] = {}
    for node in graph:
        with torch.inference_mode():
            arrays = [results[name] for name in node.inputs]
            results[node.name] = _execute(graph, node, arrays) if arrays else _entering(node, x)
        yield node.name, results[node.name]
        for name in {*node.inputs, node.name}:
            if last_use.get(name, node.name) == node.name:
                del results[name]


def _entering(node: IntNode, x: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a ``node`` without inputs puts out, given ``x`` by its name."""
    op = node.op
    if isinstance(op, int_ops.Constant):
        images = len(next(iter(x.values())))
        return torch.tensor(op.values).long().expand(images, *op.values.shape)
    if isinstance(op, int_ops.Input):
        return x[node.name].long()
    spec, params = node.output.quantized
    line = torch.tensor(params.scale), int(params.zero_point), (spec.qmin, spec.qmax)
    if isinstance(op, int_ops.QuantizeByReciprocal):
        return runtimes.border_by_reciprocal(x[node.name], *line, op.zero_point_inside)
    if isinstance(op, int_ops.QuantizeAwayFromZero):
        return runtimes.border_away_from_zero(x[node.name], *line)
    return arithmetic.real_to_integer(x[node.name], *line)


def _execute(graph: IntGraph, node: IntNode, arrays: list[torch.Tensor]) -> torch.Tensor:
    op = node.op
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
        return _execute(graph, node, [array.unsqueeze(2) for array in arrays]).squeeze(2)
    if isinstance(op, int_ops.UpsampleNearest2d):
        images, channels, height, width = arrays[0].shape
        (down, across), pixels = op.factor, arrays[0][:, :, :, None, :, None]
        repeated = pixels.expand(images, channels, height, down, width, across)
        return repeated.reshape(images, channels, height * down, width * across)
    if isinstance(op, int_ops.MaxPool2d):
        return _max_pool(op, arrays[0], (*(1, 1, 1), *node.output.shape[1:])[-3:])
    if isinstance(op, _OF_RUNTIMES):
        return _as_runtimes_do(graph, node, op, arrays)
    if isinstance(op, _ON_SEQUENCES):
        return _on_sequences(graph, node, op, arrays)
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
        return _requantize(centred[0] * centred[1], op.requantizer)
    if isinstance(op, int_ops.Concat):
        return torch.cat([_requantize(c, r) for c, r in zip(centred, op.requantizers, strict=True)], 1)
    if isinstance(op, int_ops.AveragePool2d):
        window = torch.ones(centred[0].shape[1], 1, *op.kernel, dtype=torch.float64)
        sums = F.conv2d(_padded(centred[0].double(), op.padding, 0.0), window, stride=op.stride, groups=len(window))
        return _requantize(sums.long(), op.requantizer)
    if isinstance(op, int_ops.AdaptiveAveragePool2d):
        means = F.adaptive_avg_pool2d(centred[0].double(), op.output_size)
        areas = arithmetic.window_areas(
            lambda image: F.adaptive_avg_pool2d(image, op.output_size), centred[0].shape[2:]
        )
        return _requantize(arithmetic.sums_of_means(means, areas), op.requantizer)
    if isinstance(op, int_ops.Conv2d):
        padded = _padded(centred[0].double(), op.padding, 0.0)
        sums = F.conv2d(padded, _centred(op.weight), None, op.stride, 0, op.dilation, op.groups)
        return _requantize(sums.long() + torch.tensor(op.bias).long().reshape(-1, 1, 1), op.requantizer)
    if isinstance(op, int_ops.Linear):
        sums = F.linear(centred[0].double(), _centred(op.weight))
        return _requantize(sums.long() + torch.tensor(op.bias).long(), op.requantizer)
    assert isinstance(op, int_ops.Requantize)
    return _requantize(centred[0], op.requantizer)


_OF_RUNTIMES = (
    *(int_ops.AddFixedPoint, int_ops.AddFloat32, int_ops.AddDequantized, int_ops.AddAwayFromZero),
    *(int_ops.AveragePoolOfValid, int_ops.AveragePoolFloat32, int_ops.MeanFloat32, int_ops.Lookup),
    *(int_ops.SoftmaxFixedPoint, int_ops.SoftmaxByReciprocal, int_ops.SoftmaxFloat32),
)


_ON_SEQUENCES = (
    *(int_ops.Embedding, int_ops.MatMul, int_ops.SoftmaxPolynomial, int_ops.GeluPolynomial, int_ops.LayerNorm),
)


def _on_sequences(graph: IntGraph, node: IntNode, op: Any, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
    if isinstance(op, int_ops.Embedding):
        used, places = np.unique(arrays[0].numpy(), return_inverse=True)
        rows = torch.tensor(op.weight.values[used]).long().unsqueeze(0)  # each row is a channel to its requantizer
        scaled = _requantize(rows, _of_rows(op.requantizer, used))[0]
        return scaled[torch.from_numpy(places.reshape(arrays[0].shape))].movedim(-1, 1)
    zero_points = [int(tensor.quantized[1].zero_point) for tensor in graph.inputs_of(node)]
    if isinstance(op, int_ops.MatMul):
        a, b = (q - zero for q, zero in zip(arrays, zero_points, strict=True))
        return _requantize(sequences.matrix_product(a, b, op.transpose_a, op.transpose_b), op.requantizer)
    if isinstance(op, int_ops.SoftmaxPolynomial):
        mask = arrays[1] != zero_points[1] if len(arrays) == 2 else None
        fixed = int(op.multiplier.mantissa), int(op.multiplier.exponent)
        return sequences.polynomial_shares(arrays[0], mask, (op.ln2, op.b, op.c), fixed, op.bits)
    if isinstance(op, int_ops.GeluPolynomial):
        return _requantize(sequences.gelu(arrays[0], op.b, op.c, op.one), op.requantizer)
    numbers = torch.tensor(op.multipliers).long(), torch.tensor(op.addends).long()
    return sequences.layer_norm(arrays[0], *numbers, op.shift, op.clamp, op.epsilon)


def _of_rows(requantizer: Requantizer, rows: NDArray[np.int64]) -> Requantizer:
    """``requantizer`` with the multipliers of some ``rows`` of a table, int64 [n]."""
    multiplier = requantizer.multiplier
    if not isinstance(multiplier, FixedPointMultiplier):
        return replace(requantizer, multiplier=multiplier[rows]) if multiplier.ndim else requantizer
    if not multiplier.mantissa.ndim:
        return requantizer
    return replace(requantizer, multiplier=FixedPointMultiplier(multiplier.mantissa[rows], multiplier.exponent[rows]))


def _as_runtimes_do(graph: IntGraph, node: IntNode, op: Any, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
    specs, sources = zip(*(tensor.quantized for tensor in graph.inputs_of(node)), strict=True)
    zero_points = [int(source.zero_point) for source in sources]
    if isinstance(op, int_ops.AddFixedPoint | int_ops.AddAwayFromZero):
        centred = [q - zero for q, zero in zip(arrays, zero_points, strict=True)]
        if isinstance(op, int_ops.AddAwayFromZero):
            total = centred[0] * int(op.multipliers[0]) + centred[1] * int(op.multipliers[1])
            return (rules.shifted_away(total, op.shift) + op.zero_point).clamp(*op.clamp)
        upwards = op.rule is RoundingRule.GEMMLOWP_UP
        left, right = (
            rules.double_rounded(q << op.left_shift, mantissa, exponent, upwards)
            for q, mantissa, exponent in zip(centred, *_fixed(op.inputs), strict=True)
        )
        total = left - right if op.subtracts else left + right
        return (rules.double_rounded(total, *_fixed(op.output), upwards) + op.zero_point).clamp(*op.clamp)
    if isinstance(op, int_ops.AddFloat32):
        return runtimes.add_float32(arrays, torch.tensor(op.multipliers), torch.tensor(op.addend), op.clamp)
    if isinstance(op, int_ops.AddDequantized):
        reals, lowest = (torch.tensor(op.scales), torch.tensor(op.reciprocal)), int(np.iinfo(specs[0].dtype).min)
        return runtimes.add_dequantized(arrays, zero_points, *reals, op.zero_point, op.clamp, op.fused, lowest)
    if isinstance(op, int_ops.Lookup):
        return runtimes.looked_up(arrays[0], torch.tensor(op.table).long(), int(np.iinfo(specs[0].dtype).min))
    if isinstance(op, int_ops.AveragePoolOfValid):
        return runtimes.means_of_valid(arrays[0], op.kernel, op.stride, op.padding, op.clamp, op.offset)
    if isinstance(op, int_ops.AveragePoolFloat32):
        target = node.output.quantized[1]
        scales = torch.tensor(sources[0].scale), torch.tensor(target.scale)
        windows = op.kernel, op.stride, op.padding, op.counts_padding
        return runtimes.means_of_reals(arrays[0], scales, (zero_points[0], int(target.zero_point)), *windows, op.clamp)
    if isinstance(op, int_ops.MeanFloat32):
        dims, reals = [1 + axis for axis in op.axes], (torch.tensor(op.multiplier), torch.tensor(op.addend))
        return runtimes.mean_float32(arrays[0], dims, *reals, op.clamp, op.offset)
    ends = op.zero_point, op.clamp
    if isinstance(op, int_ops.SoftmaxFixedPoint):
        mantissa, exponent = int(op.multiplier.mantissa), int(op.multiplier.exponent)
        return runtimes.softmax_fixed_point(arrays[0], 1 + op.axis, mantissa, exponent, op.lowest_difference, *ends)
    if isinstance(op, int_ops.SoftmaxByReciprocal):
        return runtimes.softmax_by_reciprocal(arrays[0], 1 + op.axis, torch.tensor(op.table), *ends)
    return runtimes.softmax_float32(arrays[0], 1 + op.axis, torch.tensor(op.table), torch.tensor(op.factor), *ends)


def _requantize(sums: torch.Tensor, requantizer: Requantizer) -> torch.Tensor:
    """``sums`` int64 [N, C, ...] to the output's integers, under any rule."""
    rule, inside = requantizer.rule, requantizer.zero_point if requantizer.zero_point_inside else 0
    multiplier = requantizer.multiplier
    if isinstance(multiplier, FixedPointMultiplier):
        mantissa, exponent = _fixed(multiplier)
        if rule is RoundingRule.SINGLE:
            return arithmetic.requantized(sums, mantissa, exponent, requantizer.zero_point, requantizer.clamp)
        if rule is RoundingRule.DYADIC:
            rounded = rules.even(sums, mantissa, exponent)
        else:
            rounded = rules.double_rounded(sums, mantissa, exponent, rule is RoundingRule.GEMMLOWP_UP)
        return (rounded + requantizer.zero_point).clamp(*requantizer.clamp)
    real = torch.tensor(multiplier)
    if rule is RoundingRule.FLOAT64_AWAY:
        rounded = rules.real_away(sums, real, inside)
    else:
        bias = None if requantizer.bias is None else torch.tensor(requantizer.bias)
        if rule is RoundingRule.FLOAT32_TWICE:
            rounded = rules.real_twice(sums, real, bias, torch.tensor(requantizer.second), inside)
        else:
            rounded = rules.real_even(sums, real, bias, inside)
    return (rounded + requantizer.zero_point - inside).clamp(*requantizer.clamp)


def _fixed(multiplier: FixedPointMultiplier) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(multiplier.mantissa).long(), torch.tensor(multiplier.exponent).long()


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
