"""Operations of an `IntGraph`: integers, requantizers and window sizes; nothing that computes.

Weights are in PyTorch's layouts; biases are int32 at scale S_w * S_x (eq. 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor
from labkit.arithmetic.frozen import frozen_array
from labkit.arithmetic.requantize import Requantizer
from labkit.graph.shapes import Padding

__all__ = [
    "AdaptiveAveragePool2d",
    "Add",
    "ArgMax",
    "AveragePool2d",
    "Concat",
    "Conv2d",
    "Dequantize",
    "Flatten",
    "IntOp",
    "Linear",
    "MaxPool2d",
    "Multiply",
    "Pad",
    "Quantize",
    "Requantize",
    "Reshape",
    "Softmax",
    "Transpose",
    "UpsampleNearest2d",
]


@dataclass(frozen=True, eq=False)
class Quantize:
    """The border in: real float32 of ``shape`` (without the batch axis) to integers (eq. 2)."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Dequantize:
    """The border out: integers to real float32 (eq. 1)."""


@dataclass(frozen=True, eq=False)
class Conv2d:
    """weight [O, C / groups, kH, kW], bias int32 [O]; padding stands for real 0, that is for the input's zero point."""

    weight: QTensor
    bias: NDArray[np.int32]
    requantizer: Requantizer
    stride: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    groups: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", frozen_array(self.bias))


@dataclass(frozen=True, eq=False)
class Linear:
    """weight [O, I], bias int32 [O]."""

    weight: QTensor
    bias: NDArray[np.int32]
    requantizer: Requantizer

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", frozen_array(self.bias))


@dataclass(frozen=True, eq=False)
class MaxPool2d:
    """The largest integer of each window; input and output have the same scale."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    ceil_mode: bool


@dataclass(frozen=True, eq=False)
class AveragePool2d:
    """The integer sum of each window, requantized; 1 / (kH * kW) is part of the multiplier (eq. 21)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    requantizer: Requantizer


@dataclass(frozen=True, eq=False)
class AdaptiveAveragePool2d:
    """The mean of each window of PyTorch's adaptive pooling to ``output_size``; windows may differ in size (eq. 27).

    Each sum is multiplied up to the least common multiple of the windows' areas, which is part of the multiplier.
    """

    output_size: tuple[int, int]
    requantizer: Requantizer


@dataclass(frozen=True, eq=False)
class Add:
    """Two tensors of differing scales, summed and rounded once (eq. 19): ``multipliers`` int32 [2], one ``shift``.

    ``q = clamp(((a - Z_a) m_0 + (b - Z_b) m_1 + 2**(shift - 1)) >> shift) + zero_point)``
    """

    multipliers: NDArray[np.int32]
    shift: int
    zero_point: int
    clamp: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", frozen_array(self.multipliers))


@dataclass(frozen=True, eq=False)
class Concat:
    """Tensors joined along the channel axis, each requantized to the output's scale by its own requantizer (eq. 20)."""

    requantizers: tuple[Requantizer, ...]


@dataclass(frozen=True, eq=False)
class Requantize:
    """The same tensor at another scale or under a clamp (a ReLU that could not be fused)."""

    requantizer: Requantizer


@dataclass(frozen=True, eq=False)
class Flatten:
    """All axes after the batch become one."""


@dataclass(frozen=True, eq=False)
class Multiply:
    """Two tensors of one shape multiplied number by number, or each channel of an image by a number of its own (eq. 24).

    In the second case one input has the shape (C, 1, 1), the other (C, H, W). S_a S_b / S_y is the multiplier.
    """

    requantizer: Requantizer


@dataclass(frozen=True, eq=False)
class Pad:
    """Real 0, that is the zero point, around an image: rows (top, bottom) and columns (left, right)."""

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
    """Each pixel repeated ``factor`` = (down, across) times; a sequence only across. Input and output have the same scale."""

    factor: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Softmax:
    """The share of each exponential in their sum along ``axis`` (eq. 26); the batch axis is not counted.

    ``table`` int32 [256] holds the exponentials (eq. 25) and belongs to the input's scale; the output's scale is
    2**-``bits``. It is exact integer arithmetic, unlike the polynomial of I-BERT's i-softmax.
    """

    axis: int
    table: NDArray[np.int32]
    bits: int
    zero_point: int
    clamp: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", frozen_array(self.table))


@dataclass(frozen=True, eq=False)
class ArgMax:
    """The index of the largest integer along ``axis``, the lowest where there are several; the batch axis is not counted.

    The result is an index and no quantized number: it can only leave the network. ``keepdims`` leaves an axis of length 1.
    """

    axis: int
    keepdims: bool


IntOp = (
    Quantize
    | Dequantize
    | Conv2d
    | Linear
    | MaxPool2d
    | AveragePool2d
    | AdaptiveAveragePool2d
    | Add
    | Multiply
    | Concat
    | Requantize
    | Flatten
    | Pad
    | Reshape
    | Transpose
    | UpsampleNearest2d
    | Softmax
    | ArgMax
)
