"""A traced module and its graph compute the same, node by node under the module's own names."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from parity.zoo import CASES, SHAPE, Case, build, conv, net, row
from torch import nn

from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify


def flat_outputs(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    assert isinstance(value, list | tuple)
    return list(chain.from_iterable(flat_outputs(part) for part in value))


def assert_computes(graph: FloatGraph, module: nn.Module, number: int = 5) -> None:
    x = torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = flat_outputs(module(x.clone()))
    results = run_float(graph, {graph.inputs[0]: x.numpy()})
    assert len(graph.outputs) == len(expected)
    for name, wanted in zip(graph.outputs, expected, strict=True):
        assert wanted.double().std() > 1e-3, "an output that is always the same proves nothing"
        np.testing.assert_allclose(results[name], wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
class TestZoo:
    def test_graph_computes_what_the_module_does(self, case: Case) -> None:
        module = build(case)
        graph = from_torch(module, SHAPE)
        assert_computes(graph, module)
        assert_computes(simplify(graph), module)

    def test_nodes_have_the_names_of_the_modules(self, case: Case) -> None:
        graph = from_torch(build(case), SHAPE)
        assert tuple(node.name for node in graph) == case.nodes

    def test_simplifying_loses_no_name(self, case: Case) -> None:
        graph = simplify(from_torch(build(case), SHAPE))
        names = [name for node in graph for name in (node.name, *node.carries)]
        assert sorted(names) == sorted(set(case.nodes) - set(case.dead))

    def test_nothing_but_what_quantization_knows_is_left(self, case: Case) -> None:
        left = {type(node.op) for node in simplify(from_torch(build(case), SHAPE))}
        assert not left & {float_ops.BatchNorm2d, float_ops.Identity}

    def test_module_is_left_as_it_was(self, case: Case) -> None:
        module = build(case).train()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        from_torch(module, SHAPE)
        assert all(part.training for part in module.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def simplified(name: str) -> FloatGraph:
    return simplify(from_torch(build(next(case for case in CASES if case.name == name)), SHAPE))


def test_what_is_fused_where() -> None:
    graph = simplified("residual")
    assert graph["layer1.0.conv1"].carries == ("layer1.0.bn1", "relu")
    assert graph["layer1.0.conv1"].activation is Activation.RELU
    assert graph["layer1.0.conv2"].activation is Activation.NONE
    assert graph["add"].carries == ("relu_1",)
    assert simplified("depthwise with ReLU6")["depth"].activation is Activation.RELU6
    # Not fused: the convolution's own result leaves the net, a pooling or concatenation stands between, or a ReLU is there.
    assert simplified("output taken before relu").outputs == ("conv", "last")
    for name, alone in (
        ("output taken before relu", "relu"),
        ("relu after max-pool, twice", "relu"),
        ("relu after max-pool, twice", "clip"),
        ("relu of a concatenation", "relu"),
        ("one relu module used twice", "relu"),
    ):
        assert isinstance(simplified(name)[alone].op, float_ops.Relu), name


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("batch norm before convolution", "bn"),
        ("batch norm before convolution", "bn3"),
        ("batch norm of a shared result", "norm"),
    ],
)
def test_batch_norm_that_cannot_be_folded_becomes_a_depthwise_convolution(name: str, node: str) -> None:
    op = simplified(name)[node].op
    assert isinstance(op, float_ops.Conv2d)
    assert op.weight.shape == (op.groups, 1, 1, 1)


def test_same_padding_puts_the_odd_element_last() -> None:
    op = simplified("same padding of an even kernel")["conv"].op
    assert isinstance(op, float_ops.Conv2d)
    assert op.padding == ((1, 2), (1, 2))


def test_outputs_keep_their_order_and_may_nest() -> None:
    assert from_torch(build(CASES[0]), SHAPE).outputs == ("6",)
    assert simplified("two outputs").outputs == ("head", "tail", "conv")


def test_parameters_are_copies() -> None:
    module: Any = row(conv=conv())
    graph = from_torch(module, SHAPE)
    op = graph["conv"].op
    assert isinstance(op, float_ops.Conv2d)
    before = op.weight.copy()
    module.conv.weight.data.zero_()
    assert np.array_equal(op.weight, before)


def test_optional_argument_that_is_left_out_is_no_input() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: torch.Tensor, scale: float = 1.0, mask: torch.Tensor | None = None) -> torch.Tensor:
            out: torch.Tensor = self.conv(x)
            return out

    module = Net().eval()
    graph = from_torch(module, SHAPE)
    assert graph.inputs == ("x",)
    assert_computes(graph, module)


def test_names_of_modules_win_over_names_of_calls() -> None:
    module = net(lambda s, x: s.x(x + s.add(x)), x=nn.ReLU(), add=conv(3, 3))
    graph = from_torch(module, SHAPE)
    assert [node.name for node in graph] == ["x_", "add", "add_1", "x"]
    assert_computes(graph, module)


def test_text_names_every_node_once() -> None:
    graph = simplified("residual")
    lines = str(graph).splitlines()
    assert lines[0] == f"FloatGraph: {len(graph.nodes)} nodes, outputs pool"
    assert [line.split()[0] for line in lines[1:]] == [node.name for node in graph]
    assert "Conv2d(weight[4x4x3x3], bias[4], stride=(1,1)" in str(graph)
    assert "<- layer1.0.conv2, layer1.0.shortcut.0 -> relu (with relu_1)" in str(graph)
