"""What each node of a float network puts out once it is quantized: shape, grid and scale."""

from __future__ import annotations

import math

import numpy as np

from labkit.arithmetic.affine import QParams, QuantSpec, params_from_range
from labkit.errors import QuantizationError
from labkit.graph import float_ops
from labkit.graph.ir import FloatNode, Tensor
from labkit.graph.shapes import window_output
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan

__all__ = ["output_tensor"]

_Moves = float_ops.Pad | float_ops.Reshape | float_ops.Transpose | float_ops.UpsampleNearest2d


def output_tensor(node: FloatNode, inputs: list[Tensor], calibration: Calibration, plan: BitPlan) -> Tensor:
    """Shape, grid and scale of what ``node`` puts out.

    Parameters
    ----------
    node : of a simplified FloatGraph
    inputs : what goes in, in order
    calibration : a range for each tensor whose range depends on images
    plan : its bits

    Raises
    ------
    QuantizationError
        The calibration knows no range for it, or its range gives no scale.
    """
    op = node.op
    if isinstance(op, float_ops.Flatten):
        return Tensor((int(np.prod(inputs[0].shape)),), inputs[0].spec, inputs[0].params)
    if isinstance(op, float_ops.MaxPool2d):
        return Tensor(_window_shape(op, inputs[0].shape), inputs[0].spec, inputs[0].params)
    if isinstance(op, _Moves):
        return Tensor(_moved_shape(op, inputs[0].shape), inputs[0].spec, inputs[0].params)
    if isinstance(op, float_ops.ArgMax):
        shape = inputs[0].shape
        kept = (1,) if op.keepdims else ()
        return Tensor((*shape[: op.axis], *kept, *shape[op.axis + 1 :]), None, None, is_index=True)
    if isinstance(op, float_ops.Input) and op.kind is float_ops.InputKind.INDEX:
        return Tensor(tuple(op.shape), None, None, is_index=True)
    if isinstance(op, float_ops.Input) and op.kind is float_ops.InputKind.MASK:
        return Tensor(
            tuple(op.shape), QuantSpec(8, signed=False), QParams(np.ones((), np.float32), np.zeros((), np.int32))
        )
    spec = plan.activation_spec(node.name)
    if isinstance(
        op, float_ops.Softmax | float_ops.MaskedSoftmax
    ):  # its range is known: 0 and the largest integer stand for 0 and almost 1
        return Tensor(
            inputs[0].shape, spec, QParams(np.asarray(1 / (spec.qmax + 1), np.float32), np.asarray(0, np.int32))
        )
    if node.name not in calibration.ranges:
        raise QuantizationError(
            f"The calibration knows no tensor {node.name!r}; it has {', '.join(calibration.ranges)}. Calibrate this network."
        )
    try:
        params = params_from_range(*calibration.ranges[node.name], spec)
    except QuantizationError as error:
        raise QuantizationError(f"{node.name}, activations: {error}") from error
    if isinstance(op, float_ops.Input):
        return Tensor(tuple(op.shape), spec, params)
    if isinstance(op, float_ops.Conv2d | float_ops.AveragePool2d):
        return Tensor(_window_shape(op, inputs[0].shape), spec, params)
    if isinstance(op, float_ops.AdaptiveAveragePool2d):
        shape = inputs[0].shape
        return Tensor((shape[0], *op.output_size[-len(shape) + 1 :]), spec, params)
    if isinstance(op, float_ops.Linear):
        return Tensor((*inputs[0].shape[:-1], op.weight.shape[0]), spec, params)
    if isinstance(op, float_ops.Constant):
        return Tensor(tuple(op.values.shape), spec, params)
    if isinstance(op, float_ops.Embedding):
        return Tensor((op.weight.shape[1], *inputs[0].shape), spec, params)
    if isinstance(op, float_ops.MatMul):
        (heads, *a), b = inputs[0].shape, inputs[1].shape[1:]
        return Tensor((heads, a[op.transpose_a], b[not op.transpose_b]), spec, params)
    if isinstance(op, float_ops.Concat):
        return Tensor((sum(t.shape[0] for t in inputs), *inputs[0].shape[1:]), spec, params)
    return Tensor(max((t.shape for t in inputs), key=math.prod), spec, params)


def _moved_shape(op: _Moves, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(op, float_ops.Reshape):
        return op.shape
    if isinstance(op, float_ops.Transpose):
        return tuple(shape[axis] for axis in op.axes)
    if isinstance(op, float_ops.UpsampleNearest2d):
        factors = op.factor[-len(shape) + 1 :]  # a sequence has no rows
        return (shape[0], *(size * factor for size, factor in zip(shape[1:], factors, strict=True)))
    edges = op.padding[-len(shape) + 1 :]  # a sequence has no rows
    return (shape[0], *(size + sum(edge) for size, edge in zip(shape[1:], edges, strict=True)))


def _window_shape(
    op: float_ops.Conv2d | float_ops.MaxPool2d | float_ops.AveragePool2d, shape: tuple[int, ...]
) -> tuple[int, ...]:
    convolution = isinstance(op, float_ops.Conv2d)
    kernel = op.weight.shape[2:] if isinstance(op, float_ops.Conv2d) else op.kernel
    dilation = (1, 1) if isinstance(op, float_ops.AveragePool2d) else op.dilation
    ceil_mode = op.ceil_mode if isinstance(op, float_ops.MaxPool2d) else False
    channels = op.weight.shape[0] if convolution else shape[0]  # type: ignore[union-attr]
    image = shape if len(shape) == 3 else (shape[0], 1, shape[1])  # a sequence is an image of height 1
    sizes = [
        window_output(image[1 + i], kernel[i], op.stride[i], op.padding[i], dilation[i], ceil_mode) for i in range(2)
    ]
    return (channels, *sizes[-len(shape) + 1 :])
