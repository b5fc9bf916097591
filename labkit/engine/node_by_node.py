"""Run an `IntGraph` one node at a time through a `KernelSet`: slow, readable, and open to your own functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.kernels.kernel_set import KernelSet

__all__ = ["run_nodes"]

_WINDOWED = (
    *(int_ops.Conv2d, int_ops.MaxPool2d, int_ops.AveragePool2d, int_ops.AdaptiveAveragePool2d),
    *(int_ops.Pad, int_ops.UpsampleNearest2d),
)


def run_nodes(
    graph: IntGraph, inputs: Mapping[str, NDArray[np.float32]], kernels: KernelSet
) -> dict[str, NDArray[np.generic]]:
    """Every node's result by name, in the layout (N, C, H, W).

    Parameters
    ----------
    graph : the integer network
    inputs : float32 [N, ...] by the name of each input node
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
        if isinstance(node.op, int_ops.Quantize):
            spec, params = node.output.quantized
            result = kernels["quantize"](inputs[node.name], params, spec)
        else:
            result = _compute(graph, node, [results[name] for name in node.inputs], kernels)
        results[node.name] = _stored(node, result, images)
    return results


def _compute(
    graph: IntGraph, node: IntNode, arrays: list[NDArray[np.generic]], kernels: KernelSet
) -> NDArray[np.generic]:
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
