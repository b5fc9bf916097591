"""The kernel calls of convolutions and linear layers: which kernel serves a layer best, and the constants that it reads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.engine.dispatch import lower_op, unsupported
from labkit.engine.finishing import (
    bias_of,
    finish_rule,
    finishes_in_registers,
    grid_of,
    itemsize,
    requantize_sums,
    stored_clamp,
    stored_grid,
    sums_buffer,
    windows_of,
)
from labkit.engine.plan import TABLES, Buffer, Place, Plan, Route, Step
from labkit.engine.products import add_product
from labkit.engine.storage import dot_of
from labkit.engine.weights import centred, packed_once
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.kernels.fast import conv3x3, direct, winograd
from labkit.kernels.fast.conv import Windows, byte_offsets
from labkit.kernels.fast.depthwise import DEPTHWISE, DEPTHWISE_SUMS, tap_offsets
from labkit.kernels.fast.depthwise_rows import COLUMNS, depthwise_rows_kernel, pack_rows, tile_width
from labkit.kernels.fast.finish import CHANNELS
from labkit.kernels.fast.packing import (
    NO_EPILOGUE,
    channels_first_order,
    fits_int8,
    pack_epilogue,
    pack_panels,
    pack_taps,
)
from labkit.kernels.fast.tile import LONGEST_NIBBLE_RUN, Dot, Registers

__all__: list[str] = []  # it registers its functions with `engine.dispatch`

# From so many bytes of transformed weights on, and with fewer tiles than this to use them, reading F4's weights (8 bytes
# for each of the network's) takes longer than the products that F2 (3.6 bytes) does more; measured
_LARGE_WEIGHTS = 1 << 20
_FEW_TILES = 24
_MANY_TILES = 64  # 512-bit products of nibbles take so little time that F4 only pays off on large images; measured


@lower_op.register
def _(op: int_ops.Conv2d, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    windows = windows_of(x, y, op.stride, op.padding)
    outputs, _, *kernel = op.weight.values.shape
    if op.groups > 1:
        _grouped(plan, node, x, y, centred(op.weight), windows)
        return
    if kernel == [3, 3]:
        weights = centred(op.weight)
        transform = _transform_for(plan, node, x, y, weights)
        if transform is not None:
            _winograd(plan, node, x, y, weights, transform, windows)
            return
    _, buffer_w, lanes = plan.buffers[x.buffer].shape
    pixel = lanes * itemsize(plan, x)
    runs = byte_offsets((kernel[0], kernel[1]), op.dilation, buffer_w * pixel, pixel)

    def in_order() -> NDArray[np.int16]:
        filled = np.zeros((outputs, *kernel, lanes), np.int16)
        filled[..., : x.image[0]] = centred(op.weight).transpose(0, 2, 3, 1)
        return filled.reshape(outputs, len(runs), -1)

    _multiply(plan, node, x, y, in_order, (lanes, len(runs)), runs, windows)


@lower_op.register
def _(op: int_ops.Linear, plan: Plan, node: IntNode) -> None:
    if len(node.output.shape) != 1:
        raise unsupported(node, f"a Linear layer puts out one row of numbers for each image, not {node.output.shape}")
    x, y = plan.source(node), plan.new_place(node)
    height, width, lanes = plan.buffers[x.buffer].shape
    stored = (height, width, lanes, *x.corner)
    windows = Windows(1, 1, 1, 1, 0, 0, *y.corner)

    def in_order() -> NDArray[np.integer]:
        return channels_first_order(centred(op.weight), x.image, stored)[:, None, :]

    _multiply(plan, node, x, y, in_order, (x.image, stored), np.zeros(1, np.int64), windows)


def _grouped(plan: Plan, node: IntNode, x: Place, y: Place, weights: NDArray[np.int16], windows: Windows) -> None:
    """A convolution in groups: by the depthwise tile where each channel is a group, else in plain loops."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d)
    kernel = (weights.shape[2], weights.shape[3])
    into_sums = windows._replace(into_top=0, into_left=0)
    if not op.groups == weights.shape[0] == x.image[0]:
        sums = sums_buffer(plan, y)
        packed = np.ascontiguousarray(weights.transpose(0, 2, 3, 1), np.int8 if fits_int8(weights) else np.int16)
        plain = (packed, op.groups, direct.Taps(*kernel, *op.dilation), into_sums)
        plan.steps.append(Step(node.name, direct.grouped_sums, (x.buffer, sums), plain))
        requantize_sums(plan, node, sums, op.requantizer, bias_of(op, x))
        return
    if _goes_by_rows(plan, node, x, weights):
        dot = Dot.QUADS_VNNI if Dot.QUADS_VNNI in plan.dots else Dot.QUADS
        width = tile_width(windows.width)
        epilogue = pack_epilogue(bias_of(op, x), op.requantizer, CHANNELS, y.zero)
        by_rows = (pack_rows(weights[:, 0]), epilogue, op.dilation[0], stored_clamp(op.requantizer, y.zero), windows)
        row_kernel = depthwise_rows_kernel(dot, width, op.stride[1], finish_rule(op.requantizer))
        plan.steps.append(Step(node.name, row_kernel, (x.buffer, y.buffer), by_rows))
        return
    _, buffer_w, lanes = plan.buffers[x.buffer].shape
    pixel = lanes * itemsize(plan, x)
    taps = tap_offsets(kernel, op.dilation, buffer_w * pixel, pixel)
    panels = pack_taps(weights.reshape(weights.shape[0], -1))
    if finishes_in_registers(plan, node):
        epilogue = pack_epilogue(bias_of(op, x), op.requantizer, offset=y.zero)
        fused = (panels, epilogue, taps, stored_clamp(op.requantizer, y.zero), windows)
        plan.steps.append(Step(node.name, DEPTHWISE[finish_rule(op.requantizer)], (x.buffer, y.buffer, TABLES), fused))
        return
    sums = sums_buffer(plan, y)
    constants = (panels, NO_EPILOGUE, taps, (0, 0), into_sums)
    plan.steps.append(Step(node.name, DEPTHWISE_SUMS, (x.buffer, sums, TABLES), constants))
    requantize_sums(plan, node, sums, op.requantizer, bias_of(op, x))


