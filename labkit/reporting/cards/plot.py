"""The error of every tensor of a network, one line for each bit plan, as a figure."""

from __future__ import annotations

import io
import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.reporting.cards.results import NetworkCard

__all__ = ["sqnr_figure"]

# Of Okabe and Ito's palette, which colour-blind readers can tell apart; marks and dashes say the same once more.
_COLOURS = ("#0072b2", "#d55e00", "#000000", "#009e73", "#cc79a7", "#56b4e9")
_MARKERS = "os^Dvx"
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), "-")
_INK, _QUIET, _LINE = "#1c2530", "#5a6675", "#dde2e9"
_MOST_LABELS = 40  # more of them would run into each other
_LETTERS = 26


def sqnr_figure(card: NetworkCard, kind: str = "svg") -> bytes:
    """Signal-to-quantization-noise ratio in dB over the tensors of ``card`` in running order, one line a plan.

    Parameters
    ----------
    card
        Tensors with an infinite ratio leave a gap. Where there are more than 40, only some are named on the axis.
    kind
        "svg" (the same card gives the same bytes) or "png".
    """
    style: dict[str, object] = {"svg.hashsalt": card.name, "svg.fonttype": "none", "font.size": 10, "text.color": _INK}
    style |= {"axes.edgecolor": _QUIET, "axes.labelcolor": _INK, "text.parse_math": False, "axes.unicode_minus": True}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)  # type: ignore[arg-type]
        tensors = list(card.plans[0].sqnr_db)
        figure = Figure(figsize=(9.6, 4.8), layout="constrained", facecolor="white", dpi=100)
        axes = figure.add_subplot()
        _lines(axes, card, tensors)
        _name_tensors(axes, tensors)
        axes.set_ylabel("SQNR in dB (higher is better)")
        axes.set_xlabel("tensor that a layer puts out, in running order")
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_title(
            f"{card.name}: error of each tensor against the float network, {_images(card.sqnr_images)}",
            loc="left", fontsize=11.5, fontweight="bold",
        )  # fmt: skip
        figure.legend(loc="outside lower center", ncols=min(4, len(card.plans)), frameon=False, fontsize=9.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _lines(axes: Axes, card: NetworkCard, tensors: list[str]) -> None:
    many = len(tensors) > _MOST_LABELS
    for place, plan in enumerate(card.plans):
        ratios = [plan.sqnr_db[tensor] for tensor in tensors]
        axes.plot(
            range(len(tensors)),
            [ratio if math.isfinite(ratio) else math.nan for ratio in ratios],
            color=_COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
            linestyle=_DASHES[place % len(_DASHES)],
            linewidth=(1.2 if many else 1.8)
            * (1.6 if place == 0 else 1.0),  # a plan that differs late lies on the first
            markersize=(2.8 if many else 5.5) * (1.3 if place == 0 else 1.0),
            label=f"{plan.name}, median {_decibel(plan.median_sqnr_db)}",
        )


def _name_tensors(axes: Axes, tensors: list[str]) -> None:
    every = math.ceil(len(tensors) / _MOST_LABELS)
    shown = range(0, len(tensors), every)
    upright = len(tensors) > 12
    axes.set_xticks(
        shown,
        [_shortened(tensors[at]) for at in shown],
        rotation=90 if upright else 35,
        ha="center" if upright else "right",
        va="top" if upright else "center_baseline",
        rotation_mode="default" if upright else "anchor",
        fontsize=7.5 if upright else 9,
    )
    axes.set_xlim(-0.6, len(tensors) - 0.4)
    axes.tick_params(axis="x", length=3, color=_QUIET)
    axes.tick_params(axis="y", length=0)


def _shortened(name: str) -> str:
    # The end of a dotted name says more than its beginning ("layer3.1.conv2").
    return name if len(name) <= _LETTERS else "…" + name[-(_LETTERS - 1) :]


def _decibel(value: float) -> str:
    if math.isinf(value):
        return "exact" if value > 0 else "lost"
    return f"{value:.1f} dB".replace("-", "\N{MINUS SIGN}")


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count != 1 else ''}"
