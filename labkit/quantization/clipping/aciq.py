"""ACIQ: the clipping that is best if the values follow a bell of known shape.

Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment", section 2.
For values around 0, clipped at +-alpha and rounded to 2^M steps of 2 alpha / 2^M, the expected squared error is

    Laplace, width b:    2 b^2 exp(-alpha / b) + alpha^2 / (3 * 4^M)                        (their eq. 4)
    Gauss, deviation s:  (s^2 + alpha^2) (1 - erf(alpha / (s sqrt 2))) - sqrt(2 / pi) alpha s exp(-alpha^2 / (2 s^2))
                         + alpha^2 / (3 * 4^M)

The first term is what lies beyond alpha, the last the rounding. Setting the derivative to 0 gives alpha / b and alpha / s,
which depend on M alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.clipping.interval import check_grid, cut_to_seen, is_one_sided
from labkit.quantization.histogram import Histogram

__all__ = ["DISTRIBUTIONS", "aciq_range", "gauss_ratio", "laplace_ratio"]

DISTRIBUTIONS = ("laplace", "gauss")


def laplace_ratio(bits: float) -> float:
    """The ratio alpha / b for a Laplace distribution and 2**bits steps: the x with x exp(x) = 3 * 4**bits (Lambert's function).

    >>> [round(laplace_ratio(bits), 2) for bits in (2, 3, 4, 8)]
    [2.83, 3.9, 5.03, 9.9]
    """
    return _root(lambda x: x * math.exp(x) - 3 * 4.0**bits)


def gauss_ratio(bits: float) -> float:
    """The ratio alpha / s for a normal distribution and 2**bits steps.

    The x with x (erfc(x / sqrt 2) + 1 / (3 * 4**bits)) = sqrt(2 / pi) exp(-x^2 / 2).

    >>> [round(gauss_ratio(bits), 2) for bits in (2, 3, 4, 8)]
    [1.71, 2.15, 2.56, 3.92]
    """
    return _root(
        lambda x: x * (math.erfc(x / math.sqrt(2)) + 4.0**-bits / 3) - math.sqrt(2 / math.pi) * math.exp(-x * x / 2)
    )


def aciq_range(histogram: Histogram, spec: QuantSpec, distribution: str = "laplace") -> tuple[float, float]:
    """The range that is best if the values follow ``distribution``, whose width is measured on them.

    Values of both signs lie around their mean (around 0 on a symmetric grid): the range is centre -+ alpha with
    b = E|x - centre| or s^2 = E (x - centre)^2. Values of one sign are taken for a bell around 0 that a ReLU has halved,
    which leaves b = E[x | x > 0] and s^2 = E[x^2 | x > 0]; all steps then lie on one side, as if there were one bit more
    (the paper's table for ReLU is that for M + 1). The published code takes b = E|x - mean| of the tensor with its zeros,
    which is not the b of the formula: see submission2019/cnn-quantization, int_quantizer.py.

    Parameters
    ----------
    histogram : of the tensor; b is read off the centres of its bins
    spec : its grid
    distribution : "laplace" or "gauss"

    Raises
    ------
    QuantizationError
        The distribution is unknown, or the grid is {-1, +1}.
    """
    check_grid(spec)
    if distribution not in DISTRIBUTIONS:
        raise QuantizationError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}.")
    one_sided = is_one_sided(histogram)
    bits = spec.bits + (1 if one_sided and not spec.symmetric else 0)
    centre = 0.0 if one_sided or spec.symmetric else histogram.statistics.mean
    zeros = 0 if one_sided else histogram.zeros
    points, counts = histogram.points()
    distances, total = abs(points - centre), float(counts.sum()) + zeros
    if total == 0:
        return histogram.statistics.minimum, histogram.statistics.maximum
    if distribution == "laplace":
        alpha = laplace_ratio(bits) * (float(counts @ distances) + zeros * abs(centre)) / total
    else:
        alpha = gauss_ratio(bits) * math.sqrt((float(counts @ distances**2) + zeros * centre**2) / total)
    return cut_to_seen(histogram, centre - alpha, centre + alpha)


def _root(rising: Callable[[float], float]) -> float:
    """Where the function ``rising`` passes 0 between 0 and 64, to the last bit, by halving."""
    low, high = 0.0, 64.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high
