"""A card as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from labkit.reporting.cards.results import LayerFacts, NetworkCard, PlanResult
from labkit.reporting.summary import short_count, short_size, signed_points

__all__ = ["HOW_TO_READ", "card_text", "summary_table", "table"]

_LONG = 12  # rows of a table that is still shown unfolded

HOW_TO_READ = """\
- **Parameters** are the weights and biases that the integer network keeps: batch norms are folded into the layers
  before them, and parts that only serve training are gone. **MACs** are multiply-accumulates of convolutions and
  linear layers for one image.
- **Size** counts the weights, those of four bits two to a byte, and the int32 biases, in decimal units; float32 takes
  four bytes for each parameter. The `.lab` file is larger: it also holds scales, multipliers, the graph, and the
  ranges that calibration chose.
- **BOPS**, bit operations, are MACs x bits of the weights x bits of the layer's input, for one image.
- **Activations** are the most bytes that are needed at once for one image, a byte a number whatever its bits.
- Figures like **(1 / 4.00)** compare with float32, with 32-bit weights and activations.
- **Change** is in points against the float network, with one standard error over the same images (McNemar's).
- **SQNR** is `10 log10(sum of r^2 / sum of (r - q)^2)` in dB of a tensor r of the float network and the same tensor q
  of the integer network, over all numbers of all images. The error that a layer takes over from those before it is
  part of it.
- **Certificate**: every parameter and every tensor of the integer network is compared with an integer computation in
  PyTorch that is derived from the float module, with tolerance 0."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table of ``heads`` and ``rows``; all but the first ``left`` columns are set to the right."""
    marks = ["---" if at < left else "---:" for at in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in ([*heads], marks, *map(list, rows)))


def summary_table(cards: Sequence[NetworkCard], linked: bool = True) -> str:
    """All ``cards`` in one Markdown table; ``linked`` makes each name a link to the heading of its card."""
    plans = list(dict.fromkeys(plan.name for card in cards for plan in card.plans))
    heads = ["network", "parameters", "MACs", "float32, %", *(f"{name}, %" for name in plans)]
    heads += ["size: float32", *(f"size: {name}" for name in plans), "elements that differ"]
    rows = []
    for card in cards:
        found = {plan.name: plan for plan in card.plans}
        rows.append(
            [
                f"[{card.name}](#{_anchor(card.name)})" if linked else card.name,
                short_count(card.parameters),
                short_count(card.macs),
                _percent(card.accuracy),
                *(_percent(found[name].accuracy if name in found else None) for name in plans),
                short_size(card.float_bytes),
                *(short_size(found[name].size_bytes) if name in found else "-" for name in plans),
                f"{sum(p.certificate.differing for p in card.plans):,} of "
                f"{short_count(sum(p.certificate.elements for p in card.plans))}",
            ]
        )
    return table(heads, rows)


def card_text(card: NetworkCard, figure: str | None = None, level: int = 3, rules: bool = True) -> str:
    """The whole ``card`` in Markdown.

    Parameters
    ----------
    card
        What is shown.
    figure
        The path of its drawing from the page, or None.
    level
        Of its heading, 1 or more.
    rules
        Whether to say what each plan does; what a plan of mixed bits does is always said.
    """
    first, last = card.layers[0], card.layers[-1]
    weighted = sum(layer.macs > 0 for layer in card.layers)
    accuracy = (
        f"Accuracy over {card.accuracy_images:,} images; the float network: {_percent(card.accuracy)} %."
        if card.accuracy is not None
        else f"No accuracy: {card.no_accuracy}."
    )
    parts = [
        f"{'#' * level} {card.name}",
        f"Weights: {card.weights}. Images: {card.data}; {card.calibration_images:,} chose the ranges. {accuracy}",
        f"Input {_shape(first.output)}, output {_shape(last.output)}; {len(card.layers)} nodes, {weighted} of them with weights; "
        f"{card.parameters:,} parameters ({card.module_parameters:,} in the module), {card.macs:,} MACs, activations of "
        f"{short_size(card.activation_bytes)}. In float32: {short_size(card.float_bytes)}, {short_count(card.float_bops)} BOPS. "
        f"{_proof(card)}",
        _plan_table(card),
        _rules(card, rules),
    ]
    parts = [part for part in parts if part]
    parts += [f"![SQNR of each tensor of {card.name}, in dB, one line a plan]({figure})"] if figure else []
    parts.append(_layers(card))
    versions = ", ".join(f"{name} {value}" for name, value in card.versions.items())
    parts.append(f"Made by `{card.command}` with {versions}." if card.command else f"Made with {versions}.")
    return "\n\n".join(parts) + "\n"


def _proof(card: NetworkCard) -> str:
    images, comparisons = (
        {getattr(plan.certificate, what) for plan in card.plans} for what in ("images", "comparisons")
    )
    return (
        f"Compared with PyTorch for each plan: {_span(comparisons)} parameters and tensors, over {_span(images)} images; "
        f"SQNR over {card.sqnr_images:,} images."
    )


def _plan_table(card: NetworkCard) -> str:
    heads = ("plan", "weights", "size", "`.lab` file", "BOPS", "accuracy, %", "change, points", "median SQNR", "lowest SQNR",
             "elements that differ")  # fmt: skip
    return table(heads, [_plan_row(card, plan) for plan in card.plans])


def _plan_row(card: NetworkCard, plan: PlanResult) -> list[str]:
    lowest, ratio = plan.lowest_sqnr
    change = "-" if plan.change is None else f"{signed_points(plan.change)} ± {plan.change_error or 0:.2f}"
    proof = plan.certificate
    return [
        plan.name,
        short_size(plan.weight_bytes),
        f"{short_size(plan.size_bytes)} (1 / {card.compression(plan):.2f})",
        short_size(plan.file_bytes),
        f"{short_count(plan.bops)} (1 / {card.float_bops / plan.bops:.1f})",
        _percent(plan.accuracy),
        change,
        _decibel(plan.median_sqnr_db),
        f"{_decibel(ratio)}, `{lowest}`",
        f"{proof.differing:,} of {proof.elements:,}" + (f" ({proof.first})" if proof.first else ""),
    ]


def _rules(card: NetworkCard, wanted: bool) -> str:
    """What each plan does where that is ``wanted``, and which layers a plan of mixed bits gives how many."""
    lines = []
    for plan in card.plans:
        if len(set(plan.weight_bits.values())) > 1:
            shares = ", ".join(f"{bits} bits to {_given(card, plan, bits)}" for bits in sorted(
                set(plan.weight_bits.values()), reverse=True))  # fmt: skip
            lines.append(f"- {plan.name}: {plan.rule}. Here that gives {shares}.")
        elif wanted:
            lines.append(f"- {plan.name}: {plan.rule}.")
    return "\n".join(lines)


def _given(card: NetworkCard, plan: PlanResult, bits: int) -> str:
    """How many layers ``plan`` gives so many ``bits``, and their share of all parameters."""
    layers = [layer for layer in card.layers if plan.weight_bits.get(layer.name) == bits]
    share = sum(layer.parameters for layer in layers) / card.parameters
    return f"{len(layers)} layer{'s' if len(layers) != 1 else ''} with {100 * share:.1f} % of the parameters"


def _layers(card: NetworkCard) -> str:
    mixed = [plan for plan in card.plans if len(set(plan.weight_bits.values())) > 1]
    heads = ["node", "operation", "input", "output", "kernel", "stride", "groups", "parameters", "MACs"]
    heads += [f"weight bits, {plan.name}" for plan in mixed]
    heads += [f"SQNR, {plan.name}" for plan in card.plans]
    rows = []
    for layer in card.layers:
        row = [f"`{layer.name}`", _operation(layer), ", ".join(map(_shape, layer.inputs)) or "-", _shape(layer.output)]
        row += [_shape(layer.kernel), _shape(layer.stride), "-" if layer.groups is None else str(layer.groups)]
        row += [f"{count:,}" if count else "-" for count in (layer.parameters, layer.macs)]
        row += [str(plan.weight_bits.get(layer.name, "-")) for plan in mixed]
        row += [_decibel(plan.sqnr_db[layer.name]) if layer.name in plan.sqnr_db else "-" for plan in card.plans]
        rows.append(row)
    shown = table(heads, rows, left=4)
    if len(rows) <= _LONG:
        return shown
    return f"<details>\n<summary>All {len(rows)} nodes of {card.name}</summary>\n\n{shown}\n\n</details>"


def _operation(layer: LayerFacts) -> str:
    kind = layer.kind if layer.activation == "none" else f"{layer.kind} + {layer.activation}"
    return kind if layer.dilation in (None, (1, 1)) else f"{kind}, dilation {_shape(layer.dilation)}"


def _shape(shape: Sequence[int] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "1"


def _span(counts: Iterable[int]) -> str:
    low, high = min(counts := set(counts)), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _decibel(value: float) -> str:
    if math.isinf(value):
        return "exact" if value > 0 else "lost"
    return f"{value:.1f} dB"


def _anchor(heading: str) -> str:
    """The link target that GitHub gives a heading."""
    return "".join(letter for letter in heading.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")
