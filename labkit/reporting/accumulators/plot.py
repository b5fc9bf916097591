"""The analysis as a figure: the bits that each layer's accumulator needs, at worst and on images, below those of int32."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from labkit.reporting.accumulators.results import Analysis

__all__ = ["bits_figure"]

_INK, _QUIET, _LINE, _WORST, _OBSERVED, _LIMIT = "#1c2530", "#5a6675", "#dde2e9", "#8fa3bd", "#1d6fd1", "#c2410c"
_ROW, _MARGIN = 0.42, 1.5  # inches
_LIMITS = {"int16": 16, "int32": 32}


def bits_figure(analysis: Analysis, kind: str = "svg") -> bytes:
    """Two bars a layer of ``analysis``, worst case and observed; lines at 16 and 32 bits. ``kind`` is "svg" or "png".

    Bits are of signed integers, so int32 has 31 for the magnitude. The same analysis gives the same bytes of SVG.
    """
    style: dict[str, object] = {"svg.hashsalt": "labkit", "svg.fonttype": "none", "font.size": 9.5, "text.color": _INK}
    style |= {"axes.edgecolor": _QUIET, "axes.labelcolor": _INK}
    layers = analysis.layers
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(7.6, _MARGIN + _ROW * len(layers)), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        at = np.arange(len(layers), dtype=np.float64)
        series = [("worst case", _WORST, [layer.worst.bits for layer in layers])]
        if analysis.images:
            seen = [0 if layer.observed is None else layer.observed.bits for layer in layers]
            series.append((f"observed on {analysis.images:,} images", _OBSERVED, seen))
        thickness = 0.8 / len(series)
        for index, (label, colour, bits) in enumerate(series):
            middle = at + (index - (len(series) - 1) / 2) * thickness
            bars = axes.barh(middle, bits, thickness, label=label, color=colour)
            axes.bar_label(bars, padding=2, fontsize=8, color=_QUIET)
        for name, limit in _LIMITS.items():
            axes.axvline(limit, color=_LIMIT, linewidth=1.0, linestyle=(0, (5, 2)))
            axes.annotate(
                name, (limit, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
                ha="center", fontsize=8.5, color=_LIMIT,
            )  # fmt: skip
        axes.set_yticks(at, [layer.name for layer in layers])
        axes.set_ylim(len(layers) - 0.5, -0.5)  # the first layer on top
        axes.set_xlim(0, max([34, *(layer.worst.bits + 2 for layer in layers)]))
        axes.set_xlabel("bits of a signed accumulator")
        axes.tick_params(length=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
