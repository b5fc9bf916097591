"""The analysis in a terminal: one table of sums, one of what follows them, and a legend; legible from 80 columns on."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from labkit.reporting.accumulators.results import Analysis, LayerSums, Step

__all__ = ["analysis_tables", "ledger_table"]

_NOTHING = "-"
_INT32 = 2**31
_NAME = 8  # columns that a name gets at least; a longer one is folded
_LEGEND = (
    "K: terms of one sum. Worst: the largest magnitude that a sum, or a part of it in any order, can have for any input in "
    "the input's grid; bits: of the signed accumulator that holds it; spare: what int32 has left (an Add sums in 64 bits). "
    "Least and most: finished sums on the images, with their bits; used: their magnitude in per cent of the worst. "
    "Of all outputs on the images, act. lie at the end that an activation sets (ReLU's 0, ReLU6's 6), low and high at an end "
    "of the grid, and cut lay beyond it and were clipped. int16: whether 16 bits hold the worst. Pairs: neighbouring weights "
    "with which vpmaddubsw (u8 x s8, added in int16) can saturate. Winograd: the transforms that are exact here, F4 for "
    "F(4x4, 3x3), F2 for F(2x2, 3x3). More in docs/analyse.md."
)


_LEDGER_LEGEND = (
    "Every intermediate integer of the network. Worst: its largest magnitude for any input, by bounds, and the bits of the "
    "signed integer that holds it; seen: the bits that the images needed. eq.: the equation in docs/arithmetic.md. Where a "
    "worst case passes 32 bits with its sign, the kernels compute in int64."
)


def ledger_table(analysis: Analysis) -> Group:
    """The ledger of bit widths of ``analysis``: one row an intermediate, and how many of them need int64."""
    wide = sum(step.register == "int64" for step in analysis.ledger)
    table = _table(f"Ledger of bit widths: {len(analysis.ledger):,} intermediates, {wide:,} of them in int64")
    table.add_column("layer", overflow="fold", min_width=_NAME)
    table.add_column("step", overflow="fold", min_width=2 * _NAME)
    for heading in ("eq.", "worst", "bits", "seen", "register"):
        table.add_column(heading, justify="right", no_wrap=True)
    name = ""
    for step in analysis.ledger:
        table.add_row(Text(step.name if step.name != name else ""), *_step_cells(step))
        name = step.name
    return Group(table, Text(_LEDGER_LEGEND, style="dim"))


def _step_cells(step: Step) -> list[RenderableType]:
    return [
        step.step,
        str(step.equation),
        _number(step.worst.magnitude),
        str(step.worst.bits),
        _NOTHING if step.observed is None else str(step.observed.bits),
        step.register,
    ]


def analysis_tables(analysis: Analysis) -> Group:
    """Both tables and the legend of ``analysis``, one row a layer; columns that need images show - where there were none."""
    where = f" on {analysis.images:,} images" if analysis.images else ""
    source = f" ({analysis.source})" if analysis.images and analysis.source else ""
    sums = _table(f"Accumulators, at worst and{where}{source}" if where else "Accumulators, at worst")
    sums.add_column("layer", overflow="fold", min_width=_NAME)
    for heading in ("K", "worst", "bits", "spare", "least", "most", "bits", "used %"):
        sums.add_column(heading, justify="right", no_wrap=True)
    after = _table(f"Outputs{where}, and what the sums allow" if where else "What the sums allow")
    after.add_column("layer", overflow="fold", min_width=_NAME)
    after.add_column("operation", no_wrap=True)
    for heading in ("act. %", "low %", "high %", "cut %", "int16", "pairs %", "Winograd"):
        after.add_column(heading, justify="right", no_wrap=True)
    for layer in analysis.layers:
        sums.add_row(*_sum_cells(layer))
        after.add_row(*_output_cells(layer))
    return Group(sums, after, Text(_LEGEND, style="dim"))


def _table(title: str) -> Table:
    return Table(
        title=Text(title),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        title_style="bold",
    )


def _sum_cells(layer: LayerSums) -> list[RenderableType]:
    seen = layer.observed
    used = layer.used
    return [
        Text(layer.name),
        f"{layer.products:,}",
        _number(layer.worst.magnitude),
        str(layer.worst.bits),
        str(layer.spare_bits),
        *([_NOTHING] * 3 if seen is None else [_number(seen.low), _number(seen.high), str(seen.bits)]),
        _NOTHING if used is None else _per_cent(used),
    ]


def _output_cells(layer: LayerSums) -> list[RenderableType]:
    landing = layer.landing
    cells: list[RenderableType] = [Text(layer.name), layer.operation]
    if landing is None:
        cells += [_NOTHING] * 4
    else:
        is_active = landing.low_is_activation or landing.high_is_activation
        is_grid = not (landing.low_is_activation and landing.high_is_activation)
        cells += [
            _per_cent(landing.by_activation) if is_active else _NOTHING,
            _NOTHING if landing.low_is_activation else _per_cent(landing.saturated_low),
            _NOTHING if landing.high_is_activation else _per_cent(landing.saturated_high),
            _per_cent(landing.cut) if is_grid else _NOTHING,
        ]
    winograd = _NOTHING if layer.winograd is None else " ".join(layer.winograd) or "no"
    pairs = _NOTHING if layer.pairs is None else _per_cent(layer.pairs.share)
    return [*cells, "yes" if layer.fits_int16 else "no", pairs, winograd]


def _number(value: int) -> str:
    """All digits of a sum that fits 32 bits, three of the wider ones (the JSON has them all)."""
    return f"{value:,}" if abs(value) <= _INT32 else f"{value:.2e}"


def _per_cent(share: float) -> str:
    """Two digits after the point, but never 0.00 for what is not 0, nor 100 for what is not all."""
    if share in (0, 1):
        return f"{100 * share:.0f}"
    if share < 0.00005:
        return "<0.01"
    return f"{min(100 * share, 99.99):.2f}"
