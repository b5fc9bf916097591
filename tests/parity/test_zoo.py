"""Every small network, under every plan and on every tier, agrees with its emulation in PyTorch: 0 elements differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from parity.nets import PLANS, images, quantized, tied, tiers
from parity.oracle import tie_count
from parity.zoo import CASES

import labkit
from labkit.graph import int_ops
from labkit.net import IntegerNet
from labkit.parity.report import ParityReport

NAMES = [case.name for case in CASES]


def assert_whole_and_equal(net: IntegerNet, report: ParityReport, number: int, parameters: bool) -> None:
    """The report passed, and it speaks of every parameter and every element of every node."""
    assert report.passed, str(report)
    assert (report.differing, report.first, report.images) == (0, None, number)
    compared = {(found.kind, found.name): found.elements for found in report.comparisons}
    assert len(compared) == len(report.comparisons)
    wanted: dict[tuple[str, str], int] = {
        ("tensor", node.name): number * int(np.prod(node.output.shape)) for node in net.graph
    }
    if parameters:
        for node in net.graph:
            wanted |= {("parameter", f"{node.name}.{name}"): size for name, size in sizes(node.op).items()}
    assert compared == wanted


def sizes(op: int_ops.IntOp) -> dict[str, int]:
    """How many numbers each parameter of ``op`` has."""
    if isinstance(op, int_ops.Dequantize | int_ops.ArgMax):
        return {}
    found: dict[str, int] = {"scale": 1, "zero_point": 1, "grid": 2}
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        scales = op.weight.params.scale.size
        found |= {"weight": op.weight.values.size, "bias": op.bias.size, "clamp": 2, "weight_grid": 2}
        found |= dict.fromkeys(("weight_scale", "weight_zero_point", "mantissa", "exponent"), scales)
    elif isinstance(op, int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d | int_ops.Multiply | int_ops.Requantize):
        found |= {"clamp": 2, "mantissa": 1, "exponent": 1}
    elif isinstance(op, int_ops.Concat):
        parts = len(op.requantizers)
        found |= {"clamp": 2 * parts, "mantissa": parts, "exponent": parts}
    elif isinstance(op, int_ops.Softmax):
        found |= {"clamp": 2, "table": 256, "bits": 1}
    elif isinstance(op, int_ops.Add):
        found |= {"clamp": 2, "multipliers": 2, "shift": 1}
    return found


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_differs(name: str, plan: str, tier: str) -> None:
    net, module = quantized(name, plan)
    x = images()
    assert_whole_and_equal(net, labkit.verify(net, module, x, kernels=tier), len(x), parameters=True)
    assert_whole_and_equal(net, labkit.verify(net, None, x, kernels=tier), len(x), parameters=False)


@pytest.mark.parametrize("name", NAMES)
def test_activations_by_three_sigma(name: str) -> None:
    net, module = quantized(name, "W8A8", "3sigma")
    assert net.graph.notes["calibration"]["method"] == "3sigma"
    assert_whole_and_equal(net, labkit.verify(net, module, images(), "reference"), 8, parameters=True)


TIED = [
    (name, plan, bits)
    for name in NAMES
    for plan, bits in (("W8A8", 8), ("W4A4", 4), ("W8A8 per tensor, symmetric", 8))
    if name not in ("tiny weights under an ordinary bias", "batch norm without gain")
]


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize(("name", "plan", "bits"), TIED)
def test_nothing_differs_on_rounding_ties(name: str, plan: str, bits: int, tier: str) -> None:
    net, module, x = tied(name, plan, bits)
    assert_whole_and_equal(net, labkit.verify(net, module, x, kernels=tier), len(x), parameters=True)
    assert_whole_and_equal(net, labkit.verify(net, None, x, kernels=tier), len(x), parameters=False)


@pytest.mark.parametrize("plan", ["W8A8", "W4A4", "W8A8 per tensor, symmetric"])
def test_ties_do_occur(plan: str) -> None:
    """In each kind of operation that rounds, and at the border in."""
    ties: dict[str, int] = {}
    for name, tied_plan, bits in TIED:
        if tied_plan == plan:
            net, _, x = tied(name, plan, bits)
            trace: dict[str, Any] = net.trace(x, kernels="reference")
            for node in net.graph:
                kind = type(node.op).__name__
                ties[kind] = ties.get(kind, 0) + tie_count(net.graph, node, trace)
            _, params = net.graph[net.graph.inputs[0]].output.quantized
            ties["Quantize"] += int((np.abs(x / params.scale) % 1 == 0.5).sum())
    kinds = {"Quantize", "Conv2d", "Linear", "AveragePool2d", "Add", "Multiply", "Concat"}
    if plan == "W4A4":  # from 4 bits to 8; elsewhere a ReLU of its own multiplies by a whole power of two
        kinds.add("Requantize")
    print(ties)
    assert all(ties[kind] >= 20 for kind in kinds), ties


@pytest.mark.parametrize("name", NAMES)
def test_eight_bits_are_close_to_the_float_network(name: str) -> None:
    """Equal integers could be equally wrong: the module itself is the judge of what they mean."""
    net, module = quantized(name, "W8A8")
    x = images(32, seed=2)[::2]  # the images of calibration
    with torch.no_grad():
        result = module(torch.tensor(x))
    wanted = flat(result)
    got = net.run(x, kernels="reference")
    outputs = list(got.values()) if isinstance(got, dict) else [got]
    for real, integer in zip(wanted, outputs, strict=True):
        if integer.dtype == np.int32:  # classes, which a rounded logit can change
            assert (real == integer).mean() > 0.85
            assert len(np.unique(integer)) > 2
            continue
        noise = np.square(real - integer).mean()
        assert 10 * np.log10(np.square(real).mean() / noise) > 25
        assert len(np.unique(integer)) > 20


def flat(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value.numpy()]
    return [array for part in value for array in flat(part)]
