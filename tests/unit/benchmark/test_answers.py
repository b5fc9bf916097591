"""Ours must be exact; a peer's wrong answers are counted, and told from another rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from labkit.benchmark.answers import Results, expected, judge_peer, last_integers, wrong_answer
from labkit.benchmark.nets import Subject
from labkit.graph.ir import IntGraph
from labkit.kernels.kernel_set import REFERENCE
from labkit.net import IntegerNet


@pytest.fixture(scope="module")
def exact(lenet: Subject, lenet_net: IntegerNet) -> Results:
    return expected(lenet_net.graph, lenet.images)


def with_other_bias(graph: IntGraph, layer: str, change: int) -> IntGraph:
    """``graph`` with another bias in the first channel of ``layer``: what a wrong kernel looks like from outside."""
    nodes = []
    for node in graph:
        if node.name == layer:
            bias = node.op.bias.copy()
            bias[0] += change
            node = replace(node, op=replace(node.op, bias=bias))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def test_our_own_answer_is_exact(lenet: Subject, lenet_net: IntegerNet, exact: Results) -> None:
    assert wrong_answer(lenet_net, exact, lenet.images, lenet.batch(1)) is None
    assert wrong_answer(lenet_net, exact, lenet.images, lenet.batch(45)) is None  # more than there are images


def test_one_wrong_channel_of_ours_is_found(lenet: Subject, lenet_net: IntegerNet, exact: Results) -> None:
    wrong = IntegerNet(with_other_bias(lenet_net.graph, "conv2", 100_000))
    found = wrong_answer(wrong, exact, lenet.images, lenet.batch(1))
    assert found is not None
    assert found.startswith("conv2[0, 0, 0, 0] should be ")


def test_a_batch_alone_can_be_wrong(
    lenet: Subject, lenet_net: IntegerNet, exact: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = IntegerNet.run

    def wrong_at_the_end(self: IntegerNet, x: np.ndarray, **options: Any) -> np.ndarray:
        result = run(self, x, **options)
        result[40:, 3] += 1
        return result

    monkeypatch.setattr(IntegerNet, "run", wrong_at_the_end)
    assert wrong_answer(lenet_net, exact, lenet.images, lenet.batch(40)) is None
    found = wrong_answer(lenet_net, exact, lenet.images, lenet.batch(45))
    assert found is not None
    assert found.startswith("output, batch 45[40, 3] should be ")
    assert "5 elements differ" in found


def test_peer_that_agrees_has_no_shares(lenet: Subject, lenet_net: IntegerNet, exact: Results) -> None:
    answer = judge_peer(lenet_net.graph, exact, lenet.images, exact)
    assert (answer.differ, answer.beyond_one, answer.wrong_sums, answer.worst_layer) == (0.0, 0.0, 0.0, None)
    assert answer.elements == 320
    layers = ("conv1", "conv2", "fc1", "fc2", "fc3")
    assert answer.sums == sum(exact[name].size for name in layers)


def test_rounding_travels_but_makes_no_wrong_sum(lenet: Subject, lenet_net: IntegerNet, exact: Results) -> None:
    def off_by_one(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **more: object) -> np.ndarray:
        result = REFERENCE["conv2d"](x, weight, bias, **more)
        return np.where((result > 0) & (result < 255), result + 1, result)

    trace = expected_with(lenet_net.graph, lenet.images, conv2d=off_by_one)
    answer = judge_peer(lenet_net.graph, exact, lenet.images, trace)
    assert answer.differ > 0.3
    assert answer.wrong_sums == 0.0


def test_wrong_sums_are_found_in_their_layer(lenet: Subject, lenet_net: IntegerNet, exact: Results) -> None:
    """Products cut off as vpmaddubsw does it, in one channel of one layer; what follows computes right from there."""
    graph = with_other_bias(lenet_net.graph, "conv2", 100_000)
    answer = judge_peer(lenet_net.graph, exact, lenet.images, expected(graph, lenet.images))
    assert answer.worst_layer == "conv2"
    channels = lenet_net.graph["conv2"].output.shape[0]
    assert 0.5 / channels < answer.worst_share <= 1 / channels
    conv2 = exact["conv2"].size
    assert answer.wrong_sums == pytest.approx(answer.worst_share * conv2 / answer.sums)
    assert answer.differ > 0
    assert last_integers(graph) == "fc3"


def expected_with(graph: IntGraph, images: np.ndarray, **functions: object) -> Results:
    from labkit.engine.node_by_node import run_nodes

    kernels = REFERENCE
    for name, function in functions.items():
        kernels = kernels.with_override(name, function)  # type: ignore[arg-type]
    return run_nodes(graph, {graph.inputs[0]: images}, kernels)
