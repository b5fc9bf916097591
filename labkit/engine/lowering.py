"""The kernel calls of each operation, and the constants that they read: the tables behind `prepare`."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.bounds import accumulator_bound
from labkit.arithmetic.requantize import Requantizer
from labkit.engine.plan import TABLES, Place, Plan, Step
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntNode
from labkit.graph.shapes import Padding
from labkit.kernels.fast import direct, elementwise, pool
from labkit.kernels.fast.conv import Windows, byte_offsets, conv2d, conv2d_sums, linear_one
from labkit.kernels.fast.packing import channels_first_order, epilogue_fits, pack_epilogue, pack_panels, rounded_up
from labkit.kernels.fast.requantize import REQUANTIZE, Patch, multiplier_tables

__all__ = ["lower"]

_INT16 = 2  # bytes


def lower(plan: Plan, node: IntNode) -> None:
    """Give ``node`` a place in ``plan`` and add its kernel calls.

    Raises
    ------
    UnsupportedOperation
        The fast kernels do not serve its shape.
    """
    _lower(node.op, plan, node)


@singledispatch
def _lower(op: IntOp, plan: Plan, node: IntNode) -> None:
    raise _unsupported(node, f"there is no kernel for {type(op).__name__}")


@_lower.register
def _(op: int_ops.Quantize, plan: Plan, node: IntNode) -> None:
    plan.new_place(node)  # `run` fills it from the caller's array


@_lower.register
def _(op: int_ops.Dequantize, plan: Plan, node: IntNode) -> None:
    pass  # `run` reads the place of its input into the returned array


@_lower.register
def _(op: int_ops.Conv2d, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    weights = _centred(op, plan, node)
    windows = _windows(x, y, op.stride, op.padding)
    kernel = (weights.shape[2], weights.shape[3])
    taps = direct.Taps(*kernel, *op.dilation)
    if op.groups > 1:
        sums = _sums_buffer(plan, y)
        result = windows._replace(into_top=0, into_left=0)
        if op.groups == weights.shape[0] == x.image[0]:
            packed = np.ascontiguousarray(weights[:, 0].transpose(1, 2, 0))
            plan.steps.append(Step(node.name, direct.depthwise_sums, (x.buffer, sums), (packed, taps, result)))
        else:
            packed = np.ascontiguousarray(weights.transpose(0, 2, 3, 1))
            constants = (packed, op.groups, taps, result)
            plan.steps.append(Step(node.name, direct.grouped_sums, (x.buffer, sums), constants))
        _requantize_sums(plan, node, sums, op.requantizer, op.bias)
        return
    _, buffer_w, lanes = plan.buffers[x.buffer].shape
    runs = byte_offsets(kernel, op.dilation, buffer_w * lanes * _INT16, lanes * _INT16)
    filled = np.zeros((weights.shape[0], *kernel, lanes), weights.dtype)
    filled[..., : x.image[0]] = weights.transpose(0, 2, 3, 1)
    _multiply(plan, node, x, y, filled.reshape(weights.shape[0], len(runs), -1), runs, windows)


@_lower.register
def _(op: int_ops.Linear, plan: Plan, node: IntNode) -> None:
    if len(node.output.shape) != 1:
        raise _unsupported(node, f"a Linear layer puts out one row of numbers for each image, not {node.output.shape}")
    x, y = plan.source(node), plan.new_place(node)
    stored = (*plan.buffers[x.buffer].shape, *x.corner)
    weights = channels_first_order(_centred(op, plan, node), x.image, stored)
    windows = Windows(1, 1, 1, 1, 0, 0, *y.corner)
    _multiply(plan, node, x, y, weights[:, None, :], np.zeros(1, np.int64), windows)


@_lower.register
def _(op: int_ops.MaxPool2d, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    for axis, (size, results) in enumerate(zip(x.image[1:], y.image[1:], strict=True)):
        starts = np.arange(results) * op.stride[axis] - op.padding[axis][0]
        taps = starts[:, None] + np.arange(op.kernel[axis]) * op.dilation[axis]
        if not np.all(np.any((taps >= 0) & (taps < size), axis=1)):
            raise _unsupported(node, "a window of this pooling lies wholly in the padding and has no largest element")
    windows = Windows(*y.image[1:], *op.stride, -op.padding[0][0], -op.padding[1][0], *y.corner)
    constants = (x.image[1:], tuple(x.corner), direct.Taps(*op.kernel, *op.dilation), windows)
    plan.steps.append(Step(node.name, pool.max_pool2d, (x.buffer, y.buffer), constants))


@_lower.register
def _(op: int_ops.AveragePool2d, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    sums = _sums_buffer(plan, y)
    windows = _windows(x, y, op.stride, op.padding)._replace(into_top=0, into_left=0)
    constants = (x.image[0], direct.Taps(*op.kernel, 1, 1), windows)
    plan.steps.append(Step(node.name, pool.average_sums, (x.buffer, sums), constants))
    _requantize_sums(plan, node, sums, op.requantizer, np.zeros(x.image[0], np.int32))


@_lower.register
def _(op: int_ops.Add, plan: Plan, node: IntNode) -> None:
    a, b, y = plan.source(node, 0), plan.source(node, 1), plan.new_place(node)
    clamp = (int(op.clamp[0]) - op.zero_point, int(op.clamp[1]) - op.zero_point)
    constants = (
        op.multipliers.astype(np.int64),
        int(op.shift),
        clamp,
        b.corner,
        _patch(a, y),
    )
    plan.steps.append(Step(node.name, elementwise.add, (a.buffer, b.buffer, y.buffer), constants))


@_lower.register
def _(op: int_ops.Concat, plan: Plan, node: IntNode) -> None:
    y = plan.new_place(node)
    first = 0
    for index, requantizer in enumerate(op.requantizers):
        x = plan.source(node, index)
        patch = _patch(x, y)._replace(into_channel=first)
        _requantize(plan, node, x.buffer, requantizer, np.zeros(x.image[0], np.int32), patch)
        first += x.image[0]


@_lower.register
def _(op: int_ops.Requantize, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    _requantize(plan, node, x.buffer, op.requantizer, np.zeros(x.image[0], np.int32), _patch(x, y))


@_lower.register
def _(op: int_ops.Flatten, plan: Plan, node: IntNode) -> None:
    x = plan.source(node)
    if x.image[1:] == (1, 1) or all(isinstance(c.op, int_ops.Linear) for c in plan.consumers[node.name]):
        plan.places[node.name] = x  # the weights of the Linear layers are put into the order of the buffer instead
        return
    y = plan.new_place(node)
    plan.steps.append(Step(node.name, elementwise.copy_to_rows, (x.buffer, y.buffer), (_patch(x, y),)))


def _centred(op: int_ops.Conv2d | int_ops.Linear, plan: Plan, node: IntNode) -> NDArray[np.int16]:
    """The weights less their zero points; nine bits at the most."""
    zero_point = op.weight.params.zero_point.reshape([-1] + [1] * (op.weight.values.ndim - 1))
    return np.asarray(op.weight.values.astype(np.int16) - zero_point, np.int16)


def _windows(x: Place, y: Place, stride: tuple[int, int], padding: Padding) -> Windows:
    top, left = x.corner.top - padding[0][0], x.corner.left - padding[1][0]
    return Windows(*y.image[1:], *stride, top, left, *y.corner)


def _patch(x: Place, y: Place) -> Patch:
    channels, height, width = x.image
    return Patch(height, width, channels, *x.corner, *y.corner, 0)


def _sums_buffer(plan: Plan, y: Place) -> int:
    channels, height, width = y.image
    return plan.add_buffer((height, width, rounded_up(channels)), np.int32)


def _multiply(
    plan: Plan,
    node: IntNode,
    x: Place,
    y: Place,
    weights: NDArray[np.integer],
    runs: NDArray[np.int64],
    windows: Windows,
) -> None:
    """The tile over ``weights`` [O, runs, run length], finished in registers where the rule and the bounds allow it."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    spec, params = plan.graph[node.inputs[0]].output.quantized
    zero_point = int(params.zero_point)
    bound = accumulator_bound(weights, spec.qmin - zero_point, spec.qmax - zero_point, op.bias)
    panels = pack_panels(weights)
    if not epilogue_fits(op.requantizer, bound):
        sums = _sums_buffer(plan, y)
        constants = (panels, runs, windows._replace(into_top=0, into_left=0))
        plan.steps.append(Step(node.name, conv2d_sums, (x.buffer, sums, TABLES), constants))
        _requantize_sums(plan, node, sums, op.requantizer, op.bias)
        return
    low, high = op.requantizer.clamp
    offset = op.requantizer.zero_point
    clamp = (int(low - offset), int(high - offset))
    fused = (panels, pack_epilogue(op.bias, op.requantizer), runs, clamp, windows)
    for_one = linear_one if isinstance(op, int_ops.Linear) else None
    plan.steps.append(Step(node.name, conv2d, (x.buffer, y.buffer, TABLES), fused, for_one))


def _requantize_sums(plan: Plan, node: IntNode, sums: int, requantizer: Requantizer, bias: NDArray[np.int32]) -> None:
    y = plan.places[node.name]
    channels, height, width = y.image
    _requantize(plan, node, sums, requantizer, bias, Patch(height, width, channels, 0, 0, *y.corner, 0))


def _requantize(
    plan: Plan, node: IntNode, source: int, requantizer: Requantizer, bias: NDArray[np.int32], patch: Patch
) -> None:
    zero_point = int(requantizer.zero_point)
    is_inside = requantizer.zero_point_inside and not requantizer.rule.is_integer_only  # else it makes no difference
    constants = (
        bias.astype(np.int64),
        *multiplier_tables(requantizer, patch.channels),
        zero_point if is_inside else 0,
        zero_point,
        (int(requantizer.clamp[0]), int(requantizer.clamp[1])),
        patch,
    )
    kernel = REQUANTIZE[requantizer.rule]
    plan.steps.append(Step(node.name, kernel, (source, plan.places[node.name].buffer), constants))


def _unsupported(node: IntNode, why: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{node.name}: {why}. The fast kernels do not serve this; run the net with the reference kernels instead."
    )
