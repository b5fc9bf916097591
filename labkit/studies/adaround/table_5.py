"""Nagel et al. 2020, table 5: the straight-through estimator against AdaRound, on the same loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.reporting.rounding_counts import layer_choices
from labkit.studies.adaround.design import IMAGES_NOTE, Trial, accuracy_panels, draws, held_out, judged, tried
from labkit.studies.evidence import contrast
from labkit.studies.lab import Lab
from labkit.studies.study import Finding, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["beyond_share", "run", "smaller_errors"]

_NETS = {"lenet": "LeNet", "resnet20": "ResNet-20"}
_BITS = {"lenet": (4, 3, 2), "resnet20": (2,)}
_WAYS = {"nearest": "to nearest", "straight-through": "straight-through", "adaround": "AdaRound"}
_SHOWN = {way: (_WAYS[way], _WAYS[way]) for way in ("straight-through", "adaround")}
_ITERATIONS, _RATE = 300, 0.1
_RATES = (0.003, 0.01, 0.03, 0.1)
_HELD_OUT = 10_000

Trials = Mapping[str, Sequence[Trial]]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Both searches at 4, 3 and 2 bits as ``settings`` say; ``tell`` is told (step, done, all)."""
    tables: list[Table] = []
    findings: list[Finding] = []
    shown: dict[str, dict[str, list[float]]] = {}
    iterations = 3 if settings.smoke else _ITERATIONS
    for net in ("lenet",) if settings.smoke else _NETS:
        bits = _BITS[net][-1:] if settings.smoke else _BITS[net]
        seeds = 1 if settings.smoke else settings.seeds
        found: dict[int, dict[str, list[Trial]]] = {b: {way: [] for way in _WAYS} for b in bits}
        rates: dict[int, float] = {}
        same: dict[int, tuple[RoundedWeights, RoundedWeights]] = {}
        done, total = 0, seeds * len(bits) * len(_WAYS)
        for lab in draws(net, settings, seeds):
            if not rates:
                rates = _searched(net, lab, bits, iterations, _RATES[:1] if settings.smoke else _RATES, tell)
                same = {b: _same_problems(lab, b, rates[b], iterations) for b in bits}
            for b, way in product(bits, _WAYS):
                found[b][way].append(
                    tried(lab, lab.plan(b, 8, per_channel=False), way, _told(way, rates[b], iterations))
                )
                done += 1
                tell(_NETS[net], done, total)
        tables += [_table(net, found, rates), _same_table(net, same)]
        for b in bits:
            findings += _findings(net, b, found[b], same[b])
            shown[f"{_NETS[net]}, {b} bits"] = {way: [one.accuracy for one in found[b][way]] for way in _SHOWN}
    return StudyResult(
        tuple(tables),
        tuple(findings),
        (accuracy_panels("Two searches on the same loss: mean and standard deviation", _SHOWN, shown),),
        (*_notes(), IMAGES_NOTE),
    )


def beyond_share(rounded: RoundedWeights) -> float:
    """Per cent of all weights that are at neither of the two levels next to the original weight."""
    layers = layer_choices(rounded)
    return 100 * sum(one.beyond for one in layers) / sum(one.weights for one in layers)


def smaller_errors(one: RoundedWeights, other: RoundedWeights) -> tuple[int, float]:
    """In how many layers the error of ``one`` is below that of ``other``, and the geometric mean of the quotients."""
    pairs = [(one.error_after[name], other.error_after[name]) for name in one.weights]
    quotients = [max(a, 1e-30) / max(b, 1e-30) for a, b in pairs]
    return sum(a < b for a, b in pairs), float(np.exp(np.mean(np.log(quotients))))


def _told(way: str, rate: float, iterations: int) -> RoundingOptions:
    if way == "nearest":
        return RoundingOptions()
    return RoundingOptions(iterations=iterations, learning_rate=rate if way == "straight-through" else _RATE)


