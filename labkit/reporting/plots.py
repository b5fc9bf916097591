"""The report's figures, as SVG text that adapts to the page around it.

Every figure is drawn on its own ``matplotlib.figure.Figure`` and comes back as one ``<svg>`` element: the same bytes
for the same data, ids that start with the figure's key, text kept as text. Colours are CSS variables with the light
scheme as fallback, so that one drawing serves a light page, a dark page and a lone file.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from labkit.reporting.results import LayerRow, Range

__all__ = ["COLOURS", "configurations", "error_curve", "histogram", "noise_height", "sqnr_bars"]

COLOURS = {
    # stand-in given to matplotlib: (CSS variable, value in the light scheme). Contrast on white is at least 3:1.
    "#010101": ("--ink", "#1c2530"),
    "#020202": ("--quiet", "#5a6675"),
    "#030303": ("--line", "#dde2e9"),
    "#040404": ("--fig-bar", "#8fa3bd"),
    "#050505": ("--fig-cut", "#c2410c"),
    "#060606": ("--fig-1", "#1d6fd1"),
    "#070707": ("--fig-2", "#b45f06"),
    "#080808": ("--fig-3", "#a3348f"),
    "#090909": ("--fig-4", "#2f7d4f"),
}
_INK, _QUIET, _LINE, _BAR, _CUT, *_SERIES = COLOURS
_OBSERVED, _SIGMA, _CHOSEN = _QUIET, _SERIES[2], _SERIES[0]
_MARKERS = "osD^"
_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))
_WIDTH = 340.0  # user units; the page shows a figure about as many CSS pixels wide, so letters keep their size
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_SHORT = 0.05  # a bar shorter than this share of the tallest is hardly seen; so are 39 % of a bell's over 8 sigma


def configurations(layers: Sequence[LayerRow]) -> list[str]:
    """The configurations ("W8A8") that any layer has an SQNR for, in order of first appearance."""
    return list(dict.fromkeys(name for layer in layers for name in layer.sqnr_db))


def noise_height(layers: Sequence[LayerRow]) -> float:
    """A height in user units at which :func:`sqnr_bars` has room for every bar of these layers."""
    return 84.0 + 12.0 * (len(configurations(layers)) + 1) * max(len(layers), 1)


def histogram(layer: LayerRow, key: str) -> str:
    """One tensor's histogram over its three ranges: observed, 3 sigma, and chosen for the 8-bit grid.

    Parameters
    ----------
    layer
        The tensor. Values beyond ``chosen`` are drawn as cut off.
    key
        Starts every id in the figure; unique on the page.

    Returns
    -------
    str
        One ``<svg>`` element. Counts are on a log scale where most bars would otherwise be too short to see.
    """
    counts = np.asarray(layer.histogram.counts, dtype=np.float64)
    edges = np.asarray(layer.histogram.edges, dtype=np.float64)
    filled = counts[counts > 0]
    log = bool(filled.size and np.mean(filled < _SHORT * filled.max()) > 0.5)

    def draw(figure: Figure) -> None:
        top = _axes(figure, left=60, right=18, top=22, bottom=88)  # to the right, half a label of the last tick
        strip = _axes(figure, left=60, right=18, top=178, bottom=38, sharex=top)
        inside = (edges[1:] > layer.chosen.low) & (edges[:-1] < layer.chosen.high)
        low = 0.5 if log else 0.0  # below one count, so that a single value still shows on a log scale
        for mask, colour in ((inside, _BAR), (~inside, _CUT)):
            heights = np.where(mask & (counts > 0), counts, low)
            if (mask & (counts > 0)).any():
                top.stairs(heights, edges, baseline=low, fill=True, color=colour, linewidth=0)
        if log:
            top.set_yscale("log")
            top.yaxis.set_minor_locator(NullLocator())
        top.set_ylim(low, (counts.max(initial=1.0)) * (2.5 if log else 1.1))
        top.yaxis.set_major_formatter(FuncFormatter(_tick_count))
        if not log:
            top.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        top.set_ylabel("count, log scale" if log else "count")
        ranges = (("observed", layer.actual, _OBSERVED), ("3σ", layer.three_sigma, _SIGMA),
                  ("chosen", layer.chosen, _CHOSEN))  # fmt: skip
        for height, (_, span, colour) in zip((2, 1, 0), ranges, strict=True):
            strip.plot([span.low, span.high], [height, height], color=colour, linewidth=3.5, solid_capstyle="butt")
            strip.plot([span.low, span.high], [height, height], color=colour, linestyle="none", marker="|",
                       markersize=9, markeredgewidth=1.6)  # fmt: skip
        for span, colour, dashes in ((layer.three_sigma, _SIGMA, _DASHES[2]), (layer.chosen, _CHOSEN, "-")):
            for value in (span.low, span.high):
                top.axvline(value, color=colour, linestyle=dashes, linewidth=1.2)
        strip.set_ylim(-0.7, 2.7)
        strip.set_yticks([2, 1, 0], [name for name, _, _ in ranges])
        for label, (_, _, colour) in zip(strip.get_yticklabels(), ranges, strict=True):
            label.set_color(colour)
            label.set_fontweight("bold")
        strip.xaxis.set_major_locator(MaxNLocator(5))
        strip.set_xlabel("value (real units)")
        top.set_xlim(*_view(edges, [span for _, span, _ in ranges]))
        top.tick_params(labelbottom=False, bottom=False)
        strip.spines["left"].set_visible(False)
        _title(figure, f"{_shortened(layer.name, 36)}: {_kind(layer)}")

    shape = " x ".join(str(n) for n in layer.shape)
    alt = (
        f"Histogram of {_kind(layer)} of {layer.name}, shape {shape}. Observed {_span(layer.actual)}, "
        f"three sigma {_span(layer.three_sigma)}, chosen{' for the widest channel' if layer.kind == 'weight' else ''} "
        f"{_span(layer.chosen)}."
    )
    return _svg(key, 260.0, draw, alt)


def sqnr_bars(layers: Sequence[LayerRow], key: str, title: str, height: float | None = None) -> str:
    """Signal-to-quantization-noise ratio of each layer as grouped bars, one colour a configuration.

    Parameters
    ----------
    layers
        Tensors in the order of the network. An infinite ratio is written "exact", a missing one is left out.
    key
        Starts every id in the figure; unique on the page.
    title
        The figure's title.
    height
        In user units; None leaves 12 for each bar. Give figures that stand side by side the same.

    Returns
    -------
    str
        One ``<svg>`` element; ratios in dB.
    """
    names = configurations(layers)
    height = noise_height(layers) if height is None else height
    slots = len(names) + 1.0  # bars of one layer and the gap to the next

    def draw(figure: Figure) -> None:
        axes = _axes(figure, left=_label_room(layers), right=12, top=46, bottom=38)
        widest = max((v for layer in layers for v in layer.sqnr_db.values() if math.isfinite(v)), default=1.0)
        lowest = min((v for layer in layers for v in layer.sqnr_db.values() if math.isfinite(v)), default=0.0)
        handles: list[Artist] = []
        for place, name in enumerate(names):
            colour = _SERIES[place % len(_SERIES)]
            for row, layer in enumerate(layers):
                value = layer.sqnr_db.get(name, math.nan)
                y = row + (place - (len(names) - 1) / 2) / slots
                finite = math.isfinite(value)
                axes.barh(y, value if finite else 0.0, height=0.86 / slots, color=colour, linewidth=0)
                text = _minus(f"{value:.1f}") if finite else "exact" if value == math.inf else ""
                axes.annotate(text, (max(value, 0.0) if finite else 0.0, y), xytext=(3, 0), textcoords="offset points",
                              va="center", fontsize=9, color=_INK)  # fmt: skip
            handles.append(Patch(color=colour))
        axes.set_yticks(range(len(layers)), [_shortened(layer.name) for layer in layers])
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_xlim(min(lowest * 1.1, 0.0), max(widest, 1.0) * 1.16)
        axes.grid(axis="x", color=_LINE, linewidth=0.8)
        axes.set_xlabel("SQNR in dB (longer is better)")
        _title(figure, title)
        _legend(axes, handles, names)

    alt = f"{title}, in dB. " + " ".join(
        f"{layer.name}: " + ", ".join(f"{n} {_decibel(layer.sqnr_db[n])}" for n in names if n in layer.sqnr_db) + "."
        for layer in layers
    )
    return _svg(key, height, draw, alt)


def error_curve(layers: Sequence[LayerRow], key: str, height: float = 340.0) -> str:
    """Relative error of each activation along the depth of the network, one line a configuration.

    The relative error is sqrt(E[(r - r^)^2] / E[r^2]) = 10^(-SQNR / 20), on a log scale.

    Parameters
    ----------
    layers
        Activations in the order of the network. An exact or missing value leaves a gap.
    key
        Starts every id in the figure; unique on the page.
    height
        In user units.

    Returns
    -------
    str
        One ``<svg>`` element.
    """
    names = configurations(layers)

    def draw(figure: Figure) -> None:
        turned = len(layers) > 6 or any(len(layer.name) > 6 for layer in layers)
        axes = _axes(figure, left=58, right=10, top=46, bottom=84 if turned else 38)
        handles: list[Artist] = []
        seen: list[float] = []
        for place, name in enumerate(names):
            errors = [_relative_error(layer.sqnr_db.get(name, math.nan)) for layer in layers]
            seen += [error for error in errors if math.isfinite(error)]
            colour = _SERIES[place % len(_SERIES)]
            handles += axes.plot(range(len(layers)), errors, color=colour, marker=_MARKERS[place % len(_MARKERS)],
                                 linestyle=_DASHES[place % len(_DASHES)], linewidth=2, markersize=6)  # fmt: skip
        axes.set_yscale("log")
        if seen:
            axes.set_ylim(min(seen) / 1.6, max(seen) * 1.6)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_tick_percent))
        axes.set_ylabel("relative error, log scale")
        every = math.ceil(len(layers) / 16) or 1  # more names than 16 would run into each other
        axes.set_xticks(range(0, len(layers), every), [_shortened(layer.name) for layer in layers[::every]],
                        rotation=40 if turned else 0, ha="right" if turned else "center",
                        rotation_mode="anchor" if turned else "default")  # fmt: skip
        axes.set_xlim(-0.4, len(layers) - 0.6)
        axes.set_xlabel("layer, from input to output")
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        _title(figure, "Relative error of the activations")
        _legend(axes, handles, names)

    alt = "Relative error of the activations along the network. " + " ".join(
        f"{layer.name}: "
        + ", ".join(f"{n} {_tick_percent(_relative_error(layer.sqnr_db[n]))}" for n in names if n in layer.sqnr_db)
        + "."
        for layer in layers
    )
    return _svg(key, height, draw, alt)


def _label_room(layers: Sequence[LayerRow]) -> float:
    return min(16.0 + 6.2 * max((len(_shortened(layer.name)) for layer in layers), default=5), 120.0)


def _shortened(name: str, letters: int = 16) -> str:
    # The end of a dotted name says more than its beginning ("layer3.1.conv2").
    return name if len(name) <= letters else "…" + name[-(letters - 1) :]


def _relative_error(sqnr_db: float) -> float:
    error = 10.0 ** (-sqnr_db / 20.0) if math.isfinite(sqnr_db) else math.nan
    return error if error > 0 else math.nan  # a log axis has no place for zero


def _kind(layer: LayerRow) -> str:
    return "weights" if layer.kind == "weight" else "activations"


def _span(span: Range) -> str:
    return _minus(f"{span.low:.4g} to {span.high:.4g}")


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _decibel(value: float) -> str:
    return _minus(f"{value:.1f}") if math.isfinite(value) else "exact" if value == math.inf else "unknown"


def _tick_count(value: float, _: object = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _tick_percent(value: float, _: object = None) -> str:
    return f"{100 * value:.3g} %" if math.isfinite(value) else "exact or unknown"


def _view(edges: np.ndarray, spans: Sequence[Range]) -> tuple[float, float]:
    low = min([float(edges[0]), *(span.low for span in spans)])
    high = max([float(edges[-1]), *(span.high for span in spans)])
    margin = 0.03 * (high - low) or 1.0
    return low - margin, high + margin


def _axes(figure: Figure, *, left: float, right: float, top: float, bottom: float, sharex: Axes | None = None) -> Axes:
    """Axes at these distances from the figure's borders, in user units, without a frame."""
    height = figure.get_figheight() * 72
    box = (left / _WIDTH, bottom / height, 1 - (left + right) / _WIDTH, 1 - (top + bottom) / height)
    axes = figure.add_axes(box, sharex=sharex)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _title(figure: Figure, text: str) -> None:
    height = figure.get_figheight() * 72
    figure.text(2 / _WIDTH, 1 - 3 / height, text, va="top", fontsize=12.5, fontweight="bold", color=_INK)


