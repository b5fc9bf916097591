"""The numbers that the EE219 report prints, and what they say against its own words: found by calculation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["ACCURACY", "PRINTED", "PrintedRange", "Slip", "literal_scale_reach", "slips", "zeros_at_most"]

_Kind = Literal["weights", "activations"]


@dataclass(frozen=True)
class PrintedRange:
    """A row of the report's sections II.B and IV.B.

    kind, layer : of what
    low, high : the actual range
    sigma_low, sigma_high : the "3-sigma range"
    relu : a ReLU comes before the values are observed
    said : how the report says that the 3-sigma range compares with the actual one
    """

    kind: _Kind
    layer: str
    low: float
    high: float
    sigma_low: float
    sigma_high: float
    relu: bool
    said: Literal["larger", "smaller"]

    @property
    def mean(self) -> float:
        """The mean that the 3-sigma range implies: its middle."""
        return (self.sigma_low + self.sigma_high) / 2

    @property
    def deviation(self) -> float:
        """The standard deviation that the 3-sigma range implies: a sixth of its width."""
        return (self.sigma_high - self.sigma_low) / 6

    @property
    def is_inside(self) -> bool:
        """Whether the 3-sigma range lies inside the actual one."""
        return self.low <= self.sigma_low and self.sigma_high <= self.high

    @property
    def width_ratio(self) -> float:
        """The width of the 3-sigma range over that of the actual one."""
        return (self.sigma_high - self.sigma_low) / (self.high - self.low)

    @property
    def is_possible(self) -> bool:
        """Whether any values in the actual range can have this mean and deviation.

        Bhatia and Davis (2000): the variance is at most (high - mean) (mean - low).
        """
        return (
            self.low <= self.mean <= self.high
            and self.deviation**2 <= (self.high - self.mean) * (self.mean - self.low) + 1e-12
        )


_Said = Literal["larger", "smaller"]
_Ends = tuple[float, float]


def _weights(layer: str, actual: _Ends, three_sigma: _Ends, said: _Said = "smaller") -> PrintedRange:
    return PrintedRange("weights", layer, *actual, *three_sigma, False, said)


def _activations(
    layer: str, actual: _Ends, three_sigma: _Ends, relu: bool = True, said: _Said = "smaller"
) -> PrintedRange:
    return PrintedRange("activations", layer, *actual, *three_sigma, relu, said)


PRINTED = (
    _weights("conv1", (-0.6182, 0.5482), (-0.5282, 0.5327), said="larger"),
    _weights("conv2", (-0.3643, 0.4440), (-0.3343, 0.3052)),
    _weights("fc1", (-0.1489, 0.1432), (-0.0728, 0.0701)),
    _weights("fc2", (-0.2099, 0.2348), (-0.1491, 0.1513)),
    _weights("fc3", (-0.5104, 0.5138), (-0.4914, 0.4905)),
    _activations("input", (-1.0, 1.0), (-1.5247382774508076, 1.430113747019963), relu=False, said="larger"),
    _activations("conv1", (0.0, 6.795027732849121), (-1.545606652766442, 2.4861031223104018)),
    _activations("conv2", (0.0, 11.123934745788574), (-1.7025899661791586, 2.4097507332214576)),
    _activations("fc1", (0.0, 11.145042419433594), (1.5848371084738495, 2.1411086499930922)),
    _activations("fc2", (0.0, 7.7190375328063965), (1.9397187614118885, 2.8914816223554594)),
    _activations("fc3", (-8.853764533996582, 13.063966751098633), (-8.289666489254017, 8.252148309951473), relu=False),
)

# By step, per cent of the test images (sections I, III, V and VI).
ACCURACY = {
    "float": 60.88,
    "weights": 60.9,
    "weights and activations": 60.92,
    "float with bias": 60.88,
    "bias unscaled": 57.07,
    "bias quantized": 60.9,
}


@dataclass(frozen=True)
class Slip:
    """Something that the report's own numbers contradict.

    where : section and row
    printed : what stands there
    problem : what speaks against it
    right : what should stand there
    """

    where: str
    printed: str
    problem: str
    right: str


def zeros_at_most(mean: float, deviation: float) -> float:
    """The largest share of values that can be 0 if the values have this ``mean`` and standard ``deviation``, 0..1.

    Let a share p be 0. The others have the mean m / (1 - p), and the mean of the squares is at least that of a constant:
    s^2 + m^2 >= m^2 / (1 - p). So p <= s^2 / (s^2 + m^2), whatever else the values are.
    """
    square = mean**2 + deviation**2
    return deviation**2 / square if square else 1.0


def literal_scale_reach(row: PrintedRange) -> float:
    """The integer that the farthest end of ``row`` becomes if eq. 2's "|max|" is read as the magnitude of the largest value."""
    return max(abs(row.low), abs(row.high)) / (abs(row.high) / 127)


