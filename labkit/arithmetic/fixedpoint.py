"""A positive real number as an int32 mantissa and a power of two (docs/arithmetic.md, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import BoundError, QuantizationError

__all__ = ["LARGEST_EXPONENT", "FixedPointMultiplier"]

MANTISSA_BITS = 31
LARGEST_EXPONENT = 30  # so that the right shift 31 - exponent stays at least 1
SMALLEST_EXPONENT = -31  # below it even the largest accumulator rounds to 0


@dataclass(frozen=True, eq=False)
class FixedPointMultiplier:
    """``real = mantissa * 2 ** (exponent - 31)`` (eq. 11).

    mantissa : int32, 0 or in [2**29, 2**31 - 1] ("Q31"), shape () or (C,). `from_real` makes none below 2**30; LiteRT's MEAN
        divides one by the number of elements and leaves it as it is (eq. 30).
    exponent : int32 in -31..30, same shape.

    Raises
    ------
    QuantizationError
        A mantissa is not normalised, or an exponent is out of range.
    """

    mantissa: NDArray[np.int32]
    exponent: NDArray[np.int32]

    def __post_init__(self) -> None:
        mantissa, exponent = np.asarray(self.mantissa, np.int32), np.asarray(self.exponent, np.int32)
        if mantissa.shape != exponent.shape:
            raise QuantizationError(
                f"Mantissa and exponent must have one shape, got {mantissa.shape}, {exponent.shape}."
            )
        if np.any((mantissa != 0) & (mantissa < 2**29)):
            raise QuantizationError("A mantissa must be 0 or in [2**29, 2**31): make it with from_real.")
        if np.any((exponent < SMALLEST_EXPONENT) | (exponent > LARGEST_EXPONENT)):
            raise QuantizationError(f"An exponent must be in {SMALLEST_EXPONENT}..{LARGEST_EXPONENT}.")
        object.__setattr__(self, "mantissa", frozen_array(mantissa))
        object.__setattr__(self, "exponent", frozen_array(exponent))

    @classmethod
    def from_real(cls, real: ArrayLike) -> FixedPointMultiplier:
        """The nearest multiplier to ``real`` (float64, shape () or (C,)); ties away from 0 (eq. 12).

        The relative error is at most 2**-31. A value below 2**-32 becomes 0, because the product with any
        int32 would round to 0. This is `QuantizeMultiplier` of TensorFlow Lite with its single-rounding limit on the exponent.

        Raises
        ------
        QuantizationError
            ``real`` is not finite or not positive.
        BoundError
            ``real`` is 2**30 or more, which no accumulator of 32 bits survives.
        """
        values = np.asarray(real, np.float64)
        if not np.all(np.isfinite(values)) or np.any(values <= 0):
            raise QuantizationError(
                f"A multiplier must be finite and positive, got {values.reshape(-1)[:4]}. Check the scales."
            )
        fraction, exponent = np.frexp(values)  # fraction in [0.5, 1)
        mantissa = np.floor(fraction * 2.0**MANTISSA_BITS + 0.5).astype(np.int64)  # exact: at most 32 of 53 bits
        overflowed = mantissa == 2**MANTISSA_BITS
        mantissa = np.where(overflowed, mantissa // 2, mantissa)
        exponent = np.where(overflowed, exponent + 1, exponent)
        if np.any(exponent > LARGEST_EXPONENT):
            raise BoundError(
                f"A multiplier must be below 2**{LARGEST_EXPONENT}, got {values.max():.3g}: the output scale is far too small "
                f"for the input and weight scales. Calibrate on data that resembles the real input."
            )
        vanishes = exponent < SMALLEST_EXPONENT
        return cls(
            np.asarray(np.where(vanishes, 0, mantissa), np.int32), np.asarray(np.where(vanishes, 0, exponent), np.int32)
        )

    def to_real(self) -> NDArray[np.float64]:
        """The exact value of each multiplier (float64, same shape)."""
        return np.ldexp(self.mantissa.astype(np.float64), self.exponent - MANTISSA_BITS)
