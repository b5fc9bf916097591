"""Operations of an `IntGraph`: integers, requantizers and window sizes; nothing that computes.

Weights are in PyTorch's layouts; biases are int32 at scale S_w * S_x (eq. 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.frozen import frozen_array
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.graph.int_ops_sequences import Embedding, GeluPolynomial, LayerNorm, MatMul, SoftmaxPolynomial
from labkit.graph.shapes import Padding

__all__ = [
    "AdaptiveAveragePool2d",
    "Add",
    "AddAwayFromZero",
    "AddDequantized",
    "AddFixedPoint",
    "AddFloat32",
    "ArgMax",
    "AveragePool2d",
    "AveragePoolFloat32",
    "AveragePoolOfValid",
    "Concat",
    "Constant",
    "Conv2d",
    "Dequantize",
    "Embedding",
    "Flatten",
    "GeluPolynomial",
    "Input",
    "IntOp",
    "LayerNorm",
    "Linear",
    "Lookup",
    "MatMul",
    "MaxPool2d",
    "MeanFloat32",
    "Multiply",
    "Pad",
    "Quantize",
    "QuantizeAwayFromZero",
    "QuantizeByReciprocal",
    "Requantize",
    "Reshape",
    "Softmax",
    "SoftmaxByReciprocal",
    "SoftmaxFixedPoint",
    "SoftmaxFloat32",
    "SoftmaxPolynomial",
    "Transpose",
    "UpsampleNearest2d",
]


@dataclass(frozen=True, eq=False)
class Quantize:
    """The border in: real float32 of ``shape`` (without the batch axis) to integers (eq. 2)."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class QuantizeByReciprocal:
    """The border in as PyTorch's engines have it: real float32 of ``shape`` times the reciprocal of the scale (eq. 39).

    zero_point_inside : the zero point is added before rounding, with the product, as PyTorch does; else after it, as XNNPACK
        does.
    """

    shape: tuple[int, ...]
    zero_point_inside: bool = True


@dataclass(frozen=True, eq=False)
class QuantizeAwayFromZero:
    """The border in as LiteRT's reference kernel has it: real float32 of ``shape``, ties away from zero (eq. 41)."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Constant:
    """The same integers for every image: ``values`` in the dtype and the shape of the output, without the batch axis."""

    values: NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.int16]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", frozen_array(self.values))


@dataclass(frozen=True, eq=False)
class Input:
    """The border in of a network that takes integers of ``shape`` (without the batch axis): on its output's grid, or indices."""

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
class AddFixedPoint:
    """Two tensors summed as LiteRT sums them, with three roundings under ``rule`` (eq. 31).

    Each input is shifted left by ``left_shift`` bits and multiplied by its entry of ``inputs`` (shape (2,)); the second is
    subtracted where ``subtracts``; the sum is multiplied by ``output`` (shape ()).
    """

    rule: RoundingRule
    left_shift: int
    inputs: FixedPointMultiplier
    output: FixedPointMultiplier
    zero_point: int
    clamp: tuple[int, int]
    subtracts: bool = False


@dataclass(frozen=True, eq=False)
class AddFloat32:
    """Two tensors summed as ONNX Runtime sums them, in float32 with the zero points in one addend (eq. 32).

    ``q = clamp(rint(a multipliers[0] + (b multipliers[1] + addend)))``, each product and sum rounded once to float32 (FMA);
    ``multipliers`` float32 [2], ``addend`` float32 [].
    """

    multipliers: NDArray[np.float32]
    addend: NDArray[np.float32]
    clamp: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", frozen_array(self.multipliers))
        object.__setattr__(self, "addend", frozen_array(self.addend))


@dataclass(frozen=True, eq=False)
class AddDequantized:
    """Two tensors dequantized, summed and quantized in float32, as PyTorch's own kernel adds (eq. 37).

    ``scales`` float32 [2] are those of the inputs, ``reciprocal`` float32 [] is 1 / S_y. The first ``fused`` elements of an
    image, counted in the order (H, W, C), are dequantized by a fused multiply-add and get the zero point after rounding;
    those after them are dequantized by a product and get it before.
    """

    scales: NDArray[np.float32]
    reciprocal: NDArray[np.float32]
    zero_point: int
    clamp: tuple[int, int]
    fused: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", frozen_array(self.scales))
        object.__setattr__(self, "reciprocal", frozen_array(self.reciprocal))


@dataclass(frozen=True, eq=False)
class AddAwayFromZero:
    """The sum of `Add` with ties away from zero, as QNNPACK adds (eq. 38): ``multipliers`` int32 [2], one ``shift`` of 1..31."""

    multipliers: NDArray[np.int32]
    shift: int
    zero_point: int
    clamp: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", frozen_array(self.multipliers))


