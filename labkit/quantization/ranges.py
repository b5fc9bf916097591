"""From what was observed of a tensor to the interval that its integer grid shall cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.clipping.methods import CLIPPING, clipped_range
from labkit.quantization.histogram import Histogram
from labkit.quantization.observers import TensorStatistics

__all__ = ["ALL_RANGES", "RANGES", "choose_from", "choose_range", "minmax", "three_sigma"]


def minmax(seen: TensorStatistics) -> tuple[float, float]:
    """All that was ``seen``: [minimum, maximum] (EE219 lab, "actual range")."""
    return seen.minimum, seen.maximum


def three_sigma(seen: TensorStatistics) -> tuple[float, float]:
    """[mean - 3 sigma, mean + 3 sigma] of what was ``seen``, cut to the actual range (EE219 lab, sections II and IV).

    Without the cut a tensor that has passed a ReLU would spend integers on negative values that never occur.
    """
    spread = 3 * seen.deviation
    return max(seen.minimum, seen.mean - spread), min(seen.maximum, seen.mean + spread)


# Those that depend on the statistics alone, not on the bits.
RANGES: dict[str, Callable[[TensorStatistics], tuple[float, float]]] = {"minmax": minmax, "3sigma": three_sigma}
ALL_RANGES = (*RANGES, "ema", *CLIPPING, "lapq")


def choose_range(method: str, seen: TensorStatistics, name: str) -> tuple[float, float]:
    """The interval (low, high) that ``method`` chooses for the tensor called ``name``, from what was ``seen`` of it.

    Raises
    ------
    QuantizationError
        The method is unknown, or every value seen was 0.
    """
    if method not in RANGES:
        raise QuantizationError(f"ranges must be one of {', '.join(RANGES)}, got {method!r}.")
    _refuse_zeros(seen, name)
    return RANGES[method](seen)


def choose_from(
    method: str,
    name: str,
    seen: TensorStatistics,
    average: tuple[float, float] | None,
    histogram: Histogram | None,
    spec: QuantSpec,
    **options: Any,
) -> tuple[float, float]:
    """The interval (low, high) that any method but "lapq" chooses for one tensor and its grid.

    Parameters
    ----------
    method : one of ALL_RANGES, but "lapq", which chooses for all tensors together
    name : of the tensor, for errors
    seen : its statistics
    average : its moving averages (low, high), which "ema" takes
    histogram : which the methods that clip look at
    spec : its grid
    options : of the method

    Raises
    ------
    QuantizationError
        The method or an option is unknown, what it looks at was not collected, or every value seen was 0.
    """
    if method in CLIPPING:
        _refuse_zeros(seen, name)
        if histogram is None:
            raise QuantizationError(
                f"Ranges by {method!r} look at histograms, and none was collected for {name!r} (a saved calibration has "
                f"none). Calibrate again with histograms=True."
            )
        return clipped_range(method, histogram, spec, name, **options)
    if options:
        raise QuantizationError(f"Ranges by {method!r} take no options, got {', '.join(options)}.")
    if method != "ema":
        return choose_range(method, seen, name)
    _refuse_zeros(seen, name)
    if average is None:
        raise QuantizationError(
            f"Ranges by 'ema' are moving averages over batches, and there are none for {name!r} (a saved calibration has "
            f"none). Calibrate again."
        )
    return average


def _refuse_zeros(seen: TensorStatistics, name: str) -> None:
    if seen.minimum == seen.maximum == 0:
        raise QuantizationError(
            f"The activation {name!r} was 0 for every calibration image, so no scale can be chosen for it. "
            f"Calibrate on images like those of training; if it stays 0, the layer before it is dead: retrain or remove it."
        )
