"""The roofline: how fast each layer runs, over how many multiply-accumulates it does for each byte that it moves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.benchmark.limits import MEMORY
from labkit.benchmark.results import LayerRate

__all__ = ["roofline"]

_COLOURS = ("#1d6fd1", "#b45f06", "#a3348f", "#2f7d4f", "#c2410c", "#1c2530", "#0891b2", "#8a7500", "#8fa3bd")
_MARKERS = "os^Dv*"
_CLOSE = 1.15
_INK, _QUIET, _LINE = "#1c2530", "#5a6675", "#dde2e9"


def roofline(layers: Sequence[LayerRate], limits: Mapping[str, float], title: str, kind: str = "svg") -> bytes:
    """The figure as a file: ``kind`` "svg" or "png".

    Parameters
    ----------
    layers : colour tells the kind of layer, the mark tells the net
    limits : horizontal lines; `MEMORY` among them is the slope
    title : the processor, usually
    kind : "svg" (the same bytes for the same data) or "png"
    """
    style: dict[str, object] = {"svg.hashsalt": "labkit", "svg.fonttype": "none", "font.size": 9.5, "text.color": _INK}
    style |= {"axes.edgecolor": _QUIET, "axes.labelcolor": _INK}
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.6, 5.4), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        _layers(axes, layers)
        _lines(axes, limits)
        axes.set_xlabel("multiply-accumulates for each byte of weights and activations")
        axes.set_ylabel("GMAC/s, one thread")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(which="major", color=_LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _layers(axes: Axes, layers: Sequence[LayerRate]) -> None:
    kinds = sorted({layer.kind for layer in layers})
    nets = list(dict.fromkeys(layer.net for layer in layers))
    for layer in layers:
        axes.plot(
            layer.macs / layer.bytes,
            layer.gmacs,
            marker=_MARKERS[nets.index(layer.net) % len(_MARKERS)],
            color=_COLOURS[kinds.index(layer.kind) % len(_COLOURS)],
            markersize=6,
            alpha=0.75,
            markeredgewidth=0,
            linestyle="none",
        )
    for index, kind in enumerate(kinds):
        axes.plot([], [], linewidth=7, solid_capstyle="butt", color=_COLOURS[index % len(_COLOURS)], label=kind)
    for index, net in enumerate(nets):
        axes.plot([], [], _MARKERS[index % len(_MARKERS)], color=_QUIET, label=net)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(loc="lower right", fontsize=8.5, framealpha=0.95, edgecolor=_LINE, ncols=2)


def _lines(axes: Axes, limits: Mapping[str, float]) -> None:
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    ceilings = {name: rate for name, rate in limits.items() if name != MEMORY}
    top = max([top, *ceilings.values()]) * 1.35
    axes.set_xlim(low, high)
    axes.set_ylim(max(bottom, top / 1e4), top)
    if memory := limits.get(MEMORY):
        x = np.array([low, high])
        axes.plot(x, memory * x, color=_QUIET, linewidth=1.2, linestyle=(0, (5, 2)), zorder=1)
        bend = min(high, max(ceilings.values(), default=top) / memory)
        at = np.sqrt(low * bend)
        axes.annotate(
            f"memory, {memory:.0f} GB/s",
            (at, memory * at),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=_QUIET,
        )
    for group in _close(sorted(ceilings.items(), key=lambda item: item[1])):
        for _, rate in group:
            axes.axhline(rate, color=_QUIET, linewidth=1.0, zorder=1)
        axes.annotate(
            ", ".join(f"{name} {rate:.0f}" for name, rate in group),
            (low, group[-1][1]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8.5,
            color=_QUIET,
        )


def _close(ceilings: Sequence[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """Ascending ceilings in groups that are too close together for a label each."""
    groups: list[list[tuple[str, float]]] = []
    for name, rate in ceilings:
        if groups and rate / groups[-1][-1][1] < _CLOSE:
            groups[-1].append((name, rate))
        else:
            groups.append([(name, rate)])
    return groups
