"""The readable tier: operations as PyTorch's quantized kernels compute them (docs/arithmetic.md, section 10).

`labkit.kernels.reference` offers them too. Each float32 operation is rounded by itself, but for the fused multiply-add.
PyTorch's engines count activations from 0 to 255; integers of -128..127 are therefore raised by 128 first, zero points too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.errors import QuantizationError

__all__ = ["add_away_from_zero", "add_dequantized", "fused_multiply_add", "quantize_by_reciprocal"]

Integers = NDArray[np.integer]

_LARGEST = np.finfo(np.float32).max


def quantize_by_reciprocal(
    real: NDArray[np.float32], params: QParams, spec: QuantSpec, zero_point_inside: bool = True
) -> Integers:
    """``real`` (float32, any shape) times the float32 reciprocal of the scale, plus the zero point, in one FMA (eq. 39).

    ``params`` and ``spec`` say scale, zero point and grid of the result, which has the dtype of ``spec``. Ties go to even.
    Without ``zero_point_inside`` the product is rounded to float32 and to an integer before the zero point is added (XNNPACK).

    Raises
    ------
    QuantizationError
        ``real`` holds a NaN.
    """
    values = np.asarray(real, np.float32)
    if np.isnan(values).any():
        raise QuantizationError(
            f"Cannot quantize NaN: {int(np.isnan(values).sum())} of {values.size} values. "
            f"Find where they come from and remove them."
        )
    lowest = int(np.iinfo(spec.dtype).min)
    finite = np.clip(values, -_LARGEST, _LARGEST)
    if not zero_point_inside:
        with np.errstate(over="ignore"):
            steps = np.clip(np.rint(finite * (np.float32(1) / params.scale)), -1024, 1024)
        return np.clip(steps + params.zero_point, spec.qmin, spec.qmax).astype(spec.dtype)
    raised = fused_multiply_add(finite, np.float32(1) / params.scale, np.float32(params.zero_point - lowest))
    clipped: NDArray[Any] = np.clip(np.rint(raised) + lowest, spec.qmin, spec.qmax).astype(spec.dtype)
    return clipped


def add_dequantized(
    a: Integers,
    b: Integers,
    *,
    zero_points: tuple[int, int],
    scales: NDArray[np.float32],
    reciprocal: NDArray[np.float32],
    output_zero_point: int,
    clamp: tuple[int, int],
    fused: int,
) -> NDArray[np.int32]:
    """The sum of two tensors as PyTorch's own kernel computes it, in float32 (eq. 37).

    Parameters
    ----------
    a, b : integers [N, C, H, W] or [N, ...] of one shape, int8 or uint8
    zero_points : of ``a`` and ``b``
    scales : float32 [2], those of ``a`` and ``b``
    reciprocal : float32 [], 1 / S_y
    output_zero_point, clamp : of the result
    fused : so many elements of each image, in the order (H, W, C), are computed by fused multiply-adds and get the zero
        point after rounding; the others are not, and get it before

    Returns
    -------
    int32 of the same shape
    """
    lowest = int(np.iinfo(a.dtype).min)
    raised = np.float32(output_zero_point - lowest)
    both = [(x.astype(np.int32) - lowest, np.float32(zero_points[i] - lowest), scales[i]) for i, x in enumerate((a, b))]
    first, second = (fused_multiply_add(q.astype(np.float32), scale, -(scale * zero)) for q, zero, scale in both)
    in_vectors = np.rint((first + second) * reciprocal) + raised
    first, second = ((q.astype(np.float32) - zero) * scale for q, zero, scale in both)
    after_them = np.rint((first + second) * reciprocal + raised)
    q = np.where(_places(a.shape[1:]) < fused, in_vectors, after_them) + np.float32(lowest)
    return np.asarray(np.clip(q, *clamp), np.int32)


def add_away_from_zero(
    a: Integers,
    b: Integers,
    *,
    zero_points: tuple[int, int],
    multipliers: NDArray[np.int32],
    shift: int,
    output_zero_point: int,
    clamp: tuple[int, int],
) -> NDArray[np.int32]:
    """The sum of two tensors as QNNPACK computes it: two multipliers over one power of two, ties away from zero (eq. 38).

    Parameters
    ----------
    a, b : integers of one shape
    zero_points : of ``a`` and ``b``
    multipliers, shift : int32 [2] of at most 2**22, and 1..31: S_a / S_y and S_b / S_y as ``multiplier / 2**shift``
    output_zero_point, clamp : of the result

    Returns
    -------
    int32 of the same shape
    """
    total = (a.astype(np.int64) - zero_points[0]) * int(multipliers[0])
    total += (b.astype(np.int64) - zero_points[1]) * int(multipliers[1])
    rounded = np.sign(total) * ((np.abs(total) + (1 << (shift - 1))) >> shift)
    return np.asarray(np.clip(rounded + output_zero_point, *clamp), np.int32)


def fused_multiply_add(
    x: NDArray[np.float32], factor: NDArray[np.float32] | np.float32, addend: NDArray[np.float32] | np.float32
) -> NDArray[np.float32]:
    """``x * factor + addend`` rounded once to float32; finite numbers whose product does not leave float64's exponents.

    ``x`` has any shape, ``factor`` and ``addend`` broadcast. The product of two float32 is exact in float64, the sum is made
    odd where it is not exact, and a number that is so rounded keeps what decides the rounding to fewer bits.
    """
    product = x.astype(np.float64) * np.float64(factor)
    total = product + np.float64(addend)
    from_product = total - np.float64(addend)
    rest = (product - from_product) + (
        np.float64(addend) - (total - from_product)
    )  # what the sum lost (Knuth's TwoSum)
    is_even = (np.asarray(total).view(np.int64) & 1) == 0
    odd = np.where((rest != 0) & is_even, np.nextafter(total, np.copysign(np.inf, rest)), total)
    with np.errstate(over="ignore"):
        return np.asarray(odd, np.float32)


def _places(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The place of each element of an image of ``shape`` (C, H, W), or (C, ...), counted with the channels last."""
    channels, *others = shape
    counted = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(*others, channels)
    return np.moveaxis(counted, -1, 0)
