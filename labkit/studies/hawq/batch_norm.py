"""Batch norms that are frozen and then folded: in float nothing changes, and what becomes of it in integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from labkit.models import load as load_model
from labkit.quantization.qat.options import FineTuning, recipe
from labkit.studies.kit.legs import Leg, run_leg
from labkit.studies.lab import Lab, logits, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["run"]

_IMAGES = 12_800  # to train on: a hundred steps an epoch
_EPOCHS = 2
_BITS = ((8, 8), (4, 4))
_WAYS = {"folded from the start": 0.0, "frozen after 70 % of the steps": 0.7, "never frozen before the end": 1.0}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The study, with ``settings``; ``tell`` is told of progress."""
    lab = open_lab("resnet20", settings)
    module = load_model("resnet20", lab.data.name)
    x = lab.x[:1000]
    with torch.inference_mode():
        apart = module(torch.from_numpy(x)).numpy()
    error = float(np.abs(logits(lab.graph, x) - apart).max() / np.abs(apart).max())
    legs: dict[tuple[str, tuple[int, int]], Leg] = {}
    before = {bits: lab.integer_accuracy(lab.plan(*bits)) for bits in _BITS}
    for bits in _BITS:
        for way, share in _WAYS.items():
            legs[way, bits] = run_leg(
                f"W{bits[0]}A{bits[1]}, {way}",
                module,
                lab.data,
                lab.plan(*bits),
                _options(share, settings.smoke, lab.data.name),
                tell,
                settings.images,
                25 if settings.smoke else _IMAGES,
                keep=not settings.smoke,
            )
    tell("Done", 1, 1)
    return StudyResult(
        (_table(lab, before, legs),), _findings(error, lab, before, legs), (_figure(lab, before, legs),), _NOTES
    )


_NOTES = (
    f"Fine-tuning of {_EPOCHS} epochs over {_IMAGES:,} training images, one seed: min-max weights, moving averages, Adam at "
    "0.0005, labels only. While batch norms are live, weights are folded with the statistics so far, rounded, and the sums are "
    "normalised by the statistics of the batch (Krishnamoorthi 2018, section 3.2.2).",
    "Fold only is post-training: batch norms folded, weights rounded to nearest, min-max ranges.",
)


def _options(share: float, smoke: bool, data: str) -> FineTuning:
    return replace(
        recipe("jacob"),
        epochs=1 if smoke else _EPOCHS,
        optimizer="adam",
        learning_rate=0.0005,
        weight_decay=0.0,
        freeze_at=share,
        mirror=data == "cifar10",
    )


def _table(lab: Lab, before: dict[tuple[int, int], float], legs: dict[tuple[str, tuple[int, int]], Leg]) -> Table:
    rows = [("fold only", *(f"{before[bits]:.2f}" for bits in _BITS), "")]
    for way in _WAYS:
        gap = max(abs(legs[way, bits].integer - legs[way, bits].simulated) for bits in _BITS)
        rows.append((way, *(f"{legs[way, bits].integer:.2f}" for bits in _BITS), f"{gap:.2f}"))
    return Table(
        f"ResNet-20, float {lab.accuracy:.2f} %: test images right in integers, in per cent",
        ("batch norms", *(f"W{w}A{a}" for w, a in _BITS), "largest gap to the simulation (points)"),
        tuple(rows),
    )


def _findings(
    error: float, lab: Lab, before: dict[tuple[int, int], float], legs: dict[tuple[str, tuple[int, int]], Leg]
) -> tuple[Finding, ...]:
    frozen = {bits: legs["frozen after 70 % of the steps", bits].integer for bits in _BITS}
    chance = 100 * float(np.sqrt(2 * 0.1 * 0.9 / len(lab.x)))  # of two independent shares near 90 %
    gains = {bits: frozen[bits] - before[bits] for bits in _BITS}
    return (
        Finding(
            "folding a frozen batch norm changes nothing in float (to 1e-5 of the largest logit)",
            f"{error:.1e}",
            "yes" if error <= 1e-5 else "no",
        ),
        *(
            Finding(
                f"W{w}A{a}: fine-tuning, then freezing and folding, beats folding alone",
                f"{gains[w, a]:+.2f} points",
                "yes" if gains[w, a] > 2 * chance else "partly" if gains[w, a] > 0 else "no",
            )
            for w, a in _BITS
        ),
    )


def _figure(lab: Lab, before: dict[tuple[int, int], float], legs: dict[tuple[str, tuple[int, int]], Leg]) -> Figure:
    ways = ("fold only", *_WAYS)
    labels = tuple(
        way.replace(" from", "\nfrom").replace(" after", "\nafter").replace(" before", "\nbefore") for way in ways
    )
    series = []
    for bits in _BITS:
        reached = (before[bits], *(legs[way, bits].integer for way in _WAYS))
        series.append(Series(f"W{bits[0]}A{bits[1]}", labels, tuple(lab.accuracy - one for one in reached)))
    return Figure(
        "drop",
        "ResNet-20: points of accuracy lost, by handling of batch norms",
        "bar",
        "batch norms",
        "points below the float network",
        tuple(series),
    )
