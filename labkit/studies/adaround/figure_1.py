"""Nagel et al. 2020, figure 1 and section 3.1: the second-order cost of a rounding beside what it does to the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.simple import round_stochastic
from labkit.quantization.weight_rounding.task_hessian import TaskHessian, task_hessian
from labkit.studies.adaround.one_layer import (
    OneLayer,
    first_layer,
    integer_logits,
    labelled,
    local_gram,
    mean_cross_entropy,
    with_weights,
)
from labkit.studies.adaround.taylor_terms import cross_layer_table, taylor_table
from labkit.studies.correlation import Correlation, correlate, pearson
from labkit.studies.lab import Lab, logits, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["COSTS", "Draws", "draw", "run"]

Rows = NDArray[np.float64]

_BITS = 4
_DRAWS = 100
# Images that the Hessian and the true loss of each draw are measured on, and test images: what one core manages in six minutes.
_IMAGES = {"lenet": (1024, 10000), "resnet20": (384, 3000)}
COSTS = {
    "hessian": "d H d / 2 (eq. 13)",
    "taylor": "g d + d H d / 2",
    "local": "squared error of the layer's output",
    "weights": "squared error of the weights",
}


@dataclass(frozen=True, eq=False)
class Draws:
    """Roundings of a layer, one number each in float64 [n]; the last one is to nearest, the others are stochastic.

    costs : by name in `COSTS`, what is known without running the network.
    loss : rise of the loss of the float network with that layer rounded, on the images of the Hessian, nats.
    test_loss, accuracy : of the integer network on test images, nats and per cent.
    """

    costs: dict[str, Rows]
    loss: Rows
    test_loss: Rows
    accuracy: Rows


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Draw 100 stochastic roundings of the first layer, and hold what they cost against what they do to the network.

    ``settings`` say how much of it; ``tell`` is called with (step, done, total).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    tables: list[Table] = []
    figures: list[Figure] = []
    findings: list[Finding] = []
    count = 6 if settings.smoke else _DRAWS
    for net in ("lenet",) if settings.smoke else tuple(_IMAGES):
        wanted, test = _IMAGES[net]
        lab = open_lab(net, replace(settings, images=min(test, settings.images or test)), 0, data)
        images, labels = labelled(data, min(wanted, settings.calibration), 0)
        known = images, labels
        name = first_layer(lab.graph)
        hessian = task_hessian(
            lab.graph,
            name,
            images,
            labels,
            dtype=torch.float32,
            progress=lambda d, t, n=net: tell(f"{n}: Hessian", d, t),  # type: ignore[misc]
        )
        layer = OneLayer.of(lab.graph, name, _BITS)
        gram = local_gram(lab.graph, layer, images)
        draws = draw(lab, layer, hessian, gram, known, count, tell)
        correlations = _correlations(draws)
        tables.append(_correlation_table(net, len(draws.loss) - 1, correlations))
        figures += _figures(net, draws)
        findings += _findings(net, draws, correlations)
        for table, found in (
            taylor_table(lab, hessian, known, settings.smoke, tell),
            cross_layer_table(lab, known, settings.smoke, tell),
        ):
            tables.append(table)
            findings += found
    return StudyResult(
        tuple(tables),
        tuple(findings),
        tuple(figures),
        (
            "The paper shows ResNet-18 on ImageNet with its first layer at 4 bits. Here: one scale for that layer, by the least "
            "squared error of its weights; draws with seeds 0, 1, ...; training images with their labels for g and H "
            "(LeNet 1,024, ResNet-20 384).",
            "Rises of the loss and Taylor terms: the float network, only the layer in question rounded, on the images of the "
            "Hessian. Test accuracy and test loss: the integer engine, all other weights and all "
            "activations at 8 bits, 10,000 test images for LeNet and 3,000 for ResNet-20.",
            "H is exact at the weights. Logits are piecewise linear in them, so H = mean J^T (diag p - p p^T) J and has no "
            "negative direction; that the true loss rises more than the Taylor terms say is also due to the kinks of ReLU and "
            "max pooling, which no derivative at a point sees.",
            "In brackets: 95 % bootstrap intervals over the draws. A correlation with the rise on the Hessian's own images is "
            "easier than one with the test set, which is other data.",
        ),
    )


def draw(
    lab: Lab,
    layer: OneLayer,
    hessian: TaskHessian,
    gram: Gram,
    known: tuple[NDArray[np.float32], NDArray[np.int64]],
    count: int,
    tell: Tell,
) -> Draws:
    """Round ``layer`` stochastically and to nearest, and measure.

    Parameters
    ----------
    lab : the network
    layer : of it
    hessian, gram : the task loss and the layer's output error as quadratic forms
    known : images float32 [N, ...] and labels int64 [N] for the true loss
    count : stochastic roundings, with seeds 0 to ``count - 1``
    tell : called with (net, done, total)
    """
    start = mean_cross_entropy(logits(lab.graph, known[0]), known[1])
    costs: dict[str, list[float]] = {name: [] for name in COSTS}
    loss, test_loss, accuracy = [], [], []
    for seed in range(count + 1):
        if seed < count:
            levels = round_stochastic(layer.weights, layer.grid, np.random.default_rng(seed))
        else:
            levels = layer.nearest
        change = layer.change(levels)
        costs["hessian"].append(hessian.second_order(change))
        costs["taylor"].append(hessian.first_order(change) + hessian.second_order(change))
        costs["local"].append(float((gram.times(change) * change).sum()))
        costs["weights"].append(float((change**2).sum()))
        moved = with_weights(lab.graph, {layer.name: layer.grid.values(levels)})
        loss.append(mean_cross_entropy(logits(moved, known[0]), known[1]) - start)
        answers = integer_logits(lab, {layer.name: (layer, levels)})
        test_loss.append(mean_cross_entropy(answers, lab.labels))
        accuracy.append(lab.score(answers))
        tell(f"{lab.net}: roundings", seed + 1, count + 1)
    return Draws(
        {name: np.array(values) for name, values in costs.items()},
        np.array(loss),
        np.array(test_loss),
        np.array(accuracy),
    )


_MEASURES = {"loss": "loss, Hessian's images", "test_loss": "test loss", "accuracy": "test accuracy"}


def _correlations(draws: Draws) -> dict[tuple[str, str, str], Correlation]:
    """By cost, measure and kind; the stochastic draws only."""
    found = {}
    for cost, values in draws.costs.items():
        for measure in _MEASURES:
            against = getattr(draws, measure)[:-1]
            found[cost, measure, "Spearman"] = correlate(values[:-1], against)
            found[cost, measure, "Pearson"] = correlate(values[:-1], against, pearson)
    return found


def _correlation_table(net: str, count: int, correlations: dict[tuple[str, str, str], Correlation]) -> Table:
    rows = [
        (words, kind, *(str(correlations[cost, measure, kind]) for measure in _MEASURES))
        for cost, words in COSTS.items()
        for kind in ("Spearman", "Pearson")
    ]
    return Table(
        f"{net}, first layer at {_BITS} bits: correlation of a rounding's cost with what it does, {count} stochastic roundings",
        ("cost of a rounding", "correlation", *_MEASURES.values()),
        tuple(rows),
    )


def _figures(net: str, draws: Draws) -> list[Figure]:
    def series(cost: str, values: Rows) -> tuple[Series, ...]:
        x = draws.costs[cost]
        return (
            Series("stochastic", tuple(x[:-1].tolist()), tuple(values[:-1].tolist())),
            Series("nearest", (float(x[-1]),), (float(values[-1]),)),
        )

    hessian = "d H d / 2, nats"
    panels = (
        Figure("accuracy", "test accuracy", "scatter", hessian, "%", series("hessian", draws.accuracy)),
        Figure("test", "test loss", "scatter", hessian, "nats", series("hessian", draws.test_loss)),
        Figure("loss", "rise of the loss, known images", "scatter", hessian, "nats", series("hessian", draws.loss)),
        Figure("local", "test accuracy", "scatter", "output error", "%", series("local", draws.accuracy)),
        Figure("local-test", "test loss", "scatter", "output error", "nats", series("local", draws.test_loss)),
        Figure("taylor", "rise of the loss", "scatter", "g d + d H d / 2, nats", "nats", series("taylor", draws.loss)),
    )
    title = f"{net}: roundings of the first layer at {_BITS} bits"
    return [Figure(f"{net}-costs", title, "scatter", "", "", (), panels=panels)]


def _findings(net: str, draws: Draws, correlations: dict[tuple[str, str, str], Correlation]) -> list[Finding]:
    accuracy, loss = (correlations["hessian", measure, "Spearman"] for measure in ("accuracy", "test_loss"))
    local = correlations["local", "test_loss", "Spearman"]
    known = correlations["hessian", "loss", "Spearman"], correlations["taylor", "loss", "Spearman"]
    taylor = correlations["taylor", "test_loss", "Spearman"]
    return [
        Finding(
            f"{net}: the cost of eq. 13 is clearly correlated with the accuracy over 100 stochastic roundings",
            f"Spearman {accuracy}; accuracies {draws.accuracy[:-1].min():.2f} to {draws.accuracy[:-1].max():.2f} %",
            _clear(-accuracy.value, accuracy.sure),
        ),
        Finding(
            f"{net}: eq. 13 is a good proxy of the loss due to quantization",
            f"Spearman with the test loss {loss}; with the loss on the Hessian's images {known[0]}, "
            f"and with the gradient's term {known[1]}",
            _clear(loss.value, loss.sure),
        ),
        Finding(
            f"{net}: the local squared error is as good a proxy as eq. 13 (section 3.2: it does not degrade the performance)",
            f"Spearman with the test loss {local}, of eq. 13 {loss}",
            "yes" if local.value >= loss.low else "no" if local.high < loss.low else "partly",
        ),
        Finding(
            f"{net}: the gradient's term need not be kept",
            f"Spearman with the test loss {loss} without it, {taylor} with the gradient of the images at hand",
            "yes" if loss.value >= taylor.low else "no",
        ),
    ]


def _clear(value: float, sure: bool) -> Literal["yes", "no", "partly"]:
    return "yes" if sure and value >= 0.5 else "partly" if sure and value > 0 else "no"
