"""Weights and requantization constants in the order in which the fast kernels read them. Runs once, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.kernels.fast.finish import CHANNELS, EPILOGUE_WORDS
from labkit.kernels.fast.simd import INTERLEAVED

__all__ = [
    "NO_EPILOGUE",
    "aligned_zeros",
    "channels_first_order",
    "epilogue_fits",
    "pack_epilogue",
    "pack_panels",
    "pack_taps",
    "rounded_up",
]

NO_EPILOGUE = np.zeros((1, 1), np.int64)  # what a kernel gets that leaves sums

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


def pack_panels(weights: NDArray[np.integer]) -> NDArray[np.int8] | NDArray[np.int16]:
    """Weights ``[O, runs, run length]``, zero points subtracted, as panels ``[O / 16, runs, pairs, 16, 2]``.

    Channels are filled up to whole panels and runs to whole pairs with zeros, which add nothing to any sum. The result
    is int8 where every weight fits, else int16 (eight bits and a zero point need nine).
    """
    outputs, runs, length = weights.shape
    full = np.zeros((rounded_up(outputs), runs, rounded_up(length, 2)), np.int16)
    full[:outputs, :, :length] = weights
    panels = full.reshape(-1, CHANNELS, runs, full.shape[2] // 2, 2).transpose(0, 2, 3, 1, 4)
    fits = weights.size == 0 or (weights.min() >= -128 and weights.max() <= 127)
    packed = aligned_zeros(panels.shape, np.int8 if fits else np.int16)
    packed[...] = panels
    return packed


def epilogue_fits(requantizer: Requantizer, bound: NDArray[np.int64]) -> bool:
    """Whether a tile may requantize sums in registers.

    The rule must be one of `finish.FINISHES`. Under SINGLE no result may leave int32 before the clamp: ``bound`` int64
    [O] is the largest magnitude of each channel's sum, from `arithmetic.bounds.accumulator_bound`. The product has at
    most 62 bits, so it is compared in float64 with room to spare.
    """
    if requantizer.rule is RoundingRule.FLOAT32_EVEN:
        return True
    if requantizer.rule is not RoundingRule.SINGLE:
        return False
    assert isinstance(requantizer.multiplier, FixedPointMultiplier)
    return bool(np.all(bound * requantizer.multiplier.to_real() < 2.0**30))


def pack_epilogue(bias: NDArray[np.int32], requantizer: Requantizer) -> NDArray[np.int64]:
    """Constants of the rule's finish for each vector of 8 channels: int64 ``[O / 16 panels, 2, 32]``.

    Words 0-3 hold the bias as eight int32. Under SINGLE words 4-11 hold the mantissas, 12-19 the shifts and 20-27 the
    rounding constants, each four of even and then four of odd channels, and words 28-31 the lift as eight int32 (see
    `simd.scale_shift`). Under FLOAT32_EVEN words 4-7 hold the multipliers and 8-11 what is added inside the rounding,
    each eight float32.
    """
    full = rounded_up(bias.shape[0])
    columns = [_words(_filled(bias, full, 0), np.int32)]
    multiplier = requantizer.multiplier
    if isinstance(multiplier, FixedPointMultiplier):
        shift = _filled(31 - multiplier.exponent.astype(np.int64), full, 1)
        columns += [
            _even_then_odd(_filled(multiplier.mantissa, full, 0)),
            _even_then_odd(shift),
            _even_then_odd((np.int64(1) << (shift - 1)) + (np.int64(1) << 62)),
            _words(np.int64(1) << (62 - shift), np.int32),
        ]
    else:
        inside = requantizer.zero_point if requantizer.zero_point_inside else 0
        columns += [_words(_filled(multiplier, full, 0), np.float32), _words(np.full(full, inside), np.float32)]
    packed = aligned_zeros((full // CHANNELS, CHANNELS // 8, EPILOGUE_WORDS), np.int64)
    words = np.concatenate(columns, axis=1)
    packed[..., : words.shape[1]] = words.reshape(*packed.shape[:2], -1)
    return packed


def _filled(values: NDArray[Any], full: int, filler: int) -> NDArray[Any]:
    """``values``, one for all channels or one a channel, brought to ``full`` channels."""
    result = np.full(full, filler, values.dtype)
    result[: values.shape[0] if values.ndim else full] = values
    return result


def _even_then_odd(values: NDArray[Any]) -> NDArray[np.int64]:
    by_vector = values.astype(np.int64).reshape(-1, 8)
    return np.concatenate([by_vector[:, 0::2], by_vector[:, 1::2]], axis=1)


def _words(values: NDArray[Any], dtype: type[np.int32] | type[np.float32]) -> NDArray[np.int64]:
    """Eight values of 32 bits as four words."""
    return np.ascontiguousarray(values.astype(dtype)).view(np.int64).reshape(-1, 4)


def pack_taps(weights: NDArray[np.integer]) -> NDArray[np.int16]:
    """Depthwise weights ``[C, taps]`` as int16 ``[C / 16, pairs of taps, 2, 16]``, in the order of `simd.interleave`.

    Channels and pairs are filled up with zeros.
    """
    channels, taps = weights.shape
    full = np.zeros((rounded_up(channels), rounded_up(taps, 2)), np.int16)
    full[:channels, :taps] = weights
    by_panel = full.reshape(-1, CHANNELS, full.shape[1] // 2, 2).transpose(0, 2, 1, 3)
    packed = aligned_zeros((*by_panel.shape[:2], 2, CHANNELS), np.int16)
    for part, lanes in enumerate(INTERLEAVED):
        packed[:, :, part] = by_panel[:, :, list(lanes)].reshape(*by_panel.shape[:2], CHANNELS)
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
