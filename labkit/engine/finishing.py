"""What lowerings share: grids and biases as they are stored, places as kernels want them, and the passes that finish sums."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec
from labkit.arithmetic.requantize import Requantizer
from labkit.engine.plan import Buffer, Place, Plan, Step
from labkit.engine.weights import facts_of
from labkit.errors import BoundError
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.graph.shapes import Padding
from labkit.kernels.fast import move, tables
from labkit.kernels.fast.conv import Windows
from labkit.kernels.fast.finish import finish_rule
from labkit.kernels.fast.packing import (
    epilogue_fits,
    pack_epilogue,
    rounded_up,
)
from labkit.kernels.fast.requantize import REQUANTIZE, REQUANTIZE_VECTORS, Patch, multiplier_tables

__all__ = [
    "above",
    "bias_of",
    "centred_grid",
    "finish_rule",
    "finishes_in_registers",
    "grid_of",
    "itemsize",
    "offsets_of",
    "patch_of",
    "requantize_activations",
    "requantize_sums",
    "stored",
    "stored_clamp",
    "stored_grid",
    "sums_buffer",
    "windows_of",
]

_LARGEST_ACTIVATION = np.array([255])  # of eight bits, in magnitude, zero point subtracted


def windows_of(x: Place, y: Place, stride: tuple[int, int], padding: Padding) -> Windows:
    """Windows on the image at ``x`` with ``stride`` and ``padding``, results to ``y``."""
    top, left = x.corner.top - padding[0][0], x.corner.left - padding[1][0]
    return Windows(*y.image[1:], *stride, top, left, *y.corner)


def patch_of(x: Place, y: Place) -> Patch:
    """The whole image at ``x``, to go to ``y``."""
    channels, height, width = x.image
    return Patch(height, width, channels, *x.corner, *y.corner, 0)


def sums_buffer(plan: Plan, y: Place) -> int:
    """The number of a new buffer of ``plan`` for int32 sums [H, W, C] of the tensor at ``y``, without a border."""
    channels, height, width = y.image
    return plan.add_buffer(Buffer((height, width, rounded_up(channels)), np.int32))


def itemsize(plan: Plan, x: Place) -> int:
    """Bytes of a number at ``x`` in ``plan``."""
    return np.dtype(plan.buffers[x.buffer].dtype).itemsize


def bias_of(op: int_ops.Conv2d | int_ops.Linear, x: Place) -> NDArray[np.int32]:
    """The bias of ``op`` less what the sums hold too much where 0 is stored as ``x.zero``.

    int32 [O] modulo 2**32, as the sums are.
    """
    surplus = x.zero * facts_of(op.weight).sums
    return np.asarray(op.bias.astype(np.int64) - surplus).astype(np.int32)


def grid_of(plan: Plan, node: IntNode) -> QuantSpec:
    """The grid of the first input of ``node`` in ``plan``."""
    return plan.graph[node.inputs[0]].output.quantized[0]


def centred_grid(plan: Plan, name: str) -> tuple[int, int]:
    """Lowest and highest result of the node ``name`` of ``plan``, zero point subtracted; a padding's 0 lies between them."""
    spec, params = plan.graph[name].output.quantized
    zero_point = int(params.zero_point)
    return spec.qmin - zero_point, spec.qmax - zero_point


def stored_grid(plan: Plan, node: IntNode, x: Place) -> tuple[int, int]:
    """Lowest and highest input of ``node`` of ``plan`` as it lies at ``x``."""
    low, high = centred_grid(plan, node.inputs[0])
    return low + x.zero, high + x.zero


def above(plan: Plan, name: str, place: Place) -> int:
    """What the integers of the node ``name`` of ``plan`` are above the numbers that are stored for them at ``place``."""
    _, params = plan.graph[name].output.quantized
    return int(params.zero_point) - place.zero


def stored(plan: Plan, name: str, place: Place, integers: NDArray[np.integer]) -> NDArray[np.integer]:
    """``integers`` of the node ``name`` of ``plan``, of any shape, as they are stored at ``place``, C-contiguous."""
    numbers = integers.astype(np.int32) - above(plan, name, place)
    return np.ascontiguousarray(numbers, plan.buffers[place.buffer].dtype)


