"""Nagel et al. 2020, table 2: the task's Hessian, the local error, and the continuous relaxation, side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.graph.ir import FloatGraph
from labkit.quantization.differentiable import layer_names
from labkit.quantization.weight_rounding.adaround import adaround
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.quantization.weight_rounding.qubo import decisions_qubo
from labkit.quantization.weight_rounding.qubo_solvers import cross_entropy
from labkit.quantization.weight_rounding.simple import up_share
from labkit.quantization.weight_rounding.task_hessian import LARGEST_LAYER, TaskHessian, task_hessian
from labkit.studies.adaround.one_layer import (
    OneLayer,
    integer_logits,
    labelled,
    local_gram,
    mean_cross_entropy,
)
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Finding, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["WAYS", "Outcome", "by_hessian", "by_local_error", "run"]

Rows = NDArray[np.float64]
Agrees = Literal["yes", "no", "partly"]

WAYS = {
    "nearest": "rounding to nearest",
    "hessian": "Hessian of the task loss, cross-entropy method",
    "local": "local squared error, cross-entropy method",
    "relaxed": "local squared error, continuous relaxation",
}
# Layers that are rounded, bits, images for the Hessian, and test images.
_CASES = (
    ("lenet", 1, (4, 3, 2), 1024, 10000),
    ("lenet", 2, (4,), 512, 10000),
    ("resnet20", 1, (4, 2), 384, 4000),
)
_MAIN = 4
_WHOLE = "resnet20"
_SAMPLES, _ITERATIONS = 1024, 150  # of the cross-entropy method over a whole layer at once


@dataclass(frozen=True)
class Outcome:
    """What a way of rounding led to: test ``accuracy`` in per cent, test ``loss`` in nats, ``seconds`` for the choice."""

    accuracy: float
    loss: float
    seconds: float


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Round the first layers of LeNet and ResNet-20 by four ways, and all of ResNet-20 by the three that can.

    ``settings`` say how much of it; ``tell`` is called with (step, done, total).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    tables, findings = [], []
    graphs: dict[str, FloatGraph] = {}
    cases = _CASES[:1] if settings.smoke else _CASES
    for net, depth, bits, images, test in cases:
        found: dict[int, dict[str, list[Outcome]]] = {one: {way: [] for way in WAYS} for one in bits}
        names: tuple[str, ...] = ()
        accuracy = 0.0
        for seed in range(settings.seeds):
            lab = open_lab(net, replace(settings, images=min(test, settings.images or test)), seed, data)
            graphs[net], accuracy, names = lab.graph, lab.accuracy, layer_names(lab.graph)[:depth]
            outcomes = _one_seed(lab, names, bits, min(images, settings.calibration), settings.smoke)
            for one, ways in outcomes.items():
                for way, outcome in ways.items():
                    found[one][way].append(outcome)
            tell(f"{net}: {' and '.join(names)}", seed + 1, settings.seeds)
        tables.append(_table(f"{net}, {' and '.join(names)} rounded", accuracy, found))
        findings += _findings(f"{net}, {' and '.join(names)}", found[_MAIN])
    if not settings.smoke:
        whole, accuracy = _whole_network(settings, tell)
        tables.append(_table(f"{_WHOLE}, all layers rounded", accuracy, {_MAIN: whole}))
        findings += _whole_findings(whole)
    tables.append(_sizes(graphs))
    return StudyResult(
        tuple(tables),
        tuple(findings),
        (),
        (
            "The paper's network is ResNet-18 on ImageNet. Weights have one scale a layer, by their least squared "
            "error; biases stay. Layers that are not named, and all activations, have 8 bits; everything runs in "
            "the integer engine. Test images: 10,000 for LeNet, 4,000 for ResNet-20 (10,000 where all layers are "
            "rounded).",
            "The Hessian is that of the mean cross-entropy on training images with their labels, exact, of each "
            "layer apart from the others (LeNet 1,024 images, with two layers 512; ResNet-20 384). The local error "
            "needs the same images without labels. Seconds are the processor's, on one core, with the "
            "Hessian or the quadratic form of the local error.",
            f"Cross-entropy method over a whole layer: {_SAMPLES:,} samples, at most {_ITERATIONS} iterations; over "
            "the rows of a layer, one after another, for the local error: 256 and 60. The relaxation: 1,000 "
            "iterations on the quadratic form and not on images, which is why it takes seconds where the paper's "
            "takes minutes.",
            f"All layers of {_WHOLE}: each on what the rounded layers before it put out (equation 25 without the "
            "activation). Once each, with seed 0.",
        ),
    )


def by_hessian(layer: OneLayer, hessian: TaskHessian, seed: int, smoke: bool = False) -> Rows:
    """Levels float64 [O, K] by equation 13: the cross-entropy method over all weights of a layer together.

    Parameters
    ----------
    layer : what is rounded
    hessian : of its weights
    seed : of the samples
    smoke : few samples
    """
    qubo, free = hessian.qubo(layer.weights, layer.grid)
    chance = up_share(layer.weights, layer.grid).reshape(-1)[free]
    samples, iterations = (64, 5) if smoke else (_SAMPLES, _ITERATIONS)
    generator = np.random.default_rng(seed)
    return layer.levels(cross_entropy(qubo, chance, generator, samples, iterations=iterations), free)


def by_local_error(layer: OneLayer, gram: Gram, seed: int) -> Rows:
    """Levels float64 [O, K] by equation 20: the cross-entropy method for each output channel by itself.

    Parameters
    ----------
    layer : what is rounded
    gram : the squared error of its output
    seed : of the samples
    """
    generator = np.random.default_rng(seed)
    chance = up_share(layer.weights, layer.grid)
    down, up = layer.grid.choices(layer.weights)
    levels = down.copy()
    for row in range(len(levels)):
        qubo, free = decisions_qubo(layer.weights, layer.grid, gram, row)
        ups = free[cross_entropy(qubo, chance[row, free], generator)]
        levels[row, ups] = up[row, ups]
    return levels


def _one_seed(
    lab: Lab, names: tuple[str, ...], bits: tuple[int, ...], images: int, smoke: bool
) -> dict[int, dict[str, Outcome]]:
    """Outcomes by bits and way, with the images of the lab's seed."""
    x, labels = labelled(lab.data, images, lab.seed)
    hessians, grams, apart = {}, {}, {"nearest": 0.0}
    start = time.process_time()
    for name in names:
        hessians[name] = task_hessian(lab.graph, name, x, labels, dtype=torch.float32)
    apart["hessian"] = time.process_time() - start
    start = time.process_time()
    for name in names:
        grams[name] = local_gram(lab.graph, OneLayer.of(lab.graph, name, 8), x).with_ridge(
            OneLayer.of(lab.graph, name, 8).weights, 0.01
        )
    apart["local"] = apart["relaxed"] = time.process_time() - start
    outcomes: dict[int, dict[str, Outcome]] = {}
    for one in bits:
        outcomes[one] = {}
        for way in WAYS:
            start, chosen = time.process_time(), {}
            for name in names:
                layer = OneLayer.of(lab.graph, name, one)
                if way == "nearest":
                    levels = layer.nearest
                elif way == "hessian":
                    levels = by_hessian(layer, hessians[name], lab.seed, smoke)
                elif way == "local":
                    levels = by_local_error(layer, grams[name], lab.seed)
                else:
                    levels = adaround(layer.weights, layer.grid, grams[name], iterations=10 if smoke else 1000)[0]
                chosen[name] = layer, levels
            seconds = time.process_time() - start + apart[way]
            answers = integer_logits(lab, chosen)
            outcomes[one][way] = Outcome(lab.score(answers), mean_cross_entropy(answers, lab.labels), seconds)
    return outcomes


