"""The readable tier: operations as other runtimes compute them (docs/arithmetic.md, section 10).

`labkit.kernels.reference` offers them too. Each function is NumPy, in the layout of PyTorch (N, C, H, W), and returns int32
within its clamp. Some of them compute in float32, as their runtimes do; each float32 operation is rounded by itself, but for
those of `add_float32`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QParams
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import RoundingRule, scale_and_round
from labkit.kernels.reference_torch import fused_multiply_add

__all__ = [
    "add_fixed_point",
    "add_float32",
    "average_pool_float32",
    "average_pool_of_valid",
    "lookup",
    "softmax_float32",
]

Integers = NDArray[np.integer]
Padding = tuple[tuple[int, int], tuple[int, int]]


def add_fixed_point(
    a: Integers,
    b: Integers,
    *,
    zero_points: tuple[int, int],
    rule: RoundingRule,
    left_shift: int,
    inputs: FixedPointMultiplier,
    output: FixedPointMultiplier,
    subtracts: bool,
    output_zero_point: int,
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """The sum, or difference, of two tensors of one shape as LiteRT's kernels compute it (eq. 31).

    Parameters
    ----------
    a, b : integers of one shape
    zero_points : of ``a`` and ``b``
    rule : GEMMLOWP or GEMMLOWP_UP, for all three roundings
    left_shift : bits by which both inputs are shifted before they are multiplied
    inputs, output : multipliers of the inputs, shape (2,), and of the sum, shape ()
    subtracts : ``b`` is subtracted
    output_zero_point, clamp : of the result
    """
    parts = [
        scale_and_round(
            (x.astype(np.int64) - zero_points[i]) << left_shift,
            FixedPointMultiplier(inputs.mantissa[i], inputs.exponent[i]),
            rule,
        )
        for i, x in enumerate((a, b))
    ]
    total = parts[0] - parts[1] if subtracts else parts[0] + parts[1]
    return np.clip(scale_and_round(total, output, rule) + output_zero_point, *clamp).astype(np.int32)


def add_float32(
    a: Integers,
    b: Integers,
    *,
    multipliers: NDArray[np.float32],
    addend: NDArray[np.float32],
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """``a m_0 + (b m_1 + addend)`` with one rounding to float32 for each product and sum (FMA), as ONNX Runtime adds (eq. 32).

    ``a`` and ``b`` are integers of one shape, zero points included; ``multipliers`` float32 [2] and ``addend`` float32 []
    hold them; ``clamp`` is that of the result. Ties go to even.
    """
    first = fused_multiply_add(b.astype(np.float32), multipliers[1], addend)
    total = fused_multiply_add(a.astype(np.float32), multipliers[0], first)
    return np.asarray(np.clip(np.rint(total), *clamp), np.int32)


def average_pool_of_valid(
    x: Integers,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    clamp: tuple[int, int],
    offset: int = 0,
) -> NDArray[np.int32]:
    """The mean of the elements of each window of ``x`` [N, C, H, W] that lie in the image, as LiteRT takes it (eq. 33).

    ``kernel``, ``stride`` and ``padding`` as in PyTorch. The integers less ``offset`` are summed, zero point included, and
    the division rounds ties away from zero. Returns int32 [N, C, H', W'] within ``clamp``.
    """
    sums, counts = _window_sums(x.astype(np.int64) - offset, kernel, stride, padding)
    half = counts // 2
    means = np.where(sums >= 0, (sums + half) // counts, -((half - sums) // counts))
    return np.asarray(np.clip(means + offset, *clamp), np.int32)


def average_pool_float32(
    x: Integers,
    *,
    input_params: QParams,
    output_params: QParams,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    counts_padding: bool,
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """The mean of each window of ``x`` [N, C, H, W] as ONNX Runtime takes it (eq. 34).

    ``x`` is dequantized by ``input_params``, summed in float32 element by element, row by row, divided by the number of
    elements (those outside the image too if ``counts_padding``), and quantized by ``output_params`` with the zero point
    inside the rounding. ``kernel``, ``stride`` and ``padding`` as in PyTorch. Returns int32 [N, C, H', W'] within ``clamp``.
    """
    real = (x.astype(np.int32) - input_params.zero_point).astype(np.float32) * input_params.scale
    sums, counts = _window_sums(real, kernel, stride, padding)
    number = np.float32(kernel[0] * kernel[1]) if counts_padding else counts.astype(np.float32)
    means = sums / number
    scaled = means / output_params.scale + output_params.zero_point.astype(np.float32)
    return np.clip(np.rint(scaled), *clamp).astype(np.int32)


def lookup(x: Integers, *, table: NDArray[np.int32]) -> NDArray[np.int32]:
    """Each integer of ``x`` (int8 or uint8, any shape) replaced by its entry of ``table``, int32 [256].

    The first entry belongs to the lowest integer of the dtype of ``x``.
    """
    return np.asarray(table[x.astype(np.int32) - np.iinfo(x.dtype).min], np.int32)


def softmax_float32(
    x: Integers,
    *,
    axis: int,
    table: NDArray[np.float32],
    factor: NDArray[np.float32],
    output_zero_point: int,
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """The share of each element's exponential in their sum, in float32, as ONNX Runtime takes it (eq. 40).

    Parameters
    ----------
    x : integers [N, ...]; their zero point does not matter, because only differences enter
    axis : along which the shares add up to 1; the batch axis is not counted
    table : float32 [256], exponentials by difference from the largest element
    factor : float32 [], 1 over the output's scale without its fraction
    output_zero_point, clamp : of the result

    Returns
    -------
    int32 of the same shape
    """
    integers = np.moveaxis(x.astype(np.int32), 1 + axis, -1)
    powers = table[integers.max(axis=-1, keepdims=True) - integers]
    total = np.zeros(powers.shape[:-1], np.float32)
    for k in range(powers.shape[-1]):  # one by one: the order decides how float32 rounds
        total += powers[..., k]
    shares = np.rint(powers * factor / total[..., None]) + output_zero_point
    return np.moveaxis(np.clip(shares, *clamp).astype(np.int32), -1, 1 + axis)


def _window_sums(
    x: NDArray[Any], kernel: tuple[int, int], stride: tuple[int, int], padding: Padding
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The sum of each window in the dtype of ``x``, tap after tap, and how many of its elements lie in the image."""
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    inside = np.pad(np.ones((1, 1, *x.shape[2:]), np.int64), ((0, 0), (0, 0), *padding))
    height = (padded.shape[2] - kernel[0]) // stride[0] + 1
    width = (padded.shape[3] - kernel[1]) // stride[1] + 1
    sums = np.zeros((*x.shape[:2], height, width), x.dtype)
    counts = np.zeros((1, 1, height, width), np.int64)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i, i + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(j, j + (width - 1) * stride[1] + 1, stride[1])
            sums += padded[:, :, rows, columns]
            counts += inside[:, :, rows, columns]
    return sums, counts
