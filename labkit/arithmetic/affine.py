"""Quantized numbers: ``real = scale * (q - zero_point)`` (docs/arithmetic.md, section 1).

`QuantSpec` says which integers may be used, `QParams` how they map to real numbers, `QTensor` holds both with the
integers themselves. Everything is frozen data; the functions below are the only places where a real number becomes an
integer or the reverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import QuantizationError

__all__ = [
    "WIDE_BITS",
    "PerAxis",
    "PerTensor",
    "QParams",
    "QTensor",
    "QuantSpec",
    "dequantize",
    "exact_mean",
    "params_from_range",
    "params_from_values",
    "quantize",
    "quantize_tensor",
]

T = TypeVar("T", bound=np.generic)

WIDE_BITS = 16
_SMALLEST_SCALE = np.finfo(np.float32).tiny  # below it float32 loses bits, and so would every product with the scale


@dataclass(frozen=True)
class PerTensor:
    """One scale and zero point for a whole tensor: both have shape ``()``."""


@dataclass(frozen=True)
class PerAxis:
    """One scale and zero point for each index of ``axis``: both have shape ``(tensor.shape[axis],)``."""

    axis: int


@dataclass(frozen=True)
class QuantSpec:
    """Which integers a quantized tensor may hold (eq. 3).

    bits : 1..8, or 16 (signed and symmetric), which only activations between the layers of a transformer have.
    signed : two's complement (True) or counted from 0 (False).
    symmetric : the zero point is 0, so real 0 is integer 0.
    narrow : a signed grid leaves out its lowest integer, [-127, 127] instead of [-128, 127].
    granularity : `PerTensor` or `PerAxis`.

    One signed bit is the binary grid {-1, +1}, which has no zero: the scale is mean |r| (eq. 6).

    Raises
    ------
    QuantizationError
        ``bits`` is neither 1..8 nor 16, 16 bits are not signed and symmetric, or one signed bit is not both symmetric and narrow.
    """

    bits: int
    signed: bool = True
    symmetric: bool = True
    narrow: bool = False
    granularity: PerTensor | PerAxis = PerTensor()

    def __post_init__(self) -> None:
        is_whole = isinstance(self.bits, int | np.integer) and not isinstance(self.bits, bool)
        if not is_whole or not (1 <= self.bits <= 8 or self.bits == WIDE_BITS):
            raise QuantizationError(
                f"bits must be an integer in 1..8, or {WIDE_BITS} for wide activations, got {self.bits!r}. "
                f"Choose from 1 to 8 bits."
            )
        object.__setattr__(self, "bits", int(self.bits))  # 2**bits overflows in NumPy's int8
        if self.is_wide and not (self.signed and self.symmetric):
            raise QuantizationError(f"{WIDE_BITS} bits are signed and symmetric: QuantSpec({WIDE_BITS}, narrow=True).")
        if self.is_binary and not (self.symmetric and self.narrow):
            raise QuantizationError(
                "One signed bit is the binary grid {-1, +1} and must be symmetric and narrow. "
                "Use QuantSpec(1, narrow=True), or signed=False for the grid {0, 1}."
            )

    @property
    def is_binary(self) -> bool:
        """True for the grid {-1, +1}."""
        return self.signed and self.bits == 1

    @property
    def is_wide(self) -> bool:
        """True for a grid of 16 bits."""
        return self.bits == WIDE_BITS

    @property
    def qmin(self) -> int:
        """The lowest integer of the grid."""
        if not self.signed:
            return 0
        return -self.qmax if self.narrow else -self.qmax - 1

    @property
    def qmax(self) -> int:
        """The highest integer of the grid."""
        if not self.signed:
            return int(2**self.bits - 1)
        return 1 if self.is_binary else int(2 ** (self.bits - 1) - 1)

    @property
    def dtype(self) -> np.dtype[np.int8] | np.dtype[np.uint8] | np.dtype[np.int16]:
        """The NumPy type that holds these integers: int8 or uint8; int16 for 16 bits."""
        if self.is_wide:
            return np.dtype(np.int16)
        return np.dtype(np.int8) if self.signed else np.dtype(np.uint8)

    def __str__(self) -> str:
        sign = "s" if self.signed else "u"
        where = f" per axis {self.granularity.axis}" if isinstance(self.granularity, PerAxis) else ""
        return f"{sign}{self.bits}{where}"


@dataclass(frozen=True, eq=False)
class QParams:
    """``real = scale * (q - zero_point)``.

    scale : float32, shape () per tensor or (C,) per axis; finite, positive and not subnormal.
    zero_point : int32 of the same shape.

    Raises
    ------
    QuantizationError
        The shapes differ, or a scale is not a normal positive number.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, np.float32)
        zero_point = np.asarray(self.zero_point, np.int32)
        if scale.shape != zero_point.shape:
            raise QuantizationError(
                f"Scale and zero point must have one shape, got {scale.shape} and {zero_point.shape}."
            )
        if not np.all(np.isfinite(scale)) or np.any(scale < _SMALLEST_SCALE):
            worst = scale.reshape(-1)[np.argmin(np.where(np.isfinite(scale), scale, -1).reshape(-1))]
            raise QuantizationError(
                f"A scale must be finite and at least {_SMALLEST_SCALE:.3g}, got {worst}. "
                f"The values it was made from are all zero, far too small, or not finite."
            )
        object.__setattr__(self, "scale", frozen_array(scale))
        object.__setattr__(self, "zero_point", frozen_array(zero_point))