def offsets_of(plan: Plan, place: Place, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Where each element of the tensor of ``shape`` at ``place`` of ``plan`` lies in the memory of one image: `move.offsets`."""
    height, width, lanes = plan.buffers[place.buffer].shape
    if place.strides is not None:
        by_axis = [step * np.arange(size) for step, size in zip(place.strides, place.image, strict=True)]
        return (by_axis[0][:, None, None] + by_axis[1][:, None] + by_axis[2]).reshape(shape)
    return move.offsets((height, width, lanes), place.image, place.corner, shape)


def stored_clamp(requantizer: Requantizer, zero: int) -> tuple[int, int]:
    """The clamp of ``requantizer`` where real 0 is stored as ``zero``."""
    low, high = requantizer.clamp
    return int(low - requantizer.zero_point) + zero, int(high - requantizer.zero_point) + zero


def finishes_in_registers(plan: Plan, node: IntNode) -> bool:
    """Whether a tile can requantize the sums of the weights and the bias of ``node`` in ``plan`` itself (eq. 9)."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    low, high = centred_grid(plan, node.inputs[0])
    bound = facts_of(op.weight).magnitudes * max(abs(low), abs(high)) + np.abs(op.bias.astype(np.int64))
    return epilogue_fits(op.requantizer, bound)


def requantize_sums(plan: Plan, node: IntNode, sums: int, requantizer: Requantizer, bias: NDArray[np.int32]) -> None:
    """Add to ``plan`` the pass that finishes ``sums`` (a buffer of `sums_buffer`) for ``node``.

    ``bias`` int32 [C] is added to the sums, ``requantizer`` applied, and the result goes to the place of ``node``.
    """
    y = plan.places[node.name]
    channels, height, width = y.image
    _requantize(plan, node, sums, requantizer, bias, Patch(height, width, channels, 0, 0, *y.corner, 0))


def requantize_activations(plan: Plan, node: IntNode, index: int, requantizer: Requantizer, into_channel: int) -> None:
    """Add to ``plan`` the pass that brings input ``index`` of ``node``, by ``requantizer``, to the place of ``node``.

    ``into_channel`` is the first channel that is written. What vectors do not serve is looked up: an activation has at most
    256 integers, or 65,536. A rule that would leave int32 for some of them has a pass that counts those.
    """
    x, y = plan.source(node, index), plan.places[node.name]
    patch = patch_of(x, y)._replace(into_channel=into_channel)
    bias = np.full(x.image[0], -x.zero, np.int32)
    lanes_left = plan.buffers[y.buffer].shape[2] - into_channel
    low, high = centred_grid(plan, node.inputs[index])
    largest = np.maximum(_LARGEST_ACTIVATION, max(-low, high))
    if rounded_up(patch.channels) <= lanes_left and epilogue_fits(requantizer, largest):
        epilogue = pack_epilogue(bias, requantizer, offset=y.zero)
        constants = (epilogue, stored_clamp(requantizer, y.zero), patch)
        plan.steps.append(
            Step(node.name, REQUANTIZE_VECTORS[finish_rule(requantizer)], (x.buffer, y.buffer), constants)
        )
        return
    try:
        results = requantizer.apply(np.arange(low, high + 1))
    except BoundError:
        _requantize(plan, node, x.buffer, requantizer, bias, patch)
        return
    table = stored(plan, node.name, y, results)
    plan.steps.append(Step(node.name, tables.lookup, (x.buffer, y.buffer), (table, low + x.zero, patch)))


def _requantize(
    plan: Plan, node: IntNode, source: int, requantizer: Requantizer, bias: NDArray[np.int32], patch: Patch
) -> None:
    """Add to ``plan`` the pass that brings ``patch`` of the buffer ``source`` to the place of ``node``.

    ``bias`` int32 [C] is added to its numbers (int32 sums or activations) before ``requantizer`` is applied.
    """
    y = plan.places[node.name]
    buffers = (source, y.buffer)
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
    plan.steps.append(Step(node.name, REQUANTIZE[finish_rule(requantizer)], buffers, plain))