def _searched(
    net: str, lab: Lab, bits: Sequence[int], iterations: int, candidates: Sequence[float], tell: Tell
) -> dict[int, float]:
    """By bits, the learning rate with which the straight-through estimator gets most held-out training images right."""
    held = held_out(lab, _HELD_OUT)
    rates: dict[int, float] = {}
    best: dict[int, float] = {}
    for place, (b, rate) in enumerate(product(bits, candidates)):
        options = _told("straight-through", rate, iterations)
        accuracy = tried(held, held.plan(b, 8, per_channel=False), "straight-through", options).accuracy
        if accuracy > best.get(b, -1.0):
            best[b], rates[b] = accuracy, rate
        tell(f"{_NETS[net]}, learning rates", place + 1, len(bits) * len(candidates))
    return rates


def _same_problems(lab: Lab, bits: int, rate: float, iterations: int) -> tuple[RoundedWeights, RoundedWeights]:
    """Both searches with inputs from the float network, so that every layer's problem is the same."""
    plan = lab.plan(bits, 8, per_channel=False)
    one, other = (
        lab.round(plan, way, replace(_told(way, rate, iterations), asymmetric=False))
        for way in ("straight-through", "adaround")
    )
    return one, other


def _table(net: str, found: Mapping[int, Trials], rates: Mapping[int, float]) -> Table:
    rows = []
    for bits, trials in found.items():
        for way, words in _WAYS.items():
            rate = {"nearest": None, "straight-through": f"{rates[bits]:g}", "adaround": f"{_RATE:g}"}[way]
            beyond = [beyond_share(one.rounded) for one in trials[way]]
            accuracies = [one.accuracy for one in trials[way]]
            rows.append((bits, words, rate, mean_and_spread(accuracies), mean_and_spread(beyond)))
    columns = ("bits", "rounding", "learning rate", "test accuracy, %", "weights at neither of their two levels, %")
    return Table(f"{_NETS[net]}, {len(next(iter(found.values()))['adaround'])} draws", columns, tuple(rows))


def _same_table(net: str, same: Mapping[int, tuple[RoundedWeights, RoundedWeights]]) -> Table:
    rows = []
    for bits, (straight, adaround) in same.items():
        for name in straight.weights:
            rows.append((bits, name, f"{straight.error_after[name]:.3g}", f"{adaround.error_after[name]:.3g}"))
    columns = ("bits", "layer", "error, straight-through", "error, AdaRound")
    return Table(f"{_NETS[net]}: the same problem for both, layer by layer", columns, tuple(rows))


def _findings(
    net: str, bits: int, trials: Trials, same: tuple[RoundedWeights, RoundedWeights]
) -> tuple[Finding, Finding]:
    right = {way: np.stack([one.right for one in trials[way]]) for way in _WAYS}
    difference = contrast(right["adaround"], right["straight-through"])
    straight, adaround = same
    smaller, quotient = smaller_errors(adaround, straight)
    layers = len(straight.weights)
    where = f"{_NETS[net]}, {bits} bits"
    return (
        Finding(f"{where}: AdaRound is clearly more accurate", str(difference), judged(difference)),
        Finding(
            f"{where}: AdaRound finds the smaller error of the same problem",
            f"in {smaller} of {layers} layers; {quotient:.2f} times the error in the geometric mean",
            "yes" if smaller == layers else "partly" if quotient < 1 else "no",
        ),
    )


def _notes() -> tuple[str, ...]:
    rates = ", ".join(f"{rate:g}" for rate in _RATES)
    return (
        f"Both minimize the same quadratic form of each layer by Adam in {_ITERATIONS} iterations: one scale a layer, grid "
        "mse, activations at 8 bits, the bias in closed form. The paper's loss is that of batches of images, whose gradient "
        "is noisy; here it is that of all samples at once.",
        f"The straight-through estimator's learning rate, in steps of the grid, was chosen of {rates} for each number of "
        "bits, on training images that were not calibrated with; it falls to 0 in a straight line. AdaRound had no search.",
        "In the comparison of layers both have the float network's inputs: otherwise each would have the errors of its own "
        "layers before it, and another problem. The error is that of the layer's output as a share of its variance.",
        "± behind a difference is its standard error: over test images, paired, and over draws. A difference within two of "
        "them agrees in part at the most.",
    )
