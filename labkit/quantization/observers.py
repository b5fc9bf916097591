"""What is seen of a tensor while calibration data flows by: constant memory, whatever the number of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.errors import QuantizationError

__all__ = ["Observer", "TensorStatistics"]


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
    """

    def __init__(self, name: str) -> None:
        self.name = name
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
        batch = values.astype(np.float64)
        low, high = float(batch.min()), float(batch.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise QuantizationError(
                f"The activation {self.name!r} holds NaN or infinite values during calibration. Check the images handed in "
                f"and the network's parameters: quantization needs finite numbers."
            )
        mean, count = float(batch.mean()), batch.size
        squares = float(np.square(batch - mean).sum())
        total, gap = self._count + count, mean - self._mean
        self._squares += squares + gap * gap * self._count * count / total
        self._mean += gap * count / total
        self._count = total
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)

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
