"""EE219 lab, sections II, IV and V.A: ranges and histograms of weights and activations, and the factors of eqs. 4 to 6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.studies.ee219.report import PRINTED, Slip, slips, zeros_at_most
from labkit.studies.ee219.scales import Factors, factors, scaled_outputs
from labkit.studies.ee219.seen import SeenRange, seen_ranges
from labkit.studies.evidence import redrawn
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_BINS = 64  # of each sign in a figure
_FEW = 64  # images on which the factors are checked


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The report's ranges held against themselves, the same ranges of our LeNets, and eqs. 4 to 6 with numbers.

    ``settings`` say how much of it; ``tell`` is called with (net, draws done, draws).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    nets = ("lenet-short", "lenet") if data.name == "cifar10" else ("lenet",)
    tables, figures, seen = [*_printed_tables(slips())], [], {}
    for net in nets:
        lab = open_lab(net, settings, 0, data)
        draws = []
        for seed in range(settings.seeds):
            one = redrawn(lab, settings, seed)
            draws.append(seen_ranges(one))
            lab = one if seed == 0 else lab
            tell(net, seed + 1, settings.seeds)
        seen[net] = draws[0]
        tables += [_range_table(net, draws), _noise_table(net, draws[0])]
        figures += [_figure(net, kind, draws[0]) for kind in ("weights", "activations")]
    plan = BitPlan.uniform(lab.graph, 8, 8, per_channel=False, activation_scheme="symmetric")
    by = factors(convert(lab.graph, lab.calibration, plan))
    table, equations = _equations(lab.net, lab, by)
    tables.append(table)
    return StudyResult(tuple(tables), (*_findings(seen, slips()), *equations), tuple(figures), _notes(settings))


def _printed_tables(found: tuple[Slip, ...]) -> tuple[Table, Table]:
    rows = tuple(
        (
            row.kind,
            row.layer,
            _interval(row.low, row.high),
            _interval(row.sigma_low, row.sigma_high),
            f"{row.width_ratio:.0%}",
            row.said,
            f"{row.mean:.3f}",
            f"{row.deviation:.3f}",
            f"{zeros_at_most(row.mean, row.deviation):.1%}" if row.relu else "",
        )
        for row in PRINTED
    )
    headings = (
        "tensor",
        "layer",
        "actual range, printed",
        "3-sigma range, printed",
        "width of actual range",
        "said to be",
    )
    return (
        Table(
            "The report's own numbers, and the mean and sigma that its 3-sigma ranges imply",
            (*headings, "mean", "sigma", "zeros at most"),
            rows,
        ),
        Table(
            "What contradicts them, found from these numbers alone",
            ("where", "printed", "what is wrong", "right"),
            tuple((s.where, s.printed, s.problem, s.right) for s in found),
        ),
    )


def _range_table(net: str, draws: Sequence[Sequence[SeenRange]]) -> Table:
    rows = []
    for index, one in enumerate(draws[0]):
        largest = [draw[index].actual[1] for draw in draws]
        rows.append(
            (
                one.kind,
                one.layer,
                _interval(*one.actual),
                _interval(*one.three_sigma),
                f"{one.width_ratio:.0%}",
                mean_and_spread(largest, 2) if one.kind == "activations" else "",
                f"{one.zeros:.1%}" if one.kind == "activations" else "",
                f"{one.beyond:.2%}",
            )
        )
    return Table(
        f"{net}: actual and 3-sigma ranges",
        (
            *("tensor", "layer", "actual range", "3-sigma range", "width of actual range"),
            *("largest value, by draw", "zeros", "beyond 3 sigma"),
        ),
        tuple(rows),
    )


def _noise_table(net: str, seen: Sequence[SeenRange]) -> Table:
    return Table(
        f"{net}: signal over error on a symmetric grid, dB",
        (
            *("tensor", "layer", "8 bits, actual range", "8 bits, 3-sigma range"),
            *("4 bits, actual range", "4 bits, 3-sigma range"),
        ),
        tuple(
            (one.kind, one.layer, *(f"{value:.1f}" for bits in (8, 4) for value in one.decibels(bits))) for one in seen
        ),
    )


def _findings(seen: dict[str, tuple[SeenRange, ...]], found: tuple[Slip, ...]) -> tuple[Finding, ...]:
    def ratios(kind: str, *layers: str) -> tuple[str, list[float]]:
        by_net = {
            net: [one.width_ratio for one in ranges if one.kind == kind and one.layer in layers]
            for net, ranges in seen.items()
        }
        text = "; ".join(f"{net} {', '.join(f'{r:.0%}' for r in values)}" for net, values in by_net.items())
        return text, [r for values in by_net.values() for r in values]

    conv1, larger = ratios("weights", "conv1")
    printed = next(row for row in PRINTED if (row.kind, row.layer) == ("weights", "conv1"))
    others, smaller = ratios("weights", "conv2", "fc1", "fc2", "fc3")
    after, narrower = ratios("activations", "conv1", "conv2", "fc1", "fc2", "fc3")
    images, wider = ratios("activations", "input")
    inputs = {net: next(one for one in ranges if one.layer == "input") for net, ranges in seen.items()}
    gains = {net: (one.decibels(8)[1] - one.decibels(8)[0]) for net, one in inputs.items()}
    counts = {bits: _better(seen, bits) for bits in (8, 4)}
    total = sum(len(ranges) for ranges in seen.values())
    lost = [s for s in found if "minus sign" in s.right]
    relu = [one for ranges in seen.values() for one in ranges if one.kind == "activations" and one.zeros > 0.05]
    return (
        Finding(
            "II.B: the 3-sigma range of conv1's weights is larger than the actual range",
            f"the report's own numbers say {printed.width_ratio:.0%} of its width; here {conv1}",
            _share([r > 1 for r in (*larger, printed.width_ratio)]),
        ),
        Finding(
            "II.B: those of conv2, fc1, fc2 and fc3 are smaller",
            f"width of the 3-sigma range over that of the actual one: {others}",
            _share([r < 1 for r in smaller]),
        ),
        Finding(
            "IV.B: the activations' 3-sigma ranges are smaller than the actual ones from conv1 to fc3",
            f"widths: {after}. But the lower ends lie below 0 after all {len(relu)} ReLUs looked at, where no value is",
            _share([r < 1 for r in narrower]),
        ),
        Finding(
            "IV.B: the 3-sigma range of the input is larger than the actual one",
            f"{images} of its width: pixels end at -1 and 1, there are no tails to cut",
            _share([r > 1 for r in wider]),
        ),
        Finding(
            "IV.B: so the input is a good choice for quantization (by the 3-sigma range)",
            "signal over error at 8 bits with the 3-sigma range less that with the actual range: "
            + ", ".join(f"{net} {gain:+.1f} dB" for net, gain in gains.items()),
            _share([gain > 0 for gain in gains.values()]),
        ),
        Finding(
            "IV.B: the 3-sigma ranges of the activations of fc1 and fc2 begin at +1.58 and +1.94",
            f"{len(lost)} of these 2 would leave next to no zeros after a ReLU (table above), where the nets here have "
            f"{min(one.zeros for one in relu):.0%} to {max(one.zeros for one in relu):.0%}; with a minus sign they fit. "
            f"Here {', '.join(f'{one.layer} {one.three_sigma[0]:.2f}' for one in relu if one.layer in ('fc1', 'fc2'))}",
            "no" if len(lost) == 2 else "partly" if lost else "yes",
        ),
        Finding(
            "II.B, V.E: a 3-sigma range makes better use of the integers than the actual range",
            f"smaller squared error than over the actual range for {counts[8]} of {total} tensors at 8 bits, "
            f"for {counts[4]} of {total} at 4 bits",
            "yes" if min(counts.values()) > total / 2 else "partly" if max(counts.values()) > total / 2 else "no",
        ),
    )


def _better(seen: dict[str, tuple[SeenRange, ...]], bits: int) -> int:
    pairs = [one.decibels(bits) for ranges in seen.values() for one in ranges]
    return sum(three > actual for actual, three in pairs)


def _equations(net: str, lab: Lab, by: Factors) -> tuple[Table, tuple[Finding, Finding]]:
    x = lab.x[:_FEW]
    exact, rounded = scaled_outputs(lab.graph, x, by), scaled_outputs(lab.graph, x, by, rounded=True)

    def deviation(layer: str, factor: float) -> float:
        scaled, plain = exact[layer]
        return float(np.abs(scaled - factor * plain).max() / np.abs(scaled).max())

    def steps(layer: str, factor: float) -> float:
        scaled, plain = rounded[layer]
        return _root_mean_square(scaled - factor * plain)

    rows = tuple(
        (what, formula, f"{factor:.6g}", f"{deviation(layer, factor):.1e}", f"{steps(layer, factor):.3g}")
        for what, formula, layer, factor in (
            ("conv1, eq. 5", "n_W1 n_In n_Out1", "conv1", by.first),
            ("conv2, eq. 6 as printed", "n_W2 n_In / (n_W1 n_Out1) n_Out2", "conv2", by.second_as_printed),
            ("conv2, eq. 6 corrected", "n_W2 (n_W1 n_In n_Out1) n_Out2", "conv2", by.second),
        )
    )
    table = Table(
        f"{net}: the factor by which the output is multiplied (n_W1 = {by.w1:.4g}, n_In = {by.into:.4g}, "
        f"n_Out1 = {by.out1:.4g}, n_W2 = {by.w2:.4g}, n_Out2 = {by.out2:.4g})",
        (
            "layer",
            "factor",
            "its value",
            "largest deviation, of the largest output",
            "rms deviation when rounded, steps",
        ),
        rows,
    )
    five, six = deviation("conv1", by.first), deviation("conv2", by.second)
    printed = deviation("conv2", by.second_as_printed)
    return table, (
        Finding(
            "eq. 5: conv1's output carries n_W1 n_In n_Out1",
            f"the scaled net agrees with that multiple of the plain one to {five:.0e} of the largest output",
            "yes" if five < 1e-12 else "no",
        ),
        Finding(
            "eq. 6: conv2's output carries n_W2 n_In / (n_W1 n_Out1) n_Out2",
            f"that is {by.second_as_printed / by.second:.4g} times the right factor: it divides by n_W1 n_Out1 "
            f"where it must multiply. n_W2 (n_W1 n_In n_Out1) n_Out2 agrees to {six:.0e}",
            "yes" if printed < 1e-12 else "no",
        ),
    )


def _figure(net: str, kind: str, seen: Sequence[SeenRange]) -> Figure:
    panels = []
    for one in (each for each in seen if each.kind == kind):
        counts, edges = one.histogram.coarsened(_BINS).signed()
        kept = np.flatnonzero(counts)
        cut = slice(int(kept[0]), int(kept[-1]) + 1)
        heights = (*(float(c) for c in 100 * counts[cut] / counts.sum()), 0.0)
        panels.append(
            Figure(
                f"{net}-{kind}-{one.layer}",
                one.layer,
                "step",
                "value",
                "share, %",
                (Series("values by bin", tuple(float(e) for e in edges[cut.start : cut.stop + 1]), heights),),
                {"actual range": one.actual, "3-sigma range": one.three_sigma},
                log_y=True,
            )
        )
    title = f"{net}: {'weights' if kind == 'weights' else 'activations, after ReLU'}"
    return Figure(f"{net}-{kind}", title, "step", "", "", (), panels=tuple(panels))


def _share(fits: Sequence[bool]) -> Literal["yes", "no", "partly"]:
    return "yes" if all(fits) else "partly" if any(fits) else "no"


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _interval(low: float, high: float) -> str:
    return f"[{low:.4f}, {high:.4f}]"


def _notes(settings: Settings) -> tuple[str, ...]:
    return (
        "The report's network is not to be had. `lenet-short` was trained for two epochs to stand where it stood "
        "(60.88 %); `lenet` is the same network trained in full. Weights have no biases.",
        f"Activations were observed on {settings.calibration} training images (draw 0; the spread of the largest "
        f"value is over {settings.seeds} draws). Max-pooling and flattening keep the range of the layer before "
        "them.",
        "A 3-sigma range is the mean -+ 3 standard deviations, and so its middle is the mean and a sixth of its "
        "width is sigma. If a share p of values is 0 then p <= sigma^2 / (sigma^2 + mean^2): with the means and "
        "deviations of fc1 and fc2 as printed, a ReLU would have zeroed next to nothing.",
        "A 3-sigma range is wider than the actual one where a sixth of the actual width is less than sigma: flat "
        "values without tails. There is then nothing to cut, the range to take is the actual one, and labkit's "
        "`3sigma` cuts its range to what occurs. The remark that such a layer is a good choice has it the wrong "
        "way round: 3 sigma can only gain where tails are long. On a symmetric grid it is the farther end that "
        "counts, not the width: where a layer's weights lean to one side, a 3-sigma range of more than the "
        "actual width may still have the finer steps.",
        "The decibels are of squared error, over the ranges as the lab has them (3 sigma not cut); whether that "
        "matters to the network is another question, see ee219-clipping.",
        "After a ReLU a symmetric grid leaves all negative integers unused, whichever way its range is chosen: "
        "half of what the report's section V.E complains of. An unsigned grid (labkit's default) gets it back; "
        "no choice of range does.",
        "Also in the report: section IV.A is headed 'Histograms of the Weights' and shows activations; eq. 3 "
        "leaves out rounding; r = (S q - Z) should be S (q - Z); eq. 10 lacks n_W n_In before the bias "
        "(docs/arithmetic.md, section 8).",
        "In the last column of the table of factors inputs, weights and outputs are rounded and clamped to "
        "[-128, 127] as the lab does: a few tenths of a step for the right factor, since each rounding costs up "
        "to half a step.",
    )
