"""The kernel calls of what multiplies tensors, moves them (Pad, Reshape, ...) or ends a network (Softmax, ArgMax).

AdaptiveAveragePool2d is here too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import RoundingRule
from labkit.arithmetic.windows import adaptive_windows, common_area
from labkit.engine.dispatch import lower_op
from labkit.engine.finishing import centred_grid, offsets_of, requantize_sums
from labkit.engine.lowering_sequences import splits_channels
from labkit.engine.plan import Buffer, Place, Plan, Step, as_image
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.kernels.fast import adaptive, heads, move, multiply
from labkit.kernels.fast.elementwise import Corner
from labkit.kernels.fast.packing import rounded_up
from labkit.kernels.fast.requantize import Patch

__all__: list[str] = []  # it registers its functions with `engine.dispatch`


@lower_op.register
def _(op: int_ops.Multiply, plan: Plan, node: IntNode) -> None:
    a, b, y = plan.source(node, 0), plan.source(node, 1), plan.new_place(node)
    at = multiply.Operands(*y.image[1:], y.image[0], *a.corner, _step(a, y), *b.corner, _step(b, y), *y.corner)
    requantizer, buffers = op.requantizer, (a.buffer, b.buffer, y.buffer)
    if requantizer.rule is RoundingRule.SINGLE:
        multiplier = requantizer.multiplier
        assert isinstance(multiplier, FixedPointMultiplier)
        low, high = (int(end) - int(requantizer.zero_point) for end in requantizer.clamp)
        scaling = (int(multiplier.mantissa), 31 - int(multiplier.exponent), (low, high))
        constants = (*scaling, (a.zero, b.zero, y.zero), at)
        plan.steps.append(Step(node.name, multiply.multiply, buffers, constants))
        return
    grids = [centred_grid(plan, name) for name in node.inputs]
    table = multiply.product_table(requantizer, *grids)
    low_ends = (grids[0][0] + a.zero, grids[1][0] + b.zero)
    plan.steps.append(Step(node.name, multiply.multiply_by_table, buffers, (table, low_ends, y.zero, at)))


@lower_op.register
def _(op: int_ops.AdaptiveAveragePool2d, plan: Plan, node: IntNode) -> None:
    x, y, requantizer = plan.source(node), plan.new_place(node), op.requantizer
    channels, height, width = y.image
    sums = plan.add_buffer(Buffer((height, width, rounded_up(channels)), np.int32))
    rows, columns = (
        np.array(adaptive_windows(x.image[1 + axis], y.image[1 + axis]), np.int64).reshape(-1, 2) for axis in range(2)
    )
    area = common_area(*x.image[1:], op.output_size)
    patch = Patch(height, width, channels, *x.corner, 0, 0, 0)
    constants = (rows, columns, area, x.zero, patch)
    plan.steps.append(Step(node.name, adaptive.adaptive_sums, (x.buffer, sums), constants))
    requantize_sums(plan, node, sums, requantizer, np.zeros(channels, np.int32))


@lower_op.register
def _(op: int_ops.Pad, plan: Plan, node: IntNode) -> None:
    x, image = plan.source(node), as_image(node.output)
    corner = Corner(x.corner.top - op.padding[0][0], x.corner.left - op.padding[1][0])
    assert _has_room(plan, node, x, image, corner)  # `Plan.border` saw to it that the zeros are there
    plan.places[node.name] = Place(x.buffer, image, corner, x.zero)


@lower_op.register
def _(op: int_ops.Reshape, plan: Plan, node: IntNode) -> None:
    x, image = plan.source(node), as_image(node.output)
    if image == x.image and _has_room(plan, node, x, image, x.corner):  # only its name changes
        plan.places[node.name] = Place(x.buffer, image, x.corner, x.zero)
        return
    shapes = plan.graph[node.inputs[0]].output.shape, node.output.shape
    if (
        splits_channels(*shapes)
        and x.strides is None
        and plan.all_consumers_are(node, int_ops.MatMul, int_ops.Dequantize)
    ):
        plan.places[node.name] = x  # a product of matrices finds its way in it
        return
    _move(plan, node, offsets_of(plan, x, node.output.shape))


@lower_op.register
def _(op: int_ops.Transpose, plan: Plan, node: IntNode) -> None:
    shape, x = plan.graph[node.inputs[0]].output.shape, plan.source(node)
    is_at_start = x.corner == (0, 0) and x.strides is None
    if len(shape) == 2 and op.axes == (1, 0) and is_at_start and plan.all_consumers_are(node, int_ops.Dequantize):
        lanes = plan.buffers[x.buffer].shape[2]  # only `run` reads it
        plan.places[node.name] = Place(x.buffer, as_image(node.output), x.corner, x.zero, (lanes, 0, 1))
        return
    _move(plan, node, offsets_of(plan, x, shape).transpose(op.axes))


@lower_op.register
def _(op: int_ops.UpsampleNearest2d, plan: Plan, node: IntNode) -> None:
    x = plan.source(node)
    source = offsets_of(plan, x, x.image).repeat(op.factor[0], axis=1).repeat(op.factor[1], axis=2)
    _move(plan, node, source.reshape(node.output.shape))


@lower_op.register
def _(op: int_ops.Softmax, plan: Plan, node: IntNode) -> None:
    x, y, shape = plan.source(node), plan.new_place(node), node.output.shape
    come, go, groups = heads.groups_along(op.axis, offsets_of(plan, x, shape), offsets_of(plan, y, shape))
    clamp = (int(op.clamp[0]) - op.zero_point, int(op.clamp[1]) - op.zero_point)
    constants = (come, go, groups, op.table, int(op.bits), clamp, y.zero)
    plan.steps.append(Step(node.name, heads.softmax, (x.buffer, y.buffer), constants))


@lower_op.register
def _(op: int_ops.ArgMax, plan: Plan, node: IntNode) -> None:
    x, image = plan.source(node), as_image(node.output)
    channels, height, width = image
    y = Place(plan.add_buffer(Buffer((height, width, rounded_up(channels)), np.int32)), image, Corner(0, 0))
    plan.places[node.name] = y
    shape = plan.graph[node.inputs[0]].output.shape
    come, _, groups = heads.groups_along(op.axis, offsets_of(plan, x, shape), None)
    go = offsets_of(plan, y, (*shape[: op.axis], *shape[op.axis + 1 :])).reshape(-1)
    plan.steps.append(Step(node.name, heads.argmax, (x.buffer, y.buffer), (come, np.ascontiguousarray(go), groups)))


def _move(plan: Plan, node: IntNode, source: NDArray[np.int64]) -> None:
    """Copy the elements at ``source``, offsets in the shape of the result, to the new place of ``node``."""
    x, y = plan.source(node), plan.new_place(node)
    runs = move.runs_of(source, offsets_of(plan, y, node.output.shape))
    kernel = move.move_elements if runs[:, 2].max() == 1 else move.move_runs
    plan.steps.append(Step(node.name, kernel, (x.buffer, y.buffer), (runs, x.zero, y.zero)))


def _has_room(plan: Plan, node: IntNode, x: Place, image: tuple[int, int, int], corner: Corner) -> bool:
    """Whether an ``image`` at ``corner`` of the buffer of ``x`` has around it what the consumers of ``node`` read."""
    (top, bottom), (left, right) = plan.border(node.name)
    height, width, _ = plan.buffers[x.buffer].shape
    return (
        corner.top >= top
        and corner.left >= left
        and corner.top + image[1] + bottom <= height
        and corner.left + image[2] + right <= width
    )


def _step(operand: Place, y: Place) -> int:
    return 1 if operand.image == y.image else 0
