"""Operators that move numbers and compute nothing: how each becomes operations of the graph."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from labkit.errors import ModelError
from labkit.frontends.tflite.file import FileOperator
from labkit.frontends.tflite.network import Network, Source
from labkit.graph import int_ops
from labkit.graph.ir import Tensor
from labkit.graph.shapes import Padding
from labkit.runtimes.labkit_rules import NO_BOUNDS, requantizer

__all__ = ["concatenate", "pad", "pad_with_lowest", "reshape", "resize", "transpose"]

_FILE_AXES = (0, 2, 3, 1)  # by axis of a file's image (N, H, W, C), the axis of the graph's (N, C, H, W)


def reshape(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, RESHAPE, SQUEEZE and EXPAND_DIMS to the shape that the file declares for the output.

    Raises
    ------
    ModelError
        Its shapes or numbers do not fit.
    """
    source, output = net.source(op, 0), net.output(op)
    if op.code == "RESHAPE" and len(op.inputs) > 1 and op.inputs[1] >= 0 and net.tensor(op, 1).is_constant:
        wanted = net.integers(op, 1).reshape(-1).tolist()
        fits = len(wanted) == len(output.shape) and all(
            want in (-1, size) or axis == 0 for axis, (want, size) in enumerate(zip(wanted, output.shape, strict=True))
        )
        if not fits:
            raise ModelError(f"RESHAPE to {wanted} does not give {output.name} its shape {list(output.shape)}.")
    _check_same_grid(net, op, source[1])
    if math.prod(source[1].shape) != math.prod(output.shape[1:]):
        raise ModelError(
            f"{op.code} for {output.name}: an image {list(source[1].shape)} cannot become {list(output.shape[1:])}; numbers "
            f"stay in their image."
        )
    net.emit_reshaped(op, net.in_file_order(op, source))


