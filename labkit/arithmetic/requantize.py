"""From a 32-bit accumulator back to a few bits, under a rounding rule that has a name (docs/arithmetic.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import LARGEST_EXPONENT, FixedPointMultiplier
from labkit.arithmetic.frozen import frozen_array
from labkit.errors import BoundError, QuantizationError

__all__ = ["Requantizer", "RoundingRule", "round_half_away", "scale_and_round"]

T = TypeVar("T", bound=np.generic)

_INT32 = np.iinfo(np.int32)
FARTHEST = np.float32(
    2.0**62
)  # a float32 number that int64 holds, zero point added; no finite rule without a bias gets there


class RoundingRule(Enum):
    """How ``multiplier * accumulator`` becomes an integer: equations 13 to 18 of docs/arithmetic.md in this order, and 29.

    SINGLE : one rounding in int64, ties towards +infinity. The default of labkit.
    GEMMLOWP : two roundings, ties of the second away from zero (gemmlowp; the reference kernels of LiteRT).
    GEMMLOWP_UP : two roundings, ties towards +infinity in both (ruy, LiteRT's optimised kernels).
    DYADIC : one rounding in int64, ties to even (HAWQ-V3's b / 2**c, exact).
    FLOAT32_EVEN : product in float32, ties to even (ONNX Runtime, FBGEMM, QNNPACK, XNNPACK).
    FLOAT64_AWAY : product in float64, ties away from zero (LiteRT's reference fully-connected).
    FLOAT32_TWICE : two products in float32, ties to even (oneDNN): eq. 29.
    """

    SINGLE = "single"
    GEMMLOWP = "gemmlowp"
    GEMMLOWP_UP = "gemmlowp_up"
    DYADIC = "dyadic"
    FLOAT32_EVEN = "float32_even"
    FLOAT64_AWAY = "float64_away"
    FLOAT32_TWICE = "float32_twice"

    @property
    def is_integer_only(self) -> bool:
        """True when no floating-point operation is needed at run time."""
        return self not in (RoundingRule.FLOAT32_EVEN, RoundingRule.FLOAT64_AWAY, RoundingRule.FLOAT32_TWICE)


@dataclass(frozen=True, eq=False)
class Requantizer:
    """``q = clamp(round(multiplier * accumulator) + zero_point)`` under a named rule (eq. 10).

    rule : the `RoundingRule`.
    multiplier : `FixedPointMultiplier` for the integer rules; float32 or float64 array (shape () or (C,)) for the float ones.
    zero_point : of the output, an int in -128..255.
    clamp : lowest and highest output, zero point included; a fused ReLU raises the lowest.
    zero_point_inside : the zero point is added before rounding. Matters only for ties of the float rules.
    bias : float32 (shape () or (C,)) or None. FLOAT32_EVEN adds it to the sum before multiplying (FBGEMM, eq. 28),
        FLOAT32_TWICE to the first product (oneDNN, eq. 29); no other rule has one.
    second : float32 array of shape (), the second factor of FLOAT32_TWICE; None for the other rules.

    Raises
    ------
    QuantizationError
        The multiplier's form does not fit the rule or its value is not in (0, 2**30), the clamp is empty or leaves 16 bits, or
        the bias or the second factor belongs to another rule or is not finite.
    """

    rule: RoundingRule
    multiplier: FixedPointMultiplier | NDArray[np.float32] | NDArray[np.float64]
    zero_point: int
    clamp: tuple[int, int]
    zero_point_inside: bool = False
    bias: NDArray[np.float32] | None = field(default=None, metadata={"since": 4})  # version of .lab files
    second: NDArray[np.float32] | None = field(default=None, metadata={"since": 4})

    def __post_init__(self) -> None:
        if not isinstance(self.rule, RoundingRule):
            raise QuantizationError(f"A rule must be a RoundingRule, got {self.rule!r}.")
        floats = {
            RoundingRule.FLOAT32_EVEN: "float32 array",
            RoundingRule.FLOAT64_AWAY: "float64 array",
            RoundingRule.FLOAT32_TWICE: "float32 array",
        }
        wanted = floats.get(self.rule, "FixedPointMultiplier")
        given = type(self.multiplier).__name__
        if isinstance(self.multiplier, np.ndarray | np.generic):
            given = f"{self.multiplier.dtype} array"
        if given != wanted:
            raise QuantizationError(f"The rule {self.rule.name} takes a multiplier of {wanted}, got {given}.")
        if not -128 <= self.zero_point <= 255:
            raise QuantizationError(f"A zero point must be in -128..255, got {self.zero_point}.")
        if not isinstance(self.multiplier, FixedPointMultiplier) and not np.all(
            (self.multiplier > 0) & (self.multiplier < 2.0**LARGEST_EXPONENT)
        ):
            raise QuantizationError(f"Multipliers must be positive and below 2**{LARGEST_EXPONENT}. Check the scales.")
        if not isinstance(self.multiplier, FixedPointMultiplier):
            object.__setattr__(self, "multiplier", frozen_array(self.multiplier))
        self._check_real_parts()
        low, high = self.clamp
        if not -(2**15) <= low <= high < 2**15:
            raise QuantizationError(f"A clamp must run upwards inside -32768..32767, got {low}..{high}.")

    def _check_real_parts(self) -> None:
        if (self.second is not None) != (self.rule is RoundingRule.FLOAT32_TWICE):
            raise QuantizationError(
                f"The rule FLOAT32_TWICE, and no other, has a second factor; {self.rule.name} is named."
            )
        if self.bias is not None and self.rule not in (RoundingRule.FLOAT32_EVEN, RoundingRule.FLOAT32_TWICE):
            raise QuantizationError(f"The rule {self.rule.name} has no float32 bias: put it into the sums.")
        count = self._of_multiplier
        allowed: dict[str, tuple[tuple[int, ...], ...]] = {
            "bias": ((), (count or self.channels or 1,)),
            "second": ((),),
        }
        for label, shapes in allowed.items():
            array = getattr(self, label)
            if array is None:
                continue
            if array.dtype != np.float32 or not np.all(np.isfinite(array)) or array.shape not in shapes:
                raise QuantizationError(
                    f"The {label} must be finite float32 of shape {shapes[-1]}, got {array.dtype} {array.shape}."
                )
        if self.second is not None and not 0 < self.second < 2.0**LARGEST_EXPONENT:
            raise QuantizationError(
                f"The second factor must be positive and below 2**{LARGEST_EXPONENT}, got {self.second}. Check the scales."
            )
        for label in ("bias", "second"):
            if getattr(self, label) is not None:
                object.__setattr__(self, label, frozen_array(getattr(self, label)))

    @property
    def channels(self) -> int | None:
        """Number of channels with a multiplier or a float bias of their own, or None where one serves the whole tensor."""
        if self.bias is not None and self.bias.ndim:
            return int(self.bias.shape[0])
        return self._of_multiplier

    @property
    def _of_multiplier(self) -> int | None:
        shape: tuple[int, ...] = (
            self.multiplier.mantissa.shape
            if isinstance(self.multiplier, FixedPointMultiplier)
            else self.multiplier.shape
        )
        return shape[0] if shape else None

    def apply(self, accumulator: NDArray[np.integer], axis: int = 1) -> NDArray[np.int32]:
        """Integers of the output grid from exact sums.

        Parameters
        ----------
        accumulator : integer array, any shape
            Exact sums, within int32.
        axis : int
            The channel axis, along which per-channel multipliers run.

        Returns
        -------
        int32 array of the same shape, within ``clamp``.

        Raises
        ------
        BoundError
            A sum does not fit int32.
        """
        return np.clip(self.before_clamp(accumulator, axis), *self.clamp).astype(np.int32)

    def before_clamp(self, accumulator: NDArray[np.integer], axis: int = 1) -> NDArray[np.int64]:
        """What `apply` clamps: int64 of the shape of ``accumulator``, zero point added; ``axis`` as there.

        Raises
        ------
        BoundError
            A sum does not fit int32.
        """
        inside = self.zero_point if self.zero_point_inside else 0
        rounded = scale_and_round(accumulator, self.multiplier, self.rule, axis, inside, self.bias, self.second)
        return rounded + (self.zero_point - inside)


def scale_and_round(
    accumulator: NDArray[np.integer],
    multiplier: FixedPointMultiplier | NDArray[np.float32] | NDArray[np.float64],
    rule: RoundingRule,
    axis: int = 1,
    addend: int = 0,
    bias: NDArray[np.float32] | None = None,
    second: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """``round(multiplier * accumulator + addend)`` under ``rule`` (eqs. 13 to 18, 28, 29), int64, shaped as ``accumulator``.

    ``multiplier`` and ``bias`` run along ``axis`` where they have channels. ``addend`` is the zero point of rules that add it
    before rounding; ``bias`` and ``second`` as in `Requantizer` (eqs. 28 and 29).

    Raises
    ------
    BoundError
        A sum does not fit int32, or the left shift of a GEMMLOWP rule would leave it.
    """
    x = np.asarray(accumulator, np.int64)
    if x.size and (x.min() < _INT32.min or x.max() > _INT32.max):
        raise BoundError(
            f"An accumulator must fit int32, got {x.min()}..{x.max()}. The layer sums too many products for 32 bits."
        )

    def along(parameter: NDArray[T]) -> NDArray[T]:
        return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)]) if parameter.ndim else parameter

    if rule is RoundingRule.FLOAT32_EVEN:
        with np.errstate(over="ignore"):  # of a huge bias; an infinity ends at the limit of `_whole`
            total = x.astype(np.float32) if bias is None else x.astype(np.float32) + along(bias)
            return _whole(total * along(np.asarray(multiplier, np.float32)) + np.float32(addend))
    if rule is RoundingRule.FLOAT32_TWICE:
        assert second is not None
        with np.errstate(over="ignore"):
            first = x.astype(np.float32) * along(np.asarray(multiplier, np.float32))
            shifted = first if bias is None else first + along(bias)
            return _whole(shifted * second + np.float32(addend))
    if rule is RoundingRule.FLOAT64_AWAY:
        return round_half_away(x.astype(np.float64) * along(np.asarray(multiplier, np.float64)) + addend)
    assert isinstance(multiplier, FixedPointMultiplier)
    mantissa = along(multiplier.mantissa.astype(np.int64))
    exponent = along(multiplier.exponent.astype(np.int64))
    if rule is RoundingRule.SINGLE:
        return _shift_half_up(x * mantissa, 31 - exponent) + addend
    if rule is RoundingRule.DYADIC:
        return _shift_half_even(x * mantissa, 31 - exponent) + addend
    lifted = x << np.maximum(exponent, 0)
    if lifted.size and (lifted.min() < _INT32.min or lifted.max() > _INT32.max):
        raise BoundError(
            f"{rule.name} shifts the accumulator left before multiplying, and the result does not fit int32. "
            f"Use the rule SINGLE for multipliers above 1."
        )
    right = np.maximum(-exponent, 0)
    if rule is RoundingRule.GEMMLOWP:
        high = _saturating_rounding_doubling_high_mul(lifted, mantissa)
        return _rounding_divide_by_power_of_two(high, right) + addend
    high = (lifted * mantissa + (1 << 30)) >> 31
    return np.where(right > 0, _shift_half_up(high, np.maximum(right, 1)), high) + addend


def round_half_away(real: NDArray[np.floating]) -> NDArray[np.int64]:
    """The nearest integer to each ``real`` (any shape), ties away from zero; |real| below 2**52."""
    whole = np.floor(np.abs(real))  # |real| + 1/2 would itself round, up to 1 just below a half
    return np.asarray(np.sign(real) * (whole + (np.abs(real) - whole >= 0.5)), np.int64)


def _whole(real: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest integer to each ``real``, ties to even; what is beyond 2**62, where no clamp can tell, becomes that."""
    return np.asarray(np.clip(np.rint(real), -FARTHEST, FARTHEST), np.int64)


def _shift_half_up(x: NDArray[np.int64], shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """``floor(x / 2**shift + 1/2)`` for shift 1..62; |x| < 2**62, so adding half of 2**shift stays in int64."""
    rounded: NDArray[np.int64] = (x + (np.int64(1) << (shift - 1))) >> shift
    return rounded


def _shift_half_even(x: NDArray[np.int64], shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """``x / 2**shift`` to nearest, ties to even: half-up, less 1 where a tie came out odd."""
    up = _shift_half_up(x, shift)
    tie = (x & ((np.int64(1) << shift) - 1)) == (np.int64(1) << (shift - 1))
    even: NDArray[np.int64] = up - (tie & (up & 1 == 1))
    return even


def _saturating_rounding_doubling_high_mul(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """gemmlowp: ``(a * b + nudge) / 2**31`` with C's division, which truncates. b >= 0, so nothing saturates."""
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))


def _rounding_divide_by_power_of_two(x: NDArray[np.int64], exponent: NDArray[np.int64]) -> NDArray[np.int64]:
    """gemmlowp: ``x / 2**exponent`` to nearest, ties away from zero."""
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    rounded: NDArray[np.int64] = (x >> exponent) + ((x & mask) > threshold)
    return rounded
