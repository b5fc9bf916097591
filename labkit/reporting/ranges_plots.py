"""Figures of range methods: what each KL search sees, and where each method cuts one histogram.

Drawn like the figures of :mod:`labkit.reporting.plots`: one ``<svg>`` element each, the same bytes for the same data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from labkit.errors import InputError
from labkit.quantization.clipping.divergence import KLCurve
from labkit.quantization.histogram import Histogram
from labkit.reporting.plots import (
    _BAR,
    _DASHES,
    _INK,
    _LINE,
    _MARKERS,
    _SERIES,
    _axes,
    _minus,
    _shortened,
    _svg,
    _tick_count,
    _title,
)

__all__ = ["clipping_ranges", "divergence_curves"]

_BARS = 128  # of a drawn histogram


def divergence_curves(histogram: Histogram, curves: Sequence[KLCurve], key: str, title: str) -> str:
    """Divergence against threshold, one line a search, over the histogram of the magnitudes.

    Parameters
    ----------
    histogram
        Of the tensor, in its real units.
    curves
        Up to four, as `kl.kl_curve` returns them. Candidates that are out of the question leave gaps; the chosen one has
        a marker, and a line through the histogram.
    key
        Starts every id in the figure; unique on the page.
    title
        The figure's title.

    Returns
    -------
    str
        One ``<svg>`` element.

    Raises
    ------
    InputError
        There is no curve, or there are more than four.
    """
    if not 1 <= len(curves) <= len(_SERIES):
        raise InputError(f"The figure has room for 1 to {len(_SERIES)} curves, got {len(curves)}.")
    coarse = histogram.coarsened(_BARS)
    counts = coarse.magnitudes()
    edges = np.arange(len(counts) + 1) * coarse.width
    rows = (len(curves) + 1) // 2

    def draw(figure: Figure) -> None:
        room = 28.0 + 16 * rows
        top = _axes(figure, left=60, right=18, top=room, bottom=156)
        below = _axes(figure, left=60, right=18, top=room + 166, bottom=38, sharex=top)
        handles: list[Artist] = []
        for place, curve in enumerate(curves):
            style: dict[str, Any] = {"color": _SERIES[place], "linestyle": _DASHES[place], "linewidth": 1.6}
            # log axis: a divergence of 0 has no place, and neither has an infinite one
            drawn = np.where(np.isfinite(curve.divergence) & (curve.divergence > 0), curve.divergence, np.nan)
            # a few points would be invisible as gaps of a line, and one curve has a handful of candidates only
            handles += top.plot(curve.high, drawn, marker="." if len(curve.high) < 40 else "", markersize=3, **style)
            top.plot(
                curve.high[curve.best], drawn[curve.best], marker=_MARKERS[place], color=_SERIES[place], markersize=7
            )
            below.axvline(curve.high[curve.best], **style)
        top.set_yscale("log")
        top.yaxis.set_major_locator(LogLocator(numticks=6))
        top.yaxis.set_minor_locator(NullLocator())
        top.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        top.set_ylabel("divergence, log scale")
        top.grid(axis="y", color=_LINE, linewidth=0.8)
        top.tick_params(labelbottom=False)
        _bars(below, counts, edges)
        below.set_xlim(0, 1.03 * max(edges[-1], *(float(curve.high[curve.best]) for curve in curves)))
        below.xaxis.set_major_locator(MaxNLocator(6))
        below.set_xlabel("threshold, magnitude of a value (real units)")
        _title(figure, _shortened(title, 48))
        names = [f"{curve.variant} {curve.high[curve.best]:.3g}" for curve in curves]
        top.legend(handles, names, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False,
                   borderaxespad=0.2, handlelength=2.6, handletextpad=0.6, columnspacing=1.4)  # fmt: skip

    alt = f"{title}. " + " ".join(
        f"{c.variant}: least divergence {c.divergence[c.best]:.3g} at threshold {c.high[c.best]:.4g}." for c in curves
    )
    return _svg(key, 330.0 + 16 * rows, draw, alt)


def clipping_ranges(histogram: Histogram, ranges: Mapping[str, tuple[float, float]], key: str, title: str) -> str:
    """The histogram of a tensor, and under it a bar for each method's range.

    Parameters
    ----------
    histogram
        Of the tensor, in its real units.
    ranges
        (low, high) by method, in the order in which they are drawn.
    key
        Starts every id in the figure; unique on the page.
    title
        The figure's title.

    Returns
    -------
    str
        One ``<svg>`` element.

    Raises
    ------
    InputError
        There are no ranges.
    """
    if not ranges:
        raise InputError("There are no ranges to draw: hand in at least one (low, high) by its method's name.")
    seen = histogram.statistics
    counts, edges = histogram.coarsened(_BARS).signed()
    low, high = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
    inside = (edges[1:] > low) & (edges[:-1] < high) | (counts > 0)
    strip = 15.0 * len(ranges)
    label_room = 22.0 + 6.2 * max(len(_shortened(name)) for name in ranges)

    def draw(figure: Figure) -> None:
        left = max(60.0, label_room)
        top = _axes(figure, left=left, right=98, top=26, bottom=48 + strip)
        below = _axes(figure, left=left, right=98, top=182, bottom=38, sharex=top)
        _bars(top, np.where(inside, counts, 0), edges)
        top.tick_params(labelbottom=False, bottom=False)
        for row, (a, b) in enumerate(ranges.values()):
            below.plot([a, b], [-row, -row], color=_SERIES[0], linewidth=5, solid_capstyle="butt")
            text = _minus(f"{a:.3g} to {b:.3g}")
            below.annotate(text, (1.0, -row), xycoords=("axes fraction", "data"), xytext=(4, 0), va="center",
                           textcoords="offset points", fontsize=8.5, color=_INK)  # fmt: skip
        below.set_ylim(-len(ranges) + 0.4, 0.6)
        below.set_yticks(-np.arange(len(ranges)), [_shortened(name) for name in ranges])
        below.spines["left"].set_visible(False)
        below.grid(axis="x", color=_LINE, linewidth=0.8)
        below.xaxis.set_major_locator(MaxNLocator(5))
        below.set_xlabel("value (real units)")
        margin = 0.03 * (high - low) or 1.0
        top.set_xlim(low - margin, high + margin)
        _title(figure, _shortened(title, 48))

    alt = f"{title}. Observed {seen.minimum:.4g} to {seen.maximum:.4g}. " + " ".join(
        f"{name}: {a:.4g} to {b:.4g}." for name, (a, b) in ranges.items()
    )
    return _svg(key, 222.0 + strip, draw, _minus(alt))


def _bars(axes: Axes, counts: np.ndarray, edges: np.ndarray) -> None:
    """A histogram on a log scale: tails are what range methods are about."""
    axes.stairs(np.where(counts > 0, counts, 0.5), edges, baseline=0.5, fill=True, color=_BAR, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2.5 * max(1, int(counts.max(initial=1))))
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_tick_count))
    axes.set_ylabel("count, log scale")
