"""Bits by layer and better rounding, each alone and both together, in the integer engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from labkit.allocation.allocate import allocate
from labkit.allocation.budgets import average_bits
from labkit.allocation.costs import weight_bytes
from labkit.data import load as load_data
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.sensitivity.measure import measure_sensitivity
from labkit.studies.evidence import redrawn
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_NETS = ("lenet", "resnet20")
_AVERAGES = (2.5, 3.0, 4.0)
_BITS = (2, 3, 4, 5, 6, 7, 8)
_IMAGES = 128  # of the sensitivities
_NAMES = {
    ("uniform", "nearest"): "uniform, nearest",
    ("plan", "nearest"): "plan, nearest",
    ("uniform", "best"): "uniform, best",
    ("plan", "best"): "plan, best",
}
_TIE = 0.2  # points; about the standard error of a difference on 10,000 images


@dataclass(frozen=True, eq=False)
class _Cells:
    """Accuracies in per cent, one a seed, by average bits, plan and rounding; and the plans of the first seed in words."""

    net: str
    reference: float
    found: dict[tuple[float, str, str], list[float]]
    plans: dict[float, str]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Quantize LeNet and ResNet-20 at 2.5, 3 and 4 bits a weight with and without a plan, with and without better rounding.

    ``settings`` say how much of it; ``tell`` is called with (net, networks done, networks).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    averages = _AVERAGES[1:2] if settings.smoke else _AVERAGES
    cells = []
    for net in _NETS[:1] if settings.smoke else _NETS:
        found: dict[tuple[float, str, str], list[float]] = {}
        plans: dict[float, str] = {}
        lab = open_lab(net, settings, 0, data)
        for seed in range(settings.seeds):
            lab = redrawn(lab, settings, seed, histograms=False) if seed else lab
            images = lab.images[: 32 if settings.smoke else _IMAGES]
            table = measure_sensitivity(lab.graph, images, None, _BITS, "gauss-newton")
            for done, average in enumerate(averages):
                size = weight_bytes(lab.graph, _BITS)
                mixed = allocate(table, size, average_bits(average), graph=lab.graph).plan
                plans.setdefault(average, " ".join(str(mixed.weights[name]) for name in table.layers))
                for word, plan in (("uniform", lab.plan(math.floor(average), 8)), ("plan", mixed)):
                    for rounding, accuracy in _accuracies(lab, plan).items():
                        found.setdefault((average, word, rounding), []).append(accuracy)
                tell(f"{net}, seed {seed}", done + 1, len(averages))
        cells.append(_Cells(net, lab.accuracy, found, plans))
    return StudyResult(
        (*(_table(one, averages) for one in cells), _plans(cells)),
        tuple(finding for one in cells for finding in _findings(one, averages)),
        (_figure(cells, averages),),
        (
            f"Plans are the best ones (exact solver) at that many bits a weight on average, by the Gauss-Newton sensitivity of "
            f"weights rounded to nearest on {_IMAGES} training images without labels. Activations have 8 bits, weights one "
            "scale a channel. A uniform network of 2.5 bits does not exist: there it has 2 bits, and is a fifth smaller.",
            '"Best" is GPTQ followed by coordinate descent, as in the study best-rounding. The sensitivities do not know of it; '
            "a plan made for nearest rounding may not be the best one for it.",
            "A difference counts as sure where it is larger than twice its standard error over the seeds and than "
            f"{_TIE} points.",
        ),
    )


def _accuracies(lab: Lab, plan: BitPlan) -> dict[str, float]:
    return {
        "nearest": lab.integer_accuracy(plan),
        "best": lab.integer_accuracy(plan, lab.round(plan, BEST_METHOD, BEST)),
    }


def _table(one: _Cells, averages: tuple[float, ...]) -> Table:
    rows = []
    for average in averages:
        cells = [mean_and_spread(one.found[average, *key]) for key in _NAMES]
        rows.append((f"{average:g}", *cells))
    return Table(
        f"{one.net}, float {one.reference:.2f} %: test accuracy in the integer engine, %",
        ("bits a weight on average", *_NAMES.values()),
        tuple(rows),
    )


def _plans(cells: list[_Cells]) -> Table:
    rows = [(one.net, f"{average:g}", bits) for one in cells for average, bits in one.plans.items()]
    return Table("Bits of the layers in running order, seed 0", ("network", "average", "bits"), tuple(rows))


def _gain(one: _Cells, average: float, better: tuple[str, str], than: tuple[str, str]) -> tuple[list[float], bool]:
    """The differences of accuracy by seed in points, and whether they are above 0 for sure."""
    pairs = zip(one.found[average, *better], one.found[average, *than], strict=True)
    gains = [a - b for a, b in pairs]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return gains, fmean(gains) > max(2 * error, _TIE)


def _findings(one: _Cells, averages: tuple[float, ...]) -> list[Finding]:
    findings = []
    for claim, than in (("a plan alone", ("plan", "nearest")), ("better rounding alone", ("uniform", "best"))):
        gains = {average: _gain(one, average, ("plan", "best"), than) for average in averages}
        sure = [sure for _, sure in gains.values()]
        words = ", ".join(
            f"{mean_and_spread(points)} points at {average:g} bits" for average, (points, _) in gains.items()
        )
        findings.append(
            Finding(
                f"{one.net}: both together are better than {claim}",
                words,
                "yes" if all(sure) else "partly" if any(sure) else "no",
            )
        )
    return findings


def _figure(cells: list[_Cells], averages: tuple[float, ...]) -> Figure:
    panels = []
    for one in cells:
        series = []
        for (plan, rounding), words in _NAMES.items():
            lost = [[one.reference - value for value in one.found[average, plan, rounding]] for average in averages]
            error = tuple(stdev(seeds) for seeds in lost) if len(lost[0]) > 1 else ()
            bits = tuple(float(math.floor(average)) if plan == "uniform" else average for average in averages)
            series.append(Series(words, bits, tuple(fmean(seeds) for seeds in lost), error))
        panels.append(Figure(one.net, one.net, "line", "bits a weight on average", "points below float", tuple(series)))
    return Figure("lost", "Accuracy lost, by plan and rounding", "line", "", "", (), panels=tuple(panels))
