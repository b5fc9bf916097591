"""The kernel calls of each operation, and the constants that they read: the tables behind `prepare`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec
from labkit.arithmetic.bounds import accumulator_bound
from labkit.arithmetic.requantize import Requantizer
from labkit.engine.dispatch import lower_op, unsupported
from labkit.engine.plan import TABLES, Buffer, Place, Plan, Route, Step
from labkit.engine.products import add_product
from labkit.engine.storage import centred_weights, dot_of
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.graph.shapes import Padding
from labkit.kernels.fast import conv3x3, direct, elementwise, pool, winograd
from labkit.kernels.fast.conv import Windows, byte_offsets
from labkit.kernels.fast.depthwise import DEPTHWISE, DEPTHWISE_SUMS, tap_offsets
from labkit.kernels.fast.depthwise_rows import COLUMNS, depthwise_rows_kernel, pack_rows, tile_width
from labkit.kernels.fast.finish import CHANNELS
from labkit.kernels.fast.packing import (
    NO_EPILOGUE,
    channels_first_order,
    epilogue_fits,
    fits_int8,
    pack_epilogue,
    pack_taps,
    rounded_up,
)
from labkit.kernels.fast.requantize import REQUANTIZE, REQUANTIZE_VECTORS, Patch, multiplier_tables
from labkit.kernels.fast.tile import LONGEST_NIBBLE_RUN, Dot, Registers

__all__: list[str] = []  # it registers its functions with `engine.dispatch`

_LARGEST_ACTIVATION = np.array([255])  # in magnitude, zero point subtracted

# From so many bytes of transformed weights on, and with fewer tiles than this to use them, reading F4's weights (8 bytes
# for each of the network's) takes longer than the products that F2 (3.6 bytes) does more; measured
_LARGE_WEIGHTS = 1 << 20
_FEW_TILES = 24
_MANY_TILES = 64  # 512-bit products of nibbles take so little time that F4 only pays off on large images; measured


@lower_op.register
def _(op: int_ops.Quantize, plan: Plan, node: IntNode) -> None:
    plan.new_place(node)  # `run` fills it from the caller's array


@lower_op.register
def _(op: int_ops.Dequantize, plan: Plan, node: IntNode) -> None:
    pass  # `run` reads the place of its input into the returned array


@lower_op.register
def _(op: int_ops.Conv2d, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    weights = centred_weights(op)
    windows = _windows(x, y, op.stride, op.padding)
    kernel = (weights.shape[2], weights.shape[3])
    if op.groups > 1:
        _grouped(plan, node, x, y, weights, windows)
        return
    transform = _transform_for(plan, node, x, y, weights)
    if transform is not None:
        _winograd(plan, node, x, y, weights, transform, windows)
        return
    _, buffer_w, lanes = plan.buffers[x.buffer].shape
    pixel = lanes * _itemsize(plan, x)
    runs = byte_offsets(kernel, op.dilation, buffer_w * pixel, pixel)
    filled = np.zeros((weights.shape[0], *kernel, lanes), weights.dtype)
    filled[..., : x.image[0]] = weights.transpose(0, 2, 3, 1)
    _multiply(plan, node, x, y, filled.reshape(weights.shape[0], len(runs), -1), runs, windows)


@lower_op.register
def _(op: int_ops.Linear, plan: Plan, node: IntNode) -> None:
    if len(node.output.shape) != 1:
        raise unsupported(node, f"a Linear layer puts out one row of numbers for each image, not {node.output.shape}")
    x, y = plan.source(node), plan.new_place(node)
    height, width, lanes = plan.buffers[x.buffer].shape
    stored = (height, width, lanes, *x.corner)
    weights = channels_first_order(centred_weights(op), x.image, stored)
    windows = Windows(1, 1, 1, 1, 0, 0, *y.corner)
    _multiply(plan, node, x, y, weights[:, None, :], np.zeros(1, np.int64), windows)


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
    sums = _sums_buffer(plan, y)
    windows = _windows(x, y, op.stride, op.padding)._replace(into_top=0, into_left=0)
    constants = (x.image[0], direct.Taps(*op.kernel, 1, 1), windows)
    plan.steps.append(Step(node.name, pool.average_sums, (x.buffer, sums), constants))
    surplus = np.full(x.image[0], x.zero * op.kernel[0] * op.kernel[1], np.int32)
    _requantize_sums(plan, node, sums, op.requantizer, -surplus)


@lower_op.register
def _(op: int_ops.Add, plan: Plan, node: IntNode) -> None:
    a, b, y = plan.source(node, 0), plan.source(node, 1), plan.new_place(node)
    clamp = (int(op.clamp[0]) - op.zero_point, int(op.clamp[1]) - op.zero_point)
    buffers, zeros = (a.buffer, b.buffer, y.buffer), (a.zero, b.zero, y.zero)
    rest = (clamp, zeros, b.corner, _patch(a, y))
    split = elementwise.split_multipliers(op.multipliers, int(op.shift))
    if split is not None:
        plan.steps.append(Step(node.name, elementwise.add_vectors, buffers, (*split, *rest)))
        return
    constants = (op.multipliers.astype(np.int64), int(op.shift), *rest)
    plan.steps.append(Step(node.name, elementwise.add, buffers, constants))


@lower_op.register
def _(op: int_ops.Concat, plan: Plan, node: IntNode) -> None:
    y = plan.new_place(node)
    first = 0
    for index, requantizer in enumerate(op.requantizers):
        x = plan.source(node, index)
        patch = _patch(x, y)._replace(into_channel=first)
        _requantize(plan, node, x.buffer, requantizer, np.full(x.image[0], -x.zero, np.int32), patch)
        first += x.image[0]


@lower_op.register
def _(op: int_ops.Requantize, plan: Plan, node: IntNode) -> None:
    x, y = plan.source(node), plan.new_place(node)
    _requantize(plan, node, x.buffer, op.requantizer, np.full(x.image[0], -x.zero, np.int32), _patch(x, y))


@lower_op.register
def _(op: int_ops.Flatten, plan: Plan, node: IntNode) -> None:
    x = plan.source(node)
    if x.image[1:] == (1, 1) or all(isinstance(c.op, int_ops.Linear) for c in plan.consumers[node.name]):
        plan.places[node.name] = x  # the weights of the Linear layers are put into the order of the buffer instead
        return
    y = plan.new_place(node)
    plan.steps.append(Step(node.name, elementwise.copy_to_rows, (x.buffer, y.buffer), (_patch(x, y),)))


def _windows(x: Place, y: Place, stride: tuple[int, int], padding: Padding) -> Windows:
    top, left = x.corner.top - padding[0][0], x.corner.left - padding[1][0]
    return Windows(*y.image[1:], *stride, top, left, *y.corner)


def _patch(x: Place, y: Place) -> Patch:
    channels, height, width = x.image
    return Patch(height, width, channels, *x.corner, *y.corner, 0)


def _sums_buffer(plan: Plan, y: Place) -> int:
    channels, height, width = y.image
    return plan.add_buffer(Buffer((height, width, rounded_up(channels)), np.int32))


def _grouped(plan: Plan, node: IntNode, x: Place, y: Place, weights: NDArray[np.int16], windows: Windows) -> None:
    """A convolution in groups: by the depthwise tile where each channel is a group, else in plain loops."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d)
    kernel = (weights.shape[2], weights.shape[3])
    into_sums = windows._replace(into_top=0, into_left=0)
    if not op.groups == weights.shape[0] == x.image[0]:
        sums = _sums_buffer(plan, y)
        packed = np.ascontiguousarray(weights.transpose(0, 2, 3, 1))
        plain = (packed, op.groups, direct.Taps(*kernel, *op.dilation), into_sums)
        plan.steps.append(Step(node.name, direct.grouped_sums, (x.buffer, sums), plain))
        _requantize_sums(plan, node, sums, op.requantizer, _bias(op, x, weights))
        return
    if _goes_by_rows(plan, node, x, weights):
        dot = Dot.QUADS_VNNI if Dot.QUADS_VNNI in plan.dots else Dot.QUADS
        width = tile_width(windows.width)
        epilogue = pack_epilogue(_bias(op, x, weights), op.requantizer, CHANNELS, y.zero)
        by_rows = (pack_rows(weights[:, 0]), epilogue, op.dilation[0], _stored_clamp(op.requantizer, y.zero), windows)
        row_kernel = depthwise_rows_kernel(dot, width, op.stride[1], op.requantizer.rule)
        plan.steps.append(Step(node.name, row_kernel, (x.buffer, y.buffer), by_rows))
        return
    _, buffer_w, lanes = plan.buffers[x.buffer].shape
    pixel = lanes * _itemsize(plan, x)
    taps = tap_offsets(kernel, op.dilation, buffer_w * pixel, pixel)
    panels = pack_taps(weights.reshape(weights.shape[0], -1))
    if _finishes_in_registers(plan, node, weights):
        epilogue = pack_epilogue(_bias(op, x, weights), op.requantizer, offset=y.zero)
        fused = (panels, epilogue, taps, _stored_clamp(op.requantizer, y.zero), windows)
        plan.steps.append(Step(node.name, DEPTHWISE[op.requantizer.rule], (x.buffer, y.buffer, TABLES), fused))
        return
    sums = _sums_buffer(plan, y)
    constants = (panels, NO_EPILOGUE, taps, (0, 0), into_sums)
    plan.steps.append(Step(node.name, DEPTHWISE_SUMS, (x.buffer, sums, TABLES), constants))
    _requantize_sums(plan, node, sums, op.requantizer, _bias(op, x, weights))


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
        and _finishes_in_registers(plan, node, weights)
    )


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
    dot = _dot(plan, node, x)
    bias = _bias(op, x, weights)
    if dot.sums_int16:
        weights, runs = _in_short_runs(weights, runs)
    if _finishes_in_registers(plan, node, weights):
        epilogue = pack_epilogue(bias, op.requantizer, plan.registers.lanes, y.zero)
        rest: tuple[Any, ...] = (epilogue, runs, _stored_clamp(op.requantizer, y.zero), windows)
        add_product(plan, node, (x.buffer, y.buffer), dot, weights, op.requantizer.rule, rest)
        return
    sums = _sums_buffer(plan, y)
    rest = (NO_EPILOGUE, runs, (0, 0), windows._replace(into_top=0, into_left=0))
    add_product(plan, node, (x.buffer, sums), dot, weights, None, rest)
    _requantize_sums(plan, node, sums, op.requantizer, bias)


