"""Layers of PyTorch with parameters or a window, as operations of a `FloatGraph`.

A layer over sequences (N, C, L) is the layer over images of height 1, so that there is one operation for both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from labkit.errors import UnsupportedOperation
from labkit.frontends.torch_nodes import argument, array_of, optional_array, shape_of, source_of, unsupported
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation, FloatOp
from labkit.graph.shapes import Padding, symmetric_padding

__all__ = [
    "adaptive_pool",
    "average_pool",
    "batch_norm",
    "call_average_pool",
    "call_max_pool",
    "convolution",
    "gelu",
    "hardtanh",
    "linear",
    "max_pool",
    "mean",
]


def convolution(conv: nn.Module, node: fx.Node, name: str) -> FloatOp:
    """The layer ``conv`` (Conv1d or Conv2d) called as ``node``, which the graph names ``name``.

    Raises
    ------
    UnsupportedOperation
        It pads with something else than zeros, or has an input without a batch axis.
    """
    assert isinstance(conv, nn.Conv1d | nn.Conv2d)
    axes = len(conv.kernel_size)
    _need_batch(node, name, axes)
    if conv.padding_mode != "zeros":
        raise UnsupportedOperation(f"{name}: padding_mode {conv.padding_mode!r} is not supported, only 'zeros'.")
    kernel, dilation = _pair(conv.kernel_size, axes, 1), _pair(conv.dilation, axes, 1)
    padding: Padding
    if conv.padding == "same":
        total = [dilation[i] * (kernel[i] - 1) for i in range(2)]
        padding = ((total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2))
    elif conv.padding == "valid":
        padding = symmetric_padding(0, 0)
    else:
        padding = symmetric_padding(*_pair(conv.padding, axes, 0))
    weight = array_of(conv.weight)
    weight = weight.reshape(*weight.shape[:2], *kernel)
    return float_ops.Conv2d(
        weight, optional_array(conv.bias), _pair(conv.stride, axes, 1), padding, dilation, conv.groups
    )


def linear(layer: nn.Module, node: fx.Node, name: str) -> FloatOp:
    """The layer ``layer`` (Linear) called as ``node``, which the graph names ``name``.

    Raises
    ------
    UnsupportedOperation
        Its input is not flat.
    """
    assert isinstance(layer, nn.Linear)
    if len(shape_of(node)) != 2:
        raise UnsupportedOperation(
            f"{name}: a linear layer needs a flat input, got {shape_of(node)}. Flatten it first."
        )
    return float_ops.Linear(array_of(layer.weight), optional_array(layer.bias))


def batch_norm(norm: nn.Module, node: fx.Node, name: str) -> FloatOp:
    """The layer ``norm`` (BatchNorm1d or BatchNorm2d) called as ``node``, which the graph names ``name``.

    Raises
    ------
    UnsupportedOperation
        It keeps no running statistics.
    """
    assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
    if norm.running_mean is None or norm.running_var is None:
        raise UnsupportedOperation(
            f"{name}: batch norm without running statistics cannot be folded. Track them in training."
        )
    ones = torch.ones_like(norm.running_mean)
    return float_ops.BatchNorm2d(
        array_of(ones if norm.weight is None else norm.weight),
        array_of(torch.zeros_like(ones) if norm.bias is None else norm.bias),
        array_of(norm.running_mean),
        array_of(norm.running_var),
        float(norm.eps),
    )


def hardtanh(clamp: nn.Module, name: str) -> FloatOp:
    """The layer ``clamp`` (Hardtanh, of which ReLU6 is one), which the graph names ``name``.

    Raises
    ------
    UnsupportedOperation
        It is not ReLU6.
    """
    assert isinstance(clamp, nn.Hardtanh)
    if (clamp.min_val, clamp.max_val) != (0, 6):
        raise unsupported(name, f"Hardtanh({clamp.min_val}, {clamp.max_val})")
    return float_ops.Relu(Activation.RELU6)


def gelu(layer: nn.Module | None, node: fx.Node, name: str) -> FloatOp:
    """The layer ``layer`` (GELU), or the function where it is None, called as ``node``, which the graph names ``name``.

    Raises
    ------
    UnsupportedOperation
        It is the approximation by a tanh.
    """
    kind = layer.approximate if isinstance(layer, nn.GELU) else argument(node, 1, "approximate", "none")
    if kind != "none":
        raise UnsupportedOperation(
            f"{name}: a GELU with approximate={kind!r} is not supported: labkit's integers follow the exact one. "
            f"Write nn.GELU(); the two differ by less than 0.0005."
        )
    return float_ops.Gelu()


def max_pool(
    node: fx.Node, name: str, axes: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> FloatOp:
    """Max-pooling over the last ``axes`` (1 or 2) axes; ``name`` is that of ``node``, the rest are PyTorch's arguments.

    ``kernel``, ``stride``, ``padding`` and ``dilation`` are one number or one for each axis; ``ceil_mode`` keeps the last
    partial windows.
    """
    _need_batch(node, name, axes)
    size, edges = _pair(kernel, axes, 1), symmetric_padding(*_pair(padding, axes, 0))
    steps = _pair(stride, axes, 1) if stride else size
    return float_ops.MaxPool2d(size, steps, edges, _pair(dilation, axes, 1), bool(ceil_mode))


def average_pool(
    node: fx.Node,
    name: str,
    axes: int,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    include_pad: Any,
    divisor: Any,
) -> FloatOp:
    """Average pooling over the last ``axes`` axes; ``name`` is that of ``node``, the rest are PyTorch's arguments.

    ``kernel``, ``stride`` and ``padding`` as in `max_pool`; ``ceil_mode``, ``include_pad`` (count_include_pad) and ``divisor``
    (divisor_override) must leave windows of one size.

    Raises
    ------
    UnsupportedOperation
        Windows have differing sizes.
    """
    _need_batch(node, name, axes)
    size, edges = _pair(kernel, axes, 1), symmetric_padding(*_pair(padding, axes, 0))
    if ceil_mode or divisor is not None or (not include_pad and edges != symmetric_padding(0, 0)):
        raise UnsupportedOperation(
            f"{name}: average pooling with ceil_mode, divisor_override, or padding that is not counted is not supported: "
            f"its windows have differing sizes. Use count_include_pad=True, or no padding."
        )
    return float_ops.AveragePool2d(size, _pair(stride, axes, 1) if stride else size, edges)


def adaptive_pool(node: fx.Node, name: str, axes: int, largest: bool) -> FloatOp:
    """Pooling to a given size over the last ``axes`` axes; ``largest`` for the maximum, else the mean.

    ``node`` is the call, which the graph names ``name``.

    Raises
    ------
    UnsupportedOperation
        For a maximum the size must divide that of the input, and for a mean it must not be larger.
    """
    _need_batch(node, name, axes)
    have, want = shape_of(source_of(node))[2:], shape_of(node)[2:]
    if any(h % w for h, w in zip(have, want, strict=True)):
        if not largest and all(w <= h for h, w in zip(have, want, strict=True)):
            return float_ops.AdaptiveAveragePool2d(_pair(want, axes, 1))
        raise UnsupportedOperation(
            f"{name}: adaptive pooling from {have} to {want} is not supported: a mean must not enlarge the image, and the "
            f"windows of a maximum must be of one size. Choose an output size that divides the input's, or use ordinary pooling."
        )
    kernel = _pair(tuple(h // w for h, w in zip(have, want, strict=True)), axes, 1)
    none = symmetric_padding(0, 0)
    if largest:
        return float_ops.MaxPool2d(kernel, kernel, none, (1, 1), False)
    return float_ops.AveragePool2d(kernel, kernel, none)


def mean(node: fx.Node, name: str) -> FloatOp:
    """The mean of each channel, called as ``node``, which the graph names ``name``.

    Raises
    ------
    UnsupportedOperation
        It is the mean over something else, or drops axes.
    """
    dims = argument(node, 1, "dim", None)
    have = shape_of(source_of(node))
    axes = [dims] if isinstance(dims, int) else dims
    places = set(range(2, len(have)))
    if len(have) not in (3, 4) or not isinstance(axes, list | tuple) or {int(a) % len(have) for a in axes} != places:
        raise UnsupportedOperation(
            f"{name}: only the mean over height and width, dims (2, 3), or over the length of sequences, dim 2, is supported."
        )
    if len(shape_of(node)) != len(have):
        raise UnsupportedOperation(f"{name}: use mean(..., keepdim=True) and flatten, or nn.AdaptiveAvgPool2d(1).")
    kernel = _pair(have[2:], len(have) - 2, 1)
    return float_ops.AveragePool2d(kernel, kernel, symmetric_padding(0, 0))


def call_max_pool(node: fx.Node, name: str, axes: int) -> FloatOp:
    """`max_pool` over the last ``axes`` axes with the arguments of the function call ``node``, called ``name``."""
    return max_pool(
        node,
        name,
        axes,
        argument(node, 1, "kernel_size", None),
        argument(node, 2, "stride", None),
        argument(node, 3, "padding", 0),
        argument(node, 4, "dilation", 1),
        argument(node, 5, "ceil_mode", False),
    )


def call_average_pool(node: fx.Node, name: str, axes: int) -> FloatOp:
    """`average_pool` over the last ``axes`` axes with the arguments of the function call ``node``, called ``name``."""
    return average_pool(
        node,
        name,
        axes,
        argument(node, 1, "kernel_size", None),
        argument(node, 2, "stride", None),
        argument(node, 3, "padding", 0),
        argument(node, 4, "ceil_mode", False),
        argument(node, 5, "count_include_pad", True),
        argument(node, 6, "divisor_override", None),
    )


def _need_batch(node: fx.Node, name: str, axes: int) -> None:
    """Without a batch axis PyTorch takes the images for channels, and the network means something else."""
    have = shape_of(source_of(node))
    if len(have) != axes + 2:
        what = "(N, channels, height, width)" if axes == 2 else "(N, channels, length)"
        raise UnsupportedOperation(f"{name}: it needs an input {what}, got {have}. Give the images a channel axis.")


def _pair(value: Any, axes: int, height: int) -> tuple[int, int]:
    """One number, or one for each of ``axes``, as (vertical, horizontal); on a sequence the vertical one is ``height``."""
    numbers = (value,) * axes if isinstance(value, int) else tuple(value) * (axes if len(value) == 1 else 1)
    first, second = (height, *numbers) if axes == 1 else numbers
    return int(first), int(second)
