"""Bias correction against the means that it is to restore, and the clipped normal distribution against samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.quantization.bias_correction import (
    clipped_normal_moments,
    correct_analytically,
    correct_empirically,
    input_means,
)
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import quantize_weight
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.prefix import Prefix


class Net(nn.Module):
    """Batch norms before a ReLU, a ReLU6 and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.b, self.n2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.c, self.n3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.d = nn.Conv2d(8, 6, 3, groups=2)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.n1(self.a(x)))
        y = nn.functional.relu6(self.n2(self.b(x)))
        x = torch.relu(self.n3(self.c(y)) + x)
        return self.fc(nn.functional.adaptive_avg_pool2d(self.d(x), 1).flatten(1))


def trained() -> tuple[FloatGraph, FloatGraph, torch.Tensor]:
    """The network with batch statistics that belong to its images, before and after folding."""
    torch.manual_seed(0)
    module, x = Net(), torch.randn(200, 3, 10, 10)
    with torch.no_grad():
        for norm in (module.n1, module.n2, module.n3):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 2)
            norm.momentum = None
        module.train()
        for _ in range(3):
            module(x)
    original = from_torch(module.eval(), (3, 10, 10))
    return original, simplify(original), x


ORIGINAL, GRAPH, X = trained()
PLAN = BitPlan.uniform(GRAPH, 3, 8)
WEIGHTS = {name: quantize_weight(name, GRAPH[name].op.weight, PLAN.weight_spec(name)) for name in PLAN.weights}  # type: ignore[union-attr]


def rounded(graph: FloatGraph) -> FloatGraph:
    from dataclasses import replace

    nodes = [
        replace(n, op=replace(n.op, weight=WEIGHTS[n.name].dequantized())) if n.name in WEIGHTS else n  # type: ignore[call-arg, arg-type]
        for n in graph
    ]
    return FloatGraph(tuple(nodes), graph.outputs)


def mean_outputs(graph: FloatGraph) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    results = run_float(graph, {"x": X.numpy()})
    return {name: results[name].mean((0, 2, 3) if results[name].ndim == 4 else 0) for name in WEIGHTS}


def test_empirical_correction_restores_the_means() -> None:
    calibration = calibrate(GRAPH, X)
    corrected = rounded(correct_empirically(GRAPH, WEIGHTS, calibration, PLAN, X))
    wanted, before = mean_outputs(GRAPH), mean_outputs(rounded(GRAPH))
    prefix = Prefix(corrected, calibration, PLAN, X)
    for node in corrected:
        prefix.step(node)
        if node.name in ("d", "fc"):  # no activation after these
            axes = (0, 2, 3) if node.name == "d" else (0,)
            got = prefix.rounded[node.name].numpy().mean(axes)
            step = float(prefix.tensors[node.name].quantized[1].scale)
            assert np.abs(got - wanted[node.name]).max() < 0.3 * step
            assert np.abs(before[node.name] - wanted[node.name]).max() > 2 * step


def test_analytic_correction_comes_near_them_without_images() -> None:
    corrected = correct_analytically(GRAPH, ORIGINAL, WEIGHTS)
    assert np.array_equal(corrected["a"].op.bias, GRAPH["a"].op.bias), "nothing is known of the images"  # type: ignore[union-attr]
    results = run_float(GRAPH, {"x": X.numpy()})
    for name in ("b", "c", "d"):
        source = results[GRAPH[name].inputs[0]]
        one = FloatGraph((GRAPH[GRAPH.inputs[0]], *_alone(corrected, name)), (name,))
        bare = FloatGraph((GRAPH[GRAPH.inputs[0]], *_alone(GRAPH, name)), (name,))
        wanted = _conv(GRAPH, name, source, GRAPH[name].op.weight).mean((0, 2, 3))  # type: ignore[union-attr]
        shift, left = (
            _conv(g, name, source, WEIGHTS[name].dequantized()).mean((0, 2, 3)) - wanted for g in (bare, one)
        )
        assert np.abs(left).mean() < 0.35 * np.abs(shift).mean()


def _alone(graph: FloatGraph, name: str):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return (replace(graph[name], inputs=graph.inputs),)


def _conv(graph: FloatGraph, name: str, x: np.ndarray, weight: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    op = graph[name].op
    bias = None if op.bias is None else torch.from_numpy(op.bias)  # type: ignore[union-attr]
    return nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight), bias, groups=op.groups).numpy()  # type: ignore[union-attr]


def test_input_means_are_those_of_the_images() -> None:
    means = input_means(ORIGINAL)
    assert set(means) == {"b", "c", "d"}
    results = run_float(GRAPH, {"x": X.numpy()})
    for name, mean in means.items():
        np.testing.assert_allclose(mean, results[GRAPH[name].inputs[0]].mean((0, 2, 3)), atol=0.2)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, math.inf), (-math.inf, 2.0)]
)
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (2.0, 0.5), (-1.5, 2.0), (5.0, 3.0), (1.0, 1e-9)])
def test_clipped_normal_moments_are_those_of_samples(low: float, high: float, mean: float, deviation: float) -> None:
    x = np.clip(np.random.default_rng(0).normal(mean, deviation, 400_000), low, high)
    got_mean, got_variance = clipped_normal_moments(np.array([mean]), np.array([deviation**2]), low, high)
    assert got_mean[0] == pytest.approx(x.mean(), abs=0.01 * deviation + 1e-6)
    assert got_variance[0] == pytest.approx(x.var(), rel=0.05, abs=1e-6)
