"""What must hold for each node of an `IntGraph`: shapes, grids, requantizers, accumulator bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from labkit.arithmetic.affine import PerTensor, QTensor
from labkit.arithmetic.bounds import INT32_LIMIT, check_accumulator
from labkit.arithmetic.requantize import Requantizer
from labkit.arithmetic.softmax import EXPONENT_BITS, TABLE_SIZE
from labkit.arithmetic.windows import common_area
from labkit.errors import BoundError, ModelError
from labkit.graph import int_ops
from labkit.graph.check_runtimes import OPERATIONS_OF_RUNTIMES, check_constant, check_operation_of_runtime
from labkit.graph.check_sequences import OPERATIONS_ON_SEQUENCES, check_operation_on_sequences
from labkit.graph.output_shapes import Windowed, output_shape
from labkit.graph.shapes import window_output

if TYPE_CHECKING:
    from labkit.graph.ir import IntGraph, IntNode, Tensor

__all__ = ["check_node"]

_ARITY: dict[type[int_ops.IntOp], int | None] = {
    int_ops.Quantize: 0,
    int_ops.QuantizeByReciprocal: 0,
    int_ops.QuantizeAwayFromZero: 0,
    int_ops.Constant: 0,
    int_ops.Input: 0,
    int_ops.Add: 2,
    int_ops.AddFixedPoint: 2,
    int_ops.AddFloat32: 2,
    int_ops.AddDequantized: 2,
    int_ops.AddAwayFromZero: 2,
    int_ops.Multiply: 2,
    int_ops.Concat: None,
    int_ops.MatMul: 2,
}  # None: any number from one upwards; one where nothing stands here
_Pool = int_ops.MaxPool2d | int_ops.AveragePoolOfValid | int_ops.AveragePoolFloat32
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
    arity = _ARITY.get(type(node.op), 1)
    if isinstance(node.op, int_ops.SoftmaxPolynomial):
        arity = 2 if len(inputs) == 2 else 1  # with a mask or without
    if (arity is not None and len(inputs) != arity) or (arity is None and not inputs):
        raise ModelError(f"{node.name}: {type(node.op).__name__} takes {arity or 'some'} inputs, got {len(inputs)}.")
    _check_window(node)
    shape = output_shape(node, inputs)
    if math.prod(shape) > LARGEST_TENSOR:
        raise ModelError(
            f"{node.name}: a tensor of shape {shape} is too large; {LARGEST_TENSOR:,} numbers are allowed."
        )
    if shape != node.output.shape or min(shape, default=1) < 1:
        raise ModelError(
            f"{node.name}: its output has shape {shape} by its inputs, but {node.output.shape} is declared."
        )
    if node.output.channels_last and len(shape) < 2:
        raise ModelError(f"{node.name}: only a tensor with a channel axis and others can have its channels last.")
    if isinstance(node.op, int_ops.Dequantize):
        inputs[0].quantized  # noqa: B018  (raises where the input is real)
        if node.output.spec is not None or node.output.is_index:
            raise ModelError(f"{node.name}: a Dequantize node puts out real numbers, not {node.output.spec}.")
        return
    if isinstance(node.op, int_ops.ArgMax):
        inputs[0].quantized  # noqa: B018
        if not node.output.is_index or node.output.spec is not None:
            raise ModelError(f"{node.name}: an ArgMax node puts out an index, not {node.output}.")
        return
    if isinstance(node.op, int_ops.Input) and node.output.is_index:
        if node.output.spec is not None:
            raise ModelError(f"{node.name}: an index has no grid, but {node.output.spec} is declared.")
        return
    spec, params = node.output.quantized
    if not isinstance(spec.granularity, PerTensor):
        raise ModelError(f"{node.name}: an activation has one scale, got {params.scale.shape}.")
    if not spec.qmin <= int(params.zero_point) <= spec.qmax:
        raise ModelError(f"{node.name}: zero point {int(params.zero_point)} is outside {spec.qmin}..{spec.qmax}.")
    _check_widths(node, inputs)
    if isinstance(node.op, int_ops.Constant):
        check_constant(node, node.op)
    elif not isinstance(
        node.op, int_ops.Quantize | int_ops.QuantizeByReciprocal | int_ops.QuantizeAwayFromZero | int_ops.Input
    ):
        _check_operation(node, inputs)


def _check_window(node: IntNode) -> None:
    """A kernel without bounds checks relies on this: a stride of 0 or a negative padding would read outside its input."""
    op = node.op
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        axes = 4 if isinstance(op, int_ops.Conv2d) else 2
        if op.weight.values.ndim != axes:
            raise ModelError(f"{node.name}: its weights need {axes} axes, got shape {op.weight.values.shape}.")
    if isinstance(op, int_ops.Pad) and min(*op.padding[0], *op.padding[1]) < 0:
        raise ModelError(f"{node.name}: a Pad only adds: its padding must be at least 0, got {op.padding}.")
    if isinstance(op, int_ops.UpsampleNearest2d) and min(op.factor) < 1:
        raise ModelError(f"{node.name}: each pixel is repeated at least once, got the factor {op.factor}.")
    if isinstance(op, Windowed):
        kernel = op.weight.values.shape[2:] if isinstance(op, int_ops.Conv2d) else op.kernel
        dilation = op.dilation if isinstance(op, int_ops.Conv2d | int_ops.MaxPool2d) else (1, 1)
        edges = (*op.padding[0], *op.padding[1])
        if min(*kernel, *op.stride, *dilation) < 1 or min(edges) < 0:
            raise ModelError(
                f"{node.name}: kernel {tuple(kernel)}, stride {op.stride} and dilation {dilation} must be at least 1, "
                f"padding {op.padding} at least 0."
            )


def _check_operation(node: IntNode, inputs: tuple[Tensor, ...]) -> None:
    op = node.op
    if isinstance(op, OPERATIONS_ON_SEQUENCES):
        check_operation_on_sequences(node, op, inputs)
        if isinstance(op, int_ops.Embedding | int_ops.MatMul | int_ops.GeluPolynomial):
            rows = len(op.weight.values) if isinstance(op, int_ops.Embedding) else None
            _check_requantizer(node, op.requantizer, rows)
        return
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
    elif isinstance(op, int_ops.AdaptiveAveragePool2d):
        _check_requantizer(node, op.requantizer, None)
        height, width = (*(1, 1), *inputs[0].shape[1:])[-2:]
        area = common_area(height, width, op.output_size)
        if area * max(abs(low), abs(high)) > INT32_LIMIT:
            raise BoundError(
                f"{node.name}: windows of {height} x {width} elements to {op.output_size} have areas with the common multiple "
                f"{area:,}, and such sums do not fit int32. Choose an output size that divides the input size."
            )
    elif isinstance(op, int_ops.Requantize):
        _check_requantizer(node, op.requantizer, None)
    elif isinstance(op, int_ops.Multiply):
        inputs[1].quantized  # noqa: B018  (raises where the input is real)
        _check_requantizer(
            node, op.requantizer, None
        )  # a product of two is at most 255 * 255 (eq. 24): no bound to check
    elif isinstance(op, int_ops.Concat):
        if len(op.requantizers) != len(inputs) or any(t.shape[1:] != inputs[0].shape[1:] for t in inputs):
            raise ModelError(f"{node.name}: each input needs a requantizer and the same height and width.")
        for requantizer in op.requantizers:
            _check_requantizer(node, requantizer, None)
    elif isinstance(op, int_ops.Add):
        _check_add(node, op, inputs)
    elif isinstance(op, int_ops.Softmax):
        _check_softmax(node, op)
    elif isinstance(op, OPERATIONS_OF_RUNTIMES):
        check_operation_of_runtime(node, op, inputs)
        if isinstance(op, int_ops.AveragePoolOfValid | int_ops.AveragePoolFloat32):
            _check_windows(node, op, (*inputs[0].shape[:1], *(1,) * (3 - len(inputs[0].shape)), *inputs[0].shape[1:]))
    elif isinstance(op, int_ops.MaxPool2d):
        _check_windows(node, op, (*inputs[0].shape[:1], *(1,) * (3 - len(inputs[0].shape)), *inputs[0].shape[1:]))
        _check_same_scale(node, inputs[0])
    else:
        _check_same_scale(node, inputs[0])


_WIDE_IN = (
    *(int_ops.Add, int_ops.Requantize, int_ops.LayerNorm, int_ops.GeluPolynomial, int_ops.SoftmaxPolynomial),
    *(int_ops.Flatten, int_ops.Reshape, int_ops.Transpose),
)
_WIDE_OUT = (
    *(*_WIDE_IN, int_ops.Constant, int_ops.Input, int_ops.Embedding, int_ops.Conv2d, int_ops.Linear, int_ops.MatMul),
)


def _check_widths(node: IntNode, inputs: tuple[Tensor, ...]) -> None:
    """Only some operations are exact, and only some have kernels, for 16 bits."""
    for tensor in inputs:
        if tensor.spec is not None and tensor.spec.is_wide and not isinstance(node.op, _WIDE_IN):
            raise ModelError(
                f"{node.name}: {type(node.op).__name__} takes activations of at most 8 bits, got {tensor.spec.bits}. "
                f"Requantize its input to 8 bits first."
            )
    spec, _ = node.output.quantized
    if spec.is_wide and not isinstance(node.op, _WIDE_OUT):
        raise ModelError(
            f"{node.name}: {type(node.op).__name__} puts out activations of at most 8 bits, not {spec.bits}. "
            f"Put a Requantize node behind it for more."
        )


def _check_same_scale(node: IntNode, source: Tensor) -> None:
    if (source.spec, _pair(source)) != (node.output.spec, _pair(node.output)):
        raise ModelError(
            f"{node.name}: {type(node.op).__name__} keeps the scale of its input, but another is declared."
        )


def _check_windows(node: IntNode, op: _Pool, shape: tuple[int, ...]) -> None:
    """Every window must meet the image: the largest of no elements is no number, and neither is their mean."""
    dilations, ceil_mode = (op.dilation, op.ceil_mode) if isinstance(op, int_ops.MaxPool2d) else ((1, 1), False)
    for axis in range(2):
        dilation = dilations[axis]
        positions = window_output(
            shape[1 + axis], op.kernel[axis], op.stride[axis], op.padding[axis], dilation, ceil_mode
        )
        reach = op.padding[axis][0] // op.stride[axis] + 1  # later windows start inside, up to the last few
        inside = max(0, shape[1 + axis] - op.kernel[axis] * dilation) // op.stride[axis]
        for position in (*range(min(reach, positions)), *range(max(reach, inside), positions)):
            start = position * op.stride[axis] - op.padding[axis][0]
            first = max(0, -(start // dilation))  # the first tap that is not before the image
            if first >= op.kernel[axis] or start + first * dilation >= shape[1 + axis]:
                raise ModelError(f"{node.name}: window {position} of the pool lies wholly in the padding. Pad less.")


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


def _check_softmax(node: IntNode, op: int_ops.Softmax) -> None:
    """What the bounds of eq. 26 rest on: 0 <= table <= 2**30, and a sum that is not 0."""
    table = op.table
    if table.dtype != np.int32 or table.shape != (TABLE_SIZE,) or not 1 <= op.bits <= 8:
        raise ModelError(
            f"{node.name}: a Softmax takes int32 [{TABLE_SIZE}] exponentials and 1..8 output bits, got "
            f"{table.dtype} {list(table.shape)} and {op.bits}."
        )
    if table.min() < 0 or table.max() > 2**EXPONENT_BITS or table[0] < 1:
        raise BoundError(
            f"{node.name}: exponentials must be in 0..2**{EXPONENT_BITS} and the first at least 1, got "
            f"{table.min()}..{table.max()}, the first {table[0]}. Make them with exponential_table."
        )
    spec, params = node.output.quantized
    if op.zero_point != int(params.zero_point) or not spec.qmin <= op.clamp[0] <= op.clamp[1] <= spec.qmax:
        raise ModelError(f"{node.name}: zero point or clamp {op.clamp} does not fit the grid {spec.qmin}..{spec.qmax}.")
    if float(params.scale) != 2.0**-op.bits:
        raise ModelError(
            f"{node.name}: with {op.bits} bits its scale is {2.0**-op.bits}, but {params.scale} is declared."
        )


def _check_weights(
    name: str,
    weight: QTensor,
    bias: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
    shape: tuple[int, ...],
    groups: int,
) -> None:
    if weight.spec.is_wide:
        raise ModelError(
            f"{name}: weights have at most 8 bits, got {weight.spec.bits}. Quantize them to 8 bits or fewer."
        )
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
