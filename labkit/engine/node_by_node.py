"""Run an `IntGraph` one node at a time through a `KernelSet`: slow, readable, and open to your own functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.engine.sequence_nodes import compute_on_sequences
from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.check_sequences import OPERATIONS_ON_SEQUENCES
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
    if isinstance(node.op, int_ops.Input):
        return given
    spec, params = node.output.quantized
    result: NDArray[Any]
    if isinstance(node.op, int_ops.Quantize):
        result = kernels["quantize"](given, params, spec)
    elif isinstance(node.op, int_ops.QuantizeByReciprocal):
        result = kernels["quantize_by_reciprocal"](given, params, spec, node.op.zero_point_inside)
    else:
        result = kernels["quantize_away_from_zero"](given, params, spec)
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
    x, tensors = arrays[0], graph.inputs_of(node)
    zero_points = [0 if tensor.is_index else int(tensor.quantized[1].zero_point) for tensor in tensors]
    result: NDArray[np.generic]
    if isinstance(op, OPERATIONS_ON_SEQUENCES):
        return compute_on_sequences(op, arrays, zero_points, kernels)
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        moved = {label: getattr(op, label) for label in _WINDOW} if isinstance(op, int_ops.Conv2d) else {}
        result = kernels["conv2d" if moved else "linear"](
            x,
            op.weight.values,
            op.bias,
            input_zero_point=zero_points[0],
            weight_zero_point=op.weight.params.zero_point,
            requantizer=op.requantizer,
            **moved,
        )
    elif isinstance(op, int_ops.MaxPool2d):
        height, width = (1, node.output.shape[1]) if is_sequence else node.output.shape[1:]
        result = kernels["max_pool2d"](
            x, kernel=op.kernel, stride=op.stride, padding=op.padding, dilation=op.dilation, output_size=(height, width)
        )
    elif isinstance(op, int_ops.Concat):
        result = kernels["concat"](arrays, zero_points=zero_points, requantizers=op.requantizers)
    elif isinstance(op, int_ops.Pad):
        result = kernels["pad"](x, padding=op.padding, zero_point=zero_points[0])
    elif isinstance(op, int_ops.AveragePoolFloat32):
        ends = {"input_params": tensors[0].quantized[1], "output_params": node.output.quantized[1]}
        result = kernels["average_pool_float32"](x, **ends, **_parameters(op))
    elif isinstance(op, int_ops.Dequantize):
        spec, params = tensors[0].quantized
        result = kernels["dequantize"](x, params, spec)
    else:
        kernel, takes = _KERNELS[type(op)]
        known = {"input_zero_point": zero_points[0], "zero_points": tuple(zero_points)}
        result = kernels[kernel](*arrays, **{label: known[label] for label in takes}, **_parameters(op))
    if is_sequence and np.ndim(result) == 4 and np.shape(result)[2] == 1:
        result = np.asarray(result)[:, :, 0]
    return result


_WINDOW = ("stride", "padding", "dilation", "groups")
# the kernel of an operation, and which zero points of its inputs it takes; its own fields are the other parameters
_KERNELS: dict[type[int_ops.IntOp], tuple[str, tuple[str, ...]]] = {
    int_ops.AveragePool2d: ("average_pool2d", ("input_zero_point",)),
    int_ops.AdaptiveAveragePool2d: ("adaptive_average_pool2d", ("input_zero_point",)),
    int_ops.Add: ("add", ("zero_points",)),
    int_ops.AddFixedPoint: ("add_fixed_point", ("zero_points",)),
    int_ops.AddFloat32: ("add_float32", ()),
    int_ops.AddDequantized: ("add_dequantized", ("zero_points",)),
    int_ops.AddAwayFromZero: ("add_away_from_zero", ("zero_points",)),
    int_ops.AveragePoolOfValid: ("average_pool_of_valid", ()),
    int_ops.MeanFloat32: ("mean_float32", ()),
    int_ops.Multiply: ("multiply", ("zero_points",)),
    int_ops.Lookup: ("lookup", ()),
    int_ops.Requantize: ("requantize", ("input_zero_point",)),
    int_ops.Flatten: ("flatten", ()),
    int_ops.UpsampleNearest2d: ("upsample_nearest2d", ()),
    int_ops.Reshape: ("reshape", ()),
    int_ops.Transpose: ("transpose", ()),
    int_ops.Softmax: ("softmax", ()),
    int_ops.SoftmaxFloat32: ("softmax_float32", ()),
    int_ops.SoftmaxFixedPoint: ("softmax_fixed_point", ()),
    int_ops.SoftmaxByReciprocal: ("softmax_by_reciprocal", ()),
    int_ops.ArgMax: ("argmax", ()),
}
_RENAMED = {"zero_point": "output_zero_point"}  # of an operation, where its kernel also knows that of the input
_NOT_TAKEN = ("function",)  # it says what a table holds, for people


def _parameters(op: int_ops.IntOp) -> dict[str, Any]:
    """The fields of ``op`` as its kernel names them."""
    return {_RENAMED.get(name, name): value for name, value in vars(op).items() if name not in _NOT_TAKEN}


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