def _whole_network(settings: Settings, tell: Tell) -> tuple[dict[str, list[Outcome]], float]:
    """All layers, once, by the ways that the library's driver knows; and the float network's accuracy."""
    methods = {"nearest": "nearest", "local": "cross-entropy", "relaxed": "adaround"}
    lab = open_lab(_WHOLE, settings)
    plan = lab.plan(_MAIN, 8, per_channel=False)
    options = RoundingOptions(correct_bias=False, images=settings.calibration)
    found: dict[str, list[Outcome]] = {}
    for done, (way, method) in enumerate(methods.items()):
        start = time.process_time()
        rounded = lab.round(plan, method, options)
        seconds = time.process_time() - start
        found[way] = [Outcome(lab.integer_accuracy(plan, rounded), float("nan"), seconds)]
        tell(f"{_WHOLE}: all layers", done + 1, len(methods))
    return found, lab.accuracy


def _table(title: str, accuracy: float, found: dict[int, dict[str, list[Outcome]]]) -> Table:
    rows = []
    for bits, ways in found.items():
        for way, outcomes in ways.items():
            seconds = [outcome.seconds for outcome in outcomes]
            losses = [outcome.loss for outcome in outcomes]
            rows.append(
                (
                    str(bits),
                    WAYS[way],
                    mean_and_spread([outcome.accuracy for outcome in outcomes]),
                    None if np.isnan(losses).any() else mean_and_spread(losses, 4),
                    None if way == "nearest" else f"{fmean(seconds):.1f}",
                )
            )
    return Table(
        f"{title}; float network {accuracy:.2f} %, mean ± standard deviation over seeds",
        ("bits", "rounding", "test accuracy, %", "test loss, nats", "processor seconds"),
        tuple(rows),
    )


