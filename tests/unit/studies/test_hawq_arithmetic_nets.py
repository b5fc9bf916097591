"""Joined branches bit for bit, the mixed plan of the timings, and what a timing is called."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.benchmark.timing import CPU, Paired
from labkit.data import load as load_data
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops, int_ops
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.net import IntegerNet
from labkit.parity.compare import verify
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.studies.hawq import int4_speed
from labkit.studies.hawq.concat_net import Branches, trained
from labkit.studies.hawq.int4_speed import half_of_the_weights


def test_training_is_seeded_and_lowers_the_loss() -> None:
    images, labels = load_data("mnist5k").train()
    torch.manual_seed(5)  # must not matter
    one, other = trained(images, labels, 60), trained(images, labels, 60)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    untrained = trained(images, labels, 1)
    x, wanted = torch.tensor(images[:300]), torch.tensor(labels[:300])
    with torch.no_grad():
        losses = [float(torch.nn.functional.cross_entropy(net(x), wanted)) for net in (untrained, one)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 4)])
def test_branches_of_differing_scales_are_joined_bit_for_bit(bits: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = Branches().eval()
    x = np.random.default_rng(0).uniform(-1, 1, (24, 3, 32, 32)).astype(np.float32)
    graph = simplify(from_torch(module, (3, 32, 32)))
    net = IntegerNet(convert(graph, calibrate(graph, x), BitPlan.uniform(graph, *bits)))
    joins = [node for node in net.graph if isinstance(node.op, int_ops.Concat)]
    assert len(joins) == 2
    for node in joins:
        scales = {float(tensor.quantized[1].scale) for tensor in net.graph.inputs_of(node)}
        assert len(scales) > 1
    assert verify(net, module, x).passed


@pytest.mark.parametrize("name", ["lenet", "resnet20", "mobilenetv2-small"])
def test_half_of_the_weights(name: str) -> None:
    graph = simplify(from_torch(load_model(name, "mnist5k"), (3, 32, 32)))
    plan = half_of_the_weights(graph)
    sizes = {n.name: n.op.weight.size for n in graph if isinstance(n.op, float_ops.Conv2d | float_ops.Linear)}
    low = {layer for layer, bits in plan.weights.items() if bits == 4}
    assert set(plan.weights.values()) == {4, 8}
    held = sum(sizes[layer] for layer in low)
    assert held >= sum(sizes.values()) / 2 > held - min(sizes[layer] for layer in low)
    assert min(sizes[layer] for layer in low) >= max(size for layer, size in sizes.items() if layer not in low)
    for tensor, bits in plan.activations.items():
        readers = {node.name for node in graph.consumers(tensor) if node.name in sizes}
        if bits == 4:
            assert readers
            assert readers <= low
            assert tensor not in graph.inputs


@pytest.mark.parametrize(("ratio", "p10", "verdict"), [(1.6, 1.4, "yes"), (1.3, 1.2, "partly"), (1.03, 0.98, "no")])
def test_verdict_on_a_timing(ratio: float, p10: float, verdict: str) -> None:
    assert int4_speed._verdict(Paired(1.0, ratio, ratio, p10, 2.0, 50, CPU, 1.0)) == verdict