def _legend(axes: Axes, handles: Sequence[Artist], names: Sequence[str]) -> None:
    if names:
        axes.legend(handles, names, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=len(names), frameon=False,
                    borderaxespad=0.2, handlelength=2.2, handletextpad=0.6, columnspacing=1.4)  # fmt: skip


def _svg(key: str, height: float, draw: Callable[[Figure], None], alt: str) -> str:
    """Draw in an environment that owes nothing to the user's matplotlib settings, then make the SVG fit for a page."""
    settings: dict[Any, Any] = {
        "svg.hashsalt": key,
        "svg.fonttype": "none",
        "text.parse_math": False,  # a dollar sign in a layer's name is a dollar sign
        "text.color": _INK,
        "axes.labelcolor": _QUIET,
        "axes.edgecolor": _QUIET,
        "axes.linewidth": 0.8,
        "axes.labelsize": 10.5,
        "axes.unicode_minus": True,
        "xtick.color": _QUIET,
        "ytick.color": _QUIET,
        "xtick.labelsize": 10.5,
        "ytick.labelsize": 10.5,
        "legend.fontsize": 10.5,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same measure everywhere, wider than most fonts
    }
    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _fit_for_page(buffer.getvalue(), key, alt)


def _fit_for_page(document: str, key: str, alt: str) -> str:
    body = document[document.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    # Inside a page this rule would reach every element of the page, so it moves to the root element below.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.S)
    body = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{key}-", body)
    body = body.replace("xlink:href", "href")
    body = body.replace("'DejaVu Sans'", "var(--fig-font, sans-serif)")
    for stand_in, (variable, value) in COLOURS.items():
        body = body.replace(stand_in, f"var({variable}, {value})")
    start, end = body.index("<svg"), body.index(">") + 1
    view = re.search(r'viewBox="([^"]+)"', body[start:end])
    box = view.group(1) if view else f"0 0 {_WIDTH} 300"
    root = (
        f'<svg xmlns="http://www.w3.org/2000/svg" id="{key}" viewBox="{box}" role="img" '
        f'aria-label="{escape(alt)}" style="--fig-font: {_FONTS}; stroke-linejoin: round; stroke-linecap: butt">'
    )
    return root + body[end:]