def _dot(plan: Plan, node: IntNode, x: Place) -> Dot:
    """How the tile multiplies the inputs of ``node`` as they lie at ``x``."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    if plan.buffers[x.buffer].dtype is np.int16:
        return Dot.PAIRS
    return dot_of([way for way in (*plan.dots, Dot.QUADS) if way is not Dot.PAIRS], op, _grid(plan, node))


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
    low, high = _stored_grid(plan, node, x)
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
    if _finishes_in_registers(plan, node, weights):
        epilogue = pack_epilogue(_bias(op, x, weights), op.requantizer, plan.registers.lanes, y.zero)
        constants = (panels, epilogue, _stored_clamp(op.requantizer, y.zero), at_once, windows)
        kernel = conv3x3.conv3x3_kernel(plan.registers, transform, op.requantizer.rule)
        plan.steps.append(Step(node.name, kernel, (x.buffer, y.buffer, *scratch), constants))
        return
    sums = _sums_buffer(plan, y)
    constants = (panels, NO_EPILOGUE, (0, 0), at_once, windows._replace(into_top=0, into_left=0))
    kernel = conv3x3.conv3x3_kernel(plan.registers, transform, None)
    plan.steps.append(Step(node.name, kernel, (x.buffer, sums, *scratch), constants))
    _requantize_sums(plan, node, sums, op.requantizer, _bias(op, x, weights))


def _itemsize(plan: Plan, x: Place) -> int:
    return np.dtype(plan.buffers[x.buffer].dtype).itemsize


def _bias(op: int_ops.Conv2d | int_ops.Linear, x: Place, weights: NDArray[np.integer]) -> NDArray[np.int32]:
    """The bias less what the sums hold too much where 0 is stored as ``x.zero``: int32 modulo 2**32, as the sums are."""
    surplus = x.zero * weights.astype(np.int64).reshape(weights.shape[0], -1).sum(axis=1)
    return np.asarray(op.bias.astype(np.int64) - surplus).astype(np.int32)


def _grid(plan: Plan, node: IntNode) -> QuantSpec:
    """The grid of the input of ``node``."""
    return plan.graph[node.inputs[0]].output.quantized[0]


def _centred_grid(plan: Plan, node: IntNode) -> tuple[int, int]:
    """Lowest and highest input of ``node``, zero point subtracted; the 0 of a padding lies between them."""
    spec, params = plan.graph[node.inputs[0]].output.quantized
    zero_point = int(params.zero_point)
    return spec.qmin - zero_point, spec.qmax - zero_point


def _stored_grid(plan: Plan, node: IntNode, x: Place) -> tuple[int, int]:
    """Lowest and highest input of ``node`` as it lies at ``x``."""
    low, high = _centred_grid(plan, node)
    return low + x.zero, high + x.zero


def _stored_clamp(requantizer: Requantizer, zero: int) -> tuple[int, int]:
    """The clamp where real 0 is stored as ``zero``."""
    low, high = requantizer.clamp
    return int(low - requantizer.zero_point) + zero, int(high - requantizer.zero_point) + zero


def _finishes_in_registers(plan: Plan, node: IntNode, weights: NDArray[np.integer]) -> bool:
    """Whether the tile can requantize the sums of ``weights`` [O, ...] and the node's bias itself."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    return epilogue_fits(op.requantizer, accumulator_bound(weights, *_centred_grid(plan, node), op.bias))


