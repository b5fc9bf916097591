"""The operations of transformers (docs/arithmetic.md, section 11) once more, in PyTorch int64, written from the equations.

Nothing of labkit's arithmetic, kernels or conversion is imported here. Numbers that depend on scales are derived in float64.
"""

from __future__ import annotations

import math

import torch

__all__ = [
    "exp_numbers",
    "gelu",
    "gelu_numbers",
    "gelu_table",
    "layer_norm",
    "layer_norm_numbers",
    "looked_up_rows",
    "matrix_product",
    "polynomial_shares",
    "whole_mean",
    "whole_root",
]

_EXP_A, _EXP_B, _EXP_LN_2 = 0.35815147, 0.96963238, 0.6931
_ERF_A, _ERF_B, _ERF_ROOT = -0.2888, -1.769, 1.4142
_LONGEST_SHIFT, _LONGEST_SUM = 45, 2.0**61  # eq. 50
_LAST_SHIFT = 62  # beyond it an exponential counts as 0


def exp_numbers(scale: float) -> tuple[int, int, int, float]:
    """Eq. 46 for scores of ``scale``: l, floor(b / (a S)), floor(1 / (a S**2)), and the real a S**2 that P is a multiple of."""
    linear, constant = _EXP_B / _EXP_A / scale, 1 / _EXP_A / (scale * scale)
    return math.floor(-_EXP_LN_2 / scale), math.floor(linear), math.floor(constant), _EXP_A * (scale * scale)


def gelu_numbers(scale: float) -> tuple[int, int, int, float]:
    """Eq. 48 for an input of ``scale``: b_q, c_q, o, and the real that the product q (-L - o) is a multiple of."""
    step = scale / _ERF_ROOT
    shifted = step * step * _ERF_A * 2**14
    constant = 1 / _ERF_A / (step * step)
    return math.floor(_ERF_B / step), math.floor(constant), math.floor(1 / shifted), -(scale * shifted / 2)


def gelu_table(scale: torch.Tensor, zero_point: int, signed: bool, target: torch.Tensor) -> torch.Tensor:
    """Eq. 36 for a GELU of 8 bits: x times the normal distribution function in steps of ``target``, ties up; int64 [256].

    ``scale``, ``zero_point`` and ``signed`` are of the input, whose integers run from -128 or from 0; ``scale`` and ``target``
    are float32 []. The zero point of the output is not yet added.
    """
    x = (torch.arange(256) - (128 if signed else 0) - zero_point).double() * scale.double()
    return torch.floor(x * torch.special.ndtr(x) / target.double() + 0.5).long()


