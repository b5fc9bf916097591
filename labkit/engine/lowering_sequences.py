"""The kernel calls of transformers: embeddings, products of two tensors, and I-BERT's softmax, GELU and layer norm.

A sequence (D, T) lies with the features of a token side by side. Heads (H, D / H, T) lie in the same places, and scores
(H, T, T) with the last axis side by side; `Steps` say so to the product of matrices.
"""

from __future__ import annotations

import math

import numpy as np

from labkit.arithmetic.ibert import ExpConstants
from labkit.engine.dispatch import lower_op, unsupported
from labkit.engine.finishing import (
    centred_grid,
    finish_rule,
    offsets_of,
    patch_of,
    requantize_sums,
    stored_clamp,
    sums_buffer,
)
from labkit.engine.plan import TABLES, Buffer, Place, Plan, Step
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.kernels.fast import gelu, heads, matmul, normalise, softmax_polynomial, softmax_rows
from labkit.kernels.fast.embedding import embedding_kernel
from labkit.kernels.fast.factors import Sizes, Steps
from labkit.kernels.fast.finish import CHANNELS
from labkit.kernels.fast.packing import epilogue_fits, pack_epilogue, rounded_up
from labkit.kernels.fast.requantize import multiplier_tables

__all__ = ["splits_channels", "steps_of"]  # and it registers its functions with `engine.dispatch`

Shape = tuple[int, ...]


@lower_op.register
def _(op: int_ops.Embedding, plan: Plan, node: IntNode) -> None:
    x, y, requantizer = plan.source(node), plan.new_place(node), op.requantizer
    zero_point = int(requantizer.zero_point)
    is_inside = requantizer.zero_point_inside and not requantizer.rule.is_integer_only
    constants = (
        np.ascontiguousarray(op.weight.values),
        *multiplier_tables(requantizer, requantizer.channels or 1),
        zero_point if is_inside else 0,
        zero_point,
        y.zero,
        (int(requantizer.clamp[0]), int(requantizer.clamp[1])),
        node.output.shape[1],
        y.corner,
    )
    plan.steps.append(Step(node.name, embedding_kernel(finish_rule(requantizer)), (x.buffer, y.buffer), constants))


