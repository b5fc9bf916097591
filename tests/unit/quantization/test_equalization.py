"""Cross-layer equalization: the float network stays what it was, ranges meet, and what cannot be scaled is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labkit.errors import QuantizationError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.quantization.equalization import Pair, absorb_biases, equalizable_pairs, equalize, normal_moments


class Triple(nn.Module):
    """An inverted residual: 1x1, depthwise 3x3, 1x1, joined by ``act``; then an addition."""

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.expand, self.depthwise = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 6, 1)
        self.act = act()
        self.last = nn.Conv2d(6, 8, 3, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.project(self.act(self.depthwise(self.act(self.expand(x)))))
        return self.last(x + y)


def flat() -> nn.Module:
    """Convolutions and linear layers joined by pools and a flatten."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, groups=2, bias=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 4)),
    )


def graph_of(module: nn.Module, seed: int = 0) -> FloatGraph:
    torch.manual_seed(seed)
    for p in module.parameters():
        with torch.no_grad():
            p.copy_(torch.randn(p.shape) * torch.logspace(-1, 1, len(p)).reshape([-1] + [1] * (p.ndim - 1)) / 3)
    return simplify(from_torch(module.eval(), (3, 12, 12)))


def outputs(graph: FloatGraph) -> np.ndarray:  # type: ignore[type-arg]
    x = np.random.default_rng(0).normal(size=(20, 3, 12, 12)).astype(np.float32)
    return run_float(graph, {graph.inputs[0]: x}, only_outputs=True)[graph.outputs[0]]


def stretched() -> nn.Module:
    """A decoder's end: up-sampling lets factors through, as it only repeats."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 8, 3), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)),
    )


CASES = {"flat": flat, "triple": lambda: Triple(nn.ReLU), "stretched": stretched}


@pytest.mark.parametrize("name", CASES)
def test_the_float_network_stays_what_it_was(name: str) -> None:
    graph = graph_of(CASES[name]())
    equalized = equalize(graph)
    before, after = outputs(graph), outputs(equalized.graph)
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    moved = [scale for scale in equalized.scales.values() if np.abs(scale - 1).max() > 0.1]
    assert len(moved) >= 2


@pytest.mark.parametrize("name", CASES)
def test_ranges_meet(name: str) -> None:
    graph = graph_of(CASES[name]())
    equalized = equalize(graph, rounds=100).graph
    pairs = equalizable_pairs(graph)
    assert pairs
    for pair in pairs:
        first, second = equalized[pair.first].op.weight, equalized[pair.second].op.weight  # type: ignore[union-attr]
        channels = len(first)
        groups = getattr(equalized[pair.second].op, "groups", 1)
        by_input = second.reshape(groups, len(second) // groups, channels // groups, -1)
        reached = np.abs(by_input).max((1, 3)).reshape(-1)
        np.testing.assert_allclose(np.abs(first.reshape(channels, -1)).max(1), reached, rtol=1e-3)


def test_pairs_are_those_with_nothing_in_the_way() -> None:
    assert equalizable_pairs(graph_of(flat())) == (Pair("0", "3"), Pair("3", "7"), Pair("7", "9"))
    assert equalizable_pairs(graph_of(stretched())) == (Pair("0", "3"), Pair("3", "6"))
    triple = (Pair("expand", "depthwise"), Pair("depthwise", "project"))
    assert equalizable_pairs(graph_of(Triple(nn.ReLU))) == triple
    assert equalizable_pairs(graph_of(Triple(nn.ReLU6))) == ()


def test_relu6_is_kept_or_replaced() -> None:
    graph = graph_of(Triple(nn.ReLU6))
    kept = equalize(graph)
    assert np.array_equal(outputs(kept.graph), outputs(graph))
    replaced = equalize(graph, relu6="replace")
    assert {node.activation for node in replaced.graph} == {Activation.NONE, Activation.RELU}
    wanted = outputs(graph_of(Triple(nn.ReLU)))
    np.testing.assert_allclose(outputs(replaced.graph), wanted, atol=1e-5 * np.abs(wanted).max())
    with pytest.raises(QuantizationError, match="relu6 must be one of keep, replace, got 'drop'"):
        equalize(graph, relu6="drop")


def test_dead_channels_are_left_alone() -> None:
    module = flat()
    graph = graph_of(module)
    with torch.no_grad():
        module[0].weight[2] = 0  # type: ignore[index]
        module[3].weight[:, 1] = 0  # type: ignore[index]
    graph = simplify(from_torch(module, (3, 12, 12)))
    scales = equalize(graph).scales["0"]
    assert scales[2] == 1 and np.all(np.isfinite(scales))
    np.testing.assert_allclose(outputs(equalize(graph).graph), outputs(graph), atol=1e-5 * np.abs(outputs(graph)).max())


class Normed(nn.Module):
    """conv, batch norm, ReLU, conv without padding."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.a, self.norm, self.b = (
            nn.Conv2d(3, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.Conv2d(5, 4, 3, padding=padding),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.norm(self.a(x))))


def normed(padding: int = 0) -> tuple[FloatGraph, FloatGraph]:
    torch.manual_seed(0)
    module = Normed(padding).eval()
    with torch.no_grad():
        module.norm.weight.copy_(torch.tensor([0.3, -0.2, 1.0, 0.1, 0.5]))
        module.norm.bias.copy_(torch.tensor([4.0, 3.0, 0.5, -2.0, 5.0]))
        module.norm.running_var.copy_(torch.full((5,), 1.0))
    original = from_torch(module, (3, 12, 12))
    return original, simplify(original)


def test_moments_are_those_of_the_batch_norm() -> None:
    original, _ = normed()
    mean, deviation = normal_moments(original)["a"]
    np.testing.assert_allclose(mean, [4, 3, 0.5, -2, 5])
    np.testing.assert_allclose(deviation, [0.3, 0.2, 1.0, 0.1, 0.5], rtol=1e-6)
    halved = normal_moments(original, {"a": np.full(5, 2.0)})["a"]
    np.testing.assert_allclose(halved[0], mean / 2)


def test_absorbed_biases_leave_the_result_where_nothing_falls_below() -> None:
    original, graph = normed()
    absorbed = absorb_biases(graph, normal_moments(original))
    before, after = (g["a"].op.bias for g in (graph, absorbed))  # type: ignore[union-attr]
    np.testing.assert_allclose(before - after, [3.1, 2.4, 0, 0, 3.5], atol=1e-5)
    assert np.abs(outputs(absorbed) - outputs(graph)).max() < 1e-4
    inner = run_float(absorbed, {"x": np.zeros((1, 3, 12, 12), np.float32)})["a"]
    assert inner.min() >= 0


def test_nothing_is_absorbed_into_a_layer_that_pads() -> None:
    original, graph = normed(padding=1)
    absorbed = absorb_biases(graph, normal_moments(original))
    assert np.array_equal(absorbed["a"].op.bias, graph["a"].op.bias)  # type: ignore[union-attr]
