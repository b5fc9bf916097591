"""EE219 lab, sections IV and V.E: rules that choose activation ranges, compared by what the integer engine gets right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.graph.ir import FloatGraph
from labkit.quantization.calibration import Calibration, choose_ranges
from labkit.quantization.plan import BitPlan, scale_owner
from labkit.quantization.quantized_loss import quantized_loss
from labkit.studies.ee219.ablation import Ablation
from labkit.studies.evidence import redrawn, right_answers
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Finding, Settings, StudyResult, Tell

__all__ = ["actual_logits", "run"]

_BASE = "min-max"
_LOGITS_TOO = "3 sigma, logits too"
_LAPQ = "LAPQ"
_RULES: dict[str, tuple[str, dict[str, Any]]] = {
    _BASE: ("minmax", {}),
    "3 sigma": ("3sigma", {}),
    _LOGITS_TOO: ("3sigma", {}),
    "EMA": ("ema", {}),
    "percentile 99.9": ("percentile", {"percentile": 99.9}),
    "percentile 99.99": ("percentile", {"percentile": 99.99}),
    "MSE": ("mse", {}),
    "L2.4": ("l2.4", {}),
    "KL, toolkit": ("kl", {}),
    "KL, tensorrt": ("kl", {"variant": "tensorrt"}),
    "ACIQ": ("aciq", {}),
    _LAPQ: ("lapq", {}),
}
# net -> grid -> bits; one scale a layer for the weights on the lab's grid, one a channel on labkit's
_CASES: dict[str, dict[str, tuple[int, ...]]] = {
    "lenet": {"symmetric": (8, 6, 4), "affine": (8, 6, 4)},
    "resnet20": {"symmetric": (8, 6, 4), "affine": (4,)},
}
_IMAGES = {"resnet20": 5000}  # test images, for time's sake
_LAPQ_IMAGES = 128
_LAPQ_BITS = {"lenet": (8, 6, 4), "resnet20": (4,)}
_LAPQ_STEPS: dict[str, dict[str, Any]] = {
    "lenet": {"exponents": (2.0, 2.5, 3.0, 3.5, 4.0), "iterations": 1, "max_evaluations": 40},
    "resnet20": {"exponents": (2.0, 2.5, 3.0, 3.5, 4.0), "iterations": 0},
}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Every rule at every number of bits, on LeNet and ResNet-20.

    ``settings`` say how much of it; ``tell`` is called with (net, ranges done, ranges).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    cases: dict[str, dict[str, tuple[int, ...]]] = {"lenet": {"symmetric": (8, 4)}} if settings.smoke else _CASES
    found = []
    for name, grids in cases.items():
        images = min(settings.images or len(data.test_labels), _IMAGES.get(name, len(data.test_labels)))
        lab = open_lab(name, replace(settings, images=images), 0, data)
        found += _measure(lab, grids, settings, tell)
    tables = tuple(one.table() for one in found)
    figures = tuple(one.figure(f"{one.name}-{one.setting.split()[0]}") for one in found)
    return StudyResult(tables, _findings(found), figures, _notes(settings, found))


def _measure(lab: Lab, grids: dict[str, tuple[int, ...]], settings: Settings, tell: Tell) -> list[Ablation]:
    right: dict[str, dict[tuple[str, int], list[NDArray[np.bool_]]]] = {grid: {} for grid in grids}
    cases = [
        (grid, bits, rule)
        for grid, widths in grids.items()
        for bits in widths
        for rule in _RULES
        if rule != _LAPQ or bits in _LAPQ_BITS[lab.net]
    ]
    total, done = settings.seeds * len(cases), 0
    for seed in range(settings.seeds):
        drawn = redrawn(lab, settings, seed)
        for grid, bits, rule in cases:
            plan = replace(drawn.plan(8, bits, per_channel=grid == "affine"), activation_scheme=grid)
            ranges = _ranges(drawn, plan, rule, settings)
            right[grid].setdefault((rule, bits), []).append(right_answers(drawn, plan, ranges))
            done += 1
            tell(lab.net, done, total)
    words = {
        "symmetric": "symmetric activations, one weight scale a layer (the lab's)",
        "affine": "affine activations, a weight scale a channel (labkit's default)",
    }
    return [
        Ablation(lab.net, words[grid], lab.accuracy, _BASE, {key: np.stack(draws) for key, draws in found.items()})
        for grid, found in right.items()
    ]


def _ranges(lab: Lab, plan: BitPlan, rule: str, settings: Settings) -> Calibration:
    method, options = _RULES[rule]
    if rule == _LAPQ:
        loss = quantized_loss(lab.graph, lab.calibration, plan, lab.images[:_LAPQ_IMAGES])
        steps: dict[str, Any] = {"exponents": (2.0, 4.0), "iterations": 0} if settings.smoke else _LAPQ_STEPS[lab.net]
        options = {"loss": loss, **steps}
    chosen = choose_ranges(lab.calibration, lab.graph, plan, method, **options)
    return chosen if rule in (_LOGITS_TOO, _LAPQ) else actual_logits(lab.graph, chosen)


def actual_logits(graph: FloatGraph, calibration: Calibration) -> Calibration:
    """``calibration`` with the outputs of ``graph`` at their actual range.

    A saturated logit can hide which class is the largest, whatever its precision; that is not what clipping is about.
    """
    seen = {scale_owner(graph, name): calibration.statistics[scale_owner(graph, name)] for name in graph.outputs}
    ends = {name: (one.minimum, one.maximum) for name, one in seen.items()}
    return replace(calibration, ranges={**calibration.ranges, **ends})


def _findings(found: Sequence[Ablation]) -> tuple[Finding, ...]:
    claims = []
    for rule, words in (
        ("3 sigma", "a 3-sigma range makes better use of the integers than the actual range"),
        ("KL, toolkit", "a KL threshold makes better use of them than the actual range"),
        ("KL, tensorrt", "so does the KL loop of the report's figure 5 as it stands"),
        ("EMA", "so do moving averages of the range (b)"),
    ):
        for bits in (8, 4):
            cases = [one for one in found if (rule, bits) in one.right]
            changes = [one.change(rule, bits) for one in cases]
            text = ", ".join(
                f"{one.name} {one.setting.split()[0]} {change}" for one, change in zip(cases, changes, strict=True)
            )
            better, worse = [c.is_better for c in changes], [c.is_worse for c in changes]
            agrees: Literal["yes", "no", "partly"] = "yes" if all(better) else "partly" if any(better) else "no"
            ending = "" if any(better) or any(worse) else ": no clear difference"
            claims.append(Finding(f"{words}: {bits} bits", text + ending, agrees))
    for one in found:
        for bits in one.bits:
            fallen, best = one.collapsed(bits), one.best(bits)
            claims.append(
                Finding(
                    f"{one.name} {one.setting.split()[0]}, {bits} bits: any rule will do",
                    "more than 5 points below float: "
                    + (", ".join(f"{rule} {drop:+.1f}" for rule, drop in fallen.items()) or "none")
                    + f". Best: {best}, {one.mean(best, bits) - one.accuracy:+.2f}; "
                    f"{one.base} {one.mean(one.base, bits) - one.accuracy:+.2f}",
                    "no" if fallen else "yes",
                )
            )
    return tuple(claims)


def _notes(settings: Settings, found: Sequence[Ablation]) -> tuple[str, ...]:
    return (
        "The report only asserts that 3 sigma, KL and moving averages use 8 bits better than min-max; it "
        "measured none. The claims above are read that way, and count as right where the accuracy is higher by "
        "more than two standard errors.",
        f"Mean ± sample deviation over {settings.seeds} draws of {settings.calibration} calibration images. "
        "Changes are paired by test image; * marks more than two standard errors (images and draws). With this "
        "many cells a few stars are chance.",
        "Weights have 8 bits and are rounded to nearest; input and logits have 8 bits. The logits keep their "
        f"actual range under every rule but '{_LOGITS_TOO}', which is the lab's 3 sigma taken literally, and "
        "LAPQ, which chooses for the loss.",
        f"LAPQ looks at {_LAPQ_IMAGES} images, without labels; for time's sake it tries five exponents p, then on "
        "LeNet at most 40 evaluations of Powell's method, on ResNet-20 (at 4 bits only) none. EMA: momentum 0.9 "
        "over batches of 128.",
        "3 sigma is cut to the values that occur (after a ReLU it begins at 0). Where it fails, it is because "
        "many values behind a ReLU are 0, which makes sigma small, while the others fall off slowly: what lies "
        "beyond is rare but large (ee219-ranges has its share, and the decibels). More bits do not help: what is "
        "cut off is lost at 8 bits as at 4. It gains where the actual range, with half of a symmetric grid "
        "unused, leaves too few integers for all else.",
        "`KL, tensorrt` counts the zeros of a ReLU as values (see ee219-kl).",
        *(
            f"{name}: the first {images:,} test images, for time's sake."
            for name, images in {one.name: next(iter(one.right.values())).shape[1] for one in found}.items()
            if name in _IMAGES
        ),
    )