def _goes_by_rows(plan: Plan, node: IntNode, x: Place, weights: NDArray[np.int16]) -> bool:
    """Whether `depthwise_rows` serves this depthwise convolution and is the fastest."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d)
    return (
        plan.registers is Registers.BITS_512
        and not {Dot.QUADS_VNNI, Dot.QUADS}.isdisjoint(plan.dots)
        and plan.buffers[x.buffer].dtype is np.uint8
        and weights.shape[3] == COLUMNS
        and op.dilation[1] == 1
        and op.stride[1] <= 2
        and fits_int8(weights)
        and finishes_in_registers(plan, node)
    )


def _multiply(
    plan: Plan,
    node: IntNode,
    x: Place,
    y: Place,
    in_order: Callable[[], NDArray[np.integer]],
    order: Hashable,
    runs: NDArray[np.int64],
    windows: Windows,
) -> None:
    """The tile over the weights, finished in registers where the rule and the bounds allow it.

    ``in_order`` makes them [O, runs, run length]; it is the same for the same tensor and ``order``.
    """
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    dot = _dot(plan, node, x)
    bias = bias_of(op, x)
    if dot.sums_int16:
        weights, runs = _in_short_runs(in_order(), runs)
        panels = packed_once(op.weight, (order, dot.group, True), lambda: pack_panels(weights, dot.group))
    else:
        panels = packed_once(op.weight, (order, dot.group, False), lambda: pack_panels(in_order(), dot.group))
    positions = windows.height * windows.width
    if finishes_in_registers(plan, node):
        epilogue = pack_epilogue(bias, op.requantizer, plan.registers.lanes, y.zero)
        rest: tuple[Any, ...] = (epilogue, runs, stored_clamp(op.requantizer, y.zero), windows)
        add_product(plan, node, (x.buffer, y.buffer), dot, panels, finish_rule(op.requantizer), rest, positions)
        return
    sums = sums_buffer(plan, y)
    rest = (NO_EPILOGUE, runs, (0, 0), windows._replace(into_top=0, into_left=0))
    add_product(plan, node, (x.buffer, sums), dot, panels, None, rest, positions)
    requantize_sums(plan, node, sums, op.requantizer, bias)


def _dot(plan: Plan, node: IntNode, x: Place) -> Dot:
    """How the tile multiplies the inputs of ``node`` as they lie at ``x``."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    if plan.buffers[x.buffer].dtype is np.int16:
        return Dot.PAIRS
    return dot_of([way for way in (*plan.dots, Dot.QUADS) if way is not Dot.PAIRS], op, grid_of(plan, node))


