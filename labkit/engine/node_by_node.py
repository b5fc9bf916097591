"""Run an `IntGraph` one node at a time through a `KernelSet`: slow, readable, and open to your own functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.kernels.kernel_set import KernelSet

__all__ = ["compute_node", "enter_node", "run_nodes"]

_WINDOWED = (
    *(int_ops.Conv2d, int_ops.MaxPool2d, int_ops.AveragePool2d, int_ops.AdaptiveAveragePool2d),
    *(int_ops.Pad, int_ops.UpsampleNearest2d, int_ops.AveragePoolOfValid, int_ops.AveragePoolFloat32),
)


def run_nodes(
    graph: IntGraph, inputs: Mapping[str, NDArray[Any]], kernels: KernelSet
) -> dict[str, NDArray[np.generic]]:
    """Every node's result by name, in the layout (N, C, H, W).

    Parameters
    ----------
    graph : the integer network
    inputs : [N, ...] by the name of each input node: float32 for a Quantize node, integers for an Input node
    kernels : the functions to use

    Returns
    -------
    integer arrays in each tensor's own dtype, float32 after a Dequantize node, int32 after an ArgMax

    Raises
    ------
    InputError
        A kernel returned another shape than the graph declares, or integers outside the tensor's grid.
    """
    results: dict[str, NDArray[np.generic]] = {}
    images = len(next(iter(inputs.values())))
    for node in graph:
        result: NDArray[Any]
        if isinstance(node.op, int_ops.Constant):
            result = np.broadcast_to(node.op.values, (images, *node.op.values.shape))
        elif not node.inputs:
            result = enter_node(node, inputs[node.name], kernels)
        else:
            result = compute_node(graph, node, [results[name] for name in node.inputs], kernels)
        results[node.name] = _stored(node, result, images)
    return results


def enter_node(node: IntNode, given: NDArray[Any], kernels: KernelSet) -> NDArray[Any]:
    """The integers that the border ``node`` makes by ``kernels`` of what is ``given``, [N, ...] of its dtype.

    Raises
    ------
    QuantizationError
        Real numbers hold a NaN.
    """
    spec, params = node.output.quantized
    result: NDArray[Any]
    if isinstance(node.op, int_ops.Quantize):
        result = kernels["quantize"](given, params, spec)
    elif isinstance(node.op, int_ops.QuantizeByReciprocal):
        result = kernels["quantize_by_reciprocal"](given, params, spec, node.op.zero_point_inside)
    elif isinstance(node.op, int_ops.QuantizeAwayFromZero):
        result = kernels["quantize_away_from_zero"](given, params, spec)
    else:
        result = given
    return result


def compute_node(
    graph: IntGraph, node: IntNode, arrays: Sequence[NDArray[np.generic]], kernels: KernelSet
) -> NDArray[np.generic]:
    """What ``node`` of ``graph``, which is no border in, makes by ``kernels`` of ``arrays``, one [N, ...] for each input.

    They have the dtypes of the inputs, the result that of the kernel, which is int32 where it computes.
    """
    op = node.op
    if is_sequence := arrays[0].ndim == 3 and isinstance(op, _WINDOWED):
        arrays = [array[:, :, None, :] for array in arrays]  # an image of height 1
    x = arrays[0]
    specs = [tensor.quantized for tensor in graph.inputs_of(node)]
    zero_points = [int(params.zero_point) for _, params in specs]
    result: NDArray[np.generic]
    if isinstance(op, int_ops.Conv2d):
        result = kernels["conv2d"](
            x,
            op.weight.values,
            op.bias,
            input_zero_point=zero_points[0],
            weight_zero_point=op.weight.params.zero_point,
            requantizer=op.requantizer,
            stride=op.stride,
            padding=op.padding,
            dilation=op.dilation,
            groups=op.groups,
        )
    elif isinstance(op, int_ops.Linear):
        result = kernels["linear"](
            x,
            op.weight.values,
            op.bias,
            input_zero_point=zero_points[0],
            weight_zero_point=op.weight.params.zero_point,
            requantizer=op.requantizer,
        )
    elif isinstance(op, int_ops.MaxPool2d):
        height, width = (1, node.output.shape[1]) if is_sequence else node.output.shape[1:]
        result = kernels["max_pool2d"](
            x, kernel=op.kernel, stride=op.stride, padding=op.padding, dilation=op.dilation, output_size=(height, width)
        )
    elif isinstance(op, int_ops.AveragePool2d):
        result = kernels["average_pool2d"](
            x,
            input_zero_point=zero_points[0],
            kernel=op.kernel,
            stride=op.stride,
            padding=op.padding,
            requantizer=op.requantizer,
        )
    elif isinstance(op, int_ops.AdaptiveAveragePool2d):
        result = kernels["adaptive_average_pool2d"](
            x, input_zero_point=zero_points[0], output_size=op.output_size, requantizer=op.requantizer
        )
    elif isinstance(op, int_ops.Add):
        result = kernels["add"](
            x,
            arrays[1],
            zero_points=(zero_points[0], zero_points[1]),
            multipliers=op.multipliers,
            shift=op.shift,
            output_zero_point=op.zero_point,
            clamp=op.clamp,
        )
    elif isinstance(op, int_ops.AddFixedPoint):
        result = kernels["add_fixed_point"](
            x,
            arrays[1],
            zero_points=(zero_points[0], zero_points[1]),
            rule=op.rule,
            left_shift=op.left_shift,
            inputs=op.inputs,
            output=op.output,
            subtracts=op.subtracts,
            output_zero_point=op.zero_point,
            clamp=op.clamp,
        )
    elif isinstance(op, int_ops.AddFloat32):
        result = kernels["add_float32"](x, arrays[1], multipliers=op.multipliers, addend=op.addend, clamp=op.clamp)
    elif isinstance(op, int_ops.AddDequantized):
        result = kernels["add_dequantized"](
            x,
            arrays[1],
            zero_points=(zero_points[0], zero_points[1]),
            scales=op.scales,
            reciprocal=op.reciprocal,
            output_zero_point=op.zero_point,
            clamp=op.clamp,
            fused=op.fused,
        )
    elif isinstance(op, int_ops.AddAwayFromZero):
        result = kernels["add_away_from_zero"](
            x,
            arrays[1],
            zero_points=(zero_points[0], zero_points[1]),
            multipliers=op.multipliers,
            shift=op.shift,
            output_zero_point=op.zero_point,
            clamp=op.clamp,
        )
    elif isinstance(op, int_ops.AveragePoolOfValid):
        result = kernels["average_pool_of_valid"](
            x, kernel=op.kernel, stride=op.stride, padding=op.padding, clamp=op.clamp, offset=op.offset
        )
    elif isinstance(op, int_ops.MeanFloat32):
        result = kernels["mean_float32"](
            x, axes=op.axes, multiplier=op.multiplier, addend=op.addend, clamp=op.clamp, offset=op.offset
        )
    elif isinstance(op, int_ops.AveragePoolFloat32):
        result = kernels["average_pool_float32"](
            x,
            input_params=specs[0][1],
            output_params=node.output.quantized[1],
            kernel=op.kernel,
            stride=op.stride,
            padding=op.padding,
            counts_padding=op.counts_padding,
            clamp=op.clamp,
        )
    elif isinstance(op, int_ops.Lookup):
        result = kernels["lookup"](x, table=op.table)
    elif isinstance(op, int_ops.Multiply):
        result = kernels["multiply"](
            x, arrays[1], zero_points=(zero_points[0], zero_points[1]), requantizer=op.requantizer
        )
    elif isinstance(op, int_ops.Concat):
        result = kernels["concat"](arrays, zero_points=zero_points, requantizers=op.requantizers)
    elif isinstance(op, int_ops.Requantize):
        result = kernels["requantize"](x, input_zero_point=zero_points[0], requantizer=op.requantizer)
    elif isinstance(op, int_ops.Flatten):
        result = kernels["flatten"](x)
    elif isinstance(op, int_ops.Pad):
        result = kernels["pad"](x, padding=op.padding, zero_point=zero_points[0])
    elif isinstance(op, int_ops.UpsampleNearest2d):
        result = kernels["upsample_nearest2d"](x, factor=op.factor)
    elif isinstance(op, int_ops.Reshape):
        result = kernels["reshape"](x, shape=op.shape)
    elif isinstance(op, int_ops.Softmax):
        result = kernels["softmax"](
            x, axis=op.axis, table=op.table, bits=op.bits, output_zero_point=op.zero_point, clamp=op.clamp
        )
    elif isinstance(op, int_ops.SoftmaxFloat32):
        result = kernels["softmax_float32"](
            x, axis=op.axis, table=op.table, factor=op.factor, output_zero_point=op.zero_point, clamp=op.clamp
        )
    elif isinstance(op, int_ops.SoftmaxFixedPoint):
        result = kernels["softmax_fixed_point"](
            x,
            axis=op.axis,
            multiplier=op.multiplier,
            lowest_difference=op.lowest_difference,
            output_zero_point=op.zero_point,
            clamp=op.clamp,
        )
    elif isinstance(op, int_ops.SoftmaxByReciprocal):
        result = kernels["softmax_by_reciprocal"](
            x, axis=op.axis, table=op.table, output_zero_point=op.zero_point, clamp=op.clamp
        )
    elif isinstance(op, int_ops.ArgMax):
        result = kernels["argmax"](x, axis=op.axis, keepdims=op.keepdims)
    elif isinstance(op, int_ops.Transpose):
        result = kernels["transpose"](x, axes=op.axes)
    else:
        spec, params = specs[0]
        result = kernels["dequantize"](x, params, spec)
    if is_sequence and np.ndim(result) == 4 and np.shape(result)[2] == 1:
        result = np.asarray(result)[:, :, 0]
    return result


def _stored(node: IntNode, result: NDArray[np.generic], images: int) -> NDArray[np.generic]:
    """``result`` as the node's tensor, checked and read-only: a function of yours may return or overwrite anything."""
    array = np.asarray(result)
    if array.shape != (images, *node.output.shape):
        raise InputError(
            f"{node.name}: the kernel returned shape {array.shape}, but {(images, *node.output.shape)} is needed. "
            f"Check the output size that it computes."
        )
    spec = node.output.spec
    if spec is None and not node.output.is_index:
        return _read_only(array, node.output.dtype)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{node.name}: the kernel returned {array.dtype}, but integers are needed. Round and cast its result."
        )
    if spec is None:
        return _read_only(array, node.output.dtype)
    if array.size and (array.min() < spec.qmin or array.max() > spec.qmax):
        raise InputError(
            f"{node.name}: the kernel returned {array.min()}..{array.max()}, outside the grid {spec.qmin}..{spec.qmax}. "
            f"Clamp its result."
        )
    return _read_only(array, spec.dtype)


def _read_only(array: NDArray[np.generic], dtype: np.dtype[Any]) -> NDArray[np.generic]:
    view = array.astype(dtype, copy=False).view()
    view.flags.writeable = False
    return view
