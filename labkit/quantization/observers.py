"""What is seen of a tensor while calibration data flows by: constant memory, whatever the number of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.errors import QuantizationError

__all__ = ["MOMENTUM", "Observer", "TensorStatistics"]

MOMENTUM = 0.9  # of the moving averages: the default of MQBench's EMAMinMaxObserver (ema_ratio)
_PIECE = 1 << 22  # numbers that are made float64 at a time: 32 MB, however large the images


@dataclass(frozen=True)
class TensorStatistics:
    """Extremes, mean and (population) standard deviation over ``count`` values of a tensor, in its real units."""

    minimum: float
    maximum: float
    mean: float
    deviation: float
    count: int


class Observer:
    """Collects the `TensorStatistics` of one tensor, batch by batch.

    Mean and deviation are merged pairwise (Chan, Golub and LeVeque 1983), so that many batches lose no precision.

    Parameters
    ----------
    name : of the tensor, for errors
    momentum : of the moving averages of the batches' extremes, in [0, 1)

    Raises
    ------
    QuantizationError
        The momentum is not in [0, 1).
    """

    def __init__(self, name: str, momentum: float = MOMENTUM) -> None:
        if not 0 <= momentum < 1:
            raise QuantizationError(
                f"The momentum of a moving average must be at least 0 and below 1, got {momentum!r}."
            )
        self.name, self.momentum = name, momentum
        self._average: tuple[float, float] | None = None
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0  # sum of squared differences from the mean
        self._minimum = math.inf
        self._maximum = -math.inf

    def update(self, values: NDArray[np.floating]) -> None:
        """Take in one batch, a float array of any shape.

        Raises
        ------
        QuantizationError
            A value is NaN or infinite.
        """
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise QuantizationError(
                f"The activation {self.name!r} holds NaN or infinite values during calibration. Check the images handed in "
                f"and the network's parameters: quantization needs finite numbers."
            )
        flat = values.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            self._merge(flat[start : start + _PIECE].astype(np.float64))
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)
        if self._average is None:
            self._average = low, high
        else:
            kept, new = self.momentum, 1 - self.momentum
            self._average = kept * self._average[0] + new * low, kept * self._average[1] + new * high

    def _merge(self, piece: NDArray[np.float64]) -> None:
        """Take in the mean and deviation of ``piece`` [n], which is overwritten."""
        mean, count = float(piece.mean()), piece.size
        piece -= mean
        squares = float(np.square(piece, out=piece).sum())
        total, gap = self._count + count, mean - self._mean
        self._squares += squares + gap * gap * self._count * count / total
        self._mean += gap * count / total
        self._count = total

    def merged(self, other: Observer) -> Observer:
        """A new one that has seen what this and ``other`` have seen; neither is changed.

        It has no moving averages, because those depend on the order of the batches.
        """
        both = Observer(self.name, self.momentum)
        parts = [part for part in (self, other) if part._count]
        if len(parts) < 2:
            for part in parts:
                both._count, both._mean, both._squares = part._count, part._mean, part._squares
        else:
            both._count, gap = self._count + other._count, other._mean - self._mean
            both._squares = self._squares + (other._squares + gap * gap * self._count * other._count / both._count)
            both._mean = self._mean + gap * other._count / both._count
        both._minimum = min(self._minimum, other._minimum)
        both._maximum = max(self._maximum, other._maximum)
        return both

    def average(self) -> tuple[float, float]:
        """Moving averages (low, high) of the batches' extremes (Jacob et al. 2018, section 3.1).

        The first batch starts them, every further one moves them: m = momentum * m + (1 - momentum) * m_batch.

        Raises
        ------
        QuantizationError
            Nothing has been observed, or only by others that were merged.
        """
        if self._average is None:
            raise QuantizationError(
                f"The activation {self.name!r} has no moving averages: it was not observed in batches."
            )
        return self._average

    def result(self) -> TensorStatistics:
        """The statistics so far.

        Raises
        ------
        QuantizationError
            Nothing has been observed.
        """
        if self._count == 0:
            raise QuantizationError(f"The activation {self.name!r} was never observed: the calibration set is empty.")
        deviation = math.sqrt(self._squares / self._count)
        return TensorStatistics(self._minimum, self._maximum, self._mean, deviation, self._count)
