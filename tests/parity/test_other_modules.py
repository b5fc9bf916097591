"""A certificate is about the module that it names: one that computes something else never passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import labkit
from labkit.arithmetic.affine import QTensor, QuantSpec
from labkit.errors import ModelError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet


class Sum(nn.Module):
    def __init__(self, alpha: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.alpha = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(self.a(x), self.b(x), alpha=self.alpha)


def convolution(mode: str) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), nn.ReLU())


def clamped(low: float, high: float) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(low, high))


def hooked(hook: bool) -> nn.Module:
    module = convolution("zeros")
    if hook:
        module[0].register_forward_hook(lambda part, inputs, output: 3 * output)  # type: ignore[index]
    return module


def flattened(axis: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(axis))


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "padding mode": (lambda: convolution("zeros"), lambda: convolution("reflect")),
    "alpha of a sum": (lambda: Sum(1), lambda: Sum(2)),
    "bounds of a clamp": (lambda: clamped(0, 6), lambda: clamped(-1, 1)),
    "a hook": (lambda: hooked(False), lambda: hooked(True)),
    "another flatten": (lambda: flattened(1), lambda: flattened(2)),
}


def passes(net: IntegerNet, module: nn.Module, x: torch.Tensor) -> bool:
    try:
        return labkit.verify(net, module, x).passed
    except ModelError:
        return False


@pytest.mark.parametrize("pair", PAIRS)
def test_another_module_is_not_certified(pair: str) -> None:
    made_from, other = PAIRS[pair]
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    module = made_from()
    net = labkit.quantize(module, x)
    assert labkit.verify(net, module, x).passed
    assert not passes(net, other(), x)


def test_a_wider_grid_than_the_plan_says_is_found() -> None:
    """The integers are the same, but size and bit operations would be told wrongly."""
    module = convolution("zeros")
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    net = labkit.quantize(module, x, weights=4)
    nodes = []
    for node in net.graph:
        if isinstance(node.op, int_ops.Conv2d):
            old = node.op.weight
            spec = QuantSpec(8, narrow=True, granularity=old.spec.granularity)
            node = replace(node, op=replace(node.op, weight=QTensor(old.values, old.params, spec)))
        nodes.append(node)
    report = labkit.verify(IntegerNet(IntGraph(tuple(nodes), net.graph.outputs, net.graph.notes)), module, x)
    assert report.first is not None
    assert report.first.where == "0.weight_grid"
