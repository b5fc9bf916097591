"""Operations as other runtimes compute them (docs/arithmetic.md, section 10) once more, in PyTorch.

They are written from the equations, independently of `labkit.kernels`; integers are int64. Each float32 operation is a
PyTorch operation of its own, so that it is rounded by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from labkit.parity.torch_rules import half_away, high_half, shifted_away

__all__ = [
    "add_dequantized",
    "add_float32",
    "border_away_from_zero",
    "border_by_reciprocal",
    "looked_up",
    "mean_float32",
    "means_of_reals",
    "means_of_valid",
    "softmax_by_reciprocal",
    "softmax_fixed_point",
    "softmax_float32",
]

Grid = tuple[int, int]
Padding = tuple[Grid, Grid]
Pair = Sequence[torch.Tensor]


def border_away_from_zero(x: torch.Tensor, scale: torch.Tensor, zero_point: int, grid: Grid) -> torch.Tensor:
    """Eq. 41 for ``x`` float32 of any shape: the float32 quotient by ``scale``, ties away from zero.

    ``zero_point`` is added; int64 inside ``grid``.
    """
    quotient = (x.double() / scale.double()).float().double().clamp(-1024, 1024)
    whole = quotient.trunc()
    rounded = whole + ((quotient - whole).abs() >= 0.5) * quotient.sign()
    return (rounded.long() + zero_point).clamp(*grid)


def border_by_reciprocal(
    x: torch.Tensor, scale: torch.Tensor, zero_point: int, grid: Grid, is_inside: bool
) -> torch.Tensor:
    """Eq. 39 for ``x`` float32 of any shape: ``x / scale + zero_point`` with one rounding to float32, then ties to even.

    Where the zero point is not ``is_inside`` the rounding, the product is rounded to float32 and to an integer before it. The
    result is int64 inside ``grid``.

    The product p of two float32 numbers is exact in float64. Between two integers the float32 sum is their middle where p
    is at most half a float32 step from it; else it lies on the side on which p lies. Integers count from 0.
    """
    reciprocal = torch.ones((), dtype=torch.float32) / scale
    if not is_inside:
        return ((x * reciprocal).round().clamp(-1024, 1024).long() + zero_point).clamp(*grid)
    raised = zero_point + (128 if grid[0] < 0 else 0)
    product = (x.double() * reciprocal.double()).clamp(-1024, 1024)
    below = product.floor()
    middle = below + raised + 0.5  # a multiple of a half, so that the number after it and before it are known
    off = product - (below + 0.5)
    _, exponent = torch.frexp(middle.abs())
    step = torch.ldexp(torch.ones_like(middle), exponent - 24)
    inner = torch.where(middle.abs() == 0.5, step / 2, step)  # towards 0 a power of two has the closer neighbour
    ahead, behind = torch.where(middle > 0, step, inner), torch.where(middle > 0, inner, step)
    lower = (below + raised).long()
    tied = lower + lower % 2
    rounded = torch.where(off > ahead / 2, lower + 1, torch.where(off < -behind / 2, lower, tied))
    return (rounded - (raised - zero_point)).clamp(*grid)


def looked_up(x: torch.Tensor, table: torch.Tensor, lowest: int) -> torch.Tensor:
    """Eq. 36: entry ``x - lowest`` of ``table`` (int64 [256]) for each element of ``x``, int64 of any shape."""
    return table[(x - lowest).flatten()].reshape(x.shape)


def add_float32(q: Pair, multipliers: torch.Tensor, addend: torch.Tensor, clamp: Grid) -> torch.Tensor:
    """Eq. 32 for two tensors ``q`` int64 of one shape; ``multipliers`` float32 [2], ``addend`` float32 []. int64 in ``clamp``."""
    scaled = [part.float() * factor for part, factor in zip(q, multipliers, strict=True)]
    rounded: torch.Tensor = (addend + scaled[0] + scaled[1]).round()
    return rounded.clamp(*clamp).long()


def add_dequantized(
    q: Pair,
    zero_points: Sequence[int],
    scales: torch.Tensor,
    reciprocal: torch.Tensor,
    zero_point: int,
    clamp: Grid,
    fused: int,
    lowest: int,
) -> torch.Tensor:
    """Eq. 37 for two tensors ``q`` int64 [N, C, ...] of one shape.

    Parameters
    ----------
    q, zero_points, scales : of the inputs; ``scales`` float32 [2]
    reciprocal, zero_point, clamp : of the output; the first float32 []
    fused : how many elements of each image, channels last, are dequantized with one rounding
    lowest : of the type of the integers, from which PyTorch counts

    Returns
    -------
    int64 of the same shape
    """
    raised = [(part - lowest, zero - lowest) for part, zero in zip(q, zero_points, strict=True)]
    once, twice = [], []
    for (part, zero), scale in zip(raised, scales, strict=True):
        shift = (scale * zero).double()  # rounded to float32; the double sum below is exact
        once.append((part.double() * scale.double() - shift).float())
        twice.append((part - zero).float() * scale)
    up = zero_point - lowest
    vectors = ((once[0] + once[1]) * reciprocal).round() + up
    others = ((twice[0] + twice[1]) * reciprocal + up).round()
    last = q[0].permute(0, *range(2, q[0].ndim), 1) if q[0].ndim > 2 else q[0]
    place = torch.arange(last[0].numel()).reshape(last.shape[1:])
    place = place.permute(-1, *range(place.ndim - 1)) if place.ndim > 1 else place
    return (torch.where(place < fused, vectors, others) + lowest).clamp(*clamp).long()


def means_of_valid(
    x: torch.Tensor, kernel: Grid, stride: Grid, padding: Padding, clamp: Grid, offset: int
) -> torch.Tensor:
    """Eq. 33 for ``x`` int64 [N, C, H, W] less ``offset``: windows of ``kernel``, ``stride``, ``padding``; int64 in ``clamp``."""
    sums, counts = (_window_sums(part, kernel, stride, padding) for part in (x - offset, torch.ones_like(x)))
    return (half_away(sums, counts) + offset).clamp(*clamp)


def _window_sums(x: torch.Tensor, kernel: Grid, stride: Grid, padding: Padding) -> torch.Tensor:
    ones = torch.ones(x.shape[1], 1, *kernel, dtype=torch.float64)
    padded = F.pad(x.double(), (*padding[1], *padding[0]))
    return F.conv2d(padded, ones, stride=stride, groups=len(ones)).long()


def means_of_reals(
    x: torch.Tensor,
    scales: Pair,
    zero_points: Grid,
    kernel: Grid,
    stride: Grid,
    padding: Padding,
    counts_padding: bool,
    clamp: Grid,
) -> torch.Tensor:
    """Eq. 34 for ``x`` int64 [N, C, H, W]: int64 [N, C, H', W'].

    Parameters
    ----------
    x : the integers
    scales, zero_points : float32 [] and int, of input and output
    kernel, stride, padding : of the windows
    counts_padding : elements outside the image count
    clamp : of the result
    """
    real = F.pad((x - zero_points[0]).float() * scales[0], (*padding[1], *padding[0]))
    images, channels = real.shape[:2]
    windows = F.unfold(real.reshape(-1, 1, *real.shape[2:]), kernel, stride=stride)  # [N C, elements, positions]
    total = torch.zeros_like(windows[:, 0])
    for element in windows.unbind(1):  # row by row, one after the other
        total = total + element
    size = [(real.shape[2 + i] - kernel[i]) // stride[i] + 1 for i in range(2)]
    counts = _window_sums(torch.ones_like(x[:1, :1]), kernel, stride, padding)
    number = torch.full_like(counts, kernel[0] * kernel[1]) if counts_padding else counts
    means = total.reshape(images, channels, *size) / number.float()
    return (means / scales[1] + float(zero_points[1])).round().clamp(*clamp).long()


def mean_float32(
    x: torch.Tensor, dims: Sequence[int], multiplier: torch.Tensor, addend: torch.Tensor, clamp: Grid, offset: int
) -> torch.Tensor:
    """Eq. 42 along ``dims`` of ``x`` int64 [N, ...] less ``offset``, which keep length 1: int64 in ``clamp``.

    ``multiplier`` and ``addend`` are float32 [].
    """
    sums = (x - offset).sum(tuple(dims), keepdim=True).float()
    return ((sums * multiplier + addend).round() + offset).clamp(*clamp).long()


def softmax_float32(
    x: torch.Tensor, dim: int, table: torch.Tensor, factor: torch.Tensor, zero_point: int, clamp: Grid
) -> torch.Tensor:
    """Eq. 40 along ``dim`` of ``x`` int64 [N, ...]; ``table`` float32 [256], ``factor`` float32 [].

    ``zero_point`` is added; int64 of the same shape in ``clamp``.
    """
    powers, total = _powers(x, dim, table)
    return ((powers * factor / total).round() + zero_point).clamp(*clamp).long()


def softmax_by_reciprocal(x: torch.Tensor, dim: int, table: torch.Tensor, zero_point: int, clamp: Grid) -> torch.Tensor:
    """Eq. 43 along ``dim`` of ``x`` int64 [N, ...]; ``table`` float32 [256].

    ``zero_point`` is added; int64 of the same shape in ``clamp``.
    """
    powers, total = _powers(x, dim, table)
    shares = powers * (1 / (total / 256))
    whole = shares.floor()
    return (whole.long() + (shares - whole >= 0.5).long() + zero_point).clamp(*clamp)


def _powers(x: torch.Tensor, dim: int, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exponentials by difference from the largest element along ``dim``, and their float32 sums, one after the other."""
    powers = table[(x.amax(dim, keepdim=True) - x).flatten()].reshape(x.shape)
    total = torch.zeros_like(powers.select(dim, 0))
    for part in powers.unbind(dim):
        total = total + part
    return powers, total.unsqueeze(dim)


