"""The kernel calls of operations that compute as another runtime does, and of borders that take integers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.engine.dispatch import lower_op
from labkit.engine.finishing import above, offsets_of, patch_of, stored
from labkit.engine.plan import Buffer, Place, Plan, Step, as_image
from labkit.engine.tables import table_of
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.kernels.fast import heads, means, pool_runtimes, softmaxes, sums, tables
from labkit.kernels.fast.conv import Windows
from labkit.kernels.fast.direct import Taps
from labkit.kernels.fast.packing import rounded_up
from labkit.kernels.reference_litert import fixed_point_exponentials

__all__: list[str] = []  # it registers its functions with `engine.dispatch`


@lower_op.register
def _(op: int_ops.Input, plan: Plan, node: IntNode) -> None:
    plan.new_place(node)  # `run` fills it from the caller's array


@lower_op.register
def _(op: int_ops.QuantizeByReciprocal, plan: Plan, node: IntNode) -> None:
    plan.new_place(node)


@lower_op.register
def _(op: int_ops.QuantizeAwayFromZero, plan: Plan, node: IntNode) -> None:
    plan.new_place(node)


@lower_op.register
def _(op: int_ops.Constant, plan: Plan, node: IntNode) -> None:
    y = plan.new_place(node)
    values = op.values.reshape(y.image).transpose(1, 2, 0)
    constants = (stored(plan, node.name, y, values), y.corner)
    plan.steps.append(Step(node.name, means.fill_constant, (y.buffer,), constants))


@lower_op.register
def _(op: int_ops.Lookup, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    table = stored(plan, node.name, y, table_of(plan.graph, node))
    constants = (table, _lowest(plan, node, 0), patch_of(x, y))
    plan.steps.append(Step(node.name, tables.lookup, (x.buffer, y.buffer), constants))


@lower_op.register
def _(op: int_ops.AddFixedPoint, plan: Plan, node: IntNode) -> None:
    _add_by_table(plan, node)


@lower_op.register
def _(op: int_ops.AddAwayFromZero, plan: Plan, node: IntNode) -> None:
    _add_by_table(plan, node)


@lower_op.register
def _(op: int_ops.AddDequantized, plan: Plan, node: IntNode) -> None:
    elements = math.prod(node.output.shape)
    if op.fused in (0, elements):
        _add_by_table(plan, node)
        return
    a, b, y = plan.source(node, 0), plan.source(node, 1), plan.new_place(node)
    ways = [table_of(plan.graph, replace(node, op=replace(op, fused=fused))) for fused in (0, 1)]  # of a single element
    place = np.moveaxis(np.arange(elements).reshape(*node.output.shape[1:], node.output.shape[0]), -1, 0)
    which = (place < op.fused).astype(np.uint8).reshape(as_image(node.output)).transpose(1, 2, 0)
    table = stored(plan, node.name, y, np.stack(ways))
    low = (_lowest(plan, node, 0), _lowest(plan, node, 1))
    constants = (table, np.ascontiguousarray(which), low, b.corner, patch_of(a, y))
    plan.steps.append(Step(node.name, tables.tables_of_two, (a.buffer, b.buffer, y.buffer), constants))


@lower_op.register
def _(op: int_ops.AddFloat32, plan: Plan, node: IntNode) -> None:
    if not _is_exact_in_float64(op):
        _add_by_table(plan, node)
        return
    a, b, y = plan.source(node, 0), plan.source(node, 1), plan.new_place(node)
    shifts = [above(plan, node.inputs[0], a), above(plan, node.inputs[1], b)]
    numbers = [op.addend, *op.multipliers, *shifts, *op.clamp, above(plan, node.name, y)]
    constants = (np.array(numbers, np.float32), b.corner, patch_of(a, y))
    plan.steps.append(Step(node.name, sums.add_float32, (a.buffer, b.buffer, y.buffer), constants))


@lower_op.register
def _(op: int_ops.AveragePoolOfValid, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    total = plan.add_buffer(Buffer((*y.image[1:], rounded_up(y.image[0])), np.int32))
    rises = (above(plan, node.inputs[0], x) - op.offset, above(plan, node.name, y) - op.offset)
    clamp = (int(op.clamp[0]) - op.offset, int(op.clamp[1]) - op.offset)
    constants = (y.image[0], rises, clamp, *_windows(op, x, y))
    plan.steps.append(Step(node.name, pool_runtimes.average_pool_of_valid, (x.buffer, y.buffer, total), constants))


@lower_op.register
def _(op: int_ops.AveragePoolFloat32, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    total = plan.add_buffer(Buffer((*y.image[1:], rounded_up(y.image[0])), np.float32))
    (_, come), (_, go) = plan.graph[node.inputs[0]].output.quantized, node.output.quantized
    reals = np.array([come.scale, go.scale, go.zero_point], np.float32)
    zeros, clamp = (x.zero, above(plan, node.name, y)), (int(op.clamp[0]), int(op.clamp[1]))
    constants = (y.image[0], zeros, clamp, int(op.counts_padding), reals, *_windows(op, x, y))
    plan.steps.append(Step(node.name, pool_runtimes.average_pool_float32, (x.buffer, y.buffer, total), constants))


@lower_op.register
def _(op: int_ops.MeanFloat32, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    shape, axes = plan.graph[node.inputs[0]].output.shape, sorted(op.axes)
    come = np.moveaxis(offsets_of(plan, x, shape), axes, range(-len(axes), 0))
    go = offsets_of(plan, y, node.output.shape).reshape(-1)
    groups = np.ascontiguousarray(come.reshape(go.size, -1))
    reals = np.array([op.multiplier, op.addend, *(end - op.offset for end in op.clamp)], np.float32)
    rises = (above(plan, node.inputs[0], x) - op.offset, above(plan, node.name, y) - op.offset)
    constants = (groups, np.ascontiguousarray(go), reals, rises)
    plan.steps.append(Step(node.name, means.mean_float32, (x.buffer, y.buffer), constants))


@lower_op.register
def _(op: int_ops.SoftmaxFixedPoint, plan: Plan, node: IntNode) -> None:
    farthest = np.array([-op.lowest_difference], np.int64)
    table = fixed_point_exponentials(op.multiplier, op.lowest_difference)
    _softmax(plan, node, op, softmaxes.softmax_fixed_point, table, farthest)


@lower_op.register
def _(op: int_ops.SoftmaxByReciprocal, plan: Plan, node: IntNode) -> None:
    _softmax(plan, node, op, softmaxes.softmax_by_reciprocal, op.table, np.array([2.0**-8], np.float32))


@lower_op.register
def _(op: int_ops.SoftmaxFloat32, plan: Plan, node: IntNode) -> None:
    _softmax(plan, node, op, softmaxes.softmax_float32, op.table, op.factor.reshape(1))


def _softmax(plan: Plan, node: IntNode, op: Any, kernel: Any, table: NDArray[Any], number: NDArray[Any]) -> None:
    x, y, shape = plan.source(node), plan.new_place(node), node.output.shape
    come, go, groups = heads.groups_along(op.axis, offsets_of(plan, x, shape), offsets_of(plan, y, shape))
    clamp = (int(op.clamp[0]), int(op.clamp[1]))
    held = (np.array(table), np.array(number))  # arrays that can be written have another type to the compiler
    constants = (come, go, groups, *held, above(plan, node.name, y), int(op.zero_point), clamp)
    plan.steps.append(Step(node.name, kernel, (x.buffer, y.buffer), constants))


def _is_exact_in_float64(op: int_ops.AddFloat32) -> bool:
    """Whether no product or sum of ``op`` needs more than the 53 bits of float64: then it is rounded once, to float32."""
    numbers = [float(op.addend), *(float(m) for m in op.multipliers)]
    parts = max(number.as_integer_ratio()[1] for number in numbers)  # of 1, of which all are multiples
    return (abs(numbers[0]) + 256 * (abs(numbers[1]) + abs(numbers[2]))) * parts < 2.0**53


def _add_by_table(plan: Plan, node: IntNode) -> None:
    """Both inputs have at most 256 integers: the sum of each pair is looked up."""
    a, b, y = plan.source(node, 0), plan.source(node, 1), plan.new_place(node)
    table = stored(plan, node.name, y, table_of(plan.graph, node))
    low = (_lowest(plan, node, 0), _lowest(plan, node, 1))
    constants = (table, low, b.corner, patch_of(a, y))
    plan.steps.append(Step(node.name, tables.table_of_two, (a.buffer, b.buffer, y.buffer), constants))


def _lowest(plan: Plan, node: IntNode, index: int) -> int:
    """What stands for the lowest integer in the memory of input ``index`` of ``node``."""
    name = node.inputs[index]
    return plan.graph[name].output.quantized[0].qmin - above(plan, name, plan.source(node, index))


def _windows(
    op: int_ops.AveragePoolOfValid | int_ops.AveragePoolFloat32, x: Place, y: Place
) -> tuple[tuple[int, int], tuple[int, int], Taps, Windows]:
    windows = Windows(*y.image[1:], *op.stride, -op.padding[0][0], -op.padding[1][0], *y.corner)
    return (x.image[1], x.image[2]), (int(x.corner[0]), int(x.corner[1])), Taps(*op.kernel, 1, 1), windows
