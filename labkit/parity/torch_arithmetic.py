"""The arithmetic of docs/arithmetic.md once more, in PyTorch float64 and int64, written independently of `labkit.arithmetic`.

Parity certificates compare the two. Nothing of labkit's arithmetic, kernels or conversion is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch

__all__ = [
    "Grid",
    "add_multipliers",
    "affine_parameters",
    "exact_mean",
    "exponentials",
    "first_largest",
    "fixed_point",
    "real_to_integer",
    "requantized",
    "rounded_quotient",
    "softmax",
    "sums_of_means",
    "symmetric_scale",
    "window_areas",
]

Grid = tuple[int, int]


def rounded_quotient(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x / scale`` rounded to float32 and then to an integer, ties to even (eq. 2); float64, the shape of ``x``.

    float64 has more than twice the bits of float32, so rounding its quotient to float32 gives the float32 quotient.
    """
    return torch.round((x.double() / scale.double()).float()).double()


def real_to_integer(x: torch.Tensor, scale: torch.Tensor, zero_point: int, grid: Grid) -> torch.Tensor:
    """Eq. 2 for ``x`` float32 of any shape: int64 inside ``grid``; ``scale`` broadcasts, ``zero_point`` is added."""
    return (rounded_quotient(x, scale) + zero_point).clamp(*grid).long()


def symmetric_scale(bound: torch.Tensor, qmax: int) -> torch.Tensor:
    """Eq. 4: ``bound / qmax`` in float64, rounded once to float32; the shape of ``bound``."""
    return (bound.double() / qmax).float()


def affine_parameters(low: float, high: float, grid: Grid) -> tuple[torch.Tensor, int]:
    """Eq. 5 for the interval [low, high] widened to hold 0: float32 scale (0-d) and the nudged zero point in ``grid``."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = torch.tensor((high - low) / (grid[1] - grid[0]), dtype=torch.float64).float()
    zero_point = round(grid[0] - low / scale.double().item())  # Python rounds ties to even
    return scale, min(max(zero_point, grid[0]), grid[1])


def exact_mean(values: torch.Tensor) -> float:
    """The mean of ``values`` (float64, any shape), from a sum that is rounded once, whatever the order."""
    return math.fsum(values.flatten().tolist()) / values.numel()


def fixed_point(multipliers: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Eqs. 11 and 12 for each of ``multipliers`` in exact rationals: mantissas and exponents, int64 of shape (n,)."""
    pairs = []
    for real in multipliers:
        fraction, exponent = math.frexp(real)
        mantissa = math.floor(Fraction(fraction) * 2**31 + Fraction(1, 2))
        if mantissa == 2**31:
            mantissa, exponent = 2**30, exponent + 1
        pairs.append((mantissa, exponent) if exponent >= -31 else (0, 0))
    return torch.tensor([m for m, _ in pairs]), torch.tensor([e for _, e in pairs])


def add_multipliers(ratios: Sequence[float]) -> tuple[torch.Tensor, int]:
    """Eq. 19: multipliers, int64 of shape (n,), for ``ratios`` over one power of two, and its exponent (the shift)."""
    _, exponent = math.frexp(max(ratios))
    shift = 30 - exponent
    return torch.tensor([math.floor(Fraction(r) * Fraction(2) ** shift + Fraction(1, 2)) for r in ratios]), shift


def requantized(
    sums: torch.Tensor, mantissa: torch.Tensor, exponent: torch.Tensor, zero_point: int, clamp: Grid
) -> torch.Tensor:
    """Eqs. 10 and 13: ``sums`` int64 [N, C, ...] scaled per channel (or by one multiplier), rounded, ties up; int64.

    ``mantissa`` and ``exponent`` have shape () or (C,); ``zero_point`` is added and the result kept in ``clamp``.
    """
    view = [-1] + [1] * (sums.ndim - 2) if mantissa.ndim else []
    shift = (31 - exponent).reshape(view)
    half = torch.ones_like(shift) << (shift - 1)
    return (((sums * mantissa.reshape(view) + half) >> shift) + zero_point).clamp(*clamp)


def exponentials(scale: float) -> torch.Tensor:
    """Eq. 25: ``round(2**30 * exp(-scale * d))`` for d = 0..255, int64 [256].

    exp(scale) is summed as a power series in integers of 400 fractional bits, and raised to each power exactly enough.
    """
    one = 1 << 400
    step = Fraction(scale)
    term, grown, k = (one, 0, 0) if step < 32 else (0, one << 64, 0)
    while term:
        grown += term
        k += 1
        term = term * step.numerator // (step.denominator * k)
    entries, power = [], one
    for _ in range(256):
        entries.append(((one << 31) // power + 1) // 2)
        power = min(power * grown >> 400, one << 64)  # beyond 2**32 every entry is 0
    return torch.tensor(entries)


def softmax(x: torch.Tensor, dim: int, table: torch.Tensor, bits: int, zero_point: int, clamp: Grid) -> torch.Tensor:
    """Eq. 26 along ``dim`` of ``x`` int64 [N, ...] with ``table`` int64 [256]: int64 of the same shape.

    The output's scale is 2**-``bits``; ``zero_point`` is added and the result kept in ``clamp``.
    """
    powers = table[(x.amax(dim, keepdim=True) - x).flatten()].reshape(x.shape)
    total = powers.sum(dim, keepdim=True)
    whole: torch.Tensor = torch.div(powers * 2**bits, total, rounding_mode="floor")
    rest: torch.Tensor = powers * 2**bits - whole * total
    rounded: torch.Tensor = whole + (2 * rest >= total).long() + zero_point
    return rounded.clamp(*clamp)


def first_largest(x: torch.Tensor, dim: int, keepdim: bool) -> torch.Tensor:
    """The lowest index of the largest element along ``dim`` of ``x``, integers [N, ...]; int64, ``keepdim`` as in PyTorch."""
    places = torch.arange(x.shape[dim]).reshape([-1 if axis == dim else 1 for axis in range(x.ndim)])
    return torch.where(x == x.amax(dim, keepdim=True), places, x.shape[dim]).amin(dim, keepdim=keepdim)


def window_areas(pool: Callable[[torch.Tensor], torch.Tensor], size: Sequence[int]) -> torch.Tensor:
    """How many elements each window of the averaging ``pool`` has: int64 of its output's shape, for inputs of ``size``.

    Found out by averaging, along each axis, one image for each index in which only that index is 1.
    """
    areas = torch.ones((), dtype=torch.int64)
    for axis, length in enumerate(size):
        shape = [length if i == axis else 1 for i in range(len(size))]
        images = torch.eye(length, dtype=torch.float64).reshape(length, 1, *shape).expand(length, 1, *size)
        areas = areas * (pool(images)[:, 0] > 0).sum(0)
    return areas


def sums_of_means(means: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """Eq. 27: the sums whose ``means`` float64 [N, C, ...] these are, each multiplied up to the common ``areas``; int64."""
    common = math.lcm(*areas.flatten().tolist())
    return torch.round(means * areas).long() * torch.div(common, areas, rounding_mode="floor")