def layer_norm_numbers(gamma: torch.Tensor, beta: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Eq. 50 for ``gamma`` and ``beta``, float32 [D], and an output of ``scale``: m and B, int64 [D], and the shift s.

    Raises
    ------
    ValueError
        No shift leaves enough bits.
    """
    gains = gamma.double() * math.sqrt(len(gamma)) / 2.0**30 / scale
    offsets = beta.double() / scale
    for shift in range(_LONGEST_SHIFT, 0, -1):
        multipliers, addends = torch.round(gains * 2.0**shift), torch.round(offsets * 2.0**shift)
        largest = multipliers.abs() * 2.0**30 + addends.abs()
        if bool((multipliers.abs() < 2.0**31).all() and (largest < _LONGEST_SUM).all()):
            return multipliers.long(), addends.long(), shift
    raise ValueError(f"gamma or beta is too large for an output scale of {scale:.3g}")


def looked_up_rows(
    indices: torch.Tensor, table: torch.Tensor, mantissa: torch.Tensor, exponent: torch.Tensor, clamp: tuple[int, int]
) -> torch.Tensor:
    """Eq. 44: for ``indices`` int64 [N, T] the rows of ``table`` [V, D], integers, at the output's scale; int64 [N, D, T].

    ``mantissa`` and ``exponent``, int64 [V] or [], are the multipliers of the rows; the result is kept in ``clamp``.
    """
    used, multiplier = table[indices].long(), mantissa.expand(len(table))[indices].unsqueeze(-1)
    shift = (31 - exponent.expand(len(table))[indices]).unsqueeze(-1)
    half = torch.ones_like(shift) << (shift - 1)
    return ((used * multiplier + half) >> shift).clamp(*clamp).movedim(-1, 1)


def matrix_product(a: torch.Tensor, b: torch.Tensor, transpose_a: bool, transpose_b: bool) -> torch.Tensor:
    """The sums of eq. 45 of integers ``a`` and ``b``, int64 [N, B, ., .] with zero points subtracted; int64 [N, B, m, n].

    ``transpose_a`` and ``transpose_b`` say that they are given as [N, B, k, m] and [N, B, n, k]. Computed in float64, which is
    exact: partial sums stay within int32.
    """
    left, right = (x.transpose(-1, -2) if turned else x for x, turned in ((a, transpose_a), (b, transpose_b)))
    return torch.matmul(left.double(), right.double()).long()


def polynomial_shares(
    x: torch.Tensor,
    mask: torch.Tensor | None,
    numbers: tuple[int, int, int],
    multiplier: tuple[int, int],
    bits: int,
) -> torch.Tensor:
    """Eqs. 46 and 47 along the last axis of ``x``, int64 [N, ..., n]; int64 of the same shape, 0..2**bits - 1.

    Parameters
    ----------
    x : scores
    mask : bool [N, n], True for what takes part, or None
    numbers : l and the linear and the constant coefficient of eq. 46
    multiplier : mantissa and exponent (m, and s = 31 - exponent)
    bits : of the shares
    """
    ln2, linear, constant = numbers
    seen = torch.ones_like(x, dtype=torch.bool)
    if mask is not None:
        seen = mask.reshape(len(mask), *[1] * (x.ndim - 2), -1).expand_as(x)
    largest = x.masked_fill(~seen, torch.iinfo(torch.int64).min).amax(-1, keepdim=True)
    distance = torch.where(seen, largest - x, 0).clamp(max=-30 * ln2)  # how far below the largest, 0 or more
    halvings: torch.Tensor = torch.div(distance, -ln2, rounding_mode="floor")
    rest = -torch.remainder(distance, -ln2)
    parabola = (rest * rest + linear * rest + constant).clamp(min=0)
    mantissa, exponent = multiplier
    shift = halvings + (31 - exponent)
    step = torch.ones_like(shift) << shift.clamp(max=_LAST_SHIFT)
    rounded: torch.Tensor = torch.div(parabola * mantissa + (step >> 1), step, rounding_mode="floor")
    powers = rounded.masked_fill(~seen | (shift > _LAST_SHIFT), 0)
    total = powers.sum(-1, keepdim=True).clamp(min=1)
    reciprocal: torch.Tensor = torch.div(torch.full_like(total, 2**32), total, rounding_mode="floor")
    unit = 2 ** (32 - bits)
    share: torch.Tensor = torch.div(powers * reciprocal + unit // 2, unit, rounding_mode="floor")
    return share.clamp(max=2**bits - 1)


def gelu(x: torch.Tensor, b: int, c: int, one: int) -> torch.Tensor:
    """The product q (-L - o) of eq. 48 for integers ``x``, int64 of any shape, still to be multiplied by M.

    ``b``, ``c`` and ``one`` are b_q, c_q and o.
    """
    reach = -b
    left = (reach - x.abs()).clamp(min=0)  # how far |x| is from where the parabola ends
    parabola = x.sign() * (left * left + c)
    erf: torch.Tensor = torch.div(parabola, 2**14, rounding_mode="floor")
    return -x * (erf + one)


def layer_norm(
    x: torch.Tensor, multipliers: torch.Tensor, addends: torch.Tensor, shift: int, clamp: tuple[int, int], epsilon: int
) -> torch.Tensor:
    """Eqs. 49 and 50 along axis 1 of ``x``, int64 [N, D, T]; int64 of the same shape.

    ``multipliers`` and ``addends`` are int64 [D], ``shift`` is theirs; the result is kept in ``clamp``.
    ``epsilon`` is added to the sum of squares.
    """
    y = x - whole_mean(x, 1)
    deviation = whole_root((y * y).sum(1, keepdim=True) + epsilon).clamp(min=1)
    reciprocal: torch.Tensor = torch.div(torch.full_like(deviation, 2**31), deviation, rounding_mode="floor")
    normalised: torch.Tensor = torch.div(y * reciprocal, 2, rounding_mode="floor")
    sums = normalised * multipliers[:, None] + addends[:, None] + 2 ** (shift - 1)
    rounded: torch.Tensor = torch.div(sums, 2**shift, rounding_mode="floor")
    return rounded.clamp(*clamp)


def whole_mean(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The mean of ``x``, int64 of any shape, along ``dim``, which stays with the length 1: to nearest, ties to even; int64."""
    count = x.shape[dim]
    total = x.sum(dim, keepdim=True)
    down: torch.Tensor = torch.div(total, count, rounding_mode="floor")
    twice = 2 * (total - down * count)  # of what is left, 0..2 (count - 1)
    odd = torch.remainder(down, 2) == 1
    return torch.where((twice > count) | ((twice == count) & odd), down + 1, down)


def whole_root(x: torch.Tensor) -> torch.Tensor:
    """``floor(sqrt(x))`` of integers 0..2**62, int64 of any shape: the float64 root, then corrected by what its square says."""
    root = x.double().sqrt().long()  # off by one at most, as float64 rounds x and its root
    root = root - (root * root > x).long()
    return root + ((root + 1) * (root + 1) <= x).long()
