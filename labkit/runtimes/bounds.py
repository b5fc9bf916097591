"""The real bounds of a fused activation, read from a clamp, and what a runtime's own rounding makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.arithmetic.requantize import round_half_away
from labkit.graph.ir import Tensor

__all__ = ["RealBounds", "clamp_away", "clamp_even", "clamp_inside", "is_certain", "real_bounds"]

RealBounds = tuple[float | None, float | None]
"""Lowest and highest real number that a fused activation lets through: (0, None) for a ReLU, (0, 6), (-1, 1); None: no bound."""

_KNOWN: tuple[RealBounds, ...] = ((None, None), (0.0, None), (0.0, 6.0), (-1.0, 1.0))


def clamp_even(bounds: RealBounds, output: Tensor) -> tuple[int, int]:
    """The clamp for ``bounds`` on the grid of ``output``, the float32 quotient rounded half to even (labkit, ONNX)."""
    return _clamp(bounds, output, lambda quotient: int(np.rint(quotient)))


def clamp_away(bounds: RealBounds, output: Tensor) -> tuple[int, int]:
    """The clamp for ``bounds`` on the grid of ``output``, the float32 quotient rounded half away from zero (LiteRT)."""
    return _clamp(bounds, output, lambda quotient: int(round_half_away(quotient)))


def clamp_inside(bounds: RealBounds, output: Tensor) -> tuple[int, int]:
    """The clamp for ``bounds`` on the grid of ``output``, quotient and int8 zero point rounded to even together (XNNPACK)."""
    offset = 0 if output.quantized[0].signed else 128
    zero_point = int(output.quantized[1].zero_point)
    inside = np.float32(zero_point - offset)
    return _clamp(bounds, output, lambda quotient: int(np.rint(np.float32(quotient) + inside)) + offset - zero_point)


def is_certain(bounds: RealBounds, output: Tensor) -> bool:
    """Whether every runtime's clamp for ``bounds`` on the grid of ``output`` can be told from labkit's.

    It cannot where a tie lets two activations have one clamp of labkit's and differ in another's.
    """
    found = real_bounds(clamp_even(bounds, output), output)
    return all(clamp(found, output) == clamp(bounds, output) for clamp in (clamp_even, clamp_away, clamp_inside))


def real_bounds(clamp: tuple[int, int], output: Tensor) -> RealBounds:
    """The bounds of an activation for which ``clamp`` stands on the grid of ``output``.

    A clamp of the whole grid has none, and neither has one that no known activation gives: (None, None) then stands for
    the grid of fewer bits that the tensor has.
    """
    for bounds in _KNOWN:
        if clamp in (clamp_even(bounds, output), clamp_away(bounds, output), clamp_inside(bounds, output)):
            return bounds
    return None, None


def _clamp(bounds: RealBounds, output: Tensor, rounded: Callable[[Any], int]) -> tuple[int, int]:
    spec, params = output.quantized
    ends = []
    for bound, limit in zip(bounds, (spec.qmin, spec.qmax), strict=True):
        if bound is None:
            ends.append(limit)
            continue
        quotient = np.clip(np.float32(bound) / params.scale, -(2**17), 2**17)
        ends.append(int(np.clip(int(params.zero_point) + rounded(quotient), spec.qmin, spec.qmax)))
    return ends[0], ends[1]
