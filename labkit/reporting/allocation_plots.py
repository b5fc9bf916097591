"""Figures of bit allocation: what each layer loses at each bit-width, and what each budget buys.

Drawn like the figures of :mod:`labkit.reporting.plots`: one ``<svg>`` element each, the same bytes for the same data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from labkit.allocation.pareto import Front
from labkit.errors import InputError
from labkit.reporting.plots import (
    _CUT,
    _DASHES,
    _INK,
    _LINE,
    _MARKERS,
    _SERIES,
    _axes,
    _legend,
    _minus,
    _shortened,
    _svg,
    _tick_count,
    _title,
)
from labkit.sensitivity.table import SensitivityTable

__all__ = ["pareto_fronts", "sensitivity_map"]

_ROW = 15.0  # user units a layer
_FAINTEST, _DARKEST = 0.06, 0.62  # of a cell's colour; letters stay legible on it in light and dark


def sensitivity_map(table: SensitivityTable, key: str, title: str, chosen: Mapping[str, int] | None = None) -> str:
    """A cell for each layer and bit-width, darker where more loss is predicted, on a log scale.

    Parameters
    ----------
    table
        What is drawn. A value of 0 or less has no colour.
    key
        Starts every id in the figure; unique on the page.
    title
        The figure's title.
    chosen
        Bits by layer, framed.

    Returns
    -------
    str
        One ``<svg>`` element.

    Raises
    ------
    InputError
        ``chosen`` names a layer or bits that the table does not have.
    """
    for layer, bits in (chosen or {}).items():
        if layer not in table.layers or bits not in table.bits:
            raise InputError(
                f"The table has no cell for {layer!r} at {bits} bits; it has {', '.join(table.layers)} at "
                f"{', '.join(map(str, table.bits))} bits."
            )
    positive = table.values[table.values > 0]
    low, high = (math.log(positive.min()), math.log(positive.max())) if positive.size else (0.0, 0.0)

    def draw(figure: Figure) -> None:
        left = min(16.0 + 6.2 * max(len(_shortened(name)) for name in table.layers), 120.0)
        axes = _axes(figure, left=left, right=6, top=26, bottom=54)
        for row, layer in enumerate(table.layers):
            for column, bits in enumerate(table.bits):
                value = float(table.values[row, column])
                if value > 0:
                    depth = (math.log(value) - low) / (high - low) if high > low else 1.0
                    shade = _FAINTEST + depth * (_DARKEST - _FAINTEST)
                    axes.add_patch(Rectangle((column, row), 1, 1, color=_SERIES[0], alpha=shade, linewidth=0))
                axes.text(column + 0.5, row + 0.53, _short(value), ha="center", va="center", fontsize=7.5, color=_INK)
                if (chosen or {}).get(layer) == bits:
                    frame = Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, fill=False, color=_CUT, linewidth=1.6)
                    axes.add_patch(frame)
        axes.set_xlim(0, len(table.bits))
        axes.set_ylim(len(table.layers), 0)
        axes.set_xticks(np.arange(len(table.bits)) + 0.5, [str(bits) for bits in table.bits])
        axes.set_yticks(np.arange(len(table.layers)) + 0.5, [_shortened(name) for name in table.layers])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel("weight bits" + (" (framed: chosen)" if chosen else ""))
        below = _shortened_end(f"{table.unit}, by {table.method}; colour: log scale")
        figure.text(0.01, 4 / (figure.get_figheight() * 72), below, fontsize=9, color=_INK)
        _title(figure, _shortened_end(title, 48))

    alt = f"{title}. Predicted loss increase in {table.unit} by {table.method}. " + " ".join(
        f"{layer}: " + ", ".join(f"{b} bits {v:.3g}" for b, v in zip(table.bits, row, strict=True)) + "."
        for layer, row in zip(table.layers, table.values, strict=True)
    )
    return _svg(key, 84.0 + _ROW * len(table.layers), draw, _minus(alt))


def pareto_fronts(
    fronts: Mapping[str, Front], key: str, title: str, points: Mapping[str, Sequence[tuple[float, float]]] | None = None
) -> str:
    """Predicted loss against cost: a staircase for each front, markers for single answers.

    Parameters
    ----------
    fronts
        By name, one to four, all of the same cost.
    key
        Starts every id in the figure; unique on the page.
    title
        The figure's title.
    points
        (cost, value) of single answers by name; fronts and points together are four at most.

    Returns
    -------
    str
        One ``<svg>`` element. Values are on a log scale where all are above 0.

    Raises
    ------
    InputError
        There is no front, or there are more than four names.
    """
    singles = points or {}
    if not fronts or len(fronts) + len(singles) > len(_SERIES):
        raise InputError(
            f"The figure has room for 1 to {len(_SERIES)} fronts and groups of points, got {len(fronts)} and {len(singles)}."
        )
    first = next(iter(fronts.values()))
    seen = [v for front in fronts.values() for v in front.values] + [v for p in singles.values() for _, v in p]
    log = min(seen) > 0
    unit = first.problem.units[0]

    def draw(figure: Figure) -> None:
        axes = _axes(figure, left=58, right=14, top=46, bottom=38)
        handles: list[Artist] = []
        for place, front in enumerate(fronts.values()):
            handles += axes.step(front.costs, front.values, where="post", color=_SERIES[place],
                                 linestyle=_DASHES[place], linewidth=1.6)  # fmt: skip
        for place, found in enumerate(singles.values(), len(fronts)):
            axes.plot(*zip(*found, strict=True), linestyle="none", marker=_MARKERS[place], markersize=4.5,
                      color=_SERIES[place])  # fmt: skip
            handles.append(Line2D([], [], linestyle="none", marker=_MARKERS[place], color=_SERIES[place]))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=7))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick_count))
        axes.set_xlabel(f"{first.problem.names[0]}{f' ({unit})' if unit and unit != first.problem.names[0] else ''}")
        axes.set_ylabel(f"predicted loss{', log scale' if log else ''}")
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        _title(figure, _shortened_end(title, 48))
        _legend(axes, handles, [*fronts, *singles])

    alt = f"{title}. " + " ".join(
        f"{name}: {len(f):,} points from {f.costs[0]:,.6g} at loss {f.values[0]:.3g} to {f.costs[-1]:,.6g} at {f.values[-1]:.3g}."
        for name, f in fronts.items()
    )
    return _svg(key, 260.0, draw, _minus(alt))


def _short(value: float) -> str:
    """Two digits in five letters or so: 0.12, 12, 1e-5."""
    if value == 0:
        return "0"
    text = f"{value:.2g}" if 0.01 <= abs(value) < 1000 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return _minus(text)


def _shortened_end(text: str, letters: int = 64) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
