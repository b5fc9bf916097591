"""The integer constants of I-BERT's polynomials for a given scale (S. Kim et al., *I-BERT*, ICML 2021, section 3).

I-BERT replaces the error function and the exponential by second-order polynomials, whose coefficients become integers once
the scale of the input is known. What is computed here runs once, in float64, when a network is converted; what runs later,
on integers alone, is in `labkit.kernels.reference_transformer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.errors import BoundError, QuantizationError

__all__ = [
    "EXPONENT_SHIFT",
    "GELU_SHIFT",
    "LARGEST_GELU_SCALE",
    "NORMALISED_BITS",
    "ExpConstants",
    "GeluConstants",
    "exp_constants",
    "gelu_constants",
]

# erf(x) ~ sign(x) (a (min(|x|, -b) + b)**2 + 1), section 3.4; 1.4142 and not sqrt(2), as in the authors' code.
_ERF_A, _ERF_B, _ROOT_OF_2 = -0.2888, -1.769, 1.4142
# exp(p) ~ a p**2 + b p + 1 on (-ln 2, 0], section 3.5, with the digits of the authors' code.
_EXP_A, _EXP_B, _LN_2 = 0.35815147, 0.96963238, 0.6931

GELU_SHIFT = 14  # bits that the square of the polynomial loses, so that the product with the input stays short
LARGEST_GELU_SCALE = 1e-3  # above it that shift leaves too few bits: the error is .018 at 1e-4 and 1.1 at 1e-2
EXPONENT_SHIFT = 30  # powers of 2 beyond 2**-30 count as 0
NORMALISED_BITS = 30  # i-LayerNorm's normalised integer y lies in -2**30..2**30
_LONGEST = 62  # bits of the longest intermediate that int64 holds with its sign and one to spare


@dataclass(frozen=True)
class GeluConstants:
    """Integers of i-GELU for one input scale.

    b, c : ``floor(b / S_k)`` (negative) and ``floor((1 / a) / S_k**2)`` (negative) with S_k = S / 1.4142.
    one : real 1 at the scale of the shifted polynomial (negative, as that scale is).
    scale : of the result, positive or negative as it comes out: real = scale * integer.
    """

    b: int
    c: int
    one: int
    scale: float


@dataclass(frozen=True)
class ExpConstants:
    """Integers of i-exp for one input scale.

    ln2 : ``floor(-ln 2 / S)``, negative.
    b, c : ``floor((b / a) / S)`` and ``floor((1 / a) / S**2)``, positive.
    scale : of the result before any halving: exp = scale * integer / 2**halvings.
    """

    ln2: int
    b: int
    c: int
    scale: float


def gelu_constants(scale: float) -> GeluConstants:
    """The constants of i-GELU for an input of ``scale``.

    Raises
    ------
    QuantizationError
        ``scale`` is not positive, or larger than `LARGEST_GELU_SCALE`: requantize the input to 16 bits first.
    BoundError
        It is so small that the polynomial leaves 62 bits.
    """
    _check_positive(scale)
    if scale > LARGEST_GELU_SCALE:
        raise QuantizationError(
            f"i-GELU drops {GELU_SHIFT} bits of its polynomial and needs an input scale of at most {LARGEST_GELU_SCALE:g}, "
            f"got {scale:.3g}. Requantize its input to 16 bits first, with a range of at most -32..32, or give that tensor "
            f"8 bits in the plan: then the GELU is a table of 256 entries."
        )
    step = scale / _ROOT_OF_2
    b, c = math.floor(_ERF_B / step), math.floor((1 / _ERF_A) / (step * step))
    _check_bits("i-GELU", scale, b * b - c)
    shifted = step * step * _ERF_A * 2**GELU_SHIFT
    return GeluConstants(b, c, math.floor(1 / shifted), scale * shifted / 2)


def exp_constants(scale: float) -> ExpConstants:
    """The constants of i-exp for an input of ``scale``.

    Raises
    ------
    QuantizationError
        ``scale`` is not positive, or so large that ln 2 is less than one step.
    BoundError
        It is so small that the polynomial, shifted by `EXPONENT_SHIFT`, leaves 62 bits.
    """
    _check_positive(scale)
    if scale > _LN_2:
        raise QuantizationError(f"i-exp needs an input scale below ln 2, got {scale:.3g}. Use more bits for its input.")
    ln2 = math.floor(-_LN_2 / scale)
    b, c = math.floor(_EXP_B / _EXP_A / scale), math.floor(1 / _EXP_A / (scale * scale))
    _check_bits("i-exp", scale, (b * -ln2 + c) << EXPONENT_SHIFT)
    return ExpConstants(ln2, b, c, _EXP_A * (scale * scale))


def _check_positive(scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise QuantizationError(f"A scale must be positive and finite, got {scale}.")


def _check_bits(what: str, scale: float, largest: int) -> None:
    if largest.bit_length() > _LONGEST:
        raise BoundError(
            f"{what} at the scale {scale:.3g} needs {largest.bit_length()} bits, and int64 holds {_LONGEST} with room to spare. "
            f"Requantize its input to 16 bits first."
        )
