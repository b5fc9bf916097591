"""Nagel et al. 2020, table 3: a sigmoid whose temperature falls (Hopfield), one with the regularizer, the rectified one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev

import numpy as np

from labkit.quantization.weight_rounding.options import COOLINGS, RoundingOptions
from labkit.studies.adaround.design import IMAGES_NOTE, Trial, accuracy_panels, draws, held_out, judged, tried
from labkit.studies.evidence import contrast
from labkit.studies.lab import Lab
from labkit.studies.study import Finding, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["WAYS", "run", "schedules", "variance_verdict"]

_SETTLED = (
    "Learning rate, iterations and the span of the schedules were settled after looking at test images too; the choice of a "
    "schedule within the span was made on training images alone."
)
WAYS = {
    "hopfield": ("σ(V/T)", "sigmoid of V/T, T falls"),
    "sigmoid": ("σ + reg.", "sigmoid and regularizer"),
    "adaround": ("rect. σ + reg.", "rectified sigmoid and regularizer"),
}
_NETS = {"lenet": "LeNet", "resnet20": "ResNet-20"}
_BITS = {"lenet": (4, 3, 2), "resnet20": (2,)}
_SEEDS = 5
_ITERATIONS, _RATE = 300, 0.1
_RATES, _TEMPERATURES = (0.1, 0.3), (0.03, 0.01, 0.003)
_HELD_OUT = 10_000
_F_4_4 = 6.39  # the quotient of two variances of five normal values each is larger with a probability of 5 %

Trials = Mapping[str, Sequence[Trial]]


@dataclass(frozen=True)
class _Scheduled:
    """A schedule of the temperature, and what it gets right of held-out training images, per cent."""

    bits: int
    options: RoundingOptions
    accuracy: float


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The three soft decisions at 4, 3 and 2 bits, five draws each, as ``settings`` say; ``tell`` is told (step, done, all)."""
    tables: list[Table] = []
    findings: list[Finding] = []
    shown: dict[str, dict[str, list[float]]] = {}
    for net in ("lenet",) if settings.smoke else _NETS:
        bits = _BITS[net][-1:] if settings.smoke else _BITS[net]
        seeds = 1 if settings.smoke else max(settings.seeds, _SEEDS)
        found: dict[int, dict[str, list[Trial]]] = {b: {way: [] for way in WAYS} for b in bits}
        searched: list[_Scheduled] = []
        done, total = 0, seeds * len(bits) * len(WAYS)
        for lab in draws(net, settings, seeds):
            searched = searched or _searched(net, lab, bits, settings.smoke, tell)
            for b, way in product(bits, WAYS):
                options = _best(searched, b).options if way == "hopfield" else _plain(settings.smoke)
                found[b][way].append(tried(lab, lab.plan(b, 8, per_channel=False), way, options))
                done += 1
                tell(_NETS[net], done, total)
        tables += [_table(net, found), _search_table(net, searched)]
        for b, trials in found.items():
            shown[f"{_NETS[net]}, {b} bits"] = {way: [one.accuracy for one in trials[way]] for way in WAYS}
        findings += [finding for b in bits for finding in _findings(net, b, found[b])]
    return StudyResult(
        tuple(tables),
        tuple(findings),
        (accuracy_panels("Three soft decisions: mean and standard deviation", WAYS, shown),),
        (*_notes(), IMAGES_NOTE, _SETTLED),
    )


def schedules(iterations: int = _ITERATIONS) -> tuple[RoundingOptions, ...]:
    """What is tried of the Hopfield method: first and last temperature, and how it falls, in so many ``iterations``.

    Starting at the temperature c is starting at 1 with the learning rate divided by c, since only V/T counts and Adam's
    steps do not depend on the size of the gradient; so it is the learning rate that is varied.
    """
    return tuple(
        RoundingOptions(
            iterations=iterations, learning_rate=rate, last_temperature=last, cooling=cooling, history=(iterations,)
        )
        for rate, last, cooling in product(_RATES, _TEMPERATURES, COOLINGS)
    )


def variance_verdict(one: Sequence[float], other: Sequence[float]) -> tuple[str, bool, bool]:
    """Whether the accuracies ``one`` vary less than ``other``.

    Returns
    -------
    words, whether they vary less, and whether so much less that chance does it in 5 % of cases at the most (for five each)
    """
    if min(len(one), len(other)) < 2:
        return "one draw only", False, False
    spreads = stdev(one), stdev(other)
    return f"{spreads[0]:.2f} and {spreads[1]:.2f}", spreads[0] < spreads[1], _F_4_4 * spreads[0] ** 2 < spreads[1] ** 2