def _findings(what: str, ways: dict[str, list[Outcome]]) -> list[Finding]:
    nearest, hessian, local, relaxed = (ways[way] for way in WAYS)
    return [
        Finding(
            f"{what}: optimizing the task's Hessian is a significant boost over rounding to nearest",
            f"{_gain(hessian, nearest)} points, test loss {_loss_change(hessian, nearest)}, at {_MAIN} bits",
            _above(hessian, nearest),
        ),
        Finding(
            f"{what}: moving to the local squared error does not degrade the performance",
            f"{_gain(local, hessian)} points, test loss {_loss_change(local, hessian)}, at {_MAIN} bits",
            "no" if _above(hessian, local) == "yes" else "yes",
        ),
        Finding(
            f"{what}: the continuous relaxation slightly improves on the cross-entropy method",
            f"{_gain(relaxed, local)} points, test loss {_loss_change(relaxed, local)}, at {_MAIN} bits",
            _above(relaxed, local),
        ),
    ]


def _whole_findings(ways: dict[str, list[Outcome]]) -> list[Finding]:
    local, relaxed, nearest = (
        fmean(outcome.seconds for outcome in ways[way]) for way in ("local", "relaxed", "nearest")
    )
    quicker = (local - nearest) / max(relaxed - nearest, 1e-9)
    gain = fmean(outcome.accuracy for outcome in ways["relaxed"]) - fmean(outcome.accuracy for outcome in ways["local"])
    return [
        Finding(
            f"{_WHOLE}, all layers: the relaxation reduces the time from several hours to a few minutes",
            f"{local:.0f} s by the cross-entropy method, {relaxed:.0f} s by the relaxation, of which {nearest:.0f} s "
            f"are the quadratic forms that both need: the search is {quicker:.1f} times as quick",
            "yes" if quicker > 10 else "partly" if quicker > 1 else "no",
        ),
        Finding(
            f"{_WHOLE}, all layers: and also slightly improves the performance",
            f"{gain:+.2f} points at {_MAIN} bits (one run each, 10,000 test images)",
            "yes" if gain > 0.3 else "partly" if gain > -0.3 else "no",
        ),
    ]


def _above(these: list[Outcome], those: list[Outcome]) -> Agrees:
    """Whether ``these`` are more accurate than ``those`` by more than twice the standard error over seeds, pair by pair."""
    gains = [a.accuracy - b.accuracy for a, b in zip(these, those, strict=True)]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    if fmean(gains) > 2 * error and fmean(gains) > 0:
        return "yes"
    return "no" if fmean(gains) < -2 * error or fmean(gains) < 0 else "partly"


def _gain(these: list[Outcome], those: list[Outcome]) -> str:
    gains = [a.accuracy - b.accuracy for a, b in zip(these, those, strict=True)]
    sign = "+" if fmean(gains) >= 0 else ""
    return sign + mean_and_spread(gains)


def _loss_change(these: list[Outcome], those: list[Outcome]) -> str:
    changes = [a.loss - b.loss for a, b in zip(these, those, strict=True)]
    sign = "+" if fmean(changes) >= 0 else ""
    return sign + mean_and_spread(changes, 4)


def _sizes(graphs: dict[str, FloatGraph]) -> Table:
    """How large the Hessians of all layers would be, beside the matrices of their local errors."""
    rows = []
    for net, graph in graphs.items():
        weights = {name: OneLayer.of(graph, name, 8).weights.shape for name in layer_names(graph)}
        sizes = [rows_ * depth for rows_, depth in weights.values()]
        depths = [depth for _, depth in weights.values()]
        feasible = sum(size <= LARGEST_LAYER for size in sizes)
        rows.append(
            (
                net,
                len(sizes),
                f"{max(sizes):,}",
                f"{8e-9 * max(sizes) ** 2:,.1f}",
                f"{8e-6 * max(depths) ** 2:,.1f}",
                f"{feasible} of {len(sizes)}",
            )
        )
    return Table(
        "Why not the Hessian for every layer",
        (
            "network",
            "layers",
            "most weights of a layer",
            "its Hessian, GB",
            "largest matrix of a local error, MB",
            f"layers of at most {LARGEST_LAYER:,} weights",
        ),
        tuple(rows),
    )
