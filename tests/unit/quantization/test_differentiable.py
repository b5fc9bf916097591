"""The differentiable run equals the plain one, and per-image derivatives by the weights equal PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from unit.quantization.nets import branches, images

from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.quantization.differentiable import (
    bending_nodes,
    dependents,
    layer_names,
    layer_op,
    layer_windows,
    run_nodes,
    weight_slopes,
    with_dtype,
)
from labkit.quantization.weight_rounding.adaround_images import apply_layer


class Sequence(nn.Module):
    """A convolution along time with stride and groups, and a linear layer at every time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv1d(4, 4, 3, groups=2, dilation=2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.grouped(torch.relu(self.conv(x)))).flatten(1))


class Product(nn.Module):
    """The product of two branches, and an upsampling after one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.c(self.a(x) * self.b(x)), scale_factor=2)


def cases() -> dict[str, tuple[FloatGraph, Tensor]]:
    torch.manual_seed(1)
    strip = torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(0))
    return {
        "branches": (simplify(from_torch(branches(), (3, 8, 8))), images(5)),
        "sequence": (simplify(from_torch(Sequence().eval(), (3, 12))), strip),
        "product": (simplify(from_torch(Product().eval(), (3, 8, 8))), images(5)),
    }


@pytest.mark.parametrize("name", cases())
def test_results_are_those_of_the_plain_run(name: str) -> None:
    graph, x = cases()[name]
    plain = run_float(graph, {graph.inputs[0]: x.numpy()})
    weights = {layer: torch.from_numpy(layer_op(graph, layer).weight) for layer in layer_names(graph)}
    sums: dict[str, Tensor] = {}
    for found in (run_nodes(graph, {graph.inputs[0]: x}, weights), run_nodes(graph, {graph.inputs[0]: x}, sums=sums)):
        assert set(found) == set(plain)
        for node, value in plain.items():
            np.testing.assert_allclose(found[node].detach().numpy(), value, rtol=1e-6, atol=1e-6)
    assert tuple(sums) == layer_names(graph)
    assert all(value.requires_grad for value in sums.values())


@pytest.mark.parametrize("name", cases())
def test_only_dependents_change_with_a_weight(name: str) -> None:
    graph, x = cases()[name]
    whole = run_nodes(graph, {graph.inputs[0]: x})
    for layer in layer_names(graph):
        moved = run_nodes(graph, {graph.inputs[0]: x}, {layer: 2 * torch.from_numpy(layer_op(graph, layer).weight)})
        changed = {node for node in whole if not torch.equal(whole[node], moved[node])}
        after = dependents(graph, [layer])
        assert layer in changed
        assert changed <= after
        known = {node: value for node, value in whole.items() if node not in after}
        again = run_nodes(graph, known, {layer: 2 * torch.from_numpy(layer_op(graph, layer).weight)}, needed=after)
        assert all(torch.equal(again[node], moved[node]) for node in whole)


@pytest.mark.parametrize("name", cases())
def test_slopes_of_weights_are_pytorchs(name: str) -> None:
    graph, x = cases()[name]
    graph, x = with_dtype(graph, torch.float64), x.double()
    found = run_nodes(graph, {graph.inputs[0]: x})
    for layer in layer_names(graph):
        op, taken = layer_op(graph, layer), found[graph[layer].inputs[0]]
        assert op.weight.dtype == np.float64
        output = apply_layer(op, taken, torch.from_numpy(op.weight), None)
        slopes = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        got = weight_slopes(op, slopes, layer_windows(op, taken))
        for index in range(len(x)):
            weight = torch.from_numpy(op.weight).clone().requires_grad_()
            apply_layer(op, taken[index : index + 1], weight, None).backward(slopes[index : index + 1])
            torch.testing.assert_close(got[index], weight.grad.reshape(-1))


def test_slopes_of_a_linear_layer_at_every_time() -> None:
    graph, _ = cases()["sequence"]
    op = layer_op(with_dtype(graph, torch.float64), "fc")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 7, 8, dtype=torch.float64, generator=generator)  # 7 times
    slopes = torch.randn(4, 7, 3, dtype=torch.float64, generator=generator)
    got = weight_slopes(op, slopes, layer_windows(op, x))
    torch.testing.assert_close(got, torch.einsum("nto,nti->noi", slopes, x).flatten(1))


def test_nodes_that_bend_are_found() -> None:
    graph, _ = cases()["product"]
    (product,) = (node.name for node in graph if type(node.op).__name__ == "Multiply")
    assert bending_nodes(graph, "a") == bending_nodes(graph, "b") == (product,)
    assert bending_nodes(graph, "c") == ()
