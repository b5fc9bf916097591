"""What all clipping methods share: which side of 0 a tensor lies on, and intervals cut to what was seen."""

from __future__ import annotations

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.histogram import Histogram

__all__ = ["check_grid", "cut_to_seen", "is_one_sided", "magnitude_levels"]


def is_one_sided(histogram: Histogram) -> bool:
    """True if ``histogram`` has no negative or no positive values, as after a ReLU."""
    return histogram.statistics.minimum >= 0 or histogram.statistics.maximum <= 0


def magnitude_levels(histogram: Histogram, spec: QuantSpec) -> int:
    """How many integers of ``spec`` stand for the magnitudes of the values in ``histogram``.

    A signed grid, or one that values of both signs share, has 2**(bits - 1) of them: 128 at 8 bits, the number in the
    TensorRT slides. An unsigned grid over values of one sign has 2**bits (NVIDIA's pytorch-quantization, calib/histogram.py:
    ``1 << (num_bits - 1 + unsigned)``).
    """
    return int(2 ** (spec.bits - (0 if is_one_sided(histogram) and not spec.symmetric else 1)))


def cut_to_seen(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """[``low``, ``high``] without what lies beyond the values in ``histogram``.

    An affine grid then wastes no integers on values that never occur; a symmetric one keeps its scale, which depends on
    the end that is farther from 0. Where nothing is left, the nearest value that was seen makes the interval.
    """
    seen = histogram.statistics
    low, high = max(seen.minimum, low), min(seen.maximum, high)
    if low > high:  # all values lie beyond one end
        low = high = seen.minimum if low == seen.minimum else seen.maximum
    return low, high


def check_grid(spec: QuantSpec) -> None:
    """Refuse a ``spec`` whose scale does not follow from a range.

    Raises
    ------
    QuantizationError
        The grid is {-1, +1}.
    """
    if spec.is_binary:
        raise QuantizationError(
            "One signed bit takes its scale from the mean magnitude, not from a range: leave its range at minmax."
        )
