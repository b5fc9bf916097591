"""A bit plan in a terminal: what each layer was predicted to lose at each width, and what was chosen; from 80 columns on."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from labkit.allocation.planning import Planned
from labkit.sensitivity.table import SensitivityTable

__all__ = ["plan_lines", "plan_table", "sensitivity_table"]

_NAME = 8  # columns that a layer's name gets at least; a longer one is folded


def sensitivity_table(table: SensitivityTable, chosen: dict[str, int] | None = None) -> Table:
    """One row a layer, one column a width; the cell of the ``chosen`` bits by layer stands in brackets.

    Parameters
    ----------
    table
        What is shown.
    chosen
        Bits by layer; None brackets nothing.

    Returns
    -------
    Table
        Two digits a number.
    """
    shown = _table(f"Predicted loss in {table.unit}, by {table.method}; chosen in brackets")
    shown.add_column("layer", overflow="fold", min_width=_NAME)
    for bits in table.bits:
        shown.add_column(f"{bits} bits", justify="right", no_wrap=True)
    for row, layer in enumerate(table.layers):
        cells = []
        for column, bits in enumerate(table.bits):
            number = f"{table.values[row, column]:.1e}".replace("e-0", "e-").replace("e+00", "")
            picked = (chosen or {}).get(layer) == bits
            cells.append(Text(f"[{number}]", "bold") if picked else Text(f"{number} "))
        shown.add_row(layer, *cells)
    return shown


def plan_table(planned: Planned) -> Table:
    """One row a layer of ``planned``: its weights, bits, bytes, predicted loss and the share of the whole predicted loss."""
    weights, size = planned.plan.weights, planned.size
    losses = {layer: planned.sensitivity.value(layer, weights[layer]) for layer in planned.sensitivity.layers}
    whole = sum(losses.values())
    shown = _table("Bits of the weights, layer by layer")
    shown.add_column("layer", overflow="fold", min_width=_NAME)
    for heading in ("weights", "bits", "bytes", "predicted loss", "share %"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for layer, loss in losses.items():
        share = f"{100 * loss / whole:.1f}" if whole > 0 else "-"
        count = size.value(layer, size.bits[0]) * 8 / size.bits[0]
        cells = (
            f"{count:,.0f}",
            str(weights[layer]),
            f"{size.value(layer, weights[layer]):,.0f}",
            f"{loss:.3g}",
            share,
        )
        shown.add_row(layer, *cells)
    return shown


def plan_lines(planned: Planned) -> list[str]:
    """What a reader wants to know of ``planned`` in sentences: loss and gap, each budget, the size before and after."""
    found, size = planned.allocation, planned.size
    gap = "proven best for this table" if found.gap == 0 else f"at most {found.relative_gap:.2%} above the best"
    table = planned.sensitivity
    error = sum(
        table.errors[row, table.bits.index(planned.plan.weights[layer])] for row, layer in enumerate(table.layers)
    )  # the layers' errors come from the same images, so they add up at worst
    within = f" (standard error at most {error:.2g})" if error else ""
    lines = [
        f"Predicted loss {found.value:.4g} {table.unit}{within}, by {found.method} in {found.seconds:.2f} s: {gap}."
    ]
    kind = str(table.notes.get("rounding", ""))
    if kind and kind.startswith("nearest") != (planned.options.rounding == "nearest"):
        lines.append(
            f"The table was measured on other weights than the network will have: theirs were rounded by {kind}. Its prediction "
            f"can be far off; leave out --sensitivity to measure anew."
        )
    for name, unit, cost, budget in zip(found.names, found.units, found.costs, found.budgets, strict=True):
        words = "" if unit == name else f" {unit}"
        lines.append(f"Budget, {name}: {_amount(cost)} of {_amount(budget)}{words}.")
    after = size.total(planned.plan.weights)
    notes = size.notes
    before = 4.0 * (notes["weights"] + notes["biases"])
    lines.append(
        f"Size: {before:,.0f} bytes of float weights and biases before, {after:,.0f} after ({before / after:.1f} times less; "
        f"{planned.average_bits:.3f} bits a weight on average, counted end to end, with biases and scales)."
    )
    return lines


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.4g}"


def _table(title: str) -> Table:
    return Table(
        title=Text(title),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        title_style="bold",
    )
