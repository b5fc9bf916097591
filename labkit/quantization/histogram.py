"""`StreamingHistogram`: how often a tensor takes which value, in one pass and constant memory.

A bin is a power of two wide, and bin k holds the magnitudes k * width <= |r| < (k + 1) * width, of positive and of
negative values apart; exact zeros are counted on their own, because they are many after a ReLU and every grid holds
them without error. When a value lies beyond the last bin, the width is doubled and bins are merged in pairs. Since
floor(floor(|r| / width) / 2) = floor(|r| / (2 * width)), that gives the counts that the wider bins would have found
themselves: no count is lost or moved. The counts therefore depend on the values alone, not on how they were divided
into batches or in which order histograms were merged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import InputError, QuantizationError
from labkit.kernels.counting import count_magnitudes
from labkit.quantization.observers import MOMENTUM, Observer, TensorStatistics

__all__ = ["BINS", "Histogram", "StreamingHistogram"]

BINS = (
    4096  # of each sign: more than half of them lie below the largest magnitude, so never fewer than 2,048 are in use
)
_LOWEST_EXPONENT = (
    -1000
)  # of a width; 2**1000 is still a float64, and a value below 2**-1000 may share a bin with others


@dataclass(frozen=True, eq=False)
class Histogram:
    """What a `StreamingHistogram` has seen of one tensor (or of one channel).

    statistics : extremes, mean, deviation and number of the values.
    width : of a bin, a power of two; 0 if every value was 0.
    positive, negative : int64 [B], how many values of that sign have a magnitude in [k * width, (k + 1) * width).
    zeros : how many values are exactly 0.
    """

    statistics: TensorStatistics
    width: float
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    zeros: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "positive", frozen_array(self.positive, np.int64))
        object.__setattr__(self, "negative", frozen_array(self.negative, np.int64))

    def __str__(self) -> str:
        seen = self.statistics
        return f"{seen.count:,} values in [{seen.minimum:g}, {seen.maximum:g}], bins of {self.width:g}, {self.zeros:,} zeros"

    @property
    def bins(self) -> int:
        """How many bins there are for each sign."""
        return len(self.positive)

    @property
    def used(self) -> int:
        """How many bins lie below the largest magnitude, that of it included."""
        filled = np.flatnonzero(self.positive + self.negative)
        return int(filled[-1]) + 1 if filled.size else 0

    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of |r| up to its largest value, int64 [used]; zeros are in the first bin."""
        counts = (self.positive + self.negative)[: max(self.used, 1)]
        counts[0] += self.zeros
        return counts

    def signed(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Counts int64 [2 * used] and edges float64 [2 * used + 1] from negative to positive values, 0 in the middle.

        Zeros are in the first positive bin.
        """
        used = max(self.used, 1)
        counts = np.concatenate([self.negative[:used][::-1], self.positive[:used]])
        counts[used] += self.zeros
        return counts, np.asarray(np.arange(-used, used + 1) * self.width, np.float64)

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Centres float64 [K] and counts int64 [K] of the bins that hold something, the largest magnitudes first.

        Zeros are left out: they have no error on any grid.
        """
        centres: NDArray[np.float64] = np.asarray((np.arange(self.bins) + 0.5) * self.width, np.float64)
        both, counts = (
            np.stack([centres, -centres], 1).reshape(-1),
            np.stack([self.positive, self.negative], 1).reshape(-1),
        )
        filled = np.flatnonzero(counts)[::-1]
        return both[filled], counts[filled]

    def coarsened(self, bins: int) -> Histogram:
        """The same with at most ``bins`` bins of each sign in use, merged in pairs as often as that takes.

        Raises
        ------
        InputError
            ``bins`` is not positive.
        """
        if bins < 1:
            raise InputError(f"A histogram needs at least one bin, got {bins}.")
        times = max(0, math.ceil(math.log2(max(self.used, 1) / bins)))
        return Histogram(
            self.statistics,
            math.ldexp(self.width, times),
            _merged_in_pairs(self.positive, times),
            _merged_in_pairs(self.negative, times),
            self.zeros,
        )


class StreamingHistogram:
    """Collects the `Histogram` of one tensor batch by batch, or one for each index of ``axis``.

    Parameters
    ----------
    name : of the tensor, for errors
    axis : None for the whole tensor, or the axis whose indices are kept apart (1 for the channels of activations
        [N, C, H, W], 0 for the output channels of weights)
    bins : of each sign, a power of two; memory is 16 * bins bytes for each channel
    momentum : of the moving averages in the `Observer` inside

    Raises
    ------
    InputError
        ``bins`` is not a power of two.
    """

    def __init__(self, name: str, axis: int | None = None, bins: int = BINS, momentum: float = MOMENTUM) -> None:
        if bins < 2 or bins & (bins - 1):
            raise InputError(
                f"The number of bins must be a power of two from 2 on, got {bins}: bins are merged in pairs."
            )
        self.name, self.axis, self.bins, self.momentum = name, axis, bins, momentum
        self._rows: list[_Row] = [_Row(name, bins, momentum)] if axis is None else []

    def update(self, values: NDArray[np.floating]) -> None:
        """Take in one batch, a float32 or float64 array of any shape that has the axis.

        Raises
        ------
        QuantizationError
            A value is NaN or infinite.
        InputError
            There is no such axis, or it is not as long as in the batches before.
        """
        if self.axis is None:
            self._rows[0].update(values)
            return
        if not 0 <= self.axis < values.ndim:
            raise InputError(f"{self.name}: there is no axis {self.axis} in values of shape {values.shape}.")
        length = values.shape[self.axis]
        if not self._rows:
            self._rows = [_Row(f"{self.name}, channel {i}", self.bins, self.momentum) for i in range(length)]
        if length != len(self._rows):
            raise InputError(
                f"{self.name}: axis {self.axis} had {len(self._rows)} channels so far, now values of shape {values.shape}."
            )
        for row, part in zip(self._rows, np.moveaxis(values, self.axis, 0), strict=True):
            row.update(part)

    def merged(self, other: StreamingHistogram) -> StreamingHistogram:
        """A new one that has seen what this and ``other`` have seen; neither is changed.

        Counts, width and extremes come out the same whatever the order of merging. The mean and the deviation do so to
        the precision of float64.

        Raises
        ------
        InputError
            The two differ in axis, bins or number of channels.
        """
        mine, theirs = ((h.axis, h.bins, len(h._rows)) for h in (self, other))
        if mine != theirs:
            raise InputError(
                f"{self.name}: only histograms with one axis, number of bins and number of channels can be merged, "
                f"got {mine} and {theirs}."
            )
        both = StreamingHistogram(self.name, self.axis, self.bins, self.momentum)
        both._rows = [a.merged(b) for a, b in zip(self._rows, other._rows, strict=True)]
        return both

    def result(self) -> Histogram:
        """The histogram of the whole tensor so far.

        Raises
        ------
        QuantizationError
            Nothing has been observed.
        InputError
            It was collected by channel.
        """
        if self.axis is not None:
            raise InputError(f"{self.name} has one histogram for each channel of axis {self.axis}: use channels().")
        return self._rows[0].result()

    def channels(self) -> tuple[Histogram, ...]:
        """The histograms so far, one for each channel (or the only one).

        Raises
        ------
        QuantizationError
            Nothing has been observed.
        """
        if not self._rows:
            raise QuantizationError(f"The activation {self.name!r} was never observed: the calibration set is empty.")
        return tuple(row.result() for row in self._rows)

    @property
    def observer(self) -> Observer:
        """The `Observer` inside, where the tensor is taken as a whole.

        Raises
        ------
        InputError
            It was collected by channel.
        """
        if self.axis is not None:
            raise InputError(f"{self.name} has one observer for each channel of axis {self.axis}.")
        return self._rows[0].observer


class _Row:
    """One histogram in the making; ``exponent`` is log2 of the width, None as long as only zeros were seen."""

    def __init__(self, name: str, bins: int, momentum: float) -> None:
        self.observer = Observer(name, momentum)
        self.exponent: int | None = None
        self.counts = np.zeros((2, bins), np.int64)  # of positive and of negative values
        self.zeros = 0

    def update(self, values: NDArray[np.floating]) -> None:
        self.observer.update(values)  # refuses what is not finite
        if values.size == 0:
            return
        flat = np.ascontiguousarray(values).reshape(-1)
        if flat.dtype != np.float32:
            flat = flat.astype(np.float64)
        largest = max(abs(float(flat.min())), abs(float(flat.max())))
        if largest > 0:
            self._widen(_exponent(largest, self.counts.shape[1]))
        factor = 0.0 if self.exponent is None else math.ldexp(1.0, -self.exponent)
        self.zeros += int(count_magnitudes(flat, factor, self.counts.reshape(-1)))

    def _widen(self, exponent: int) -> None:
        """Make bins at least 2**exponent wide."""
        if self.exponent is not None and exponent > self.exponent:
            self.counts = _merged_in_pairs(self.counts, exponent - self.exponent)
        if self.exponent is None or exponent > self.exponent:
            self.exponent = exponent

    def merged(self, other: _Row) -> _Row:
        both = _Row(self.observer.name, self.counts.shape[1], self.observer.momentum)
        both.observer = self.observer.merged(other.observer)
        both.zeros = self.zeros + other.zeros
        known = [row for row in (self, other) if row.exponent is not None]
        if known:
            both.exponent = max(row.exponent for row in known if row.exponent is not None)
        for row in known:
            assert row.exponent is not None and both.exponent is not None
            both.counts += _merged_in_pairs(row.counts, both.exponent - row.exponent)
        return both

    def result(self) -> Histogram:
        statistics = self.observer.result()
        width = 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent)
        return Histogram(statistics, width, self.counts[0], self.counts[1], self.zeros)


def _exponent(largest: float, bins: int) -> int:
    """The least e for which ``bins`` bins of width 2**e reach beyond the magnitude ``largest``."""
    return max(math.frexp(largest)[1] - (bins.bit_length() - 1), _LOWEST_EXPONENT)


def _merged_in_pairs(counts: NDArray[np.int64], times: int) -> NDArray[np.int64]:
    """``counts`` int64 [..., B], B a power of two, with bins 2**times as wide; the freed ones at the end are empty."""
    bins = counts.shape[-1]
    group = 1 << min(times, bins.bit_length() - 1)  # from there on all that is left is the first bin
    merged = np.zeros_like(counts)
    merged[..., : bins // group] = counts.reshape(*counts.shape[:-1], -1, group).sum(-1)
    return merged
