"""The rounding rules of docs/arithmetic.md once more, in PyTorch, written independently of `labkit.arithmetic`.

Nothing of labkit is imported here but what says which rule is meant; see `torch_arithmetic` for the rule SINGLE.
"""

from __future__ import annotations

import torch

__all__ = [
    "double_rounded",
    "even",
    "half_away",
    "high_half",
    "real_away",
    "real_even",
    "real_twice",
    "shifted_away",
]

Parameter = torch.Tensor | None


def half_away(numerator: torch.Tensor, denominator: torch.Tensor | int) -> torch.Tensor:
    """``numerator / denominator`` (int64 of any shape; above 0) to the nearest integer, ties away from zero; int64."""
    magnitude: torch.Tensor = torch.div(2 * numerator.abs() + denominator, 2 * denominator, rounding_mode="floor")
    return numerator.sign() * magnitude


def high_half(a: torch.Tensor, b: torch.Tensor | int) -> torch.Tensor:
    """The product of ``a`` and ``b`` (int64 of one shape, within int32) over 2**31 as gemmlowp rounds it (eq. 14): int64.

    To nearest; the division of C cuts off towards zero, and what is added to a negative product is one less than a half.
    """
    product = a * b
    nudge = torch.where(product < 0, 1 - 2**30, 2**30)
    cut: torch.Tensor = torch.div(product + nudge, 2**31, rounding_mode="trunc")
    return cut


def shifted_away(x: torch.Tensor, bits: torch.Tensor | int) -> torch.Tensor:
    """``x / 2**bits`` to nearest, ties away from zero; int64, ``bits`` at least 0 and of a shape that broadcasts."""
    return half_away(x, torch.ones_like(x) << bits)


def double_rounded(sums: torch.Tensor, mantissa: torch.Tensor, exponent: torch.Tensor, upwards: bool) -> torch.Tensor:
    """Eq. 14, or 15 where ties go ``upwards`` in both steps: int64 of the shape of ``sums`` (int64 [N, C, ...]).

    ``mantissa`` and ``exponent`` are int64 of shape () or (C,).
    """
    mantissa, exponent = (_along(part, sums) for part in (mantissa, exponent))
    lifted, right = sums << exponent.clamp(min=0), (-exponent).clamp(min=0)
    if not upwards:
        return shifted_away(high_half(lifted, mantissa), right)
    high: torch.Tensor = torch.div(lifted * mantissa + 2**30, 2**31, rounding_mode="floor")
    step = torch.ones_like(high) << right
    rounded: torch.Tensor = torch.div(2 * high + step, 2 * step, rounding_mode="floor")
    return rounded


def even(sums: torch.Tensor, mantissa: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Eq. 16: the exact product, ties to even; int64 of the shape of ``sums`` (int64 [N, C, ...]).

    ``mantissa`` and ``exponent`` are int64 of shape () or (C,).
    """
    mantissa, exponent = (_along(part, sums) for part in (mantissa, exponent))
    product, step = sums * mantissa, torch.ones_like(sums) << (31 - exponent)
    floor: torch.Tensor = torch.div(product, step, rounding_mode="floor")
    rest = product - floor * step  # 0 .. step - 1; compared with a half without leaving int64
    above = (rest > step - rest) | ((rest == step - rest) & (floor % 2 == 1))
    return floor + above.long()


def real_even(sums: torch.Tensor, multiplier: torch.Tensor, bias: Parameter, inside: int) -> torch.Tensor:
    """Eqs. 17 and 28: float32 throughout, ties to even; int64 of the shape of ``sums`` (int64 [N, C, ...]).

    ``multiplier`` float32 and ``bias`` float32 or None have shape () or (C,); ``inside`` is added before rounding.
    """
    total = sums.float()
    if bias is not None:
        total = total + _along(bias, sums)
    return _whole(total * _along(multiplier, sums) + inside)


def real_twice(
    sums: torch.Tensor, first: torch.Tensor, bias: Parameter, second: torch.Tensor, inside: int
) -> torch.Tensor:
    """Eq. 29: two float32 factors and ``bias`` between them, ties to even; int64 of the shape of ``sums`` (int64 [N, C, ...]).

    ``first`` and ``bias`` have shape () or (C,), ``second`` has shape (); ``inside`` is added before rounding.
    """
    product = sums.float() * _along(first, sums)
    if bias is not None:
        product = product + _along(bias, sums)
    return _whole(product * second + inside)


def real_away(sums: torch.Tensor, multiplier: torch.Tensor, inside: int) -> torch.Tensor:
    """Eq. 18: the product in float64, ties away from zero; int64 of the shape of ``sums`` (int64 [N, C, ...]).

    ``multiplier`` is float64 of shape () or (C,); ``inside`` is added before rounding.
    """
    scaled = sums.double() * _along(multiplier, sums) + inside
    whole = scaled.trunc()
    return (whole + ((scaled - whole).abs() >= 0.5) * scaled.sign()).long()


def _whole(real: torch.Tensor) -> torch.Tensor:
    """To the nearest integer, ties to even; whatever is far outside every clamp stays there."""
    return real.round().clamp(-1e6, 1e6).long()


def _along(parameter: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    return parameter.reshape(-1, *[1] * (sums.ndim - 2)) if parameter.ndim else parameter
