"""Figures of a rounding: how soft decisions became hard ones, which weights did not go to the nearest level, what it gained.

One ``<svg>`` element each, of the numbers that :mod:`labkit.reporting.rounding_counts` counts, drawn like the figures of
:mod:`labkit.reporting.plots`. The first three together are figure 3 of Nagel et al. 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.reporting.plots import (
    _BAR,
    _CUT,
    _LINE,
    _MARKERS,
    _QUIET,
    _SERIES,
    _axes,
    _legend,
    _shortened,
    _svg,
    _tick_count,
    _title,
)
from labkit.reporting.rounding_counts import DecisionCounts, LayerChoices, LayerErrors

__all__ = ["decision_histograms", "error_changes", "moved_places", "moved_shares"]

_PANELS = 6  # iterations that one figure has room for


def decision_histograms(counts: Sequence[DecisionCounts], key: str, title: str) -> str:
    """One histogram of h for each iteration, from the first at the top to the last.

    Parameters
    ----------
    counts
        One to six, as `rounding_counts.decision_counts` gives them. Heights are shares, on each panel's own scale.
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
        There is no iteration, or there are more than six.
    """
    if not 1 <= len(counts) <= _PANELS:
        raise InputError(f"The figure has room for 1 to {_PANELS} iterations, got {len(counts)}.")
    each, gap, top, bottom = 46.0, 24.0, 44.0, 38.0
    height = top + len(counts) * each + (len(counts) - 1) * gap + bottom
    rows = [(one, f"after {one.iteration:,} iterations: {_undecided(one)}") for one in counts]
    exact = [f"{words}, {one.down + one.up:,} exactly 0 or 1" for one, words in rows]

    def draw(figure: Figure) -> None:
        first: Axes | None = None
        for place, (one, words) in enumerate(rows):
            above = top + place * (each + gap)
            axes = _axes(figure, left=48, right=14, top=above, bottom=height - above - each, sharex=first)
            first = first or axes
            shares = one.counts / max(one.total, 1)
            edges = np.linspace(0, 1, len(one.counts) + 1)
            axes.stairs(shares, edges, fill=True, color=_BAR, linewidth=0)
            axes.set_ylim(0, 1.05 * max(float(shares.max()), 1e-9))
            axes.yaxis.set_major_locator(MaxNLocator(2))
            axes.yaxis.set_major_formatter(FuncFormatter(_tick_share))
            axes.annotate(words, (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
                          fontsize=9.5, color=_QUIET)  # fmt: skip
            axes.tick_params(labelbottom=place == len(rows) - 1)
        assert first is not None
        first.set_xlim(-0.02, 1.02)
        figure.axes[-1].set_xlabel("h, from the level below (0) to the one above (1)")
        _title(figure, _shortened(title, 46))

    alt = f"{title}. Share of the weights by their soft decision h. " + " ".join(f"{words}." for words in exact)
    return _svg(key, height, draw, alt)


def moved_shares(layers: Sequence[LayerChoices], key: str, title: str) -> str:
    """A bar for each layer: the share of its weights that are not at the nearest level.

    Parameters
    ----------
    layers
        As `rounding_counts.layer_choices` gives them, at least one.
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
        There is no layer.
    """
    _some(layers)
    shares = [one.moved / one.weights for one in layers]
    height = 86.0 + 17.0 * len(layers)

    def draw(figure: Figure) -> None:
        axes = _named_rows(figure, [one.name for one in layers], top=30)
        axes.barh(range(len(layers)), shares, height=0.66, color=_CUT, linewidth=0)
        for row, share in enumerate(shares):
            axes.annotate(f"{100 * share:.1f} %", (share, row), xytext=(3, 0), textcoords="offset points", va="center",
                          fontsize=9, color=_QUIET)  # fmt: skip
        axes.set_xlim(0, 1.22 * max(*shares, 0.01))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick_share))
        axes.set_xlabel("weights not at the nearest level")
        _title(figure, _shortened(title, 46))

    alt = f"{title}. Weights not at the nearest level: " + ", ".join(
        f"{one.name} {one.moved:,} of {one.weights:,}" for one in layers
    )
    return _svg(key, height, draw, alt + ".")


def moved_places(layers: Sequence[LayerChoices], key: str, title: str) -> str:
    """Where between two levels the weights lay, and how many of them did not go to the nearest.

    Parameters
    ----------
    layers
        As `rounding_counts.layer_choices` gives them, at least one, all with the same bins; they are added up.
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
        There is no layer.
    """
    _some(layers)
    starts, strays = _sum([one.starts for one in layers]), _sum([one.strays for one in layers])
    edges = np.linspace(0, 1, len(starts) + 1)

    def draw(figure: Figure) -> None:
        axes = _axes(figure, left=54, right=14, top=50, bottom=38)
        axes.stairs(starts, edges, fill=True, color=_BAR, linewidth=0)
        axes.stairs(strays, edges, fill=True, color=_CUT, linewidth=0)
        axes.axvline(0.5, color=_QUIET, linestyle=(0, (5, 2)), linewidth=1)
        axes.set_xlim(-0.02, 1.02)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick_count))
        axes.set_ylabel("weights")
        axes.set_xlabel("place of the weight between two levels")
        _title(figure, _shortened(title, 46))
        _legend(axes, [Patch(color=_BAR), Patch(color=_CUT)], ["to the nearest level", "to another"])

    alt = (
        f"{title}. {int(starts.sum()):,} weights by their place between the level below and the one above; "
        f"{int(strays.sum()):,} of them did not go to the nearest level. By place, from 0 to 1: "
        + ", ".join(f"{int(stray):,} of {int(start):,}" for stray, start in zip(strays, starts, strict=True))
    )
    return _svg(key, 240.0, draw, alt + ".")


def error_changes(errors: Sequence[LayerErrors], key: str, title: str) -> str:
    """Each layer's error before and after, joined by a line, on a log scale.

    Parameters
    ----------
    errors
        As `rounding_counts.layer_errors` gives them, at least one: "before" is to nearest on the min-max grid. An error of
        0 has no place on the scale and leaves no mark.
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
        There is no layer.
    """
    _some(errors)
    ends = np.array([(one.before, one.after) for one in errors])
    drawn = np.where(ends > 0, ends, np.nan)
    height = 108.0 + 17.0 * len(errors)

    def draw(figure: Figure) -> None:
        axes = _named_rows(figure, [one.name for one in errors], top=52)
        handles: list[Artist] = []
        axes.hlines(range(len(errors)), drawn.min(1), drawn.max(1), color=_LINE, linewidth=3)
        for place, colour in enumerate((_SERIES[1], _SERIES[0])):
            handles += axes.plot(drawn[:, place], range(len(errors)), color=colour, linestyle="none",
                                 marker=_MARKERS[place], markersize=6)  # fmt: skip
        axes.set_xscale("log")
        seen = drawn[np.isfinite(drawn)]
        if seen.size:
            axes.set_xlim(seen.min() / 1.8, seen.max() * 1.8)
        axes.xaxis.set_major_locator(LogLocator(subs=_between_tens(seen), numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_tick_share))
        axes.set_xlabel("error / variance of the output, log scale")
        _title(figure, _shortened(title, 46))
        _legend(axes, handles, ["to nearest", "as chosen"])

    alt = f"{title}. Error of the output, to nearest and as chosen: " + ", ".join(
        f"{one.name} {_tick_share(one.before)} and {_tick_share(one.after)}" for one in errors
    )
    return _svg(key, height, draw, alt + ".")


def _sum(counts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.asarray(np.sum(np.stack(counts), 0), np.int64)


def _named_rows(figure: Figure, names: Sequence[str], top: float) -> Axes:
    room = min(16.0 + 6.2 * max(len(_shortened(name)) for name in names), 120.0)
    axes = _axes(figure, left=room, right=16, top=top, bottom=38)
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    return axes


def _between_tens(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Which multiples of powers of ten are labelled, so that there are three labels or more and they do not touch."""
    quotient = float(values.max() / values.min()) if values.size else 1.0
    return (1.0, 2.0, 5.0) if quotient < 20 else (1.0, 3.0) if quotient < 1000 else (1.0,)


def _some(layers: Sequence[object]) -> None:
    if not layers:
        raise InputError("There is no layer to draw.")


def _undecided(one: DecisionCounts) -> str:
    return f"{one.undecided:,} of {one.total:,} undecided"


def _tick_share(value: float, _: object = None) -> str:
    return f"{100 * value:.3g} %"
