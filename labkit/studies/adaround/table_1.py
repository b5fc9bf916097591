"""Nagel et al. 2020, table 1: many ways to round the first layer's weights, most of them worse than another."""

from __future__ import annotations

import numpy as np

from labkit.arithmetic.affine import PerTensor, QuantSpec
from labkit.data import DataSet
from labkit.data import load as load_data
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.models import recipe
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer
from labkit.quantization.weight_rounding import simple
from labkit.quantization.weight_rounding.grids import minmax_grid
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["rounded_layer", "run"]

_BITS = 4
_SAMPLES = 100
_NETS = ("lenet", "resnet20")
_FIXED = {"nearest": simple.round_nearest, "floor": simple.round_floor, "ceil": simple.round_ceil}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Round the first layer of LeNet and ResNet-20 to 4 bits in 103 ways each, and count what the network gets right.

    ``settings`` say how much of it; ``tell`` is called with (net, ways done, ways).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    samples = 3 if settings.smoke else _SAMPLES
    tables, figures, findings = [], [], []
    for net in _NETS[:1] if settings.smoke else _NETS:
        accuracies = _accuracies(net, data, settings, samples, tell)
        reference = float(recipe(net, data.name)["test_accuracy"])
        drawn = np.array(accuracies["stochastic"])
        nearest = accuracies["nearest"][0]
        better = int(np.sum(drawn > nearest))
        tables.append(_table(net, reference, accuracies))
        figures.append(_figure(net, accuracies))
        findings.append(
            Finding(
                f"{net}: of 100 stochastic roundings many (48 in the paper) are better than rounding to nearest",
                f"{better} of {samples} are",
                "yes" if better >= samples / 4 else "partly" if better else "no",
            )
        )
        findings.append(
            Finding(
                f"{net}: rounding everything down, or everything up, is far worse than to nearest",
                f"floor {accuracies['floor'][0] - nearest:+.2f}, ceil {accuracies['ceil'][0] - nearest:+.2f} points",
                "yes" if max(accuracies["floor"][0], accuracies["ceil"][0]) < nearest - 5 else "partly",
            )
        )
        findings.append(
            Finding(
                f"{net}: the best of them is much better (more than 10 points in the paper) than rounding to nearest",
                f"best {drawn.max():.2f} %, {drawn.max() - nearest:+.2f} points",
                "yes" if drawn.max() > nearest + 10 else "partly" if drawn.max() > nearest else "no",
            )
        )
    return StudyResult(
        tuple(tables),
        tuple(findings),
        tuple(figures),
        (
            "The paper quantizes the first layer of ResNet-18 on ImageNet alone and leaves the others in float. Here the others "
            "have 8 bits, as do all activations, and everything runs in the integer engine.",
            f"One scale for the layer, from the range of its weights; {_BITS} bits, levels -7 to 7. Drawn with seeds 0 to "
            f"{samples - 1}; a weight is rounded up with the probability of its distance to the level below.",
        ),
    )


def _accuracies(net: str, data: DataSet, settings: Settings, samples: int, tell: Tell) -> dict[str, list[float]]:
    """Per cent right by way of rounding; one number each, but ``samples`` for "stochastic"."""
    x, labels = data.test(settings.images)
    graph = simplify(from_torch(load_model(net, data.name), x.shape[1:]))
    calibration = calibrate(graph, data.calibration(settings.calibration))
    first = next(node.name for node in graph if isinstance(node.op, float_ops.Conv2d))
    found: dict[str, list[float]] = {name: [] for name in (*_FIXED, "stochastic")}
    ways = [(name, 0) for name in _FIXED] + [("stochastic", seed) for seed in range(samples)]
    for done, (way, seed) in enumerate(ways):
        layer = rounded_layer(graph, first, way, seed)
        logits = _network(graph, calibration, first, layer).run(x)
        found[way].append(100 * float((logits.argmax(1) == labels).mean()))
        tell(net, done + 1, len(ways))
    return found


def rounded_layer(graph: FloatGraph, name: str, way: str, seed: int) -> RoundedLayer:
    """The weights of the layer ``name`` of ``graph`` at 4 bits: ``way`` is "nearest", "floor", "ceil" or "stochastic".

    ``seed`` is of what is drawn.
    """
    op = graph[name].op
    assert isinstance(op, float_ops.Conv2d)
    rows = op.weight.reshape(len(op.weight), -1).astype(np.float64)
    grid = minmax_grid(rows, QuantSpec(_BITS, narrow=True, granularity=PerTensor()))
    if way == "stochastic":
        levels = simple.round_stochastic(rows, grid, np.random.default_rng(seed))
    else:
        levels = _FIXED[way](rows, grid)
    bias = np.zeros(len(op.weight), np.float32) if op.bias is None else op.bias
    return RoundedLayer(grid.tensor(levels, op.weight.shape), bias)


def _network(graph: FloatGraph, calibration: Calibration, first: str, layer: RoundedLayer) -> IntegerNet:
    eight = BitPlan.uniform(graph, 8, 8)
    plan = BitPlan({**eight.weights, first: _BITS}, eight.activations)
    return IntegerNet(convert(graph, calibration, plan, {"rounding": "stochastic"}, {first: layer}))


def _table(net: str, reference: float, accuracies: dict[str, list[float]]) -> Table:
    drawn = np.array(accuracies["stochastic"])
    rows: list[tuple[str, str]] = [("float network", f"{reference:.2f}")]
    rows += [(name, f"{accuracies[name][0]:.2f}") for name in _FIXED]
    rows.append((f"stochastic, {len(drawn)} times", f"{drawn.mean():.2f} ± {drawn.std(ddof=1):.2f}"))
    rows.append(("stochastic, best", f"{drawn.max():.2f}"))
    return Table(f"{net}, first layer at {_BITS} bits", ("rounding", "test accuracy, %"), tuple(rows))


def _figure(net: str, accuracies: dict[str, list[float]]) -> Figure:
    counts, edges = np.histogram(accuracies["stochastic"], 20)
    return Figure(
        f"{net}-stochastic",
        f"{net}: {len(accuracies['stochastic'])} stochastic roundings of the first layer",
        "step",
        "test accuracy, %",
        "roundings",
        (Series("stochastic", tuple(float(e) for e in edges), tuple(float(c) for c in (*counts, 0))),),
        {"nearest": accuracies["nearest"][0]},
    )