@lower_op.register
def _(op: int_ops.MatMul, plan: Plan, node: IntNode) -> None:
    a, b = plan.source(node, 0), plan.source(node, 1)
    y, shape = _place_of_product(plan, node), node.output.shape
    shapes = [plan.graph[name].output.shape for name in node.inputs]
    at_a, at_b = steps_of(plan, a, shapes[0]), steps_of(plan, b, shapes[1])
    at_a, at_b = (_transposed(at_a) if op.transpose_a else at_a), (_transposed(at_b) if op.transpose_b else at_b)
    at_y = steps_of(plan, y, shape)
    sizes = Sizes(shape[0], shape[1], shapes[0][1 if op.transpose_a else 2], shape[2])
    if at_y.column != 1 and at_y.row == 1:  # columns become rows: all three are transposed
        a, b, at_a, at_b, at_y = b, a, _transposed(at_b), _transposed(at_a), _transposed(at_y)
        sizes = Sizes(sizes.products, sizes.columns, sizes.inner, sizes.rows)
    panels = rounded_up(sizes.columns) // CHANNELS
    rows = plan.add_buffer(Buffer((sizes.rows, rounded_up(sizes.inner, 2)), np.int16, is_per_image=False))
    packed = (panels, rounded_up(sizes.inner, 2) // 2, CHANNELS, 2)
    scratch = (TABLES, rows, plan.add_buffer(Buffer(packed, np.int16, is_per_image=False)))
    buffers, places = (a.buffer, b.buffer, y.buffer), (np.zeros(1, np.int64), sizes, at_a, at_b, at_y, (a.zero, b.zero))
    requantizer, rule = op.requantizer, finish_rule(op.requantizer)
    largest = [max(-low, high) for low, high in (centred_grid(plan, name) for name in node.inputs)]
    bound = np.array([sizes.inner * largest[0] * largest[1]])
    has_room = at_y.column == 1 and (sizes.columns % CHANNELS == 0 or y.strides is not None)
    if has_room and epilogue_fits(requantizer, bound):
        epilogue = pack_epilogue(np.zeros(sizes.columns, np.int32), requantizer, plan.registers.lanes, y.zero)
        constants = (epilogue, stored_clamp(requantizer, y.zero), *places)
        kernel = matmul.matmul_kernel(plan.registers, panels, rule)
        plan.steps.append(Step(node.name, kernel, (*buffers, *scratch), constants))
        return
    sums = plan.add_buffer(Buffer((sizes.rows, panels * CHANNELS), np.int32, is_per_image=False))
    zero_point = int(requantizer.zero_point)
    is_inside = requantizer.zero_point_inside and not requantizer.rule.is_integer_only
    finish = (
        zero_point if is_inside else 0,
        zero_point,
        y.zero,
        (int(requantizer.clamp[0]), int(requantizer.clamp[1])),
    )
    plain = (*multiplier_tables(requantizer, 1), *finish, *places)
    kernel = matmul.matmul_sums_kernel(plan.registers, panels, rule)
    plan.steps.append(Step(node.name, kernel, (*buffers, *scratch, sums), plain))


@lower_op.register
def _(op: int_ops.SoftmaxPolynomial, plan: Plan, node: IntNode) -> None:
    x, shape = plan.source(node), node.output.shape
    takes_rows = len(shape) in (2, 3) and plan.all_consumers_are(
        node, int_ops.MatMul, int_ops.SoftmaxPolynomial, int_ops.Dequantize
    )
    y = plan.new_rows(node) if takes_rows else plan.new_place(node)
    mask = plan.source(node, 1) if len(node.inputs) == 2 else None
    work = plan.add_buffer(Buffer((2, rounded_up(shape[-1])), np.int32, is_per_image=False))
    masks = (0, 0) if mask is None else (1, mask.zero)
    buffers = (x.buffer, x.buffer if mask is None else mask.buffer, y.buffer, work)
    constants_of_exp = ExpConstants(op.ln2, op.b, op.c, 0.0)  # integers only: the real scale is in the multiplier
    exponential = softmax_rows.exponential_of(constants_of_exp, op.multiplier, shape[-1])
    if x.strides is not None and y.strides is not None and exponential is not None:
        rows = softmax_rows.Rows(math.prod(shape[:-1]), shape[-1], x.strides[1], y.strides[1])
        by_vectors = (rows, exponential, masks, int(op.bits), y.zero)
        plan.steps.append(Step(node.name, softmax_rows.softmax_rows, buffers, by_vectors))
        return
    low, high = centred_grid(plan, node.inputs[0])
    table = softmax_polynomial.exponentials(constants_of_exp, op.multiplier, high - low)
    if table.min() < 0 or table.max() >= 2**31:
        raise unsupported(node, "its exponentials do not fit 32 bits")
    kind = np.uint16 if table.max() < 2**16 else np.int32
    come, go, groups = heads.groups_along(len(shape) - 1, offsets_of(plan, x, shape), offsets_of(plan, y, shape))
    constants = (come, go, groups, table.astype(kind), masks, int(op.bits), y.zero)
    plan.steps.append(Step(node.name, softmax_polynomial.i_softmax, buffers, constants))


@lower_op.register
def _(op: int_ops.GeluPolynomial, plan: Plan, node: IntNode) -> None:
    x, y, requantizer = plan.source(node), plan.new_place(node), op.requantizer
    low, high = centred_grid(plan, node.inputs[0])
    largest, polynomial = max(-low, high), gelu.Polynomial(op.b, op.c, op.one)
    bound = np.array([gelu.largest_product(polynomial, largest)])
    if gelu.stays_in_int32(polynomial, largest) and epilogue_fits(requantizer, bound):
        epilogue = pack_epilogue(np.zeros(CHANNELS, np.int32), requantizer, plan.registers.lanes, y.zero)
        constants = (epilogue, stored_clamp(requantizer, y.zero), polynomial, x.zero, patch_of(x, y))
        kernel = gelu.gelu_kernel(plan.registers, finish_rule(requantizer))
        plan.steps.append(Step(node.name, kernel, (x.buffer, y.buffer), constants))
        return
    sums = sums_buffer(plan, y)
    products = (polynomial, x.zero, patch_of(x, y))
    plan.steps.append(Step(node.name, gelu.gelu_products, (x.buffer, sums), products))
    requantize_sums(plan, node, sums, requantizer, np.zeros(x.image[0], np.int32))


@lower_op.register
def _(op: int_ops.LayerNorm, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    work = plan.add_buffer(Buffer((rounded_up(x.image[0]),), np.int32, is_per_image=False))
    half = np.int64(1) << (op.shift - 1)
    clamp = (int(op.clamp[0]), int(op.clamp[1]))
    scaling = (np.array(op.multipliers), op.addends + half, int(op.shift), int(op.epsilon))
    constants = (*scaling, clamp, (x.zero, y.zero), patch_of(x, y))
    plan.steps.append(Step(node.name, normalise.i_layer_norm, (x.buffer, y.buffer, work), constants))


def steps_of(plan: Plan, place: Place, shape: Shape) -> Steps:
    """Where the matrices of a tensor of ``shape`` (B, m, n) lie at ``place`` of ``plan``.

    There it lies as an image of this shape, or as the sequence (B * m, n).
    """
    if place.strides is not None:
        return Steps(0, *place.strides)
    _, width, lanes = plan.buffers[place.buffer].shape
    start = (place.corner.top * width + place.corner.left) * lanes
    if place.image == shape:
        return Steps(start, 1, width * lanes, lanes)
    assert place.image == (shape[0] * shape[1], 1, shape[2])
    return Steps(start, shape[1], 1, lanes)


def splits_channels(source: Shape, result: Shape) -> bool:
    """Whether a Reshape from ``source`` to ``result`` makes heads (B, m, n) of a sequence (B * m, n)."""
    return len(source) == 2 and len(result) == 3 and source == (result[0] * result[1], result[2])


def _place_of_product(plan: Plan, node: IntNode) -> Place:
    """A new place for the result (B, m, n) of a product, in the order that suits its consumers."""
    batch, rows, columns = node.output.shape
    consumers, sequence = plan.consumers[node.name], (batch * rows, columns)
    if consumers and all(isinstance(c.op, int_ops.Reshape) and c.output.shape == sequence for c in consumers):
        return plan.new_place(node, (batch * rows, 1, columns))
    if plan.all_consumers_are(node, int_ops.MatMul, int_ops.SoftmaxPolynomial, int_ops.Dequantize):
        return plan.new_rows(node)
    return plan.new_place(node)


def _transposed(steps: Steps) -> Steps:
    return steps._replace(row=steps.column, column=steps.row)