def slips(rows: tuple[PrintedRange, ...] = PRINTED) -> tuple[Slip, ...]:
    """What is wrong with ``rows`` and with what the report says of them, in their order."""
    return tuple(slip for row in rows for slip in _of_row(row))


def _of_row(row: PrintedRange) -> list[Slip]:
    found = []
    where = (
        f"{'II.B' if row.kind == 'weights' else 'IV.B'}, {row.layer} {row.kind if row.layer != 'input' else ''}".strip()
    )
    sigma, actual = _interval(row.sigma_low, row.sigma_high), _interval(row.low, row.high)
    if (row.width_ratio > 1) != (row.said == "larger"):
        found.append(
            Slip(
                where,
                f"the 3-sigma range is {row.said} than the actual one",
                f"{sigma} is {'inside' if row.is_inside else 'not inside'} {actual}: "
                f"{row.width_ratio:.0%} of its width",
                f"it is {'larger' if row.width_ratio > 1 else 'smaller'}",
            )
        )
    restored = _with_sign_restored(row)
    if restored is not None:
        found.append(
            Slip(
                where,
                f"3-sigma range {sigma}",
                f"its middle, the mean, would be {row.mean:.3f} and sigma {row.deviation:.3f}: then at most "
                f"{zeros_at_most(row.mean, row.deviation):.2%} of the values can be 0 after the ReLU, and the "
                f"largest lies {(row.high - row.mean) / row.deviation:.0f} sigma above the mean",
                f"the minus sign of the lower end is lost: {_interval(-row.sigma_low, row.sigma_high)}, mean "
                f"{restored.mean:.3f}, sigma {restored.deviation:.3f}, at most "
                f"{zeros_at_most(restored.mean, restored.deviation):.0%} zeros",
            )
        )
    shown = restored or row
    if row.relu and shown.sigma_low < row.low:
        wasted = (row.low - shown.sigma_low) / (shown.sigma_high - shown.sigma_low)
        found.append(
            Slip(
                where,
                f"the 3-sigma range begins at {shown.sigma_low:.3f}",
                f"no value lies below {row.low:g} after a ReLU; a grid over this range would spend {wasted:.0%} "
                "of its integers there",
                f"cut to what occurs: {_interval(max(row.low, shown.sigma_low), min(row.high, shown.sigma_high))}",
            )
        )
    if row.said == "larger" and row.width_ratio > 1:
        reach, limit = max(-row.sigma_low, row.sigma_high), max(-row.low, row.high)
        found.append(
            Slip(
                where,
                "a good choice for quantization, as it has a larger 3-sigma range",
                f"the wrong way round: with this range only the integers up to {127 * limit / reach:.0f} of 127 "
                f"are used, and a step is {reach / limit - 1:.0%} wider than it need be",
                "a 3-sigma range can only help where it is smaller than the actual range",
            )
        )
    if row.kind == "weights" and literal_scale_reach(row) > 128.5:
        found.append(
            Slip(
                where,
                "eq. 2: scale = |max| / 127",
                f"read as the largest weight, {row.high:g}, it sends {row.low:g} to "
                f"-{literal_scale_reach(row):.0f}, beyond int8",
                "the largest magnitude, max(|min|, |max|) / 127",
            )
        )
    return found


def _with_sign_restored(row: PrintedRange) -> PrintedRange | None:
    """``row`` with a minus before its lower 3-sigma end, if after a ReLU only that leaves room for zeros; else None."""
    if not row.relu or row.sigma_low <= 0:
        return None
    other = PrintedRange(row.kind, row.layer, row.low, row.high, -row.sigma_low, row.sigma_high, row.relu, row.said)
    few, many = zeros_at_most(row.mean, row.deviation), zeros_at_most(other.mean, other.deviation)
    return other if few < 0.05 and many > 0.5 and other.is_possible else None


def _interval(low: float, high: float) -> str:
    digits = 4 if math.isclose(max(abs(low), abs(high)), 0, abs_tol=0.99) else 3
    return f"[{low:.{digits}f}, {high:.{digits}f}]"
