"""A study's figures as SVG files: the same bytes for the same data."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from labkit.studies.study import Figure, Series, Surface

__all__ = ["svg"]

# Okabe and Ito's colours, which people with any colour vision can tell apart, without the light yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vP*"
_MANY = 9  # words under an axis beyond which they are turned
_DENSE = 60  # points of a line beyond which they are not marked one by one
_PANELS = 3  # in a row


def svg(figure: Figure) -> str:
    """``figure`` as the text of an SVG file, white background, text kept as text."""
    with matplotlib.rc_context({"svg.hashsalt": figure.name, "svg.fonttype": "none", "font.size": 10}):
        canvas = (
            _panels(figure)
            if figure.panels
            else _pictures(figure)
            if figure.pictures
            else Canvas(figsize=(7.2, 4.2), layout="constrained")
        )
        if not (figure.panels or figure.pictures):
            axes = canvas.add_subplot()
            _fill(axes, figure)
            if len(figure.series) + len(figure.marks) > 1 and figure.kind == "bar":  # bars leave no room
                canvas.legend(loc="outside right upper", frameon=False, fontsize=9)
            elif len(figure.series) + len(figure.marks) > 1:
                axes.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _panels(figure: Figure) -> Canvas:
    """The panels of ``figure`` three to a row, with one legend below all of them."""
    maps = any(panel.surface is not None for panel in figure.panels)
    across = min(len(figure.panels), 2 if maps else _PANELS)  # a map needs room for its scale
    rows = -(-len(figure.panels) // across)
    canvas = Canvas(figsize=(10.5, 0.9 + (4.0 if maps else 2.7) * rows), layout="constrained")
    labelled = {}
    for index, panel in enumerate(figure.panels):
        axes = canvas.add_subplot(rows, across, index + 1)
        _fill(axes, panel)
        labelled.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    canvas.suptitle(figure.title)
    if len(labelled) > 1:
        canvas.legend(
            list(labelled.values()), list(labelled), loc="outside lower center", ncols=len(labelled), frameon=False
        )
    return canvas


def _pictures(figure: Figure) -> Canvas:
    """The pictures of ``figure``, pixel for pixel, ``figure.across`` to a row."""
    rows = -(-len(figure.pictures) // figure.across)
    canvas = Canvas(figsize=(1.6 * figure.across, 0.5 + 1.65 * rows), layout="constrained")
    for index, picture in enumerate(figure.pictures):
        axes = canvas.add_subplot(rows, figure.across, index + 1)
        axes.imshow(picture.pixels, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(picture.label, fontsize=9)
    canvas.suptitle(figure.title)
    return canvas


def _fill(axes: Axes, figure: Figure) -> None:
    """Everything of ``figure`` but its legend, on ``axes``."""
    if figure.surface is not None:
        _map(axes, figure, figure.surface)
        return
    for index, series in enumerate(figure.series):
        _draw(axes, figure, series, index)
    for index, (label, at) in enumerate(figure.marks.items()):
        for place, x in enumerate(at if isinstance(at, tuple) else (at,)):
            axes.axvline(
                x,
                color=COLOURS[-1 - index % 3],
                linestyle=(0, (4, 2 + index)),
                linewidth=1.2,
                label=None if place else label,
            )
    if figure.diagonal:
        across = [float(x) for series in figure.series for x in series.x]
        ends = (min(across), max(across))
        axes.plot(ends, ends, color="#888888", linestyle="--", linewidth=1, zorder=0)
    axes.set_title(figure.title)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    if figure.log_x:
        axes.set_xscale("log")
    if figure.log_y:
        axes.set_yscale("log")
    if figure.diagonal:
        for axis in (axes.xaxis, axes.yaxis):
            _plain_ticks(axis)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain_ticks(axis: Axis) -> None:
    """On a logarithmic ``axis`` of little more than a decade, labels at 1, 2 and 5 instead of at every digit."""
    low, high = axis.get_view_interval()
    if axis.get_scale() != "log" or high > 30 * low:
        return
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _map(axes: Axes, figure: Figure, surface: Surface) -> None:
    """``surface`` as filled contours with a scale of colours beside it."""
    places = (surface.x, surface.y, surface.z)
    filled = axes.contourf(*places, levels=surface.levels, cmap="viridis", extend="max")
    axes.contour(*places, levels=surface.levels, colors="#ffffff", linewidths=0.4)
    bar = axes.figure.colorbar(filled, ax=axes, ticks=surface.levels[:: max(1, len(surface.levels) // 6)])
    bar.set_label(surface.label)
    axes.plot([0], [0], marker="+", color="#ffffff", markersize=9)
    axes.set_title(figure.title)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.set_aspect("equal")


def _draw(axes: Axes, figure: Figure, series: Series, index: int) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    error = series.error or None
    if figure.kind == "bar":
        words = list(dict.fromkeys(str(x) for s in figure.series for x in s.x))
        width = 0.8 / len(figure.series)
        places = [words.index(str(x)) + (index - (len(figure.series) - 1) / 2) * width for x in series.x]
        axes.bar(places, series.y, width * 0.92, color=colour, label=series.label, yerr=error, capsize=2)
        axes.set_xticks(
            range(len(words)),
            words,
            rotation=35 if len(words) > _MANY else 0,
            ha="right" if len(words) > _MANY else "center",
        )
    elif figure.kind == "scatter":
        axes.scatter(series.x, series.y, s=16, color=colour, marker=marker, alpha=0.75, label=series.label)
    elif figure.kind == "step":
        axes.step(series.x, series.y, where="post", color=colour, linewidth=1.4, label=series.label)
    else:
        axes.errorbar(
            series.x,
            series.y,
            yerr=error,
            color=colour,
            marker=marker if len(series.x) <= _DENSE else None,
            markersize=4,
            linewidth=1.4,
            capsize=2,
            label=series.label,
        )