def _requantize_sums(plan: Plan, node: IntNode, sums: int, requantizer: Requantizer, bias: NDArray[np.int32]) -> None:
    y = plan.places[node.name]
    channels, height, width = y.image
    _requantize(plan, node, sums, requantizer, bias, Patch(height, width, channels, 0, 0, *y.corner, 0))


def _requantize(
    plan: Plan, node: IntNode, source: int, requantizer: Requantizer, bias: NDArray[np.int32], patch: Patch
) -> None:
    y = plan.places[node.name]
    buffers = (source, y.buffer)
    is_activation = plan.buffers[source].dtype is not np.int32
    lanes_left = plan.buffers[y.buffer].shape[2] - patch.into_channel
    if is_activation and rounded_up(patch.channels) <= lanes_left and epilogue_fits(requantizer, _LARGEST_ACTIVATION):
        epilogue = pack_epilogue(bias, requantizer, offset=y.zero)
        constants = (epilogue, _stored_clamp(requantizer, y.zero), patch)
        plan.steps.append(Step(node.name, REQUANTIZE_VECTORS[requantizer.rule], buffers, constants))
        return
    zero_point = int(requantizer.zero_point)
    is_inside = requantizer.zero_point_inside and not requantizer.rule.is_integer_only  # else it makes no difference
    plain = (
        bias.astype(np.int64),
        *multiplier_tables(requantizer, patch.channels),
        zero_point if is_inside else 0,
        zero_point,
        y.zero,
        (int(requantizer.clamp[0]), int(requantizer.clamp[1])),
        patch,
    )
    plan.steps.append(Step(node.name, REQUANTIZE[requantizer.rule], buffers, plain))
