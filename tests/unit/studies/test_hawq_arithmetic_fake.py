"""Simulated quantization beside the engine: the simulations round where they say, and every difference is explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labkit.arithmetic.affine import dequantize, quantize
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.studies.hawq import ties
from labkit.studies.hawq.differences import compare
from labkit.studies.hawq.fake import KINDS, branches, fake_trace, to_steps
from labkit.studies.hawq.ties import layer_ties


class Residual(nn.Module):
    """A residual block with biases, a pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.first(x))
        return self.fc(self.pool(torch.relu(first + self.second(first))).flatten(1))  # type: ignore[no-any-return]


def bench(weights: int, activations: int, seed: int = 0) -> tuple[FloatGraph, IntegerNet, np.ndarray]:
    torch.manual_seed(seed)
    graph = simplify(from_torch(Residual().eval(), (3, 8, 8)))
    x = np.random.default_rng(seed).normal(size=(40, 3, 8, 8)).astype(np.float32)
    plan = BitPlan.uniform(graph, weights, activations)
    return graph, IntegerNet(convert(graph, calibrate(graph, x), plan)), x


def test_branches_are_what_only_sums_read() -> None:
    graph, _, _ = bench(8, 8)
    assert branches(graph) == {"second"}  # the pool and a convolution read the sum and the first layer


@pytest.mark.parametrize("kind", KINDS)
def test_simulations_round_where_they_say(kind: str) -> None:
    graph, net, x = bench(4, 4)
    fake = fake_trace(graph, net.graph, x, kind)  # type: ignore[arg-type]
    left = {"all": set(), "tensors": set(), "sums": {"second"}, "layers": {node.name for node in graph}}[kind]
    for node in graph:
        spec, params = net.graph[node.name].output.quantized
        rounded = dequantize(quantize(fake[node.name], params, spec), params, spec)
        on_grid = np.abs(rounded - fake[node.name]).max() < 1e-3 * float(params.scale)
        assert on_grid == (node.name not in left)


def test_layers_read_rounded_values() -> None:
    graph, net, x = bench(4, 4)
    fake = fake_trace(graph, net.graph, x, "layers")
    name = graph.inputs[0]
    spec, params = net.graph[name].output.quantized
    given = dequantize(quantize(x, params, spec), params, spec)
    weight = net.graph["first"].op.weight.dequantized()  # type: ignore[union-attr]
    bias = graph["first"].op.bias  # type: ignore[union-attr]
    expected = torch.relu(torch.nn.functional.conv2d(*map(torch.from_numpy, (given, weight, bias)), padding=1))
    np.testing.assert_allclose(fake["first"], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_to_steps_is_equation_2() -> None:
    _, net, x = bench(8, 4)
    name = net.graph.inputs[0]
    spec, params = net.graph[name].output.quantized
    assert np.array_equal(to_steps(net.graph, name, 3 * x), quantize(3 * x, params, spec))


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_difference_lies_next_to_a_tie(bits: tuple[int, int], seed: int) -> None:
    graph, net, x = bench(*bits, seed)
    found = layer_ties(graph, net.graph, net.trace(x))
    assert [layer.name for layer in found] == [node.name for node in graph if node.name not in graph.inputs]
    assert sum(layer.unexplained for layer in found) == 0
    if bits[0] > 2:  # a bias rounded to multiples of 2-bit scales may be off by several steps of an 8-bit output
        assert max(layer.largest for layer in found) <= 1
    assert all(layer.farthest <= 1 for layer in found)


def test_rounded_biases_change_as_many_elements_as_expected() -> None:
    graph, net, x = bench(2, 6)  # coarse weights: a coarse bias
    first = next(layer for layer in layer_ties(graph, net.graph, net.trace(x)) if layer.name == "first")
    assert first.predicted > 20
    assert abs(first.differing - first.predicted) < 5 * np.sqrt(first.predicted)


def test_a_wrong_result_is_not_explained() -> None:
    graph, net, x = bench(8, 8)
    trace = dict(net.trace(x))
    trace["second"] = trace["second"].copy()
    trace["second"][0, 0, 0, 0] += 1 if trace["second"][0, 0, 0, 0] < 255 else -1
    found = {layer.name: layer.unexplained for layer in layer_ties(graph, net.graph, trace)}
    assert found["second"] == 1


def test_exact_results_are_those_of_whole_numbers() -> None:
    graph, net, x = bench(8, 8)
    trace = net.trace(x)
    exact, bound = ties._exact(graph["fc"], net.graph, trace)
    op, (tensor,) = net.graph["fc"].op, net.graph.inputs_of(net.graph["fc"])
    scale = op.weight.params.scale.astype(np.float64) * float(tensor.quantized[1].scale)  # type: ignore[union-attr]
    centred = trace[net.graph["fc"].inputs[0]].astype(np.int64) - int(tensor.quantized[1].zero_point)
    sums = centred @ op.weight.values.astype(np.int64).T  # type: ignore[union-attr]
    real = (sums * scale + graph["fc"].op.bias) / float(net.graph["fc"].output.quantized[1].scale)  # type: ignore[union-attr]
    np.testing.assert_allclose(exact, real, rtol=1e-12)
    assert np.all(bound > 0)
    assert bound.max() < 0.01


def test_comparison_of_a_whole_network() -> None:
    graph, net, x = bench(8, 4)
    found = compare(graph, net, x, ("tensors", "layers"))
    deployed = net.trace(x)
    for kind, result in found.items():
        fake = fake_trace(graph, net.graph, x, kind)
        steps = {name: to_steps(net.graph, name, fake[name]) for name in ("second", "fc")}
        for name, simulated in steps.items():
            params = net.graph[name].output.quantized[1]
            engine = deployed[name].astype(int)
            apart = np.linalg.norm((simulated - engine).ravel()) / np.linalg.norm(
                (engine - int(params.zero_point)).ravel()
            )
            assert result.normalised(name) == pytest.approx(apart, abs=1e-12)
            assert result.share(name) == pytest.approx(100 * np.mean(simulated != engine))
            assert result.largest[name] == np.abs(simulated - engine).max()
        classes = steps["fc"].argmax(1) != deployed["fc"].argmax(1)
        assert result.flipped == pytest.approx(classes.mean())
    float_logits = run_float(graph, {graph.inputs[0]: x})["fc"]
    assert not np.array_equal(to_steps(net.graph, "fc", float_logits), deployed["fc"])  # the comparison is no tautology
