"""The readable tier: every integer operation in plain NumPy, in the layout of PyTorch (N, C, H, W).

Each function takes integer arrays, computes in integers that are wide enough (int32 sums, int64 products with a
multiplier) and returns int32 within the clamp of its requantizer. The fast tier has functions of the same names and must
agree with these to the last bit. Equation numbers are those of docs/arithmetic.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic import affine
from labkit.arithmetic.requantize import Requantizer
from labkit.arithmetic.windows import adaptive_windows, common_area
from labkit.kernels.reference_heads import argmax, softmax
from labkit.kernels.reference_layout import pad, reshape, transpose, upsample_nearest2d
from labkit.kernels.reference_litert import (
    mean_float32,
    quantize_away_from_zero,
    softmax_by_reciprocal,
    softmax_fixed_point,
)
from labkit.kernels.reference_runtimes import (
    add_fixed_point,
    add_float32,
    average_pool_float32,
    average_pool_of_valid,
    lookup,
    softmax_float32,
)
from labkit.kernels.reference_torch import add_away_from_zero, add_dequantized, quantize_by_reciprocal
from labkit.kernels.reference_transformer import batch_matmul, embedding, i_gelu, i_layer_norm, i_softmax

__all__ = [
    "adaptive_average_pool2d",
    "add",
    "add_away_from_zero",
    "add_dequantized",
    "add_fixed_point",
    "add_float32",
    "argmax",
    "average_pool2d",
    "average_pool_float32",
    "average_pool_of_valid",
    "batch_matmul",
    "concat",
    "conv2d",
    "dequantize",
    "embedding",
    "flatten",
    "i_gelu",
    "i_layer_norm",
    "i_softmax",
    "linear",
    "lookup",
    "max_pool2d",
    "mean_float32",
    "multiply",
    "pad",
    "quantize",
    "quantize_away_from_zero",
    "quantize_by_reciprocal",
    "requantize",
    "reshape",
    "softmax",
    "softmax_by_reciprocal",
    "softmax_fixed_point",
    "softmax_float32",
    "transpose",
    "upsample_nearest2d",
]

Integers = NDArray[np.integer]
Padding = tuple[tuple[int, int], tuple[int, int]]


def quantize(real: NDArray[np.float32], params: affine.QParams, spec: affine.QuantSpec) -> Integers:
    """Real numbers to integers of dtype ``spec.dtype`` by ``params`` (eq. 2); any shape.

    Raises
    ------
    QuantizationError
        ``real`` holds a NaN.
    """
    return affine.quantize(real, params, spec)


def dequantize(x: Integers, params: affine.QParams, spec: affine.QuantSpec) -> NDArray[np.float32]:
    """Integers ``x``, any shape, to float32 by ``params`` and ``spec`` (eq. 1)."""
    return affine.dequantize(x, params, spec)


def conv2d(
    x: Integers,
    weight: Integers,
    bias: NDArray[np.int32],
    *,
    input_zero_point: int,
    weight_zero_point: NDArray[np.int32],
    requantizer: Requantizer,
    stride: tuple[int, int] = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> NDArray[np.int32]:
    """Two-dimensional convolution: int32 sums of products (eq. 7), bias, requantization (eq. 10).

    Parameters
    ----------
    x : integers [N, C, H, W]
    weight : integers [O, C / groups, kH, kW]
    bias : int32 [O], at scale S_w * S_x
    input_zero_point, weight_zero_point : subtracted before multiplying; the latter has shape () or (O,)
    requantizer : from the sums to the output's integers
    stride, padding, dilation, groups : as in PyTorch; padding may differ by side and stands for real 0

    Returns
    -------
    int32 [N, O, H', W'], within the clamp of ``requantizer``
    """
    centred = np.pad(x.astype(np.int32) - np.int32(input_zero_point), ((0, 0), (0, 0), *padding))
    weights = weight.astype(np.int32) - weight_zero_point.astype(np.int32).reshape(-1, 1, 1, 1)
    outputs, depth, kernel_h, kernel_w = weight.shape
    height = (centred.shape[2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    width = (centred.shape[3] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    sums = np.zeros((x.shape[0], outputs, height, width), np.int32)
    sums += bias[:, None, None]
    for group in range(groups):
        channels = slice(group * depth, (group + 1) * depth)
        filters = slice(group * outputs // groups, (group + 1) * outputs // groups)
        for i in range(kernel_h):
            for j in range(kernel_w):
                tap = _taps(centred[:, channels], i * dilation[0], j * dilation[1], stride, height, width)
                sums[:, filters] += np.einsum("nchw,oc->nohw", tap, weights[filters, :, i, j])
    return requantizer.apply(sums, axis=1)


def linear(
    x: Integers,
    weight: Integers,
    bias: NDArray[np.int32],
    *,
    input_zero_point: int,
    weight_zero_point: NDArray[np.int32],
    requantizer: Requantizer,
) -> NDArray[np.int32]:
    """Fully connected layer: ``x`` integers [N, I], ``weight`` [O, I], ``bias`` int32 [O] (eqs. 7, 10).

    ``input_zero_point`` and ``weight_zero_point`` (shape () or (O,)) are subtracted before multiplying;
    ``requantizer`` takes the sums to the output's integers. Returns int32 [N, O].
    """
    centred = x.astype(np.int32) - np.int32(input_zero_point)
    weights = weight.astype(np.int32) - weight_zero_point.astype(np.int32).reshape(-1, 1)
    return requantizer.apply(centred @ weights.T + bias, axis=1)


def max_pool2d(
    x: Integers,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    output_size: tuple[int, int],
) -> NDArray[np.int32]:
    """The largest of each window of ``x`` [N, C, H, W]; ``kernel``, ``stride``, ``padding`` and ``dilation`` as in PyTorch.

    ``output_size`` (H', W') settles whether a last partial window counts. Elements outside the image never win.
    Returns int32 [N, C, H', W'].
    """
    lowest = np.iinfo(np.int32).min
    height, width = output_size
    need = [(output_size[a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1 for a in range(2)]
    after = [max(padding[a][1], need[a] - x.shape[2 + a] - padding[a][0]) for a in range(2)]
    edges = ((padding[0][0], after[0]), (padding[1][0], after[1]))
    padded = np.pad(x.astype(np.int32), ((0, 0), (0, 0), *edges), constant_values=lowest)
    largest = np.full((*x.shape[:2], height, width), lowest, np.int32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            tap = _taps(padded, i * dilation[0], j * dilation[1], stride, height, width)
            np.maximum(largest, tap, out=largest)
    return largest


def average_pool2d(
    x: Integers,
    *,
    input_zero_point: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding = ((0, 0), (0, 0)),
    requantizer: Requantizer,
) -> NDArray[np.int32]:
    """The mean of each window of ``x`` [N, C, H, W]: an int32 sum, then one requantization (eq. 21).

    ``kernel``, ``stride`` and ``padding`` as in PyTorch; ``input_zero_point`` is subtracted first, so padding counts as real 0;
    1 / (kH * kW) is part of the multiplier of ``requantizer``. Returns int32 [N, C, H', W'].
    """
    centred = np.pad(x.astype(np.int32) - np.int32(input_zero_point), ((0, 0), (0, 0), *padding))
    height = (centred.shape[2] - kernel[0]) // stride[0] + 1
    width = (centred.shape[3] - kernel[1]) // stride[1] + 1
    sums = np.zeros((*x.shape[:2], height, width), np.int32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            sums += _taps(centred, i, j, stride, height, width)
    return requantizer.apply(sums, axis=1)


def adaptive_average_pool2d(
    x: Integers, *, input_zero_point: int, output_size: tuple[int, int], requantizer: Requantizer
) -> NDArray[np.int32]:
    """The mean of each window of PyTorch's adaptive pooling of ``x`` [N, C, H, W] to ``output_size`` (eq. 27).

    ``input_zero_point`` is subtracted first. Each int32 sum is multiplied up to the common area of all windows, which is
    part of the multiplier of ``requantizer``. Returns int32 [N, C, H', W'].
    """
    centred = x.astype(np.int32) - np.int32(input_zero_point)
    rows, columns = (adaptive_windows(x.shape[2 + axis], output_size[axis]) for axis in range(2))
    area = common_area(x.shape[2], x.shape[3], output_size)
    sums = np.zeros((*x.shape[:2], *output_size), np.int32)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            window = centred[:, :, top:bottom, left:right].sum(axis=(2, 3), dtype=np.int32)
            sums[:, :, i, j] = window * np.int32(area // ((bottom - top) * (right - left)))
    return requantizer.apply(sums, axis=1)


def add(
    a: Integers,
    b: Integers,
    *,
    zero_points: tuple[int, int],
    multipliers: NDArray[np.int32],
    shift: int,
    output_zero_point: int,
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """The sum of two tensors of one shape at differing scales, rounded once, ties up (eq. 19).

    Parameters
    ----------
    a, b : integers of one shape
    zero_points : of ``a`` and ``b``
    multipliers, shift : int32 [2] and 1..62: S_a / S_y and S_b / S_y as ``multiplier / 2**shift``
    output_zero_point, clamp : of the result

    Returns
    -------
    int32 of the same shape
    """
    total = (a.astype(np.int64) - zero_points[0]) * int(multipliers[0])
    total += (b.astype(np.int64) - zero_points[1]) * int(multipliers[1])
    rounded: NDArray[np.int64] = (total + (1 << (shift - 1))) >> shift
    return np.clip(rounded + output_zero_point, *clamp).astype(np.int32)


def multiply(a: Integers, b: Integers, *, zero_points: tuple[int, int], requantizer: Requantizer) -> NDArray[np.int32]:
    """The product of two tensors of one shape, or of images [N, C, H, W] and one number a channel [N, C, 1, 1] (eq. 24).

    ``zero_points``, those of ``a`` and ``b``, are subtracted before multiplying; ``requantizer`` takes the int32 products to
    the output's integers. Returns int32 of the larger shape.
    """
    product = (a.astype(np.int32) - np.int32(zero_points[0])) * (b.astype(np.int32) - np.int32(zero_points[1]))
    return requantizer.apply(product, axis=1)


def concat(
    parts: Sequence[Integers], *, zero_points: Sequence[int], requantizers: Sequence[Requantizer]
) -> NDArray[np.int32]:
    """``parts`` [N, C_i, ...] joined along axis 1, each brought to the output's scale (eq. 20).

    ``zero_points`` are those of the parts, ``requantizers`` one a part. Returns int32 [N, sum C_i, ...].
    """
    moved = [
        requantize(x, input_zero_point=z, requantizer=r)
        for x, z, r in zip(parts, zero_points, requantizers, strict=True)
    ]
    return np.concatenate(moved, axis=1)


def requantize(x: Integers, *, input_zero_point: int, requantizer: Requantizer) -> NDArray[np.int32]:
    """``x`` (any shape, zero point ``input_zero_point``) at another scale or under a clamp, by ``requantizer`` (eq. 10)."""
    return requantizer.apply(x.astype(np.int32) - np.int32(input_zero_point))


def flatten(x: Integers) -> Integers:
    """``x`` [N, ...] as [N, product of the rest], in C order."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _taps(x: Integers, row: int, column: int, stride: tuple[int, int], height: int, width: int) -> Integers:
    """The elements that one kernel position meets at every output position: [N, C, height, width]."""
    rows = slice(row, row + (height - 1) * stride[0] + 1, stride[0])
    columns = slice(column, column + (width - 1) * stride[1] + 1, stride[1])
    return x[:, :, rows, columns]
