"""Nagel et al. 2020, table 4: what the layers before a layer, and its activation function, have to do with its rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.studies.adaround.design import IMAGES_NOTE, Trial, accuracy_panels, draws, judged, tried
from labkit.studies.evidence import contrast
from labkit.studies.study import Finding, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["FORMS", "form_options", "run"]

FORMS = {
    "layer": ("layer", "layer by layer (21)"),
    "asymmetric": ("asymmetric", "asymmetric"),
    "activation": ("with activation", "asymmetric with activation (25)"),
}
_NETS = {"lenet": "LeNet", "resnet20": "ResNet-20"}
_BITS = {"lenet": (4, 3, 2), "resnet20": (2,)}
_ITERATIONS, _BATCH = {"lenet": 300, "resnet20": 150}, {"lenet": 32, "resnet20": 16}
_RATE = 0.1

Trials = Mapping[str, Sequence[Trial]]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The three losses at 4, 3 and 2 bits as ``settings`` say; ``tell`` is told (net, roundings done, all)."""
    tables: list[Table] = []
    findings: list[Finding] = []
    shown: dict[str, dict[str, list[float]]] = {}
    for net in ("lenet",) if settings.smoke else _NETS:
        bits = _BITS[net][-1:] if settings.smoke else _BITS[net]
        seeds = 1 if settings.smoke else settings.seeds
        iterations = 4 if settings.smoke else _ITERATIONS[net]
        found: dict[int, dict[str, list[Trial]]] = {b: {form: [] for form in FORMS} for b in bits}
        done, total = 0, seeds * len(bits) * len(FORMS)
        for lab in draws(net, settings, seeds):
            for b, form in product(bits, FORMS):
                plan = lab.plan(b, 8, per_channel=False)
                found[b][form].append(tried(lab, plan, "adaround-images", form_options(form, iterations, _BATCH[net])))
                done += 1
                tell(_NETS[net], done, total)
        tables.append(_table(net, found, iterations))
        for b, trials in found.items():
            shown[f"{_NETS[net]}, {b} bits"] = {form: [one.accuracy for one in trials[form]] for form in FORMS}
        findings += [finding for b in bits for finding in _findings(net, b, found[b])]
    return StudyResult(
        tuple(tables),
        tuple(findings),
        (accuracy_panels("Three losses: mean and standard deviation", FORMS, shown),),
        (*_notes(), IMAGES_NOTE),
    )


def form_options(form: str, iterations: int, batch_size: int) -> RoundingOptions:
    """What AdaRound by images is told for ``form``, one of `FORMS`: the three differ in nothing but the loss.

    No biases are corrected and no branch is made up for, neither of which the paper has; ``iterations`` of so
    many images (``batch_size``) are the same for all.
    """
    return RoundingOptions(
        iterations=iterations,
        learning_rate=_RATE,
        batch_size=batch_size,
        asymmetric=form != "layer",
        with_activation=form == "activation",
        through_adds=False,
        correct_bias=False,
        history=(iterations,),
    )


def _table(net: str, found: Mapping[int, Trials], iterations: int) -> Table:
    rows = []
    for bits, trials in found.items():
        for form, (_, words) in FORMS.items():
            shares = [100 * one.undecided for one in trials[form] if one.undecided is not None]
            accuracies = [one.accuracy for one in trials[form]]
            rows.append((bits, words, mean_and_spread(accuracies), mean_and_spread(shares)))
    columns = ("bits", "loss", "test accuracy, %", "h not decided at the end, %")
    count = len(next(iter(found.values()))["layer"])
    return Table(f"{_NETS[net]}, {count} draws, {iterations} iterations", columns, tuple(rows))


def _findings(net: str, bits: int, trials: Trials) -> tuple[Finding, Finding]:
    right = {form: np.stack([one.right for one in trials[form]]) for form in FORMS}
    before, activation = (
        contrast(right[a], right[b]) for a, b in (("asymmetric", "layer"), ("activation", "asymmetric"))
    )
    where = f"{_NETS[net]}, {bits} bits"
    return (
        Finding(f"{where}: asymmetric reconstruction is noticeably better", str(before), judged(before)),
        Finding(f"{where}: the activation function gives a small gain", str(activation), judged(activation)),
    )


def _notes() -> tuple[str, ...]:
    return (
        "By batches of images and PyTorch's gradients, as published, but with 300 iterations of 32 images (LeNet) and 150 of "
        f"16 (ResNet-20) at a learning rate of {_RATE:g}, where the paper has 10,000 at 0.001. One scale a layer, grid mse, "
        "activations at 8 bits.",
        "The three differ in the loss alone. Biases stay as they are, and a layer before a residual addition does not make "
        "up for the error of the other branch, which labkit would do if it were asked.",
        "Layer by layer: inputs and targets from the float network. Asymmetric: inputs from the network quantized so far, "
        "8-bit activations included.",
        "± behind a difference is its standard error: over test images, paired, and over draws. A difference within two of "
        "them agrees in part at the most.",
    )