def transpose(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, TRANSPOSE that leaves the batch axis first."""
    source, order = net.source(op, 0), [int(axis) for axis in net.integers(op, 1).reshape(-1)]
    _check_same_grid(net, op, source[1])
    count = len(net.tensor(op, 0).shape)
    order = [axis % count if -count <= axis < count else -1 for axis in order]
    if sorted(order) != list(range(count)) or order[0] != 0:
        raise net.unsupported(op, f"the order of axes {order}; the batch axis must stay first")
    graph_axes = _FILE_AXES if count == 4 else tuple(range(count))
    axes = [0] * count
    for place, axis in enumerate(order):
        axes[graph_axes[place]] = graph_axes[axis] - 1
    net.emit(op, int_ops.Transpose(tuple(axes[1:])), (source,), net.quantized(net.output(op)))


def pad(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, PAD of rows and columns with real 0."""
    source, padding = net.source(op, 0), _edges(net, op)
    net.emit(op, int_ops.Pad(padding), (source,), net.quantized(net.output(op)))


def pad_with_lowest(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, PADV2 with the lowest integer: a part of the maximum pool that takes the result."""
    source, padding, value = net.source(op, 0), _edges(net, op), net.tensor(op, 2)
    lowest = source[1].quantized[0].qmin
    if not value.is_constant or value.kind != net.output(op).kind or np.any(value.values(net.file.work) != lowest):
        raise net.unsupported(op, f"a value other than the lowest integer, {lowest}")
    net.lowest[net.output(op).index] = (source, padding)


def resize(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, RESIZE_NEAREST_NEIGHBOR to a multiple of the size."""
    source, output = net.source(op, 0), net.quantized(net.output(op))
    _check_same_grid(net, op, source[1])
    if not source[1].channels_last or op.options["align_corners"]:
        raise net.unsupported(op, "other than an image without align_corners")
    (height, width), size = source[1].shape[1:], net.integers(op, 1).reshape(-1).tolist()
    if size != list(output.shape[1:]) or size[0] % height or size[1] % width:
        raise net.unsupported(op, f"{height} x {width} to {size}; a multiple of both is")
    net.file.work.spend(sum(size))
    offset = 0.5 if op.options["half_pixel_centers"] else 0.0
    if not all(_repeats(old, new, offset) for old, new in zip((height, width), size, strict=True)):
        raise net.unsupported(
            op, f"{height} x {width} to {size}, where float32 does not repeat each row and column alike"
        )
    net.emit(op, int_ops.UpsampleNearest2d((size[0] // height, size[1] // width)), (source,), output)


def _repeats(old: int, new: int, offset: float) -> bool:
    """Whether LiteRT takes each of ``old`` elements equally often for ``new``: it computes their places in float32."""
    scale = np.float32(old) / np.float32(new)
    places = np.floor((np.arange(new, dtype=np.float32) + np.float32(offset)) * scale)
    return bool(np.array_equal(np.minimum(places, old - 1), np.arange(new) // (new // old)))


def _edges(net: Network, op: FileOperator) -> Padding:
    """The rows and columns that a PAD or PADV2 adds."""
    source, edges = net.source(op, 0), net.integers(op, 1)
    _check_same_grid(net, op, source[1])
    if not source[1].channels_last or edges.shape != (4, 2) or edges[[0, 3]].any():
        raise net.unsupported(
            op, f"edges {edges.tolist()} of {net.tensor(op, 0).shape}; rows and columns can be padded"
        )
    if edges.min() < 0 or edges.max() > 2**15:
        raise ModelError(f"{op.code} for {net.title(op)} has the edges {edges.tolist()}; 0 to {2**15:,} are allowed.")
    (top, bottom), (left, right) = edges[1].tolist(), edges[2].tolist()
    return (top, bottom), (left, right)


def concatenate(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, CONCATENATION along any axis but that of the batch; all tensors have one scale.

    Raises
    ------
    ModelError
        Its shapes or numbers do not fit.
    """
    file_output, output = net.output(op), net.quantized(net.output(op))
    count = len(file_output.shape)
    axis = op.options["axis"] + (count if op.options["axis"] < 0 else 0)
    if not 1 <= axis < count or count not in (2, 3, 4):
        raise net.unsupported(op, f"the axis {op.options['axis']} of {list(file_output.shape)}")
    if net.bounds(op) != NO_BOUNDS:
        raise net.unsupported(op, "a fused activation")
    if not op.inputs:
        raise ModelError(f"CONCATENATION for {net.title(op)} has no inputs.")
    sources = []
    for position in range(len(op.inputs)):
        tensor = net.tensor(op, position)
        sources.append(net.constant(tensor, tensor.shape, op) if tensor.is_constant else net.source(op, position))
        _check_same_grid(net, op, sources[-1][1])
    place = (_FILE_AXES[axis] if count == 4 else axis) - 1
    first = (place, *(i for i in range(count - 1) if i != place))
    made = int_ops.Concat(tuple(requantizer(1.0, output) for _ in sources))
    if count > 2 and place == 0:
        net.emit(op, made, tuple(sources), output)
        return
    moved = tuple(_first_axis(net, op, source, first) for source in sources)
    joined = _first_axis_tensor(output, first)
    whole = net.helper(op, "joined", made, moved, joined)
    if count == 2:
        net.emit(op, int_ops.Reshape(output.shape), (whole,), output)
        return
    back = tuple(first.index(i) for i in range(count - 1))
    net.emit(op, int_ops.Transpose(back), (whole,), output)


def _first_axis(net: Network, op: FileOperator, source: Source, first: tuple[int, ...]) -> Source:
    """``source`` with the axis of the concatenation first; a row becomes a sequence of length 1."""
    tensor = _first_axis_tensor(source[1], first)
    made: int_ops.IntOp = int_ops.Reshape(tensor.shape) if len(first) == 1 else int_ops.Transpose(first)
    return net.helper(op, "part", made, (source,), tensor)


def _first_axis_tensor(tensor: Tensor, first: tuple[int, ...]) -> Tensor:
    shape = (*tensor.shape, 1) if len(first) == 1 else tuple(tensor.shape[i] for i in first)
    return replace(tensor, shape=shape, channels_last=False)


def _check_same_grid(net: Network, op: FileOperator, source: Tensor) -> None:
    (spec, params), (other, others) = source.quantized, net.quantized(net.output(op)).quantized
    if spec != other or params.scale != others.scale or params.zero_point != others.zero_point:
        raise net.unsupported(op, "type, scale or zero point of its output differ from those of its input")
