"""Bits layer by layer under a size budget, in the integer engine: the plan that labkit chooses beside plans of the same size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from labkit.allocation.allocate import allocate
from labkit.allocation.budgets import average_bits
from labkit.allocation.cost_table import CostTable
from labkit.allocation.costs import weight_bytes
from labkit.allocation.planning import plan_table
from labkit.allocation.request import BITS, PlanOptions
from labkit.data import load as load_data
from labkit.graph.ir import FloatGraph
from labkit.net import IntegerNet
from labkit.quantization.convert import convert
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.sensitivity.table import SensitivityTable
from labkit.studies.lab import Lab, logits, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["divergence", "inverse_table", "random_plan", "run", "split_plan"]

_KINDS = ("chosen", "uniform", "split", "random", "inverse")
_Cases = dict[str, dict[float, tuple[str, ...]]]
_NEAREST: dict[float, tuple[str, ...]] = {3.0: ("chosen", "uniform", "random", "inverse")}
_CASES: dict[str, _Cases] = {  # by network and rounding; average bits: the kinds of plans that are tried at that size
    "resnet20": {
        "best": {
            4.0: ("chosen",),
            3.0: ("chosen", "uniform"),
            2.5: ("chosen", "split", "random", "inverse"),
            2.0: ("uniform",),
        },
        "nearest": _NEAREST,
    },
    "lenet": {"best": {2.5: ("chosen", "split", "random"), 2.0: ("uniform",)}, "nearest": _NEAREST},
}
_SMOKE: _Cases = {"best": {2.5: ("chosen",)}, "nearest": {3.0: _KINDS}}
_TARGETS = {4.0: 0.15, 3.0: 0.4, 2.5: 0.8}  # of resnet20 with the best rounding: points below float at most
_WORDS = {
    "chosen": "chosen",
    "uniform": "uniform",
    "split": "3 bits first, then 2",
    "random": "random",
    "inverse": "most bits to the least sensitive",
}
_SHORT = {"split": "3 then 2 bits"}  # in figures
Key = tuple[str, float, str]  # rounding, average, kind


@dataclass
class _Found:
    """Of one network: accuracies, divergences from the float answers and true averages of the plans, one a seed."""

    float_accuracy: float = 0.0
    accuracy: dict[Key, list[float]] = field(default_factory=dict)
    divergence: dict[Key, list[float]] = field(default_factory=dict)
    average: dict[Key, list[float]] = field(default_factory=dict)
    plans: list[dict[str, int]] = field(default_factory=list)


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Choose plans for LeNet and ResNet-20, and run them and plans of the same size in the integer engine.

    ``settings`` say how much of it; ``tell`` is called with (net, networks done, networks).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    tables, findings, figures = [], [], []
    for net in ("lenet",) if settings.smoke else _CASES:
        widths = (2, 3, 4) if settings.smoke else BITS
        cases = _SMOKE if settings.smoke else _CASES[net]
        found = _Found()
        steps = settings.seeds * sum(len(kinds) for by_size in cases.values() for kinds in by_size.values())
        done = 0
        for seed in range(settings.seeds):
            lab = open_lab(net, settings, seed, data)
            found.float_accuracy, exact = lab.accuracy, logits(lab.graph, lab.x)
            size = weight_bytes(lab.graph, widths)
            for rounding, by_size in cases.items():
                options = PlanOptions(widths, rounding=rounding, seed=seed, images=16 if settings.smoke else None)
                table = plan_table(lab.graph, lab.images, options)
                for average, kinds in by_size.items():
                    for kind in kinds:
                        bits = _plan(kind, average, lab.graph, table, size, seed)
                        key = (rounding, average, kind)
                        found.average.setdefault(key, []).append(_average(size, bits))
                        answers = _answers(lab, bits, rounding)
                        found.accuracy.setdefault(key, []).append(lab.score(answers))
                        found.divergence.setdefault(key, []).append(1000 * divergence(exact, answers))
                        if key == ("best", 2.5, "chosen"):
                            found.plans.append(bits)
                        done += 1
                        tell(net, done, steps)
        tables.append(_accuracies(net, found, settings.seeds))
        findings += _findings(net, found)
        figures += [_figure(net, found, rounding) for rounding in cases]
        if found.plans:
            tables.append(_bits(net, found.plans))
    return StudyResult(tuple(tables), tuple(findings), tuple(figures), _NOTES)


_NOTES = (
    "A seed draws the calibration images, the samples of the rounding and the random plan; the float network is one. "
    "Differences between two plans are taken seed by seed; a difference of accuracy counts where it exceeds twice its standard "
    "error (after ±, over the seeds). All seeds share the test images, whose choice alone moves a difference between two such "
    "networks by about 0.15 points. The divergence from the float network's answers is less noisy: where it alone is better, "
    "a plan agrees in part.",
    "Chosen: the exact solution for the command's default sensitivity table, whose candidate weights are rounded as the "
    "network's will be. Random: from 2 bits everywhere, layers drawn at random get the next width until nothing fits. Most bits "
    "to the least sensitive: the exact solution after the layers have traded their sensitivities, the most sensitive one's for "
    "the least's. 3 bits first, then 2: one layer after the other gets 3 bits where it still fits.",
    "In the figures, inverse is most bits to the least sensitive. LeNet's fc1 has 93 % of its weights: at 2.5 bits on average it "
    "has 2 in every plan, and there is room for 8 bits in all other layers, so a random plan comes out as the chosen one.",
    "How the table is made was decided on training images that neither calibration nor this page uses, by the divergence from "
    "the float network's answers (docs/allocation.md has the figures). All activations have 8 bits.",
)


def split_plan(size: CostTable, average: float, low: int = 2, high: int = 3) -> dict[str, int]:
    """Bits by layer: ``high`` for one layer after the other from the first on where it fits, ``low`` for the others.

    Parameters
    ----------
    size : bytes by layer and bits
    average : bits of a weight on average, at most
    low, high : of the candidates
    """
    bits = dict.fromkeys(size.layers, low)
    limit = average_bits(average).of(size)
    for layer in size.layers:
        if size.total({**bits, layer: high}) <= limit:
            bits[layer] = high
    return bits


def random_plan(size: CostTable, average: float, seed: int) -> dict[str, int]:
    """Bits by layer: layers drawn at random get their next width until none fits.

    Parameters
    ----------
    size : bytes by layer and bits
    average : bits of a weight on average, at most
    seed : of the draws
    """
    generator = np.random.default_rng((seed, 20))
    bits = dict.fromkeys(size.layers, size.bits[0])
    limit = average_bits(average).of(size)
    while True:
        raised = [{**bits, layer: size.bits[size.bits.index(b) + 1]} for layer, b in bits.items() if b != size.bits[-1]]
        fitting = [plan for plan in raised if size.total(plan) <= limit]
        if not fitting:
            return bits
        bits = fitting[generator.integers(len(fitting))]


def inverse_table(table: SensitivityTable, size: CostTable) -> SensitivityTable:
    """``table`` after the layers have traded their values for one weight: the most sensitive layer has the least's, and so on.

    Parameters
    ----------
    table : values by layer and bits
    size : bytes by layer and bits, which tell how many weights a layer has
    """
    weights = np.array([size.value(layer, size.bits[0]) for layer in table.layers])
    each = table.values / weights[:, None]
    order = np.argsort(each[:, 0], kind="stable")
    traded = np.empty_like(each)
    traded[order] = each[order[::-1]]
    values = traded * weights[:, None]
    return replace(table, values=values, errors=np.zeros_like(values), method=f"{table.method}, traded")


def _plan(
    kind: str, average: float, graph: FloatGraph, table: SensitivityTable, size: CostTable, seed: int
) -> dict[str, int]:
    if kind == "uniform":
        return dict.fromkeys(size.layers, int(average))
    if kind == "split":
        return split_plan(size, average)
    if kind == "random":
        return random_plan(size, average, seed)
    used = table if kind == "chosen" else inverse_table(table, size)
    return dict(allocate(used, size, average_bits(average), graph=graph).plan.weights)


def _average(size: CostTable, bits: dict[str, int]) -> float:
    return (size.total(bits) - size.fixed) * 8 / float(size.notes["weights"])


def divergence(exact: NDArray[np.float32], answers: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence, in nats, of two sets of logits, ``exact`` and ``answers``, float32 [N, C].

    It compares all probabilities and not only which is largest, so chance moves it far less than accuracy.
    """
    log_p, log_q = log_softmax(exact.astype(np.float64), 1), log_softmax(answers.astype(np.float64), 1)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def _answers(lab: Lab, bits: dict[str, int], rounding: str) -> NDArray[np.float32]:
    """Logits of the integer network on the test images, float32 [N, C]."""
    plan = replace(lab.plan(), weights=bits)
    if rounding != "best":
        nearest: NDArray[np.float32] = IntegerNet(convert(lab.graph, lab.calibration, plan)).run(lab.x)
        return nearest
    rounded = lab.round(plan, BEST_METHOD, BEST)
    best: NDArray[np.float32] = IntegerNet(convert(lab.graph, rounded.calibration, plan, {}, rounded.layers)).run(lab.x)
    return best