@dataclass(frozen=True, eq=False)
class AveragePoolOfValid:
    """The mean of those elements of each window that lie in the image, as LiteRT takes it (eq. 33).

    The integers themselves less ``offset`` are summed, and the division rounds ties away from zero; input and output have the
    same scale. LiteRT counts from -128: ``offset`` is 128 for a tensor that counts from 0, and otherwise 0.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    clamp: tuple[int, int]
    offset: int = 0


@dataclass(frozen=True, eq=False)
class MeanFloat32:
    """The mean along ``axes``, which keep the length 1, as XNNPACK takes it, in float32 (eq. 42).

    ``q = clamp(rint(s multiplier + addend) + offset)`` with the sum s of the integers themselves less ``offset``, which is 0 or
    128 as in `AveragePoolOfValid`; ``multiplier`` and ``addend`` are float32 []. The batch axis is not counted.
    """

    axes: tuple[int, ...]
    multiplier: NDArray[np.float32]
    addend: NDArray[np.float32]
    clamp: tuple[int, int]
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "multiplier", frozen_array(self.multiplier))
        object.__setattr__(self, "addend", frozen_array(self.addend))


@dataclass(frozen=True, eq=False)
class AveragePoolFloat32:
    """The mean of each window as ONNX Runtime takes it: dequantized, summed in float32 row by row, quantized (eq. 34).

    counts_padding : elements outside the image count as real 0; else they are left out of the mean.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    counts_padding: bool
    clamp: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Concat:
    """Tensors joined along the channel axis, each requantized to the output's scale by its own requantizer (eq. 20)."""

    requantizers: tuple[Requantizer, ...]


@dataclass(frozen=True, eq=False)
class Requantize:
    """The same tensor at another scale or under a clamp (a ReLU that could not be fused)."""

    requantizer: Requantizer


@dataclass(frozen=True, eq=False)
class Lookup:
    """Each integer q replaced by an entry of ``table``, int32 [256]: number ``q - lowest of the input's dtype`` (eq. 36).

    ``function`` says what the table holds: "gelu", "gelu_tanh" (its approximation by a hyperbolic tangent), "logistic", "tanh",
    "rescale" (the same real number on another grid), "relu", "relu6" or "relu_n1_to_1" (the same within bounds).
    """

    function: str
    table: NDArray[np.int32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", frozen_array(self.table))


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
class SoftmaxFixedPoint:
    """A softmax as LiteRT's reference kernel computes it: gemmlowp's fixed-point exponential and reciprocal (eq. 35).

    The difference to the largest element is multiplied by ``multiplier`` (shape (), its exponent at least 0); elements
    with a difference below ``lowest_difference`` give 0. The output has the scale 1/256, and its zero point is the lowest
    integer.
    """

    axis: int
    multiplier: FixedPointMultiplier
    lowest_difference: int
    zero_point: int
    clamp: tuple[int, int]


@dataclass(frozen=True, eq=False)
class SoftmaxFloat32:
    """A softmax as ONNX Runtime computes it: exponentials from a table, summed one by one in float32 (eq. 40).

    ``table`` float32 [256] holds the exponentials by difference to the largest element; ``factor`` float32 [] is 1 over the
    output's scale, cut off to a whole number.
    """

    axis: int
    table: NDArray[np.float32]
    factor: NDArray[np.float32]
    zero_point: int
    clamp: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", frozen_array(self.table))
        object.__setattr__(self, "factor", frozen_array(self.factor))


@dataclass(frozen=True, eq=False)
class SoftmaxByReciprocal:
    """A softmax as LiteRT's optimised kernel computes it: a table of exponentials, summed one by one in float32 (eq. 43).

    ``table`` float32 [256] holds the exponentials by difference to the largest element. The output has the scale 1/256, and
    its zero point is the lowest integer.
    """

    axis: int
    table: NDArray[np.float32]
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
    | QuantizeByReciprocal
    | QuantizeAwayFromZero
    | Constant
    | Input
    | Dequantize
    | Conv2d
    | Linear
    | MaxPool2d
    | AveragePool2d
    | AdaptiveAveragePool2d
    | AveragePoolOfValid
    | AveragePoolFloat32
    | MeanFloat32
    | Add
    | AddFixedPoint
    | AddFloat32
    | AddDequantized
    | AddAwayFromZero
    | Multiply
    | Concat
    | Lookup
    | Requantize
    | Flatten
    | Pad
    | Reshape
    | Transpose
    | UpsampleNearest2d
    | Softmax
    | SoftmaxFixedPoint
    | SoftmaxFloat32
    | SoftmaxByReciprocal
    | ArgMax
    | Embedding
    | MatMul
    | SoftmaxPolynomial
    | GeluPolynomial
    | LayerNorm
)
