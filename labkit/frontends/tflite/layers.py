"""Operators with weights, and pools: how each becomes an operation of the graph under labkit's own rules."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from labkit.errors import ModelError
from labkit.frontends.tflite.file import FileOperator
from labkit.frontends.tflite.network import Network, Source
from labkit.graph import int_ops
from labkit.graph.ir import Tensor
from labkit.runtimes.bounds import clamp_even
from labkit.runtimes.labkit_rules import NO_BOUNDS, requantizer, scale_of

__all__ = ["average_pool", "convolution", "depthwise", "fully_connected", "max_pool", "mean"]


def convolution(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, CONV_2D: weights [O, H, W, C / groups], int8 or int4.

    Raises
    ------
    ModelError
        Its shapes or numbers do not fit.
    """
    source, weights = net.source(op, 0), net.tensor(op, 1)
    if len(weights.shape) != 4 or source[1].shape[0] % weights.shape[3]:
        raise ModelError(f"{weights.name}: weights {list(weights.shape)} do not fit an input {list(source[1].shape)}.")
    _convolve(net, op, source, weights.shape[0], 0, (0, 3, 1, 2), source[1].shape[0] // weights.shape[3])


def depthwise(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, DEPTHWISE_CONV_2D: weights [1, H, W, C multiplier], int8 or int4.

    Raises
    ------
    ModelError
        Its shapes or numbers do not fit.
    """
    source, weights = net.source(op, 0), net.tensor(op, 1)
    channels = source[1].shape[0]
    multiplier = op.options["depth_multiplier"]
    if len(weights.shape) != 4 or weights.shape[0] != 1 or weights.shape[3] % channels:
        raise ModelError(f"{weights.name}: weights {list(weights.shape)} do not fit an input {list(source[1].shape)}.")
    if channels == 1 and weights.kind == "int4":
        raise net.unsupported(op, "int4 weights on one channel; rules cannot tell it from CONV_2D")
    if multiplier not in (0, weights.shape[3] // channels):  # LiteRT takes the quotient of the shapes for 0
        raise ModelError(f"{op.code} for {net.title(op)} has the depth multiplier {multiplier}, which does not fit.")
    _convolve(net, op, source, weights.shape[3], 3, (3, 0, 1, 2), channels)


def fully_connected(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, FULLY_CONNECTED: weights [O, I]; an image is one row, in the file's order."""
    source, output = net.source(op, 0), net.quantized(net.output(op))
    weight = net.weights(net.tensor(op, 1), 0, (0, 1), net.tensor(op, 1).shape[0])
    if op.options["weights_format"] != 0:
        raise net.unsupported(op, "shuffled weights")
    if math.prod(source[1].shape) != weight.values.shape[1] or math.prod(output.shape) != weight.values.shape[0]:
        raise net.unsupported(
            op,
            f"{list(source[1].shape)} to {list(output.shape)} with weights {list(weight.values.shape)}: all numbers of an image "
            f"must be one row",
        )
    if len(source[1].shape) > 1:
        source = net.in_file_order(op, source)
        flat = replace(source[1], shape=(weight.values.shape[1],), channels_last=False)
        source = net.helper(op, "flat", int_ops.Flatten(), (source,), flat)
    row = replace(output, shape=(weight.values.shape[0],), channels_last=False)
    multiplier = weight.params.scale.astype(np.float64) * scale_of(source[1]) / scale_of(output)
    made = int_ops.Linear(weight, net.bias(op, weight.values.shape[0]), requantizer(multiplier, output, net.bounds(op)))
    if row.shape == output.shape:
        net.emit(op, made, (source,), output)
    else:
        net.emit_reshaped(op, net.helper(op, "row", made, (source,), row))


def max_pool(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, MAX_POOL_2D, with a PADV2 before it; an activation becomes a node of its own."""
    output, padded = net.quantized(net.output(op)), net.lowest.get(net.tensor(op, 0).index)
    source, edges = (net.source(op, 0), None) if padded is None else padded
    _check_same_grid(op, net, source[1], output)
    window = (op.options["filter_h"], op.options["filter_w"])
    stride, padding = net.padding(op, source[1].shape, window)
    if edges is not None:
        if padding != ((0, 0), (0, 0)):
            raise net.unsupported(op, "padding of its own behind a PADV2")
        padding = edges
    made = int_ops.MaxPool2d(window, stride, padding, (1, 1), False)
    bounds = net.bounds(op)
    if bounds == NO_BOUNDS:
        net.emit(op, made, (source,), output)
    else:
        pooled = net.helper(op, "pool", made, (source,), output)
        net.emit(op, int_ops.Requantize(requantizer(1.0, output, bounds)), (pooled,), output)


def average_pool(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, AVERAGE_POOL_2D: the mean of those elements of each window that lie in the image."""
    source, output = net.source(op, 0), net.quantized(net.output(op))
    _check_same_grid(op, net, source[1], output)
    window = (op.options["filter_h"], op.options["filter_w"])
    stride, padding = net.padding(op, source[1].shape, window)
    offset = 0 if output.quantized[0].signed else 128
    clamp = clamp_even(net.bounds(op), output)
    net.emit(op, int_ops.AveragePoolOfValid(window, stride, padding, clamp, offset), (source,), output)


def mean(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, MEAN over rows, columns or both of an image, or any axes of fewer dimensions.

    Raises
    ------
    ModelError
        Its shapes or numbers do not fit.
    """
    source, output = net.source(op, 0), net.quantized(net.output(op))
    count = len(net.tensor(op, 0).shape)
    axes = {int(axis) % count if -count <= axis < count else -1 for axis in net.integers(op, 1).reshape(-1)}
    if not axes or not axes <= ({1, 2} if count == 4 else set(range(1, min(count, 4)))):
        raise net.unsupported(
            op,
            f"the axes {sorted(axes)} of {net.tensor(op, 0).shape}; rows and columns of an image, or axes of a sequence are",
        )
    if count < 4:
        _mean_of_sequence(net, op, source, axes)
        return
    channels, *image = source[1].shape
    kernel = tuple(size if axis + 1 in axes else 1 for axis, size in enumerate(image))
    kept = replace(output, shape=(channels, image[0] // kernel[0], image[1] // kernel[1]), channels_last=True)
    multiplier = scale_of(source[1]) / (scale_of(output) * math.prod(kernel))
    made: int_ops.IntOp
    if axes == {1, 2}:
        made = int_ops.AdaptiveAveragePool2d((1, 1), requantizer(multiplier, output))
    else:
        made = int_ops.AveragePool2d((kernel[0], kernel[1]), (1, 1), ((0, 0), (0, 0)), requantizer(multiplier, output))
    if kept.shape == output.shape and output.channels_last:
        net.emit(op, made, (source,), output)
        return
    if op.options["keep_dims"]:
        raise ModelError(
            f"{op.code} for {net.title(op)} keeps its axes, but the shape {list(output.shape)} is declared."
        )
    net.emit_reshaped(op, net.in_file_order(op, net.helper(op, "mean", made, (source,), kept)))


def _mean_of_sequence(net: Network, op: FileOperator, source: Source, axes: set[int]) -> None:
    """MEAN of (N, T, D) along T, D or both, or of (N, D) along D: the pool of a sequence whose last axis is averaged."""
    output, shape = net.quantized(net.output(op)), source[1].shape
    wanted = tuple(
        1 if i + 1 in axes else s for i, s in enumerate(shape) if i + 1 not in axes or op.options["keep_dims"]
    )
    if output.shape != wanted:
        raise ModelError(
            f"{op.code} for {net.title(op)} gives {list(wanted)}, but the shape {list(output.shape)} is declared."
        )
    if len(shape) == 2 and axes == {1}:
        tensor = replace(source[1], shape=(shape[1], shape[0]))
        source = net.helper(op, "turned", int_ops.Transpose((1, 0)), (source,), tensor)
    elif len(axes) == len(shape):
        tensor = replace(source[1], shape=(1, math.prod(shape)))
        source = net.helper(op, "row", int_ops.Reshape(tensor.shape), (source,), tensor)
    channels, length = source[1].shape
    made = int_ops.AdaptiveAveragePool2d((1, 1), requantizer(scale_of(source[1]) / (scale_of(output) * length), output))
    if output.shape == (channels, 1):
        net.emit(op, made, (source,), output)
        return
    mean = net.helper(op, "mean", made, (source,), replace(output, shape=(channels, 1)))
    net.emit(op, int_ops.Reshape(output.shape), (mean,), output)


def _convolve(
    net: Network, op: FileOperator, source: Source, channels: int, axis: int, order: tuple[int, ...], groups: int
) -> None:
    weight, output = net.weights(net.tensor(op, 1), axis, order, channels), net.quantized(net.output(op))
    dilation = (op.options["dilation_h"], op.options["dilation_w"])
    if not 1 <= min(dilation) <= max(dilation) <= 2**10:
        raise ModelError(f"{op.code} for {net.title(op)} has the dilation {dilation}; 1 to {2**10:,} are allowed.")
    rows, columns = (1 + step * (size - 1) for step, size in zip(dilation, weight.values.shape[2:], strict=True))
    stride, padding = net.padding(op, source[1].shape, (rows, columns))
    multiplier = weight.params.scale.astype(np.float64) * scale_of(source[1]) / scale_of(output)
    requantized = requantizer(multiplier, output, net.bounds(op))
    made = int_ops.Conv2d(weight, net.bias(op, channels), requantized, stride, padding, dilation, groups)
    net.emit(op, made, (source,), output)


def _check_same_grid(op: FileOperator, net: Network, source: Tensor, output: Tensor) -> None:
    (spec, params), (other, others) = source.quantized, output.quantized
    if spec != other or params.scale != others.scale or params.zero_point != others.zero_point:
        raise ModelError(f"{op.code} for {net.title(op)} keeps type, scale and zero point, but others are declared.")
