"""Nagel et al. 2020, table 7: AdaRound among other ways to quantize weights after training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

from labkit.data import load as load_data
from labkit.quantization.calibration import calibrate
from labkit.quantization.equalization import equalize
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.studies.adaround.comparison import TIE, TIE_NOTE, Outcome, corrected, nearest, outcome, verdict
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["ROWS", "Row", "run"]

_NETS: dict[str, tuple[int, ...]] = {"lenet": (4, 2), "resnet20": (4, 3)}
_BLOCK_ITERATIONS = 300


@dataclass(frozen=True)
class Row:
    """A way to quantize weights: ``make(lab, bits, smoke)``.

    widest_only : made at 4 bits only.
    slow : with the first seed only.
    """

    name: str
    make: Callable[[Lab, int, bool], Outcome]
    widest_only: bool = False
    slow: bool = False


@dataclass
class _Cell:
    """Per cent right with activations of 8 bits, by seed; CPU seconds; and with float activations, first seed."""

    eight: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    float_activations: float | None = None


Found = dict[tuple[str, int, str], _Cell]  # by net, bits and row


def run(settings: Settings, tell: Tell) -> StudyResult:
    """LeNet and ResNet-20 with their weights at few bits in as many ways as there are `ROWS`.

    ``settings`` say how much of it; ``tell`` is called with (net, rows done, rows).
    """
    nets = {"lenet": (4,)} if settings.smoke else _NETS
    rows = [row for row in ROWS if not (settings.smoke and row.slow)]
    data = load_data(settings.data, data_dir=settings.data_dir)
    found: Found = {}
    reference = {}
    for net, widths in nets.items():
        jobs = [
            (seed, bits, row)
            for seed in range(settings.seeds)
            for bits in widths
            for row in rows
            if not (row.slow and seed) and not (row.widest_only and bits < max(widths))
        ]
        lab = open_lab(net, settings, 0, data)
        for done, (seed, bits, row) in enumerate(jobs):
            if seed != lab.seed:
                lab = open_lab(net, settings, seed, data)
            start = time.process_time()
            made = row.make(lab, bits, settings.smoke)
            seconds = time.process_time() - start
            cell = found.setdefault((net, bits, row.name), _Cell())
            cell.seconds.append(seconds)
            cell.eight.append(made.integer_accuracy(lab))
            if seed == 0 and bits == max(widths):
                cell.float_activations = made.float_activations_accuracy(lab)
            tell(net, done + 1, len(jobs))
        reference[net] = lab.accuracy
    return StudyResult(
        tuple(
            _table(found, net, bits, reference[net], bits == max(widths))
            for net, widths in nets.items()
            for bits in widths
        ),
        tuple(finding for net, widths in nets.items() for finding in _findings(found, net, widths, reference[net])),
        tuple(_figure(found, net, bits, reference[net]) for net, widths in nets.items() for bits in widths[-1:]),
        _NOTES,
    )


_NOTES = (
    "The paper's table quotes other papers on ImageNet networks; here each way is labkit's own, on networks trained here, all on "
    "the same calibration images: none of them sees a label. One scale a layer but for the row that says otherwise; first and "
    "last layers too. OCS (Zhao et al. 2019) duplicates channels and so changes the network; it is not among labkit's ways.",
    "4/8: everything in the integer engine, ranges of activations by min-max. 4/32: the rounded weights with float activations, "
    "first seed; the rounding was told of activations of 8 bits in both. Fewer bits are added because at 4 all are close.",
    "DFQ is cross-layer equalization and bias correction (Nagel et al. 2019), the correction measured on images. "
    "OMSE (Choukroun et al. 2019) is the grid of the least error of W, to nearest. AdaRound (1,000 iterations), GPTQ, descent "
    'and best work on the quadratic form of each layer, with the bias corrected inside; best is `method="best"`. BRECQ and QDrop '
    f"have {_BLOCK_ITERATIONS} iterations of the 20,000 of their papers, and one seed.",
    "Seconds are those of the processor, one thread, for the weights alone (with what DFQ needs besides); reading the network "
    "and the ranges of activations are not in them.",
    TIE_NOTE,
)


def _per_layer(lab: Lab, bits: int, smoke: bool, grid: str = "minmax") -> Outcome:
    return nearest(lab.graph, lab.calibration, lab.plan(bits, 8, per_channel=False), grid)


def _per_channel(lab: Lab, bits: int, smoke: bool) -> Outcome:
    return nearest(lab.graph, lab.calibration, lab.plan(bits, 8, per_channel=True))


def _dfq(lab: Lab, bits: int, smoke: bool) -> Outcome:
    graph = equalize(lab.graph, relu6="replace").graph
    made = nearest(graph, calibrate(graph, lab.images), lab.plan(bits, 8, per_channel=False))
    return corrected(made, lab)


def _rounded(method: str, options: RoundingOptions, lab: Lab, bits: int, smoke: bool) -> Outcome:
    if smoke:
        options = replace(options, iterations=20)
    plan = lab.plan(bits, 8, per_channel=False)
    return outcome(lab, plan, lab.round(plan, method, options))


ROWS = (
    Row("nearest", _per_layer),
    Row("nearest, one scale a channel", _per_channel),
    Row("DFQ", _dfq),
    Row("OMSE", partial(_per_layer, grid="mse")),
    Row("AdaRound", partial(_rounded, "adaround", RoundingOptions())),
    Row("GPTQ", partial(_rounded, "gptq", RoundingOptions()), widest_only=True),
    Row("descent", partial(_rounded, "descent", RoundingOptions()), widest_only=True),
    Row("best", partial(_rounded, BEST_METHOD, BEST)),
    Row(
        "BRECQ", partial(_rounded, "brecq", RoundingOptions(iterations=_BLOCK_ITERATIONS)), widest_only=True, slow=True
    ),
    Row(
        "QDrop", partial(_rounded, "qdrop", RoundingOptions(iterations=_BLOCK_ITERATIONS)), widest_only=True, slow=True
    ),
)


def _table(found: Found, net: str, bits: int, reference: float, has_float: bool) -> Table:
    rows = []
    for row in ROWS:
        if (cell := found.get((net, bits, row.name))) is None:
            continue
        value = None if cell.float_activations is None else f"{cell.float_activations:.2f}"
        shown: tuple[str | None, ...] = (row.name, *([value] if has_float else []), mean_and_spread(cell.eight))
        rows.append((*shown, f"{fmean(cell.seconds):.1f}"))
    return Table(
        f"{net}, weights {bits} bits: test accuracy, % (float network {reference:.2f})",
        ("weights", *([f"{bits}/32"] if has_float else []), f"{bits}/8", "seconds"),
        tuple(rows),
    )


def _findings(found: Found, net: str, widths: tuple[int, ...], reference: float) -> list[Finding]:
    findings, widest = [], max(widths)
    ada = found[net, widest, "AdaRound"]
    assert ada.float_activations is not None  # measured at the widest
    for kind, accuracy in (("32", ada.float_activations), ("8", fmean(ada.eight))):
        lost = reference - accuracy
        findings.append(
            Finding(
                f"{net}, {widest}/{kind}: AdaRound is within 1 % of the float network",
                f"{lost:.2f} points below",
                "yes" if lost <= 1 else "partly" if lost <= 2 else "no",
            )
        )
    change = ada.eight[0] - ada.float_activations
    findings.append(
        Finding(
            f"{net}: activations of 8 bits do not significantly harm AdaRound",
            f"{change:+.2f} points, first seed",
            "yes" if change >= -TIE else "no",
        )
    )
    for bits in widths:
        here = found[net, bits, "AdaRound"].eight
        for other in ("DFQ", "OMSE", "nearest, one scale a channel"):
            than = found[net, bits, other].eight
            findings.append(
                Finding(
                    f"{net}, {bits}/8: AdaRound is better than {other}",
                    f"{fmean(here):.2f} % against {fmean(than):.2f} %",
                    verdict(here, than),
                )
            )
        best = found[net, bits, "best"]
        findings.append(
            Finding(
                f"{net}, {bits}/8 (not in the paper): best is better than AdaRound",
                f"{fmean(best.eight):.2f} % in {fmean(best.seconds):.1f} s against {fmean(here):.2f} % in "
                f"{fmean(found[net, bits, 'AdaRound'].seconds):.1f} s",
                verdict(best.eight, here),
            )
        )
    return findings


def _figure(found: Found, net: str, bits: int, reference: float) -> Figure:
    names = [row.name for row in ROWS if (net, bits, row.name) in found]
    words = tuple(name.replace(", ", ",\n").replace("scale a", "scale\na") for name in names)
    lost = tuple(reference - fmean(found[net, bits, name].eight) for name in names)
    return Figure(
        f"{net}-ways",
        f"{net}, weights {bits} bits, activations 8 bits",
        "bar",
        "weights",
        "test accuracy lost against float, points",
        (Series("integer engine", words, lost),),
    )
