"""The clipping methods by name, and one function that calls any of them and says for which tensor it failed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.clipping.aciq import aciq_range
from labkit.quantization.clipping.kl import kl_range
from labkit.quantization.clipping.lp import l24_range, mse_range
from labkit.quantization.clipping.percentile import percentile_range
from labkit.quantization.histogram import Histogram

__all__ = ["CLIPPING", "check_options", "clipped_range"]

CLIPPING: dict[str, Callable[..., tuple[float, float]]] = {
    "percentile": percentile_range,
    "mse": mse_range,
    "l2.4": l24_range,
    "kl": kl_range,
    "aciq": aciq_range,
}


def check_options(method: str, options: dict[str, Any]) -> None:
    """Refuse ``options`` that the clipping ``method`` does not have.

    Raises
    ------
    QuantizationError
        The method is unknown, or has no such option.
    """
    if method not in CLIPPING:
        raise QuantizationError(f"A clipping method must be one of {', '.join(CLIPPING)}, got {method!r}.")
    known = list(inspect.signature(CLIPPING[method]).parameters)[2:]
    if extra := [name for name in options if name not in known]:
        raise QuantizationError(f"Ranges by {method!r} take the options {', '.join(known)}, got {extra[0]!r}.")


def clipped_range(
    method: str, histogram: Histogram, spec: QuantSpec, name: str = "", **options: Any
) -> tuple[float, float]:
    """The interval (low, high) that ``method`` chooses.

    Parameters
    ----------
    method : "percentile", "mse", "l2.4", "kl" or "aciq"
    histogram : of the tensor
    spec : its grid
    name : of the tensor, for errors
    options : of the method: percentile; steps; variant; distribution

    Raises
    ------
    QuantizationError
        The method or an option is unknown or out of range.
    """
    check_options(method, options)
    try:
        return CLIPPING[method](histogram, spec, **options)
    except QuantizationError as error:
        raise QuantizationError(f"{name}, ranges by {method}: {error}" if name else str(error)) from error