def _in_short_runs(
    weights: NDArray[np.integer], runs: NDArray[np.int64]
) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """The same products in runs of at most `LONGEST_NIBBLE_RUN` steps: ``weights`` [O, runs, length], ``runs`` [runs].

    All pieces of a run are equally long. So that the last does not read beyond the run, it reaches back, with weights of 0.
    """
    outputs, count, length = weights.shape
    steps = -(-length // Dot.NIBBLES.group)
    pieces = -(-steps // LONGEST_NIBBLE_RUN)
    piece = -(-steps // pieces) * Dot.NIBBLES.group
    firsts = piece * np.arange(pieces)
    starts = np.minimum(firsts, steps * Dot.NIBBLES.group - piece)
    filled = np.zeros((outputs, count, pieces, piece), weights.dtype)
    for at, (first, start) in enumerate(zip(firsts, starts, strict=True)):
        own = weights[:, :, first : first + piece]
        filled[:, :, at, first - start : first - start + own.shape[2]] = own
    return filled.reshape(outputs, count * pieces, piece), (runs[:, None] + starts).reshape(-1)


def _transform_for(
    plan: Plan, node: IntNode, x: Place, y: Place, weights: NDArray[np.int16]
) -> winograd.Transform | None:
    """The Winograd transform that is exact for this convolution and wanted by the plan's route, or None: direct."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d)
    lanes = plan.buffers[x.buffer].shape[2]
    if weights.shape[2:] != (3, 3) or op.stride != (1, 1) or op.dilation != (1, 1) or lanes % CHANNELS:
        return None
    low, high = stored_grid(plan, node, x)
    for transform in _preferred(plan, node, x, y, weights):
        fits = min(y.image[1:]) >= transform.size
        if fits and winograd.is_exact(transform, weights, low, high):
            return transform
    return None


def _preferred(
    plan: Plan, node: IntNode, x: Place, y: Place, weights: NDArray[np.int16]
) -> tuple[winograd.Transform, ...]:
    """The transforms in the order in which they are tried; after them the convolution is direct."""
    if plan.route is not Route.FASTEST:
        return {Route.DIRECT: (), Route.F2: (winograd.F2,), Route.F4: (winograd.F4,)}[plan.route]
    dot, is_wide = _dot(plan, node, x), plan.registers is Registers.BITS_512
    if dot is Dot.QUADS_VNNI:
        return ()  # four products of bytes a lane and instruction: more than the transform saves
    _, height, width = y.image
    size = winograd.F4.size
    tiles = -(-height // size) * -(-width // size)
    bytes_of_planes = winograd.F4.points**2 * weights.shape[0] * weights.shape[1] * 2
    is_read_in_vain = bytes_of_planes > _LARGE_WEIGHTS and tiles < _FEW_TILES
    if dot is Dot.NIBBLES_AVX2:  # twice as many products as of int16
        is_slower = is_read_in_vain or (is_wide and (tiles < _MANY_TILES or bytes_of_planes > _LARGE_WEIGHTS))
        return () if is_slower else (winograd.F4,)
    if is_read_in_vain:
        half = winograd.F2.size
        is_small = -(-height // half) * -(-width // half) < _FEW_TILES
        return () if is_wide and is_small else (winograd.F2,)
    return winograd.F4, winograd.F2


def _winograd(
    plan: Plan,
    node: IntNode,
    x: Place,
    y: Place,
    weights: NDArray[np.int16],
    transform: winograd.Transform,
    windows: Windows,
) -> None:
    """A 3x3 convolution by ``transform``, finished in registers where the rule and the bounds allow it."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d)
    lanes = plan.buffers[x.buffer].shape[2]
    panels = winograd.pack_planes(transform, weights, lanes)
    patch_shape, sums_shape = conv3x3.plane_shapes(transform, lanes)
    patches, planes = Buffer(patch_shape, np.int16, False), Buffer(sums_shape, np.int32, False)
    scratch = (plan.add_buffer(patches), plan.add_buffer(planes), TABLES)
    at_once = conv3x3.tiles_at_once(transform, lanes)
    if finishes_in_registers(plan, node):
        epilogue = pack_epilogue(bias_of(op, x), op.requantizer, plan.registers.lanes, y.zero)
        constants = (panels, epilogue, stored_clamp(op.requantizer, y.zero), at_once, windows)
        kernel = conv3x3.conv3x3_kernel(plan.registers, transform, finish_rule(op.requantizer))
        plan.steps.append(Step(node.name, kernel, (x.buffer, y.buffer, *scratch), constants))
        return
    sums = sums_buffer(plan, y)
    constants = (panels, NO_EPILOGUE, (0, 0), at_once, windows._replace(into_top=0, into_left=0))
    kernel = conv3x3.conv3x3_kernel(plan.registers, transform, None)
    plan.steps.append(Step(node.name, kernel, (x.buffer, sums, *scratch), constants))
    requantize_sums(plan, node, sums, op.requantizer, bias_of(op, x))