@dataclass(frozen=True, eq=False)
class QTensor:
    """Integers with their meaning: ``values`` (dtype ``spec.dtype``, any shape), ``params`` and ``spec``.

    Raises
    ------
    QuantizationError
        A value lies outside the grid of ``spec``, or the dtype or number of scales does not fit.
    """

    values: NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.int16]
    params: QParams
    spec: QuantSpec

    def __post_init__(self) -> None:
        if self.values.dtype != self.spec.dtype:
            raise QuantizationError(f"A {self.spec} tensor holds {self.spec.dtype}, got {self.values.dtype}.")
        if self.values.size:
            low, high = int(self.values.min()), int(self.values.max())
            if low < self.spec.qmin or high > self.spec.qmax:
                raise QuantizationError(
                    f"A {self.spec} tensor holds {self.spec.qmin}..{self.spec.qmax}, got {low}..{high}."
                )
            if self.spec.is_binary and not np.all(self.values):
                raise QuantizationError("A binary tensor holds -1 and +1 only, got 0.")
        _aligned(self.params.scale, self.values.shape, self.spec)
        object.__setattr__(self, "values", frozen_array(self.values))

    def dequantized(self) -> NDArray[np.float32]:
        """The real values that the integers stand for (float32, same shape)."""
        return dequantize(self.values, self.params, self.spec)


def quantize(
    real: ArrayLike, params: QParams, spec: QuantSpec
) -> NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.int16]:
    """Real numbers to integers: ``clip(round(real / scale) + zero_point)`` (eq. 2), binary: the sign (eq. 6).

    The quotient is one float32 division and is rounded half to even, which is what ONNX calls QuantizeLinear.

    Parameters
    ----------
    real : array, any shape
        Taken as float32; infinities are clipped.
    params, spec
        Scale and zero point; the grid. Per-axis parameters are aligned with ``spec.granularity.axis``.

    Returns
    -------
    integers of dtype ``spec.dtype``, the shape of ``real``.

    Raises
    ------
    QuantizationError
        ``real`` holds a NaN, or the number of scales does not fit its shape.
    """
    values = np.asarray(real, np.float32)
    if np.isnan(values).any():
        where = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
        raise QuantizationError(
            f"Cannot quantize NaN: {int(np.isnan(values).sum())} of {values.size} values, the first at index {where}. "
            f"Find where they come from (a diverged training, a division by zero) and remove them."
        )
    if spec.is_binary:
        signs: NDArray[Any] = np.where(values >= 0, 1, -1).astype(spec.dtype)
        return signs
    scale = _aligned(params.scale, values.shape, spec)
    zero_point = _aligned(params.zero_point, values.shape, spec)
    with np.errstate(over="ignore"):  # a quotient beyond float32 is infinite and is clipped like any other
        quotient = np.rint(values / scale).astype(np.float64)
    clipped: NDArray[Any] = np.clip(quotient + zero_point, spec.qmin, spec.qmax).astype(spec.dtype)
    return clipped


def quantize_tensor(real: ArrayLike, params: QParams, spec: QuantSpec) -> QTensor:
    """`quantize` and keep the meaning: the integers of ``real`` (any shape) with ``params`` and ``spec``.

    Raises
    ------
    QuantizationError
        As `quantize`.
    """
    return QTensor(quantize(real, params, spec), params, spec)


def dequantize(values: NDArray[np.integer], params: QParams, spec: QuantSpec) -> NDArray[np.float32]:
    """Integers to real numbers: ``(values - zero_point) * scale`` in float32 (eq. 1), same shape as ``values``.

    ``params`` and ``spec`` are aligned as in `quantize`. The difference is exact; the product is one float32 rounding.
    """
    zero_point = _aligned(params.zero_point, values.shape, spec)
    scale = _aligned(params.scale, values.shape, spec)
    return np.asarray((values.astype(np.int32) - zero_point).astype(np.float32) * scale, np.float32)


