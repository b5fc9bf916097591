"""The kernel calls of pooling, addition and what brings tensors to another scale, and the borders of a network."""

from __future__ import annotations

import numpy as np

from labkit.engine.dispatch import lower_op, unsupported
from labkit.engine.finishing import (
    centred_grid,
    patch_of,
    requantize_activations,
    requantize_sums,
    sums_buffer,
    windows_of,
)
from labkit.engine.plan import Plan, Step
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.kernels.fast import direct, elementwise, pool
from labkit.kernels.fast.conv import Windows

__all__: list[str] = []  # it registers its functions with `engine.dispatch`


@lower_op.register
def _(op: int_ops.Quantize, plan: Plan, node: IntNode) -> None:
    plan.new_place(node)  # `run` fills it from the caller's array


@lower_op.register
def _(op: int_ops.Dequantize, plan: Plan, node: IntNode) -> None:
    pass  # `run` reads the place of its input into the returned array


@lower_op.register
def _(op: int_ops.MaxPool2d, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    for axis, (size, results) in enumerate(zip(x.image[1:], y.image[1:], strict=True)):
        starts = np.arange(results) * op.stride[axis] - op.padding[axis][0]
        taps = starts[:, None] + np.arange(op.kernel[axis]) * op.dilation[axis]
        if not np.all(np.any((taps >= 0) & (taps < size), axis=1)):
            raise unsupported(node, "a window of this pooling lies wholly in the padding and has no largest element")
    windows = Windows(*y.image[1:], *op.stride, -op.padding[0][0], -op.padding[1][0], *y.corner)
    constants = (x.image[1:], tuple(x.corner), direct.Taps(*op.kernel, *op.dilation), windows)
    plan.steps.append(Step(node.name, pool.max_pool2d, (x.buffer, y.buffer), constants))


@lower_op.register
def _(op: int_ops.AveragePool2d, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    sums = sums_buffer(plan, y)
    windows = windows_of(x, y, op.stride, op.padding)._replace(into_top=0, into_left=0)
    constants = (x.image[0], direct.Taps(*op.kernel, 1, 1), windows)
    plan.steps.append(Step(node.name, pool.average_sums, (x.buffer, sums), constants))
    surplus = np.full(x.image[0], x.zero * op.kernel[0] * op.kernel[1], np.int32)
    requantize_sums(plan, node, sums, op.requantizer, -surplus)


@lower_op.register
def _(op: int_ops.Add, plan: Plan, node: IntNode) -> None:
    a, b, y = plan.source(node, 0), plan.source(node, 1), plan.new_place(node)
    clamp = (int(op.clamp[0]) - op.zero_point, int(op.clamp[1]) - op.zero_point)
    buffers, zeros = (a.buffer, b.buffer, y.buffer), (a.zero, b.zero, y.zero)
    rest = (clamp, zeros, b.corner, patch_of(a, y))
    largest = [max(-low, high) for low, high in (centred_grid(plan, name) for name in node.inputs)]
    split = elementwise.split_multipliers(op.multipliers, int(op.shift), largest)
    if split is not None:
        plan.steps.append(Step(node.name, elementwise.add_vectors, buffers, (*split, *rest)))
        return
    constants = (op.multipliers.astype(np.int64), int(op.shift), *rest)
    plan.steps.append(Step(node.name, elementwise.add, buffers, constants))


@lower_op.register
def _(op: int_ops.Concat, plan: Plan, node: IntNode) -> None:
    plan.new_place(node)
    first = 0
    for index, requantizer in enumerate(op.requantizers):
        requantize_activations(plan, node, index, requantizer, first)
        first += plan.source(node, index).image[0]


@lower_op.register
def _(op: int_ops.Requantize, plan: Plan, node: IntNode) -> None:
    plan.new_place(node)
    requantize_activations(plan, node, 0, op.requantizer, 0)


@lower_op.register
def _(op: int_ops.Flatten, plan: Plan, node: IntNode) -> None:
    x = plan.source(node)
    if x.image[1:] == (1, 1) or all(isinstance(c.op, int_ops.Linear) for c in plan.consumers[node.name]):
        plan.places[node.name] = x  # the weights of the Linear layers are put into the order of the buffer instead
        return
    y = plan.new_place(node)
    plan.steps.append(Step(node.name, elementwise.copy_to_rows, (x.buffer, y.buffer), (patch_of(x, y),)))
