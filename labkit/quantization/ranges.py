"""From what was observed of a tensor to the interval that its integer grid shall cover."""

from __future__ import annotations

from collections.abc import Callable

from labkit.errors import QuantizationError
from labkit.quantization.observers import TensorStatistics

__all__ = ["RANGES", "choose_range", "minmax", "three_sigma"]


def minmax(seen: TensorStatistics) -> tuple[float, float]:
    """All that was ``seen``: [minimum, maximum] (EE219 lab, "actual range")."""
    return seen.minimum, seen.maximum


def three_sigma(seen: TensorStatistics) -> tuple[float, float]:
    """[mean - 3 sigma, mean + 3 sigma] of what was ``seen``, cut to the actual range (EE219 lab, sections II and IV).

    Without the cut a tensor that has passed a ReLU would spend integers on negative values that never occur.
    """
    spread = 3 * seen.deviation
    return max(seen.minimum, seen.mean - spread), min(seen.maximum, seen.mean + spread)


RANGES: dict[str, Callable[[TensorStatistics], tuple[float, float]]] = {"minmax": minmax, "3sigma": three_sigma}


def choose_range(method: str, seen: TensorStatistics, name: str) -> tuple[float, float]:
    """The interval (low, high) that ``method`` chooses for the tensor called ``name``, from what was ``seen`` of it.

    Raises
    ------
    QuantizationError
        The method is unknown, or every value seen was 0.
    """
    if method not in RANGES:
        raise QuantizationError(f"ranges must be one of {', '.join(RANGES)}, got {method!r}.")
    if seen.minimum == seen.maximum == 0:
        raise QuantizationError(
            f"The activation {name!r} was 0 for every calibration image, so no scale can be chosen for it. "
            f"Calibrate on images like those of training; if it stays 0, the layer before it is dead: retrain or remove it."
        )
    return RANGES[method](seen)
