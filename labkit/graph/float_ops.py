"""Operations of a `FloatGraph`: frozen parameters, nothing that computes.

Arrays are float32 in PyTorch's layouts: convolution weights [O, C / groups, kH, kW], linear weights [O, I].
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from labkit.graph.shapes import Padding

__all__ = [
    "Activation",
    "AdaptiveAveragePool2d",
    "Add",
    "ArgMax",
    "AveragePool2d",
    "BatchNorm2d",
    "Concat",
    "Conv2d",
    "Flatten",
    "FloatOp",
    "Identity",
    "Input",
    "Linear",
    "MaxPool2d",
    "Multiply",
    "Pad",
    "Relu",
    "Reshape",
    "Softmax",
    "Transpose",
    "UpsampleNearest2d",
]

Array = NDArray[np.float32]


class Activation(Enum):
    """A clamp that a node applies to its own result."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"


@dataclass(frozen=True, eq=False)
class Input:
    """The network's input, of ``shape`` without the batch axis."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Conv2d:
    """weight [O, C / groups, kH, kW], bias [O] or None; stride, dilation (height, width); zero padding.

    vanished : output channels whose weights a batch norm has taken away, so that their bias is all they give.
    """

    weight: Array
    bias: Array | None
    stride: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    groups: int
    vanished: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Linear:
    """weight [O, I], bias [O] or None; acts on the last axis of a flat input. ``vanished`` as in `Conv2d`."""

    weight: Array
    bias: Array | None
    vanished: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class BatchNorm2d:
    """Frozen batch normalisation: gamma, beta, mean, variance [C]; epsilon is added to the variance."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: float


@dataclass(frozen=True, eq=False)
class Relu:
    """An activation that stands alone: ``kind`` RELU or RELU6."""

    kind: Activation


@dataclass(frozen=True, eq=False)
class MaxPool2d:
    """The largest of each window; elements outside the image never win."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    ceil_mode: bool


@dataclass(frozen=True, eq=False)
class AveragePool2d:
    """The mean of each window; padding, where there is any, counts as zeros."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding


@dataclass(frozen=True, eq=False)
class AdaptiveAveragePool2d:
    """The mean of each window of PyTorch's adaptive pooling to ``output_size``, whose windows may differ in size."""

    output_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Flatten:
    """All axes after the batch become one."""


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of two tensors of one shape."""


@dataclass(frozen=True, eq=False)
class Concat:
    """Tensors joined along the channel axis."""


@dataclass(frozen=True, eq=False)
class Identity:
    """Nothing: a dropout at inference, or a module that hands its input on."""


@dataclass(frozen=True, eq=False)
class Multiply:
    """The product of two tensors of one shape, or of an image (C, H, W) and one number for each channel (C, 1, 1)."""


@dataclass(frozen=True, eq=False)
class Pad:
    """Zeros around an image: rows (top, bottom) and columns (left, right)."""

    padding: Padding


@dataclass(frozen=True, eq=False)
class Reshape:
    """The same numbers, in C order, as a tensor of another ``shape`` (without the batch axis)."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Transpose:
    """Axis ``i`` of the result is axis ``axes[i]`` of the input; the batch axis stays first and is not counted."""

    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class UpsampleNearest2d:
    """Each pixel repeated ``factor`` = (down, across) times, each at least 1."""

    factor: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Softmax:
    """exp(x) over the sum of exp(x) along ``axis``; the batch axis is not counted."""

    axis: int


@dataclass(frozen=True, eq=False)
class ArgMax:
    """The index of the largest number along ``axis``; the batch axis is not counted. ``keepdims`` leaves an axis of length 1."""

    axis: int
    keepdims: bool


FloatOp = (
    Input
    | Conv2d
    | Linear
    | BatchNorm2d
    | Relu
    | MaxPool2d
    | AveragePool2d
    | AdaptiveAveragePool2d
    | Flatten
    | Add
    | Multiply
    | Concat
    | Identity
    | Pad
    | Reshape
    | Transpose
    | UpsampleNearest2d
    | Softmax
    | ArgMax
)
