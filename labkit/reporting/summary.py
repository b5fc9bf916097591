"""What the report says about its rows, worked out once for the terminal, the page and the JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from labkit.parity.report import ParityReport
from labkit.reporting.results import AccuracyRow

__all__ = [
    "change",
    "headline_row",
    "image_counts",
    "is_clear",
    "reference_row",
    "sections",
    "short_count",
    "short_milliseconds",
    "short_size",
    "signed_points",
    "verdict",
]

_FLOAT_BITS = 32
_ENGINE = "integer engine"
_CLEAR = 2  # standard errors, which chance exceeds about once in twenty times


def sections(rows: Sequence[AccuracyRow]) -> dict[str, list[AccuracyRow]]:
    """The rows by section; sections and rows keep the order of first appearance."""
    grouped: dict[str, list[AccuracyRow]] = {}
    for row in rows:
        grouped.setdefault(row.section, []).append(row)
    return grouped


def _is_float(row: AccuracyRow) -> bool:
    return row.weight_bits >= _FLOAT_BITS and row.activation_bits >= _FLOAT_BITS


def reference_row(rows: Sequence[AccuracyRow], row: AccuracyRow) -> AccuracyRow | None:
    """The float row among ``rows`` that ``row`` is measured against, or None where there is none.

    It is the first row of 32-bit weights and activations in the same section, because a section may have a network of
    its own (the bias section has); a section without one is measured against the first float row of all.
    """
    floats = [other for other in rows if _is_float(other)]
    own = [other for other in floats if other.section == row.section]
    return next(iter(own or floats), None)


def change(rows: Sequence[AccuracyRow], row: AccuracyRow) -> float | None:
    """Accuracy of ``row`` less that of its reference among ``rows``, in percentage points; None for a reference itself."""
    reference = reference_row(rows, row)
    return None if reference is None or reference is row else row.accuracy - reference.accuracy


def is_clear(rows: Sequence[AccuracyRow], row: AccuracyRow) -> bool:
    """Whether the change of ``row`` among ``rows`` exceeds two of its standard errors; False where either is missing."""
    points = change(rows, row)
    return points is not None and row.change_error is not None and abs(points) > _CLEAR * row.change_error


def headline_row(rows: Sequence[AccuracyRow]) -> AccuracyRow | None:
    """The engine row to show first: 8-bit weights and activations where there is one, else the first engine row."""
    engine = [row for row in rows if row.section == _ENGINE]
    w8a8 = [row for row in engine if (row.weight_bits, row.activation_bits) == (8, 8)]
    return next(iter(w8a8 or engine), None)


def image_counts(rows: Sequence[AccuracyRow]) -> str:
    """Over how many images the accuracies were taken: ``10,000`` or ``1,000 to 10,000``."""
    counts = sorted({row.images for row in rows})
    if not counts:
        return "0"
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def verdict(certificates: Mapping[str, ParityReport]) -> tuple[str, str]:
    """A status ("passed", "failed" or "none") and one sentence about all certificates together."""
    if not certificates:
        return "none", "Nothing was compared."
    elements = sum(report.elements for report in certificates.values())
    failing = [name for name, report in certificates.items() if not report.passed]
    if not failing:
        return "passed", f"Bit for bit equal: 0 of {elements:,} elements differ."
    differing = sum(report.differing for report in certificates.values())
    return "failed", f"Not equal: {differing:,} of {elements:,} elements differ ({'; '.join(failing)})."


def signed_points(points: float | None) -> str:
    """``+0.05``, ``-1.20``, ``0.00`` (never ``-0.00``), or nothing for None."""
    if points is None or not math.isfinite(points):
        return ""
    rounded = round(points, 2)
    return "0.00" if rounded == 0 else f"{rounded:+.2f}"


def short_count(value: int | None) -> str:
    """A count with three significant digits and a decimal prefix: ``1.52 M``; nothing for None."""
    if value is None:
        return ""
    return _with_prefix(float(value), ("", "k", "M", "G", "T")).rstrip()


def short_size(size_bytes: int | None) -> str:
    """A size with three significant digits in decimal units: ``316 kB``; nothing for None."""
    if size_bytes is None:
        return ""
    return _with_prefix(float(size_bytes), ("", "k", "M", "G", "T")) + "B"


def short_milliseconds(value: float | None) -> str:
    """Milliseconds with three significant digits, without the unit; nothing for None."""
    if value is None or not math.isfinite(value):
        return ""
    return _three_digits(value)


def _with_prefix(value: float, prefixes: tuple[str, ...]) -> str:
    power = 0
    # 999.5 would be written as 1000 with three digits, so it already takes the next prefix.
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value /= 1000
        power += 1
    number = f"{value:.0f}" if power == 0 else _three_digits(value)
    return f"{number} {prefixes[power]}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    value = float(f"{value:.2e}")  # rounded first: 0.9996 has its first digit elsewhere than 1.00
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"
