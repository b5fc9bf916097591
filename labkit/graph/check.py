"""What must hold for each node of an `IntGraph`: shapes, grids, requantizers, accumulator bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from labkit.arithmetic.affine import PerTensor, QTensor
from labkit.arithmetic.bounds import INT32_LIMIT, check_accumulator
from labkit.arithmetic.requantize import Requantizer
from labkit.errors import BoundError, ModelError
from labkit.graph import int_ops
from labkit.graph.shapes import window_output

if TYPE_CHECKING:
    from labkit.graph.ir import IntGraph, IntNode, Tensor

__all__ = ["check_node"]

LARGEST_TENSOR = 2**28  # numbers an image; a thousand times what the largest usual network needs


def check_node(graph: IntGraph, node: IntNode) -> None:
    """Check one ``node`` of ``graph``, whose earlier nodes are sound.

    Raises
    ------
    ModelError
        A shape, a grid or a parameter does not fit.
    BoundError
        A sum could leave 32 bits.
    """
    inputs = graph.inputs_of(node)
    arity = {int_ops.Quantize: 0, int_ops.Add: 2, int_ops.Concat: None}.get(type(node.op), 1)
    if (arity is not None and len(inputs) != arity) or (arity is None and not inputs):
        raise ModelError(f"{node.name}: {type(node.op).__name__} takes {arity or 'some'} inputs, got {len(inputs)}.")
    _check_window(node)
    shape = _output_shape(node, inputs)
    if math.prod(shape) > LARGEST_TENSOR:
        raise ModelError(
            f"{node.name}: a tensor of shape {shape} is too large; {LARGEST_TENSOR:,} numbers are allowed."
        )
    if shape != node.output.shape or min(shape, default=1) < 1:
        raise ModelError(
            f"{node.name}: its output has shape {shape} by its inputs, but {node.output.shape} is declared."
        )
    if isinstance(node.op, int_ops.Dequantize):
        inputs[0].quantized  # noqa: B018  (raises where the input is real)
        if node.output.spec is not None:
            raise ModelError(f"{node.name}: a Dequantize node puts out real numbers, not {node.output.spec}.")
        return
    spec, params = node.output.quantized
    if not isinstance(spec.granularity, PerTensor):
        raise ModelError(f"{node.name}: an activation has one scale, got {params.scale.shape}.")
    if not spec.qmin <= int(params.zero_point) <= spec.qmax:
        raise ModelError(f"{node.name}: zero point {int(params.zero_point)} is outside {spec.qmin}..{spec.qmax}.")
    if not isinstance(node.op, int_ops.Quantize):
        _check_operation(node, inputs)


def _check_window(node: IntNode) -> None:
    """A kernel without bounds checks relies on this: a stride of 0 or a negative padding would read outside its input."""
    op = node.op
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        axes = 4 if isinstance(op, int_ops.Conv2d) else 2
        if op.weight.values.ndim != axes:
            raise ModelError(f"{node.name}: its weights need {axes} axes, got shape {op.weight.values.shape}.")
    if isinstance(op, int_ops.Conv2d | int_ops.MaxPool2d | int_ops.AveragePool2d):
        kernel = op.weight.values.shape[2:] if isinstance(op, int_ops.Conv2d) else op.kernel
        dilation = (1, 1) if isinstance(op, int_ops.AveragePool2d) else op.dilation
        edges = (*op.padding[0], *op.padding[1])
        if min(*kernel, *op.stride, *dilation) < 1 or min(edges) < 0:
            raise ModelError(
                f"{node.name}: kernel {tuple(kernel)}, stride {op.stride} and dilation {dilation} must be at least 1, "
                f"padding {op.padding} at least 0."
            )


def _output_shape(node: IntNode, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    op = node.op
    if isinstance(op, int_ops.Quantize):
        return tuple(op.shape)
    first = inputs[0].shape
    if isinstance(op, int_ops.Flatten):
        return (int(np.prod(first)),)
    if isinstance(op, int_ops.Linear):
        if len(first) != 1:
            raise ModelError(f"{node.name}: Linear takes a flat input, got {first}. Put a Flatten node before it.")
        return (op.weight.values.shape[0],)
    if isinstance(op, int_ops.Concat):
        _need_image(node, first)
        return (sum(t.shape[0] for t in inputs), *first[1:])
    if isinstance(op, int_ops.Conv2d):
        _need_image(node, first)
        kernel, dilation, ceil_mode, channels = (
            op.weight.values.shape[2:],
            op.dilation,
            False,
            op.weight.values.shape[0],
        )
    elif isinstance(op, int_ops.MaxPool2d | int_ops.AveragePool2d):
        _need_image(node, first)
        pool = isinstance(op, int_ops.MaxPool2d)
        kernel, channels = op.kernel, first[0]
        dilation, ceil_mode = (op.dilation, op.ceil_mode) if pool else ((1, 1), False)  # type: ignore[union-attr]
    else:
        return first
    sizes = (
        window_output(first[1 + i], kernel[i], op.stride[i], op.padding[i], dilation[i], ceil_mode) for i in range(2)
    )
    return (channels, *sizes)


def _need_image(node: IntNode, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ModelError(f"{node.name}: {type(node.op).__name__} takes (channels, height, width), got {shape}.")


def _check_operation(node: IntNode, inputs: tuple[Tensor, ...]) -> None:
    op = node.op
    spec, params = inputs[0].quantized
    low, high = spec.qmin - int(params.zero_point), spec.qmax - int(params.zero_point)
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        _check_weights(node.name, op.weight, op.bias, inputs[0].shape, getattr(op, "groups", 1))
        weights = op.weight.values.astype(np.int64) - _column(op.weight)
        check_accumulator(node.name, weights, low, high, op.bias)
        _check_requantizer(node, op.requantizer, op.weight.values.shape[0])
    elif isinstance(op, int_ops.AveragePool2d):
        _check_requantizer(node, op.requantizer, None)
        if op.kernel[0] * op.kernel[1] * max(abs(low), abs(high)) > INT32_LIMIT:
            raise BoundError(f"{node.name}: a window of {op.kernel} sums to more than int32 holds.")
    elif isinstance(op, int_ops.Requantize):
        _check_requantizer(node, op.requantizer, None)
    elif isinstance(op, int_ops.Concat):
        if len(op.requantizers) != len(inputs) or any(t.shape[1:] != inputs[0].shape[1:] for t in inputs):
            raise ModelError(f"{node.name}: each input needs a requantizer and the same height and width.")
        for requantizer in op.requantizers:
            _check_requantizer(node, requantizer, None)
    elif isinstance(op, int_ops.Add):
        _check_add(node, op, inputs)
    elif isinstance(op, int_ops.MaxPool2d):
        _check_windows(node, op, inputs[0].shape)
        _check_same_scale(node, inputs[0])
    else:
        _check_same_scale(node, inputs[0])


def _check_same_scale(node: IntNode, source: Tensor) -> None:
    if (source.spec, _pair(source)) != (node.output.spec, _pair(node.output)):
        raise ModelError(
            f"{node.name}: {type(node.op).__name__} keeps the scale of its input, but another is declared."
        )


def _check_windows(node: IntNode, op: int_ops.MaxPool2d, shape: tuple[int, ...]) -> None:
    """Every window must meet the image: the largest of no elements is no number."""
    for axis in range(2):
        positions = node.output.shape[1 + axis]
        reach = op.padding[axis][0] // op.stride[axis] + 1  # later windows start inside, up to the last few
        inside = max(0, shape[1 + axis] - op.kernel[axis] * op.dilation[axis]) // op.stride[axis]
        for position in (*range(min(reach, positions)), *range(max(reach, inside), positions)):
            start = position * op.stride[axis] - op.padding[axis][0]
            first = max(0, -(start // op.dilation[axis]))  # the first tap that is not before the image
            if first >= op.kernel[axis] or start + first * op.dilation[axis] >= shape[1 + axis]:
                raise ModelError(
                    f"{node.name}: window {position} of the max-pool lies wholly in the padding. Pad less."
                )


def _check_add(node: IntNode, op: int_ops.Add, inputs: tuple[Tensor, ...]) -> None:
    if inputs[0].shape != inputs[1].shape:
        raise ModelError(f"{node.name}: both inputs must have one shape, got {inputs[0].shape}, {inputs[1].shape}.")
    if op.multipliers.shape != (2,) or op.multipliers.dtype != np.int32 or not 1 <= op.shift <= 62:
        raise ModelError(f"{node.name}: an Add takes two int32 multipliers and a shift of 1..62, got shift {op.shift}.")
    spec, params = node.output.quantized
    if op.zero_point != int(params.zero_point) or not spec.qmin <= op.clamp[0] <= op.clamp[1] <= spec.qmax:
        raise ModelError(f"{node.name}: zero point or clamp {op.clamp} does not fit the grid {spec.qmin}..{spec.qmax}.")
    for tensor in inputs:
        tensor.quantized  # noqa: B018  (raises where the input is real)


def _check_weights(
    name: str,
    weight: QTensor,
    bias: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
    shape: tuple[int, ...],
    groups: int,
) -> None:
    outputs, inputs = weight.values.shape[:2]
    have = shape[0] if weight.values.ndim == 4 else shape[-1]
    if groups < 1 or inputs * groups != have or outputs % groups:
        raise ModelError(
            f"{name}: weights {weight.values.shape} in {groups} groups do not fit an input of {have} channels."
        )
    zero_points = weight.params.zero_point
    if np.any((zero_points < weight.spec.qmin) | (zero_points > weight.spec.qmax)):
        raise ModelError(
            f"{name}: the zero points of its weights must be in {weight.spec.qmin}..{weight.spec.qmax}, "
            f"got {zero_points.min()}..{zero_points.max()}."
        )
    if bias.dtype != np.int32 or bias.shape != (outputs,):
        raise ModelError(f"{name}: the bias must be int32 [{outputs}], got {bias.dtype} {list(bias.shape)}.")
    if not isinstance(weight.spec.granularity, PerTensor) and weight.spec.granularity.axis != 0:
        raise ModelError(f"{name}: weights have scales per output channel (axis 0) or one for all.")


def _check_requantizer(node: IntNode, requantizer: Requantizer, channels: int | None) -> None:
    spec, params = node.output.quantized
    if requantizer.channels not in (None, channels):
        raise ModelError(f"{node.name}: {requantizer.channels} multipliers for {channels} channels.")
    low, high = requantizer.clamp
    if requantizer.zero_point != int(params.zero_point) or not spec.qmin <= low <= high <= spec.qmax:
        raise ModelError(
            f"{node.name}: the requantizer's zero point {requantizer.zero_point} or clamp {low}..{high} does not fit "
            f"the output's zero point {int(params.zero_point)} and grid {spec.qmin}..{spec.qmax}."
        )


def _column(weight: QTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Weight zero points, shaped to be subtracted from the weights."""
    return weight.params.zero_point.astype(np.int64).reshape([-1] + [1] * (weight.values.ndim - 1))


def _pair(tensor: Tensor) -> tuple[float, int]:
    _, params = tensor.quantized
    return float(params.scale), int(params.zero_point)