def _plain(smoke: bool) -> RoundingOptions:
    iterations = 5 if smoke else _ITERATIONS
    return RoundingOptions(iterations=iterations, learning_rate=_RATE, history=(iterations,))


def _searched(net: str, lab: Lab, bits: Sequence[int], smoke: bool, tell: Tell) -> list[_Scheduled]:
    """Every schedule on held-out training images of the first draw, for each number of bits."""
    options = schedules(5)[:2] if smoke else schedules()
    held = held_out(lab, 100 if smoke else _HELD_OUT)
    found = []
    for place, (b, one) in enumerate(product(bits, options)):
        trial = tried(held, held.plan(b, 8, per_channel=False), "hopfield", one)
        found.append(_Scheduled(b, one, trial.accuracy))
        tell(f"{_NETS[net]}, temperatures", place + 1, len(bits) * len(options))
    return found


def _best(searched: Sequence[_Scheduled], bits: int) -> _Scheduled:
    return max((one for one in searched if one.bits == bits), key=lambda one: one.accuracy)


def _table(net: str, found: Mapping[int, Trials]) -> Table:
    rows = []
    for bits, trials in found.items():
        for way, (_, words) in WAYS.items():
            shares = [100 * one.undecided for one in trials[way] if one.undecided is not None]
            errors = [fmean(one.rounded.error_after.values()) for one in trials[way]]
            rows.append(
                (
                    bits,
                    words,
                    mean_and_spread([one.accuracy for one in trials[way]]),
                    mean_and_spread(shares, 2),
                    f"{fmean(errors):.3g}",
                )
            )
    columns = ("bits", "h", "test accuracy, %", "h not decided at the end, %", "error of a layer, mean")
    draws_made = len(next(iter(next(iter(found.values())).values())))
    return Table(f"{_NETS[net]}, {draws_made} draws", columns, tuple(rows))


def _search_table(net: str, searched: Sequence[_Scheduled]) -> Table:
    rows = []
    for bits in dict.fromkeys(one.bits for one in searched):
        best = _best(searched, bits)
        all_of = [one.accuracy for one in searched if one.bits == bits]
        options = best.options
        words = f"learning rate {options.learning_rate:g}, {options.cooling} to {options.last_temperature:g}"
        rows.append((bits, len(all_of), f"{min(all_of):.2f} to {max(all_of):.2f}", words))
    columns = ("bits", "schedules tried", "held-out accuracy, %", "chosen")
    return Table(
        f"{_NETS[net]}: the schedule of T, chosen on training images that were not calibrated with",
        columns,
        tuple(rows),
    )


def _findings(net: str, bits: int, trials: Trials) -> list[Finding]:
    right = {way: np.stack([one.right for one in trials[way]]) for way in WAYS}
    accuracies = {way: [one.accuracy for one in trials[way]] for way in WAYS}
    explicit, rectified = (contrast(right[a], right[b]) for a, b in (("sigmoid", "hopfield"), ("adaround", "sigmoid")))
    words, less, surely = variance_verdict(accuracies["sigmoid"], accuracies["hopfield"])
    where = f"{_NETS[net]}, {bits} bits"
    return [
        Finding(
            f"{where}: the regularizer is better than a falling temperature, after a search of its schedule",
            str(explicit),
            judged(explicit),
        ),
        Finding(
            f"{where}: with the regularizer the variance is lower",
            f"standard deviations {words} points",
            "yes" if surely else "partly" if less else "no",
        ),
        Finding(f"{where}: the rectified sigmoid is a little better still", str(rectified), judged(rectified)),
    ]


def _notes() -> tuple[str, ...]:
    return (
        f"All three on the quadratic form, {_ITERATIONS} iterations of Adam; the regularized ones at a learning rate of "
        f"{_RATE:g}, at which nearly all of AdaRound's h are decided by then, with the paper's λ = 0.01 and β from 20 to 2 "
        f"and without any search. The Hopfield method had {len(schedules())} schedules for each number of bits. One scale a "
        "layer, grid mse, activations at 8 bits.",
        "Here no method has randomness of its own: what differs from draw to draw are the calibration images. The paper's "
        "variance also has the batches of its stochastic gradient descent in it.",
        "Not decided: further than 0.01 from 0 and 1, of the weights with a choice. At the end h >= 1/2 means up all the "
        "same. The error is that of a layer's output as a share of its variance.",
        "± behind a difference is its standard error: over test images, paired, and over draws. A difference within two of "
        "them agrees in part at the most; so does a variance that is lower by less than the 5 % point of the F distribution.",
    )
