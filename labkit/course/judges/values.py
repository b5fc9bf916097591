"""Judges of values: equal integers, close real numbers, and tuples or dicts whose parts have judges of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labkit.course.judges.base import Difference, Judge, as_array

__all__ = ["Close", "Exact", "Fields", "Items", "shortened"]


def shortened(value: Any, width: int = 60) -> str:
    """``value`` in at most ``width`` characters, for a reader; an array gives its values, then shape and dtype."""
    if isinstance(value, np.ndarray):
        inner = np.array2string(value, threshold=6, edgeitems=2, separator=", ", max_line_width=10**6).replace("\n", "")
        inner = " ".join(inner.split())
        tail = f" (shape {value.shape}, {value.dtype})"
        return (inner if len(inner) <= width else inner[: width - 3] + "...") + tail
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


@dataclass(frozen=True)
class Exact:
    """Integers, booleans, strings or None, with tolerance 0; real numbers too where they must be the very same."""

    kind: ClassVar[str] = "exact"

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """The first element of ``got`` that differs from ``expected``; ``inputs`` do not matter.

        A list passes for an array, and any width of integer for another.
        """
        want = as_array(expected)
        if want is None or want.dtype.kind not in "biuf":
            if type(got) is type(expected) and got == expected:
                return None
            return Difference("The value is another one.", "", shortened(expected), shortened(got))
        have = as_array(got)
        if found := _of_another_form(have, want, got, expected):
            return found
        assert have is not None
        if want.dtype.kind in "iu" and have.dtype.kind == "f" and have.size:
            equal = bool(np.array_equal(have, want))
            said = "The values are right, but they" if equal else "They"
            return Difference(
                f"{said} are real numbers ({have.dtype}) where integers are wanted; round first, then use .astype or int.",
                "",
                shortened(expected),
                shortened(got),
            )
        return _first(have, want, have != want, "The value differs.")

    def same(self, got: Any, other: Any) -> bool:
        """``got`` equals ``other`` with tolerance 0."""
        return self.compare(got, other, {}) is None


@dataclass(frozen=True)
class Close:
    """Real numbers within ``rtol`` of the expected magnitude plus ``atol``.

    ``of_largest``: the magnitude is that of the largest expected element, which is what a sum's rounding errors go by.
    """

    kind: ClassVar[str] = "close"
    rtol: float = 1e-5
    atol: float = 1e-9
    of_largest: bool = False

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """The first element of ``got`` too far from ``expected``; ``inputs`` do not matter.

        NaN equals NaN, and an infinity itself.
        """
        want = as_array(expected)
        if want is None:
            return Exact().compare(got, expected, inputs)
        have = as_array(got)
        if found := _of_another_form(have, want, got, expected):
            return found
        assert have is not None
        a, b = have.astype(np.float64), want.astype(np.float64)
        finite = np.abs(b[np.isfinite(b)])
        size = (finite.max(initial=0.0) if self.of_largest else np.abs(b)) if b.size else 0.0
        with np.errstate(invalid="ignore"):
            good = (np.abs(a - b) <= self.atol + self.rtol * size) & np.isfinite(a) & np.isfinite(b)
        good |= (a == b) | (np.isnan(a) & np.isnan(b))
        return _first(have, want, ~good, "The value is too far away.")

    def same(self, got: Any, other: Any) -> bool:
        """``got`` is within the tolerance of ``other``."""
        return self.compare(got, other, {}) is None


@dataclass(frozen=True)
class Items:
    """A tuple or list of fixed length: one judge for each place."""

    kind: ClassVar[str] = "items"
    judges: tuple[Judge, ...]

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """The first place where ``got`` is not as ``expected``, given the case's ``inputs``."""
        if isinstance(got, np.ndarray) and len(got) == len(self.judges):
            got = [item if item.ndim else item.item() for item in (np.asarray(item) for item in got)]
        if not isinstance(got, tuple | list) or len(got) != len(self.judges):
            return Difference(
                f"{len(self.judges)} values are wanted, as a tuple.", "", shortened(expected), shortened(got)
            )
        for place, judge in enumerate(self.judges):
            if found := judge.compare(got[place], expected[place], inputs):
                return found.inside(f"[{place}]")
        return None

    def same(self, got: Any, other: Any) -> bool:
        """Every place of ``got`` is that of ``other``."""
        return (
            isinstance(got, tuple | list)
            and isinstance(other, tuple | list)
            and len(got) == len(other) == len(self.judges)
            and all(judge.same(a, b) for judge, a, b in zip(self.judges, got, other, strict=True))
        )


@dataclass(frozen=True)
class Fields:
    """A dict: the judge of each of its entries by name; ``names`` and ``judges`` go together."""

    kind: ClassVar[str] = "fields"
    names: tuple[str, ...]
    judges: tuple[Judge, ...]

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """The first entry of ``got`` that is not as ``expected``, given the case's ``inputs``."""
        if not isinstance(got, dict) or set(got) != set(self.names):
            have = ", ".join(map(repr, got)) if isinstance(got, dict) else shortened(got)
            return Difference(
                "A dict with certain entries is wanted.", "", ", ".join(map(repr, self.names)), have or "an empty dict"
            )
        for name, judge in zip(self.names, self.judges, strict=True):
            if found := judge.compare(got[name], expected[name], inputs):
                return found.inside(f"[{name!r}]")
        return None

    def same(self, got: Any, other: Any) -> bool:
        """Every entry of ``got`` is that of ``other``."""
        return (
            isinstance(got, dict)
            and isinstance(other, dict)
            and set(got) == set(other) == set(self.names)
            and all(judge.same(got[n], other[n]) for n, judge in zip(self.names, self.judges, strict=True))
        )


def _of_another_form(have: NDArray[Any] | None, want: NDArray[Any], got: Any, expected: Any) -> Difference | None:
    if have is None:
        wanted = "A number is wanted." if want.ndim == 0 else "An array of numbers is wanted."
        return Difference(wanted, "", shortened(expected), shortened(got))
    if have.shape != want.shape:
        return Difference("The shape is another one.", "", str(want.shape), str(have.shape))
    return None


def _first(have: NDArray[Any], want: NDArray[Any], wrong: NDArray[np.bool_], message: str) -> Difference | None:
    if not np.any(wrong):
        return None
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    count = f" {np.count_nonzero(wrong)} of {want.size} elements are wrong." if want.ndim else ""
    place = f"[{', '.join(map(str, index))}]" if index else ""
    return Difference(message + count, place, repr(want[index].item()), repr(have[index].item()))
