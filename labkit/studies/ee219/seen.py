"""The range of a tensor of a trained net, the lab's two ways, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.arithmetic.affine import QuantSpec
from labkit.graph import float_ops
from labkit.quantization.histogram import Histogram, StreamingHistogram
from labkit.studies.ee219.noise import histogram_decibels
from labkit.studies.lab import Lab

__all__ = ["SeenRange", "seen_ranges"]


@dataclass(frozen=True, eq=False)
class SeenRange:
    """A tensor of a trained net.

    kind : "weights" or "activations"
    layer : as the report calls it
    histogram : of its values, with their statistics
    """

    kind: str
    layer: str
    histogram: Histogram

    @property
    def actual(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.histogram.statistics.minimum, self.histogram.statistics.maximum

    @property
    def three_sigma(self) -> tuple[float, float]:
        """Mean -+ 3 standard deviations, not cut to what occurs: as the lab has it."""
        seen = self.histogram.statistics
        return seen.mean - 3 * seen.deviation, seen.mean + 3 * seen.deviation

    @property
    def width_ratio(self) -> float:
        """The width of the 3-sigma range over that of the actual one."""
        return 6 * self.histogram.statistics.deviation / (self.actual[1] - self.actual[0])

    @property
    def zeros(self) -> float:
        """The share of values that are exactly 0."""
        return self.histogram.zeros / self.histogram.statistics.count

    @property
    def beyond(self) -> float:
        """The share of values outside the 3-sigma range, to the precision of a bin."""
        low, high = self.three_sigma
        points, counts = self.histogram.points()
        return float(counts[(points < low) | (points > high)].sum()) / self.histogram.statistics.count

    def decibels(self, bits: int) -> tuple[float, float]:
        """Signal over error in dB on the symmetric grid of ``bits``, over the actual and over the 3-sigma range."""
        spec = QuantSpec(bits, narrow=True)
        return histogram_decibels(self.histogram, *self.actual, spec), histogram_decibels(
            self.histogram, *self.three_sigma, spec
        )


def seen_ranges(lab: Lab) -> tuple[SeenRange, ...]:
    """The weights, then the activations of ``lab``, whose calibration has histograms."""
    found = []
    for node in lab.graph:
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            counted = StreamingHistogram(node.name)
            counted.update(node.op.weight)
            found.append(SeenRange("weights", node.name, counted.result()))
    for name, histogram in lab.calibration.histograms.items():
        found.append(SeenRange("activations", "input" if name in lab.graph.inputs else name, histogram))
    return tuple(found)