def _accuracies(net: str, found: _Found, seeds: int) -> Table:
    rows = [
        (
            rounding,
            f"{average:g}",
            _WORDS[kind],
            f"{fmean(found.average[key]):.2f}",
            mean_and_spread(accuracies),
            f"{found.float_accuracy - fmean(accuracies):.2f}",
            mean_and_spread(found.divergence[key], 1),
        )
        for key, accuracies in found.accuracy.items()
        for rounding, average, kind in (key,)
    ]
    columns = (
        *("rounding", "average bits allowed", "plan", "average bits", "test accuracy, %", "below float, points"),
        "divergence, 1/1000 nat",
    )
    return Table(f"{net}, float {found.float_accuracy:.2f} %, activations 8 bits, {seeds} seeds", columns, tuple(rows))


def _bits(net: str, plans: list[dict[str, int]]) -> Table:
    rows: tuple[tuple[str | int, ...], ...] = tuple((layer, *(plan[layer] for plan in plans)) for layer in plans[0])
    columns = ("layer", *(f"seed {seed}" for seed in range(len(plans))))
    return Table(f"{net}: the plans chosen at an average of 2.5 bits, best rounding", columns, rows)


def _findings(net: str, found: _Found) -> list[Finding]:
    findings = []
    if net == "resnet20":
        for average, limit in _TARGETS.items():
            drops = [found.float_accuracy - got for got in found.accuracy.get(("best", average, "chosen"), ())]
            inside = sum(one <= limit for one in drops)
            findings.append(
                Finding(
                    f"{net}, {average:g} bits a weight on average, best rounding: at most {limit:g} points below float",
                    f"{mean_and_spread(drops)} points below",
                    "yes" if inside == len(drops) else "partly" if fmean(drops) <= limit else "no",
                )
            )
    for rounding, average, other, size in (
        ("best", 2.5, "uniform", 2.0),
        *((rounding, average, other, average) for rounding, average, other in found.accuracy if other != "chosen"),
    ):
        pair = (rounding, average, "chosen"), (rounding, size, other)
        if all(key in found.accuracy for key in pair):
            findings.append(_comparison(net, found, *pair))
    return findings


