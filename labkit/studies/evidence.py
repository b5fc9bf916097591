"""Whether one way of quantizing is better than another on the same test images, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer
from labkit.studies.lab import Lab
from labkit.studies.study import Settings, mean_and_spread

__all__ = ["Contrast", "contrast", "redrawn", "right_answers", "spread"]

_Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Contrast:
    """A difference of accuracies in percentage points, and its standard error."""

    points: float
    error: float

    @property
    def is_better(self) -> bool:
        """The difference is above 0 by more than two standard errors."""
        return self.points > 2 * self.error

    @property
    def is_worse(self) -> bool:
        """The difference is below 0 by more than two standard errors."""
        return self.points < -2 * self.error

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.error:.2f} points"


def contrast(one: _Right, other: _Right) -> Contrast:
    """How much better ``one`` is than ``other``: both bool [draws, images], right or wrong.

    Images are paired: for each, the mean over the draws of (one - other). The standard error adds that of the mean over images
    and, where there are several draws, that of the mean over draws.
    """
    difference = one.astype(np.float64) - other
    by_image, by_draw = difference.mean(0), difference.mean(1)
    error = by_image.std(ddof=1) / math.sqrt(len(by_image)) if len(by_image) > 1 else 0.0
    if len(by_draw) > 1:
        error = math.hypot(error, by_draw.std(ddof=1) / math.sqrt(len(by_draw)))
    return Contrast(100 * float(difference.mean()), 100 * float(error))


def redrawn(lab: Lab, settings: Settings, seed: int, histograms: bool = True) -> Lab:
    """``lab`` with calibration images drawn with ``seed`` as ``settings`` say, and ``histograms`` of its tensors if wanted."""
    images = lab.data.calibration(settings.calibration, seed)
    return replace(lab, images=images, calibration=calibrate(lab.graph, images, histograms=histograms), seed=seed)


def right_answers(
    lab: Lab, plan: BitPlan, calibration: Calibration, rounded: dict[str, RoundedLayer] | None = None
) -> _Right:
    """Bool [N]: which test images of ``lab`` the integer engine gets right.

    ``plan`` and ``calibration`` give grids and ranges, ``rounded`` weights that were quantized elsewhere.
    """
    net = IntegerNet(convert(lab.graph, calibration, plan, {}, rounded))
    return np.asarray(net.run(lab.x).argmax(1) == lab.labels)


def spread(right: _Right) -> str:
    """Accuracy in per cent, mean ± standard deviation over the draws of ``right`` bool [draws, images]."""
    return mean_and_spread([100 * float(draw.mean()) for draw in right])
