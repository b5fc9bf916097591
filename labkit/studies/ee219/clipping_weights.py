"""EE219 lab, sections II and III: rules that choose the range of weights, compared by what the integer engine gets right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec, params_from_range, quantize_tensor
from labkit.data import load as load_data
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.quantization.clipping.weights import weight_range
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer
from labkit.studies.ee219.ablation import Ablation
from labkit.studies.evidence import redrawn, right_answers
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Finding, Settings, StudyResult, Tell

__all__ = ["clipped_weights", "run"]

_BASE = "min-max"
_RULES: dict[str, tuple[str, dict[str, Any]]] = {
    _BASE: ("minmax", {}),
    "3 sigma": ("3sigma", {}),
    "percentile 99.9": ("percentile", {"percentile": 99.9}),
    "MSE": ("mse", {}),
    "L2.4": ("l2.4", {}),
    "KL, toolkit": ("kl", {}),
    "KL, tensorrt": ("kl", {"variant": "tensorrt"}),
    "ACIQ, Gauss": ("aciq", {"distribution": "gauss"}),
    "ACIQ, Laplace": ("aciq", {"distribution": "laplace"}),
}
# net -> granularity -> bits
_CASES: dict[str, dict[str, tuple[int, ...]]] = {
    "lenet": {"layer": (8, 6, 4, 3), "channel": (4, 3)},
    "resnet20": {"layer": (8, 6, 4), "channel": (4,)},
}
_IMAGES = {"resnet20": 5000}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Every rule at every number of bits, on LeNet and ResNet-20.

    ``settings`` say how much of it; ``tell`` is called with (net, ranges done, ranges).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    cases: dict[str, dict[str, tuple[int, ...]]] = {"lenet": {"layer": (8, 4)}} if settings.smoke else _CASES
    found = []
    for name, granularities in cases.items():
        images = min(settings.images or len(data.test_labels), _IMAGES.get(name, len(data.test_labels)))
        lab = open_lab(name, replace(settings, images=images), 0, data)
        found += _measure(lab, granularities, settings, tell)
    tables = tuple(one.table() for one in found)
    figures = tuple(one.figure(f"{one.name}-{one.setting.split()[-1]}") for one in found)
    return StudyResult(tables, _findings(found), figures, _notes(settings, found))


def clipped_weights(graph: FloatGraph, plan: BitPlan, method: str, **options: Any) -> dict[str, RoundedLayer]:
    """The layers of ``graph`` rounded to nearest over the ranges that ``method`` with ``options`` chooses, as ``plan`` says.

    Weights beyond the range become its ends. Biases stay as they are.
    """
    layers = {}
    for node in graph:
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            spec, weight = plan.weight_spec(node.name), node.op.weight
            bias = np.zeros(len(weight), np.float32) if node.op.bias is None else node.op.bias
            layers[node.name] = RoundedLayer(
                quantize_tensor(weight, _params(weight, spec, method, options), spec), bias
            )
    return layers


def _params(weight: NDArray[np.float32], spec: QuantSpec, method: str, options: dict[str, Any]) -> Any:
    return params_from_range(*weight_range(weight, spec, method, **options), spec)


def _measure(lab: Lab, granularities: dict[str, tuple[int, ...]], settings: Settings, tell: Tell) -> list[Ablation]:
    right: dict[str, dict[tuple[str, int], list[NDArray[np.bool_]]]] = {one: {} for one in granularities}
    cases = [(one, bits, rule) for one, widths in granularities.items() for bits in widths for rule in _RULES]
    draws = [redrawn(lab, settings, seed) for seed in range(settings.seeds)]
    total, done = settings.seeds * len(cases), 0
    for one, bits, rule in cases:
        plan = lab.plan(bits, 8, per_channel=one == "channel")
        method, options = _RULES[rule]
        layers = clipped_weights(lab.graph, plan, method, **options)
        for drawn in draws:
            answer = right_answers(drawn, plan, drawn.calibration, layers)
            right[one].setdefault((rule, bits), []).append(answer)
            done += 1
            tell(lab.net, done, total)
    return [
        Ablation(
            lab.net,
            f"one weight scale a {one}",
            lab.accuracy,
            _BASE,
            {key: np.stack(each) for key, each in found.items()},
        )
        for one, found in right.items()
    ]


def _findings(found: Sequence[Ablation]) -> tuple[Finding, ...]:
    claims = []
    for bits in (8, 6, 4, 3):
        cases = [one for one in found if ("3 sigma", bits) in one.right]
        if not cases:
            continue
        changes = [one.change("3 sigma", bits) for one in cases]
        text = ", ".join(f"{one.name} a {one.setting.split()[-1]} {c}" for one, c in zip(cases, changes, strict=True))
        better = [c.is_better for c in changes]
        agrees: Literal["yes", "no", "partly"] = "yes" if all(better) else "partly" if any(better) else "no"
        claims.append(
            Finding(f"weights over a 3-sigma range are better than over the actual range: {bits} bits", text, agrees)
        )
    for one in found:
        low = min(one.bits)
        best, fallen = one.best(low), one.collapsed(low)
        change = one.change(best, low)
        claims.append(
            Finding(
                f"{one.name}, {one.setting}: at {low} bits some rule is better than min-max",
                f"best: {best} {one.mean(best, low):.2f} % ({change}); min-max {one.mean(one.base, low):.2f} %. "
                + "More than 5 points below float: "
                + (", ".join(f"{rule} {drop:+.1f}" for rule, drop in fallen.items()) or "none"),
                "yes" if change.is_better else "no",
            )
        )
    return tuple(claims)


def _notes(settings: Settings, found: Sequence[Ablation]) -> tuple[str, ...]:
    return (
        "The report quantizes weights over their actual range and remarks on 3-sigma ranges without using them. "
        "The claims above are ours, made of that remark.",
        "Weights are rounded to nearest; activations have 8 bits, affine, min-max. One scale a layer is the "
        "lab's way, one a channel labkit's default.",
        f"Mean ± sample deviation over {settings.seeds} draws of {settings.calibration} calibration images, which "
        "only move the scales of activations, hence the small deviations. Changes are paired by test image; * "
        "marks more than two standard errors. With this many cells a few stars are chance.",
        "The best rule of a table is the best on these very test images, so that its lead is a little flattered.",
        "MSE and L2.4 measure the error on the weights themselves; KL, ACIQ and the percentile look at a "
        "histogram, which for a channel of a few dozen weights is a coarse thing: a share of 99.9 % then cuts "
        "nothing off.",
        *(
            f"{name}: the first {images:,} test images, for time's sake."
            for name, images in {one.name: next(iter(one.right.values())).shape[1] for one in found}.items()
            if name in _IMAGES
        ),
    )
