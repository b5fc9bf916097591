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
    "Constant",
    "Conv2d",
    "Embedding",
    "Flatten",
    "FloatOp",
    "Gelu",
    "Identity",
    "Input",
    "InputKind",
    "LayerNorm",
    "Linear",
    "MaskedSoftmax",
    "MatMul",
    "MaxPool2d",
    "Multiply",
    "Pad",
    "Relu",
    "Rescale",
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


class InputKind(Enum):
    """What an input holds: real numbers; indices into a table; or a mask, 1 for what takes part and 0 for what does not."""

    REAL = "real"
    INDEX = "index"
    MASK = "mask"


@dataclass(frozen=True, eq=False)
class Input:
    """An input of the network, of ``shape`` without the batch axis."""

    shape: tuple[int, ...]
    kind: InputKind = InputKind.REAL


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


@dataclass(frozen=True, eq=False)
class Constant:
    """The same real numbers for every image: ``values`` without the batch axis. For sequences the length is the last axis."""

    values: Array


@dataclass(frozen=True, eq=False)
class Embedding:
    """Row i of ``weight`` [V, D] for each index i of an input (T,) of kind INDEX: the result is (D, T)."""

    weight: Array


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Each column of (D, T) less its mean, over its standard deviation; then times gamma [D] plus beta [D].

    ``epsilon`` is added to the variance.
    """

    gamma: Array
    beta: Array
    epsilon: float


@dataclass(frozen=True, eq=False)
class Gelu:
    """x Phi(x) with the distribution function of the normal distribution, that is x / 2 (1 + erf(x / sqrt(2)))."""


@dataclass(frozen=True, eq=False)
class MatMul:
    """``factor`` times one matrix product for each index of the first axis: (B, m, k) and (B, k, n) give (B, m, n).

    transpose_a : the first tensor is given as (B, k, m); transpose_b : the second as (B, n, k).
    """

    transpose_a: bool = False
    transpose_b: bool = False
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class MaskedSoftmax:
    """A softmax along the last axis in which only elements take part whose mask, the second input (n,) of kind MASK, is 1."""


@dataclass(frozen=True, eq=False)
class Rescale:
    """The same numbers on a grid of their own, so that one consumer may read eight bits where another reads sixteen."""


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
    | Constant
    | Embedding
    | LayerNorm
    | Gelu
    | MatMul
    | MaskedSoftmax
    | Rescale
)