def params_from_range(low: ArrayLike, high: ArrayLike, spec: QuantSpec) -> QParams:
    """Scale and zero point for the real interval [low, high] (eqs. 4 and 5; Jacob et al. 2018, section 3).

    Symmetric: ``scale = max(|low|, |high|) / qmax``, zero point 0. Affine: the interval is widened to hold 0,
    ``scale = (high - low) / (qmax - qmin)`` and the zero point is nudged to an integer, so that real 0 is exact.
    Both are computed in float64; the scale is then rounded once to float32 and used as such ever after.

    Parameters
    ----------
    low, high : float arrays of shape () or (C,)
        The interval, or one for each channel.
    spec : the grid. A binary grid needs `params_from_values`.

    Raises
    ------
    QuantizationError
        An end is not finite, low > high, the interval is only {0}, or the grid is binary.
    """
    lows, highs = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if spec.is_binary:
        raise QuantizationError(
            "One signed bit takes its scale from the mean magnitude, not from a range: use 2..8 bits."
        )
    _check_range(lows, highs)
    with np.errstate(all="ignore"):  # whatever over- or underflows here makes a scale that QParams refuses
        return _range_params(lows, highs, spec)


def _range_params(lows: NDArray[np.float64], highs: NDArray[np.float64], spec: QuantSpec) -> QParams:
    if spec.symmetric:
        scale = np.maximum(np.abs(lows), np.abs(highs)) / spec.qmax
        return QParams(_as_scale(scale), np.zeros(scale.shape, np.int32))
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    scale32 = _as_scale((highs - lows) / (spec.qmax - spec.qmin))
    zero_point = np.clip(np.rint(spec.qmin - lows / scale32.astype(np.float64)), spec.qmin, spec.qmax)
    return QParams(scale32, zero_point.astype(np.int32))


def params_from_values(values: ArrayLike, spec: QuantSpec) -> QParams:
    """Scale and zero point from the values themselves: their range, or mean |r| for a binary grid (eq. 6).

    Parameters
    ----------
    values : float array of any shape; reduced over all axes but the one of ``spec.granularity``
    spec : the grid and its granularity.

    Raises
    ------
    QuantizationError
        There are no values, one is not finite, a whole tensor or channel is zero, or there is no such axis.
    """
    reals = np.asarray(values, np.float64)
    if reals.size == 0:
        raise QuantizationError(f"Cannot choose a scale for no values: the array has shape {reals.shape}.")
    if isinstance(spec.granularity, PerAxis) and not 0 <= spec.granularity.axis < reals.ndim:
        raise QuantizationError(f"There is no axis {spec.granularity.axis} in a tensor of shape {reals.shape}.")
    if not np.all(np.isfinite(reals)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(reals))[0])
        raise QuantizationError(f"Cannot choose a scale: the value at index {where} is {reals[where]}.")
    axes = None
    if isinstance(spec.granularity, PerAxis):
        axes = tuple(i for i in range(reals.ndim) if i != spec.granularity.axis)
    if spec.is_binary:
        rows = np.abs(reals).reshape(1, -1) if axes is None else np.abs(np.moveaxis(reals, spec.granularity.axis, 0))  # type: ignore[union-attr]
        means = exact_mean(rows.reshape(len(rows), -1))
        scale = means[0] if axes is None else means
        _check_range(-scale, scale)
        return QParams(_as_scale(scale), np.zeros(scale.shape, np.int32))
    return params_from_range(reals.min(axis=axes), reals.max(axis=axes), spec)


def exact_mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each row of ``rows`` float64 [R, K]; float64 [R].

    Each sum is rounded once, so that any other computation of it, in whatever order, can agree to the last bit.
    """
    return np.array([math.fsum(row.tolist()) / row.size for row in rows])


def _as_scale(scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """One rounding to float32; QParams refuses what became zero, subnormal or infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(scale, np.float32)


def _check_range(low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    if low.shape != high.shape:
        raise QuantizationError(f"The two ends of a range must have one shape, got {low.shape} and {high.shape}.")
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
        raise QuantizationError("A range has an end that is NaN or infinite: look for it in the weights or the data.")
    if np.any(low > high):
        at = int(np.argmax((low > high).reshape(-1)))
        raise QuantizationError(
            f"A range must run from low to high, got [{low.reshape(-1)[at]:g}, {high.reshape(-1)[at]:g}]."
        )
    empty = (low == 0) & (high == 0)
    if np.any(empty):
        if empty.ndim == 0:
            raise QuantizationError(
                "No scale can be chosen: every value is 0. Remove the dead layer, or train it again."
            )
        raise QuantizationError(
            f"No scale can be chosen: channel {int(np.argmax(empty))} holds only zeros. Remove the dead channel (prune it), "
            f"or use one scale for the whole tensor (per_channel=False)."
        )


def _aligned(parameter: NDArray[T], shape: tuple[int, ...], spec: QuantSpec) -> NDArray[T]:
    """``parameter`` shaped so that it broadcasts along the axis of ``spec`` against ``shape``."""
    if isinstance(spec.granularity, PerTensor):
        if parameter.shape != ():
            raise QuantizationError(f"Per tensor there is one scale, got {parameter.shape}.")
        return parameter
    axis = spec.granularity.axis
    if not 0 <= axis < len(shape) or parameter.shape != (shape[axis],):
        raise QuantizationError(
            f"Per axis {axis} of a tensor of shape {shape} there must be one scale for each index, got {parameter.shape}."
        )
    return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])
