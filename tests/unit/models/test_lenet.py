from __future__ import annotations

import pytest
import torch

from labkit.models.lenet import LeNet

LAYERS = ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten", "fc1", "relu3", "fc2", "relu4", "fc3"]
SHAPES = {
    "conv1.weight": (12, 3, 5, 5),
    "conv2.weight": (32, 12, 3, 3),
    "fc1.weight": (256, 1152),
    "fc2.weight": (64, 256),
    "fc3.weight": (10, 64),
}


@pytest.mark.parametrize("last_bias", [False, True])
def test_weights_and_order_of_layers(last_bias: bool) -> None:
    net = LeNet(last_bias)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes == SHAPES | ({"fc3.bias": (10,)} if last_bias else {})
    traced = torch.fx.symbolic_trace(net)
    assert [str(node.target) for node in traced.graph.nodes if node.op == "call_module"] == LAYERS
    assert {node.op for node in traced.graph.nodes} == {"placeholder", "call_module", "output"}
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
