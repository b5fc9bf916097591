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
    "Add",
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
    "Relu",
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
    """weight [O, C / groups, kH, kW], bias [O] or None; stride, dilation (height, width); zero padding."""

    weight: Array
    bias: Array | None
    stride: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, eq=False)
class Linear:
    """weight [O, I], bias [O] or None; acts on the last axis of a flat input."""

    weight: Array
    bias: Array | None


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


FloatOp = Input | Conv2d | Linear | BatchNorm2d | Relu | MaxPool2d | AveragePool2d | Flatten | Add | Concat | Identity
