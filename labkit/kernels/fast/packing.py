"""Weights and requantization constants in the order in which the fast kernels read them. Runs once, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.kernels.fast.finish import CHANNELS, finish_rule
from labkit.kernels.fast.simd import interleaved_lanes

__all__ = [
    "DENSE_CHANNELS",
    "NO_EPILOGUE",
    "aligned_zeros",
    "channels_first_order",
    "epilogue_fits",
    "fits_int8",
    "pack_epilogue",
    "pack_panels",
    "pack_taps",
    "rounded_up",
    "two_factors",
]

DENSE_CHANNELS = 4  # an input image of so few is stored without filling lanes: less to multiply by zero
NO_EPILOGUE = np.zeros((1, 1, 1, 1), np.int32)  # what a kernel gets that leaves sums

_LINE = 64  # bytes of a cache line; a vector that straddles two lines is read twice
_SLACK = 64  # bytes after an array that a vector may touch beyond its last element


def rounded_up(count: int, multiple: int = CHANNELS) -> int:
    """The smallest multiple of ``multiple`` that is at least ``count``."""
    return -(-count // multiple) * multiple


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros of ``shape`` and ``dtype`` that start on a cache line and may be read and written up to 64 bytes past their end."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    memory = np.zeros(size + _LINE + _SLACK, np.uint8)
    start = -memory.ctypes.data % _LINE
    aligned: NDArray[Any] = memory[start : start + size].view(kind).reshape(shape)
    return aligned


def pack_panels(weights: NDArray[np.integer], group: int = 2) -> NDArray[np.int8] | NDArray[np.int16]:
    """Weights ``[O, runs, run length]``, zero points subtracted, as panels ``[O / 16, runs, groups, 16, group]``.

    ``group`` (2 or 4) neighbouring inputs are multiplied and summed by one instruction. Channels are filled up to whole
    panels and runs to whole groups with zeros, which add nothing to any sum. The result is int8 where every weight fits,
    else int16 (eight bits and a zero point need nine).
    """
    outputs, runs, length = weights.shape
    full = np.zeros((rounded_up(outputs), runs, rounded_up(length, group)), np.int16)
    full[:outputs, :, :length] = weights
    panels = full.reshape(-1, CHANNELS, runs, full.shape[2] // group, group).transpose(0, 2, 3, 1, 4)
    packed = aligned_zeros(panels.shape, np.int8 if fits_int8(weights) else np.int16)
    packed[...] = panels
    return packed


def fits_int8(weights: NDArray[np.integer]) -> bool:
    """Whether every one of ``weights`` (integers of any shape) lies in -128 .. 127."""
    return bool(weights.size == 0 or (weights.min() >= -128 and weights.max() <= 127))


def epilogue_fits(requantizer: Requantizer, bound: NDArray[np.int64]) -> bool:
    """Whether a tile may requantize sums in registers.

    The rule must be one of `finish.FINISHES`. Under GEMMLOWP and GEMMLOWP_UP multipliers must be below 1, so that nothing is
    shifted left. Under these two and under SINGLE no result may leave int32 before the clamp: ``bound`` int64
    [O] is the largest magnitude of each channel's sum, from `arithmetic.bounds.accumulator_bound`. The product has at
    most 62 bits, so it is compared in float64 with room to spare.
    """
    if requantizer.rule in (RoundingRule.FLOAT32_EVEN, RoundingRule.FLOAT32_TWICE):
        return True
    multiplier = requantizer.multiplier
    if not isinstance(multiplier, FixedPointMultiplier) or requantizer.rule is RoundingRule.DYADIC:
        return False
    if requantizer.rule is not RoundingRule.SINGLE and np.any(multiplier.exponent > 0):
        return False
    return bool(np.all(bound * multiplier.to_real() < 2.0**30))


def pack_epilogue(
    bias: NDArray[np.int32], requantizer: Requantizer, lanes: int = 8, offset: int = 0
) -> NDArray[np.int32]:
    """Constants of the rule's finish for vectors of ``lanes`` channels: int32 ``[O / 16 panels, 16 / lanes, 8, lanes]``.

    Row 0 of each vector holds the bias. Under SINGLE rows 1-2 hold the mantissas, 3-4 the shifts and 5-6 the rounding
    constants as int64, each those of even and then those of odd channels, and row 7 the lift (see `simd.scale_shift`).
    Under GEMMLOWP and GEMMLOWP_UP rows 1-2 hold the mantissas in the same way, row 3 the right shifts, row 4 the bits that
    are shifted out (only the highest of them under GEMMLOWP_UP), and row 5 ``offset``.
    Under FLOAT32_EVEN rows 1, 2 and 3 hold, as float32, the multipliers, what is added inside the rounding, and what is
    added after it. Under FLOAT32_TWICE, and under FLOAT32_EVEN with a float bias, rows 1 to 5 hold the first factors, the
    float biases, the second factors, and those two. ``offset`` is what the result gets in place of the output's zero
    point: 0 where the zero point is subtracted in memory. ``bias`` int32 [O] may wrap around, as sums may.
    """
    full = rounded_up(bias.shape[0])
    vectors = full // lanes
    packed = aligned_zeros((full // CHANNELS, CHANNELS // lanes, 8, lanes), np.int32)
    rows = packed.reshape(vectors, 8, lanes)
    rows[:, 0] = _filled(bias, full, 0).reshape(vectors, lanes)
    multiplier = requantizer.multiplier
    if isinstance(multiplier, FixedPointMultiplier) and requantizer.rule is not RoundingRule.SINGLE:
        mantissas = _filled(multiplier.mantissa, full, 0).astype(np.int64).reshape(vectors, lanes)
        for parity in range(2):
            rows[:, 1 + parity] = np.ascontiguousarray(mantissas[:, parity::2]).view(np.int32)
        right = _filled(-multiplier.exponent.astype(np.int64), full, 0)
        bits = (1 << right) - 1 if requantizer.rule is RoundingRule.GEMMLOWP else (1 << right) >> 1
        for row, numbers in ((3, right), (4, bits), (5, np.full(full, offset))):
            rows[:, row] = numbers.astype(np.int32).reshape(vectors, lanes)
    elif isinstance(multiplier, FixedPointMultiplier):
        shift = _filled(31 - multiplier.exponent.astype(np.int64), full, 1)
        half = (np.int64(1) << (shift - 1)) + (np.int64(1) << 62)
        for row, values in ((1, _filled(multiplier.mantissa, full, 0)), (3, shift), (5, half)):
            by_vector = values.astype(np.int64).reshape(vectors, lanes)
            for parity in range(2):
                rows[:, row + parity] = np.ascontiguousarray(by_vector[:, parity::2]).view(np.int32)
        lift = (np.int64(1) << (62 - shift)) - offset
        rows[:, 7] = lift.astype(np.int32).reshape(vectors, lanes)  # modulo 2**32
    else:
        inside = requantizer.zero_point if requantizer.zero_point_inside else 0
        factors: tuple[NDArray[Any], ...] = (multiplier,)
        if finish_rule(requantizer) is RoundingRule.FLOAT32_TWICE:
            factors = two_factors(requantizer)
        for row, reals in enumerate((*factors, np.array(inside), np.array(offset - inside)), 1):
            filled = _filled(np.asarray(reals), full, 0).astype(np.float32)
            rows[:, row] = filled.view(np.int32).reshape(vectors, lanes)
    return packed


def two_factors(requantizer: Requantizer) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """First factor, float bias and second factor of ``requantizer``, float32 of shape () or (C,), as eq. 29 takes them.

    FLOAT32_EVEN has the first factor 1 (eq. 28): to multiply by it rounds nothing.
    """
    bias = np.zeros((), np.float32) if requantizer.bias is None else requantizer.bias
    multiplier = requantizer.multiplier
    assert isinstance(multiplier, np.ndarray)
    if requantizer.rule is RoundingRule.FLOAT32_EVEN:
        return np.ones((), np.float32), bias, multiplier
    assert requantizer.second is not None
    return multiplier, bias, requantizer.second


def _filled(values: NDArray[Any], full: int, filler: int) -> NDArray[Any]:
    """``values``, one for all channels or one a channel, brought to ``full`` channels."""
    result = np.full(full, filler, values.dtype)
    result[: values.shape[0] if values.ndim else full] = values
    return result


def pack_taps(weights: NDArray[np.integer]) -> NDArray[np.int16]:
    """Depthwise weights ``[C, taps]`` as int16 ``[C / 16, pairs of taps, 2, 16]``, in the order of `simd.interleave`.

    Channels and pairs are filled up with zeros.
    """
    channels, taps = weights.shape
    full = np.zeros((rounded_up(channels), rounded_up(taps, 2)), np.int16)
    full[:channels, :taps] = weights
    by_panel = full.reshape(-1, CHANNELS, full.shape[1] // 2, 2).transpose(0, 2, 1, 3)
    packed = aligned_zeros((*by_panel.shape[:2], 2, CHANNELS), np.int16)
    for part, lanes in enumerate(interleaved_lanes(CHANNELS)):
        packed[:, :, part] = by_panel[:, :, lanes].reshape(*by_panel.shape[:2], CHANNELS)
    return packed


def channels_first_order(
    weights: NDArray[np.integer], shape: tuple[int, int, int], stored: tuple[int, int, int, int, int]
) -> NDArray[np.integer]:
    """Columns of a Linear layer after a Flatten, moved to where its input lies in a buffer of the layout (H, W, C).

    Parameters
    ----------
    weights : integers [O, C * H * W], in PyTorch's order
    shape : (C, H, W)
    stored : height, width and channels of the buffer, then row and column of the image in it

    Returns
    -------
    integers [O, height * width * channels], zero where the buffer holds something else
    """
    channels, height, width = shape
    buffer_h, buffer_w, buffer_c, top, left = stored
    placed = np.zeros((weights.shape[0], buffer_h, buffer_w, buffer_c), weights.dtype)
    image = weights.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    placed[:, top : top + height, left : left + width, :channels] = image
    return placed.reshape(weights.shape[0], -1)
