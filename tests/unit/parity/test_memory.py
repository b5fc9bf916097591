"""A certificate takes little memory at a time: tensors are let go after their last reader, and large images come one by one."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from parity.brought import images, make
from parity.nets import images as small_images
from parity.nets import quantized
from parity.zoo import CASES
from torch import nn

import labkit
from labkit.net import IntegerNet
from labkit.parity import compare
from labkit.parity.emulate_torch import Emulation
from labkit.parity.memory import image_bytes
from labkit.parity.restate_torch import run_graph
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan


def emulation(net: IntegerNet, module: nn.Module) -> Emulation:
    notes, shape = net.graph.notes, net.graph[net.graph.inputs[0]].output.shape
    return Emulation(module, Calibration.from_json(notes["calibration"]), BitPlan.from_json(notes["plan"]), shape)


@pytest.mark.parametrize("way", ["from the module", "from the net"])
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_what_nobody_reads_any_more_is_gone(name: str, way: str) -> None:
    net, module = quantized(name, "W8A8")
    x = torch.from_numpy(np.array(small_images()))
    steps = (
        emulation(net, module).run(x) if way == "from the module" else run_graph(net.graph, {net.graph.inputs[0]: x})
    )
    order = [node.name for node in net.graph]
    readers = {name: max(order.index(node.name) for node in net.graph if name in node.inputs) for name in _read(net)}
    seen: dict[str, Any] = {}
    for step, result in steps:
        gone = [before for before in seen if readers.get(before, -1) < order.index(step)]
        assert not [before for before in gone if seen[before]() is not None], step
        seen[step] = weakref.ref(result)
        del result
    assert len(seen) >= len(order) - len(net.graph.outputs)


def _read(net: IntegerNet) -> set[str]:
    return {name for node in net.graph for name in node.inputs}


@pytest.fixture(scope="module")
def large() -> IntegerNet:
    return labkit.quantize(make("mobilenet_v2", 64), images(4, 64, seed=2))


@pytest.mark.parametrize("workers", [1, 2, 4, 64])
@pytest.mark.parametrize("budget", [1, 1 << 20, 1 << 24, 1 << 28, 1 << 40])
def test_the_budget_is_kept(budget: int, workers: int, large: IntegerNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "BUDGET", budget)
    used, size = compare._share(large.graph, workers)
    assert 1 <= used <= workers and 1 <= size <= compare.BATCH
    assert used * size * image_bytes(large.graph) <= budget or (used, size) == (1, 1)


def test_the_estimate_is_no_less_than_the_trace_and_the_widest_layer(large: IntegerNet) -> None:
    trace = {
        name: array for name, array in large.trace(images(1, 64, seed=3)).items() if name in large.graph.carriers()
    }
    once = sum(trace[node.name].nbytes for node in large.graph)
    widest = max(trace[node.name].size for node in large.graph)
    assert image_bytes(large.graph) > 2 * once + 8 * 5 * widest


def test_small_images_still_come_many_at_a_time() -> None:
    net, _ = quantized(CASES[0].name, "W8A8")
    assert compare._share(net.graph, 4) == (4, compare.BATCH)


@pytest.mark.parametrize("budget", [1, 1 << 23, 1 << 40])
def test_batches_change_no_certificate(budget: int, large: IntegerNet, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(7, 64, seed=3)
    monkeypatch.setattr(compare, "BUDGET", budget)
    found = labkit.verify(large, make("mobilenet_v2", 64), x)
    assert (found.passed, found.images) == (True, 7)
    assert found.elements == sum(c.elements for c in found.comparisons)
    tensors = {c.name: c.elements for c in found.comparisons if c.kind == "tensor"}
    assert tensors == {node.name: 7 * int(np.prod(node.output.shape)) for node in large.graph}
