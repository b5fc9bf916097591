"""Requantization as a pass of its own, under every rounding rule. See `arithmetic.requantize` for the equations.

It serves sums that the tile does not finish itself (a rule that has no finish, grouped convolution, average pooling) and
the nodes Requantize and Concat. The scalar functions below are those of `arithmetic.requantize.scale_and_round`, one
number at a time; each is compiled into a loop over pixels and channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.kernels.fast import simd
from labkit.kernels.fast.finish import FINISHES, Finish, add_biases, finish_rule
from labkit.kernels.fast.packing import two_factors
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["REQUANTIZE", "REQUANTIZE_VECTORS", "RULES", "Patch", "multiplier_tables"]

Array = NDArray[Any]
Reals = NDArray[np.float64]  # of one channel, see `multiplier_tables`

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


class Patch(NamedTuple):
    """Where an image lies in two buffers: its size, then row, column and channel of its first element in each."""

    height: int
    width: int
    channels: int
    top: int
    left: int
    into_top: int
    into_left: int
    into_channel: int


@jit
def _single(x: int, mantissa: int, exponent: int, real: Reals, inside: int) -> tuple[int, bool]:
    """Eq. 13: ties towards +infinity."""
    shift = 31 - exponent
    return (x * mantissa + (1 << (shift - 1))) >> shift, True


@jit
def _dyadic(x: int, mantissa: int, exponent: int, real: Reals, inside: int) -> tuple[int, bool]:
    """Eq. 16: ties to even."""
    shift = 31 - exponent
    product = x * mantissa
    up = (product + (1 << (shift - 1))) >> shift
    is_tie = (product & ((1 << shift) - 1)) == (1 << (shift - 1))
    return up - (up & 1 if is_tie else 0), True


@jit
def _gemmlowp(x: int, mantissa: int, exponent: int, real: Reals, inside: int) -> tuple[int, bool]:
    """Eq. 14: a truncated and nudged high half, then ties away from zero."""
    lifted = x << max(exponent, 0)
    product = lifted * mantissa
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    high = nudged >> 31 if nudged >= 0 else -(-nudged >> 31)
    right = max(-exponent, 0)
    mask = (1 << right) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    rounded = (high >> right) + (1 if (high & mask) > threshold else 0)
    return rounded, INT32_MIN <= lifted <= INT32_MAX


@jit
def _gemmlowp_up(x: int, mantissa: int, exponent: int, real: Reals, inside: int) -> tuple[int, bool]:
    """Eq. 15: as gemmlowp with ties towards +infinity."""
    lifted = x << max(exponent, 0)
    high = (lifted * mantissa + (1 << 30)) >> 31
    right = max(-exponent, 0)
    if right > 0:
        high = (high + (1 << (right - 1))) >> right
    return high, INT32_MIN <= lifted <= INT32_MAX


@jit
def _float32_even(x: int, mantissa: int, exponent: int, real: Reals, inside: int) -> tuple[int, bool]:
    """Eq. 17: product and sum in float32, ties to even."""
    return int(np.rint(np.float32(x) * np.float32(real[0]) + np.float32(inside))), True


@jit
def _float32_twice(x: int, mantissa: int, exponent: int, real: Reals, inside: int) -> tuple[int, bool]:
    """Eqs. 28 and 29: two products and two sums in float32, ties to even; far beyond any clamp it is cut off at 2**62."""
    shifted = np.float32(x) * np.float32(real[0]) + np.float32(real[1])
    rounded: Any = np.rint(shifted * np.float32(real[2]) + np.float32(inside))
    return int(min(max(rounded, np.float32(-(2.0**62))), np.float32(2.0**62))), True


@jit
def _float64_away(x: int, mantissa: int, exponent: int, real: Reals, inside: int) -> tuple[int, bool]:
    """Eq. 18: product and sum in float64, ties away from zero."""
    scaled = np.float64(x) * real[0] + inside
    whole = math.floor(abs(scaled))
    magnitude = whole + (1 if abs(scaled) - whole >= 0.5 else 0)  # abs + 0.5 would round just below a half
    return int(magnitude if scaled >= 0 else -magnitude), True


def _over_pixels(rule: Callable[..., Any]) -> Callable[..., int]:
    def requantize(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        bias: Array,
        mantissa: Array,
        exponent: Array,
        real: Array,
        inside: int,
        zero_point: int,
        stored_zero: int,
        clamp: tuple[int, int],
        patch: Patch,
    ) -> int:
        """``y = clamp(rule(x + bias)) - zero_point + stored_zero`` for every pixel and channel of ``patch``.

        part, parts : the share of this call, of all rows of all images
        x, y : int16, uint8 or int32 [N, H, W, C]
        bias, mantissa, exponent : int64 [C]; real : float64 [C, 3]; a rule uses the one or the others
        inside : what the rule adds before rounding, 0 or the zero point
        clamp : of the output, zero point included

        Returns the number of elements that a left shift drove out of int32, which the rule does not allow.
        """
        overflows = 0
        first, end = share(images * patch.height, part, parts)
        for line in range(first, end):
            n, i = line // patch.height, line % patch.height
            for j in range(patch.width):
                source = x[n, patch.top + i, patch.left + j]
                target = y[n, patch.into_top + i, patch.into_left + j]
                for c in range(patch.channels):
                    # sums of bytes and the surplus in the bias may both have wrapped: their sum is right modulo 2**32
                    total = np.int64(np.int32(source[c] + bias[c]))
                    rounded, fits = rule(total, mantissa[c], exponent[c], real[c], inside)
                    overflows += 0 if fits else 1
                    q = min(max(rounded + zero_point - inside, clamp[0]), clamp[1])
                    target[patch.into_channel + c] = q - zero_point + stored_zero
        return overflows

    requantize.__name__ = requantize.__qualname__ = f"requantize{rule.__name__}"
    return jit(requantize)


RULES = MappingProxyType(
    {
        RoundingRule.SINGLE: _single,
        RoundingRule.GEMMLOWP: _gemmlowp,
        RoundingRule.GEMMLOWP_UP: _gemmlowp_up,
        RoundingRule.DYADIC: _dyadic,
        RoundingRule.FLOAT32_EVEN: _float32_even,
        RoundingRule.FLOAT64_AWAY: _float64_away,
        RoundingRule.FLOAT32_TWICE: _float32_twice,
    }
)  # by `finish.finish_rule`: (sum, mantissa, exponent, reals, inside) to the rounded number, and whether the rule takes it
REQUANTIZE = MappingProxyType({rule: _over_pixels(function) for rule, function in RULES.items()})


def _over_vectors(finish: Finish, name: str) -> Callable[..., int]:
    @intrinsic
    def finish_16(typing_context, x, y, source, target, epilogue, low, high):  # type: ignore[no-untyped-def]
        come, stored = simd.stored_type(x.dtype), simd.stored_type(y.dtype)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, _, source, target, *rest = arguments
            wide = builder.sext(simd.load_centred(builder, source, come, None), simd.V16I32)
            sums = add_biases(builder, {(0, 0): list(simd.halves(builder, wide))}, rest[0])
            finish(builder, sums, [target], rest, stored)
            return context.get_dummy_value()

        return types.void(x, y, *[types.int64] * 5), generate

    def requantize(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        epilogue: Array,
        clamp: tuple[int, int],
        patch: Patch,
    ) -> int:
        """As the loops above for activations, sixteen channels at a time; ``epilogue`` from `packing.pack_epilogue`.

        x, y : int16 or uint8 [N, H, W, C]
        clamp : of the output, as it is stored

        Up to fifteen lanes of ``y`` after the patch's last channel get numbers without meaning.
        """
        first, end = share(images * patch.height, part, parts)
        for line in range(first, end):
            n, i = line // patch.height, line % patch.height
            source = x.ctypes.data + n * x.strides[0] + (patch.top + i) * x.strides[1] + patch.left * x.strides[2]
            into = patch.into_left * y.strides[2] + patch.into_channel * y.itemsize
            target = y.ctypes.data + n * y.strides[0] + (patch.into_top + i) * y.strides[1] + into
            for _ in range(patch.width):
                for p in range(epilogue.shape[0]):
                    constants = epilogue.ctypes.data + p * epilogue.strides[0]
                    come, go = source + 16 * p * x.itemsize, target + 16 * p * y.itemsize
                    finish_16(x, y, come, go, constants, clamp[0], clamp[1])
                source += x.strides[2]
                target += y.strides[2]
        return 0

    requantize.__name__ = requantize.__qualname__ = name
    return jit(requantize)


REQUANTIZE_VECTORS = MappingProxyType(
    {rule: _over_vectors(finish, f"requantize_vectors_{rule.value}") for rule, finish in FINISHES.items()}
)


def multiplier_tables(requantizer: Requantizer, channels: int) -> tuple[Array, Array, Array]:
    """Mantissa and exponent (int64 [C]) and the real parameters (float64 [C, 3]), a row for each of ``channels``.

    A row of the latter is the float multiplier, or the first factor, the bias and the second factor of FLOAT32_TWICE. A
    float32 number is held exactly by float64. What the rule does not use is filled with a harmless value.
    """
    multiplier, zero = requantizer.multiplier, np.zeros((), np.int32)
    reals: tuple[Array, Array, Array] = (zero, zero, zero)
    mantissa, exponent = zero, zero
    if isinstance(multiplier, FixedPointMultiplier):
        mantissa, exponent = multiplier.mantissa, multiplier.exponent
    elif finish_rule(requantizer) is RoundingRule.FLOAT32_TWICE:
        reals = two_factors(requantizer)
    else:
        reals = (multiplier, zero, zero)

    def per_channel(values: Array, dtype: Any) -> Array:
        return np.ascontiguousarray(np.broadcast_to(values, (channels,)).astype(dtype))

    columns = [per_channel(values, np.float64) for values in reals]
    return per_channel(mantissa, np.int64), per_channel(exponent, np.int64), np.stack(columns, axis=1)
