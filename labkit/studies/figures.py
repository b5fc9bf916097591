"""A study's figures as SVG files: the same bytes for the same data."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from labkit.studies.study import Figure, Series

__all__ = ["svg"]

# Okabe and Ito's colours, which people with any colour vision can tell apart, without the light yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vP*"
_MANY = 9  # words under an axis beyond which they are turned


def svg(figure: Figure) -> str:
    """``figure`` as the text of an SVG file, white background, text kept as text."""
    with matplotlib.rc_context({"svg.hashsalt": figure.name, "svg.fonttype": "none", "font.size": 10}):
        canvas = Canvas(figsize=(7.2, 4.2), layout="constrained")
        axes = canvas.add_subplot()
        for index, series in enumerate(figure.series):
            _draw(axes, figure, series, index)
        for index, (label, at) in enumerate(figure.marks.items()):
            axes.axvline(at, color=COLOURS[-1 - index % 3], linestyle=(0, (4, 2 + index)), linewidth=1.2, label=label)
        axes.set_title(figure.title)
        axes.set_xlabel(figure.x_label)
        axes.set_ylabel(figure.y_label)
        if figure.log_x:
            axes.set_xscale("log")
        if figure.log_y:
            axes.set_yscale("log")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if len(figure.series) + len(figure.marks) > 1:
            axes.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


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
            marker=marker,
            markersize=4,
            linewidth=1.4,
            capsize=2,
            label=series.label,
        )