def _comparison(net: str, found: _Found, chosen: Key, other: Key) -> Finding:
    rounding, average, _ = chosen
    _, size, kind = other
    gain, error = _paired(found.accuracy[chosen], found.accuracy[other])
    less, spread = _paired(found.divergence[other], found.divergence[chosen])
    than = f"uniform {size:g} bits" if kind == "uniform" else f"a plan of that size: {_WORDS[kind]}"
    better = gain > 2 * error and gain > 0
    return Finding(
        f"{net}, {rounding} rounding: the plan of {average:g} bits on average beats {than}",
        f"{gain:+.2f} ± {error:.2f} points of accuracy, {less:+.1f} ± {spread:.1f} thousandths of a nat less divergence",
        "yes" if better else "partly" if gain > 0 or (less > 2 * spread and less > 0) else "no",
    )


def _paired(first: list[float], second: list[float]) -> tuple[float, float]:
    """Mean difference, seed by seed, and its standard error; 0 for one seed."""
    gains = [a - b for a, b in zip(first, second, strict=True)]
    return fmean(gains), stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0


def _figure(net: str, found: _Found, rounding: str) -> Figure:
    series = []
    for kind in _KINDS:
        keys = [key for key in found.accuracy if key[0] == rounding and key[2] == kind]
        if keys:
            values = [found.accuracy[key] for key in keys]
            error = tuple(stdev(one) for one in values) if len(values[0]) > 1 else ()
            names = tuple(f"{average:g}" for _, average, _ in keys)
            series.append(
                Series(_WORDS[kind], names, tuple(found.float_accuracy - fmean(one) for one in values), error)
            )
    return Figure(
        f"{net}-{rounding}",
        f"{net}, {rounding} rounding: loss by plan",
        "bar",
        "bits of a weight on average",
        "points of test accuracy lost",
        tuple(series),
    )
