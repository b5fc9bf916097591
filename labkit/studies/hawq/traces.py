"""Gholami et al., theorem 1: the average trace of a layer's Hessian, and what quantizing the layer costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from labkit.data import DataSet
from labkit.data import load as load_data
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.sensitivity.candidates import nearest_candidates
from labkit.sensitivity.direct import direct_sensitivity
from labkit.sensitivity.objective import make_objective
from labkit.studies.correlation import RESAMPLES
from labkit.studies.hawq.predictors import PREDICTORS, Order, mean_order, order, predictions
from labkit.studies.hawq.probes import probe_errors
from labkit.studies.hawq.tiny import tiny_objective
from labkit.studies.mpqco.bench import labelled_images
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

Values = NDArray[np.float64]

_NETS = ("lenet", "resnet20", "mobilenetv2-small")
_BITS = (2, 3, 4, 8)
_FEW = slice(0, 3)  # 2, 3 and 4 bits, where a loss of this size can be measured
_IMAGES = 128  # training images of a seed, for the predictions
_TEST = 1000
_ENOUGH = 20  # layers, for an interval over layers to mean anything

_Orders = tuple[dict[str, Order], dict[str, Order]]


@dataclass(frozen=True, eq=False)
class _Ranked:
    """What was predicted with each seed, and measured on two halves of the test images, float64 [L, B]."""

    net: str
    layers: tuple[str, ...]
    predicted: dict[str, list[Values]]
    halves: tuple[Values, Values]
    errors: Values

    @property
    def measured(self) -> Values:
        return (self.halves[0] + self.halves[1]) / 2

    @property
    def averaged(self) -> dict[str, Values]:
        return {name: np.mean(seeds, axis=0) for name, seeds in self.predicted.items()}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Hutchinson's estimate beside the exact trace of a tiny network, and seven predictions beside the loss of three others.

    ``settings`` say how much of it; ``tell`` is called with (step, done, total).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    tiny = tiny_objective(data, *(32, 20) if settings.smoke else (128, 300))
    probes = probe_errors(tiny, 32 if settings.smoke else 512)
    ranked = []
    names = _NETS[:1] if settings.smoke else _NETS
    for done, net in enumerate(names):
        ranked.append(_ranked(net, data, settings))
        tell(net, done + 1, len(names))
    resamples = 50 if settings.smoke else RESAMPLES
    orders = {
        one.net: mean_order(_cut(one.averaged), one.measured[:, _FEW], "gauss-newton", resamples) for one in ranked
    }
    return StudyResult(
        (probes.table(), *(_table(one, *orders[one.net]) for one in ranked)),
        (*probes.findings(), *_findings(ranked, orders)),
        (_scatter(ranked[min(1, len(ranked) - 1)]), _bars(ranked), probes.figure()),
        (
            "The theorem is about fine-tuning: of two layers quantized alike, the one with the smaller average trace reaches "
            "the smaller loss. It assumes changes of equal length. Here nothing is fine-tuned. The study hawq-surfaces has "
            "changes of equal length.",
            f"Weights are rounded to nearest, one scale a channel. Predictions see {_IMAGES} training images a seed "
            f"(the eigenvalue 64), the loss is that of the first {_TEST:,} test images with float activations, "
            "cross-entropy with labels, in two halves.",
            "Cells are Spearman's correlations over the layers, mean ± standard deviation over seeds. Intervals hold 95 % of "
            "2,000 resamples of the layers, with predictions averaged over seeds. LeNet has five layers; an interval would mean "
            "nothing.",
            f"The tiny network has 412 weights, sees {data.name} at 8 x 8 pixels and is trained for 300 steps; its whole Hessian "
            "is formed in float64.",
        ),
    )


def _ranked(net: str, data: DataSet, settings: Settings) -> _Ranked:
    graph = simplify(from_torch(load_model(net, data.name), (3, 32, 32)))
    candidates = nearest_candidates(graph, _BITS)
    predicted: dict[str, list[Values]] = {name: [] for name in PREDICTORS}
    for seed in range(settings.seeds):
        images, labels = labelled_images(data, 32 if settings.smoke else _IMAGES, seed)
        for name, values in predictions(graph, images, labels, candidates).items():
            predicted[name].append(values)
    x, y = data.test(min(settings.images or _TEST, _TEST))
    halves = [
        direct_sensitivity(make_objective(graph, x[part], y[part]), candidates, "loss")
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    error = np.hypot(halves[0].errors, halves[1].errors) / 2
    return _Ranked(net, halves[0].layers, predicted, (halves[0].values, halves[1].values), error)


def _cut(predicted: dict[str, Values]) -> dict[str, Values]:
    return {name: values[:, _FEW] for name, values in predicted.items()}


def _table(one: _Ranked, means: dict[str, Order], less: dict[str, Order]) -> Table:
    rows: list[tuple[str | None, ...]] = []
    for name, words in PREDICTORS.items():
        found = np.stack([order(values, one.measured) for values in one.predicted[name]])
        cells = [mean_and_spread(found[:, column].tolist()) for column in reversed(range(len(_BITS)))]
        many = len(one.layers) >= _ENOUGH
        mean = str(means[name]) if many else f"{means[name].value:+.2f}"
        rows.append((words, *cells, mean, str(less[name]) if many and name != "gauss-newton" else None))
    itself = order(*one.halves)
    cells = [f"{itself[column]:.2f}" for column in reversed(range(len(_BITS)))]
    rows.append(
        ("the measurement: one half of the test images by the other", *cells, f"{itself[_FEW].mean():+.2f}", None)
    )
    seen = [int((one.measured[:, c] > 2 * one.errors[:, c]).sum()) for c in reversed(range(len(_BITS)))]
    rows.append((f"layers of {len(one.layers)} whose loss rises for sure", *map(str, seen), None, None))
    return Table(
        f"{one.net}: does the prediction order the {len(one.layers)} layers as the measured rise of the loss does?",
        ("prediction", "8 bits", "4 bits", "3 bits", "2 bits", "mean of 4, 3, 2", "less Gauss-Newton's"),
        tuple(rows),
    )


def _findings(ranked: Sequence[_Ranked], orders: dict[str, _Orders]) -> list[Finding]:
    many = [one for one in ranked if len(one.layers) >= _ENOUGH] or list(ranked)
    sharp = [orders[one.net][0]["trace"] for one in many]
    best = {one.net: max(orders[one.net][0].items(), key=lambda item: item[1].value)[0] for one in many}
    behind = [orders[one.net][1]["hawq-v2"] for one in many]
    trace = [orders[one.net][1]["trace"] for one in many]
    nets = [one.net for one in many]
    pairs = ", ".join(f"{net} {order}" for net, order in zip(nets, sharp, strict=True))
    sure = [order.low > 0 for order in sharp]
    return [
        Finding(
            "Layers with a larger average trace are damaged more (rank correlation, mean of 4, 3 and 2 bits)",
            pairs,
            "yes" if all(sure) else "partly" if any(order.value > 0 for order in sharp) else "no",
        ),
        Finding(
            "HAWQ-V2's product with |dw|² orders the layers as well as the quadratic form with the change itself",
            "less Gauss-Newton's: " + ", ".join(f"{net} {order}" for net, order in zip(nets, behind, strict=True)),
            "no"
            if all(order.high < 0 for order in behind)
            else "partly"
            if any(one.high < 0 for one in behind)
            else "yes",
        ),
        Finding(
            "The average trace alone orders the layers as well as Gauss-Newton",
            "less Gauss-Newton's: " + ", ".join(f"{net} {order}" for net, order in zip(nets, trace, strict=True)),
            "no"
            if all(order.high < 0 for order in trace)
            else "partly"
            if any(one.high < 0 for one in trace)
            else "yes",
        ),
        Finding(
            "The best order of all is that of Gauss-Newton or MPQCO, which look at the change's direction",
            ", ".join(f"{net}: {PREDICTORS[name]} ({orders[net][0][name].value:+.2f})" for net, name in best.items()),
            "yes"
            if all(name in ("gauss-newton", "mpqco") for name in best.values())
            else "partly"
            if any(name in ("gauss-newton", "mpqco") for name in best.values())
            else "no",
        ),
    ]


def _scatter(one: _Ranked) -> Figure:
    column = _BITS.index(3)
    measured = one.measured[:, column]
    shown = measured > 0  # a logarithm needs it
    panels = tuple(
        Figure(
            name,
            PREDICTORS[name],
            "scatter",
            "predicted",
            "measured rise of the loss, nats" if name == "trace" else "",
            (Series("a layer", tuple(one.averaged[name][shown, column].tolist()), tuple(measured[shown].tolist())),),
            log_x=True,
            log_y=True,
        )
        for name in ("trace", "hawq-v2", "gauss-newton")
    )
    return Figure(f"{one.net}-3-bits", f"{one.net}: layers at 3 bits, each alone", "scatter", "", "", (), panels=panels)


def _bars(ranked: Sequence[_Ranked]) -> Figure:
    short = {"trace": "tr(H)/n", "change": "|dw|²", "hawq-v2": "HAWQ-V2", "eigenvalue": "λ max"}
    short |= {"gauss-newton": "Gauss-\nNewton", "mpqco": "MPQCO", "sqnr": "noise /\nsignal"}
    words = tuple(short[name] for name in PREDICTORS)
    return Figure(
        "orders",
        "How well each prediction orders the layers, mean of 4, 3 and 2 bits",
        "bar",
        "prediction",
        "Spearman's correlation with the loss",
        tuple(
            Series(
                one.net,
                words,
                tuple(fmean(order(one.averaged[name], one.measured)[_FEW].tolist()) for name in PREDICTORS),
            )
            for one in ranked
        ),
    )