def softmax_fixed_point(
    x: torch.Tensor, dim: int, mantissa: int, exponent: int, lowest_difference: int, zero_point: int, clamp: Grid
) -> torch.Tensor:
    """Eq. 35 along ``dim`` of ``x`` int64 [N, ...]: gemmlowp's fixed point from its definition. int64 of the same shape.

    A ``mantissa`` and an ``exponent`` take a difference to its exponent; those below ``lowest_difference`` have no share.
    ``zero_point`` is added and the result kept in ``clamp``.
    """
    difference = x - x.amax(dim, keepdim=True)
    counts = difference >= lowest_difference
    scaled = high_half(difference.clamp(min=lowest_difference) << exponent, torch.tensor(mantissa))
    powers = _exponential(scaled)
    total = torch.where(counts, shifted_away(powers, 12), 0).sum(dim, keepdim=True)
    _, length = torch.frexp(total.double())  # 2**(length - 1) <= total < 2**length
    zeros = 32 - length.long()
    inverse = _one_over_one_plus((total << zeros) - 2**31)
    shares = shifted_away(high_half(inverse, powers), 35 - zeros)
    return torch.where(counts, shares + zero_point, zero_point).clamp(*clamp)


def _exponential(a: torch.Tensor) -> torch.Tensor:
    """e**(a / 2**26) times 2**31 for int64 ``a`` in -2**31 .. 0, by gemmlowp's steps."""
    quarter = 2**24
    rest = a % quarter - quarter  # -1/4 up to below 0
    x = rest * 32 + 2**28  # with 31 fractional bits, about -1/8
    square = high_half(x, x)
    third_power, fourth_power = high_half(square, x), high_half(square, square)
    third = high_half(shifted_away(fourth_power, 2) + third_power, torch.tensor(715827883))
    beyond = x + shifted_away(third + square, 1)
    result = 1895147668 + high_half(beyond, torch.tensor(1895147668))
    quarters = torch.div(rest - a, quarter, rounding_mode="floor")
    for bit, factor in enumerate((1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)):
        is_set = torch.div(quarters, 2**bit, rounding_mode="floor") % 2 == 1
        result = torch.where(is_set, high_half(result, torch.tensor(factor)), result)
    return torch.where(a == 0, 2**31 - 1, result)


def _one_over_one_plus(x: torch.Tensor) -> torch.Tensor:
    """2**31 / (1 + x / 2**31) for int64 ``x`` in 0 .. 2**31 - 1, by gemmlowp's three Newton steps."""
    half = torch.div(x + 2**31, 2, rounding_mode="floor")
    guess = 1515870810 + high_half(half, torch.tensor(-1010580540))
    for _ in range(3):
        missing = 2**29 - high_half(half, guess)
        guess = guess + (high_half(guess, missing) * 4).clamp(-(2**31), 2**31 - 1)
    return (guess * 2).clamp(-(2**31), 2**31 - 1)
