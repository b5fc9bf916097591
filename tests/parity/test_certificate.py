"""Certificates against a runtime: what is behind an element, who is blamed, and which rule would have matched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from parity.operator_graphs import OPERATORS, one_operator
from parity.small_net import images, small_net

from labkit.errors import InputError, ModelError, UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.net import IntegerNet
from labkit.parity.against_runtime import part_of, verify_against
from labkit.parity.certificate import Certificate
from labkit.parity.exact import exact_value
from labkit.parity.reach import as_far_as
from labkit.parity.runtimes import opened
from labkit.reporting.certificate_page import certificate_page

_LABKIT = "labkit"


@pytest.mark.parametrize("kind", [kind for kind in OPERATORS if kind not in ("max_pool", "quantize")])
def test_the_number_behind_an_element_is_what_labkit_rounds(kind: str) -> None:
    """labkit rounds once, so its result is the integer next to the exact number; of a tie, one of both."""
    seen = ties = 0
    for seed in range(24):
        graph, inputs = one_operator(kind, seed)
        node = graph["y"]
        result = IntegerNet(graph).run(inputs, kernels="reference").astype(np.int64)
        clamp = getattr(getattr(node.op, "requantizer", node.op), "clamp", (None, None))
        spec, _ = node.output.quantized
        low, high = clamp if clamp[0] is not None else (spec.qmin, spec.qmax)
        rng = np.random.default_rng(seed)
        for _ in range(30):
            index = tuple(int(rng.integers(n)) for n in result.shape)
            exact = exact_value(node, graph.inputs_of(node), [inputs[name] for name in node.inputs], index)
            assert exact is not None
            if not exact.is_tie and abs(float(exact.value) % 1 - 0.5) < 1e-6:
                continue
            nearest = {exact.value.__floor__(), exact.value.__ceil__()} if exact.is_tie else {round(exact.value)}
            assert int(result[index]) in {min(max(one, low), high) for one in nearest}, (seed, index, str(exact))
            seen += 1
            ties += exact.is_tie
    assert seen > 300
    if kind in ("average_pool", "requantize"):
        assert ties > 0


@pytest.mark.parametrize("runtime", ["fbgemm", "qnnpack", "onednn", _LABKIT])
def test_a_net_gets_its_certificate(runtime: str) -> None:
    report = verify_against(small_net(), runtime, images(6))
    assert report.passed
    assert not report.culprits
    assert report.images == 6
    assert {node.name for node in report.nodes} >= {"x", "conv1", "conv2", "add", "depthwise", "pool", "fc", "output"}
    assert all(node.own[0] and node.through[0] for node in report.nodes)
    assert report.elements == sum(node.own[0] + node.through[0] for node in report.nodes)
    assert report.versions
    assert report.versions["labkit"]
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


_PACKAGES = {"litert": "ai_edge_litert", "xnnpack": "ai_edge_litert", "onnxruntime": "onnxruntime"}


@pytest.mark.parametrize("runtime", _PACKAGES)
def test_a_net_gets_its_certificate_through_its_export(runtime: str) -> None:
    pytest.importorskip(_PACKAGES[runtime])
    report = verify_against(small_net(), runtime, images(6))
    assert report.passed, str(report)
    assert sum(node.own[0] > 0 for node in report.nodes) >= 7


def test_other_rules_are_found_and_named() -> None:
    """Under labkit's rules against QNNPACK, the nodes that differ do so by themselves, and QNNPACK's rules explain each."""
    report = verify_against(small_net(), "qnnpack", images(32), like=_LABKIT)
    assert not report.passed
    assert report.culprits
    for node in report.culprits:
        assert "qnnpack" in node.matching
        assert _LABKIT not in node.matching
        assert node.first is not None
    text = str(report)
    assert "The rules of" in text
    assert report.first is not None
    assert report.first.where in {f"node {node.name}" for node in report.culprits}


class _Lying:
    """A runtime that is labkit but for one node, whose elements it raises by one."""

    def __init__(self, net: IntegerNet, name: str) -> None:
        self.net, self.name = net, name

    def run(self, x: Any) -> dict[str, Any]:
        graph = self.net.graph
        until = part_of(graph, self.name, [])
        found = IntegerNet(until).trace(dict(x), kernels="reference")[self.name]
        changed = found.copy()
        changed[:, 3] = np.minimum(changed[:, 3], changed.dtype.type(254)) + changed.dtype.type(1)
        after = [
            replace(node, op=int_ops.Input(node.output.shape), inputs=()) if node.name == self.name else node
            for node in graph
        ]
        rest = IntegerNet(IntGraph(tuple(after), graph.outputs)).trace({**x, self.name: changed}, kernels="reference")
        return {node.name: rest[node.name] for node in graph}


def test_a_node_is_not_blamed_for_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()

    def lie(*_: Any) -> opened.Opened:
        return opened.Opened("a liar", _Lying(net, "conv2").run, {})

    monkeypatch.setattr("labkit.parity.against_runtime.open_runtime", lie)
    report = verify_against(net, _LABKIT, images(4))
    assert [node.name for node in report.culprits] == ["conv2"]
    (culprit,) = report.culprits
    assert culprit.matching == ()
    assert "No runtime's rules" in culprit.explanation
    assert culprit.first is not None
    assert culprit.first.index == (0, 3, 0, 0)
    assert int(culprit.first.theirs) == int(culprit.first.ours) + 1
    after = {node.name: node for node in report.nodes}
    assert after["add"].through[1] > 0
    assert after["add"].own[1] == 0
    assert "differs only because" in after["add"].explanation
    assert after["conv1"].explanation == ""


@pytest.mark.parametrize("shown", [(), ("conv1",)])
def test_an_output_that_is_not_shown_is_no_agreement(monkeypatch: pytest.MonkeyPatch, shown: tuple[str, ...]) -> None:
    net = small_net()

    def hides(*_: Any) -> opened.Opened:
        return opened.Opened("a runtime", lambda x: {n: net.trace(dict(x), kernels="reference")[n] for n in shown}, {})

    monkeypatch.setattr("labkit.parity.against_runtime.open_runtime", hides)
    report = verify_against(net, _LABKIT, images(2))
    assert not report.passed
    assert report.first is not None
    assert report.first.where == f"tensor {net.graph.outputs[0]}"


def test_fewer_images_than_were_put_in_are_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()

    def first_only(*_: Any) -> opened.Opened:
        def run(x: Any) -> dict[str, Any]:
            return {name: array[:1] for name, array in net.trace(dict(x), kernels="reference").items()}

        return opened.Opened("a runtime", run, {})

    monkeypatch.setattr("labkit.parity.against_runtime.open_runtime", first_only)
    assert not verify_against(net, _LABKIT, images(3)).passed


def _with_conv2(net: IntegerNet, change: Callable[[int_ops.Conv2d], int_ops.Conv2d]) -> IntegerNet:
    def changed(node: IntNode) -> IntNode:
        return (
            replace(node, op=change(node.op)) if isinstance(node.op, int_ops.Conv2d) and node.name == "conv2" else node
        )

    return IntegerNet(IntGraph(tuple(map(changed, net.graph)), net.graph.outputs, net.graph.notes))


def _one_step_more(op: int_ops.Conv2d) -> int_ops.Conv2d:
    requantizer = op.requantizer
    values = np.array(np.broadcast_to(requantizer.multiplier, op.bias.shape))
    values[0] = np.nextafter(values[0], np.float32(1))
    return replace(op, requantizer=replace(requantizer, multiplier=values))


def test_the_last_bit_of_a_saved_multiplier_is_seen() -> None:
    saved = small_net().like("qnnpack")
    assert verify_against(saved, "qnnpack", images(2)).passed
    report = verify_against(_with_conv2(saved, _one_step_more), "qnnpack", images(2))
    assert not report.passed
    assert report.first is not None
    assert report.first.where == "conv2.requantizer.multiplier"
    assert [(one.name, one.differing) for one in report.misstated] == [("conv2.requantizer.multiplier", 1)]
    assert "conv2.requantizer.multiplier: 1 of" in str(report)
    assert "conv2.requantizer.multiplier: 1 of" in _page(report)


def test_a_net_is_judged_with_the_biases_that_it_runs_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault lies in conv2 as it is run: its rules, made anew from the scales, give what the runtime gives."""
    net, like = small_net(), IntegerNet.like
    monkeypatch.setattr(
        IntegerNet,
        "like",
        lambda self, runtime: _with_conv2(like(self, runtime), lambda op: replace(op, bias=op.bias + 40)),
    )
    report = verify_against(net, "qnnpack", images(8))
    (culprit,) = report.culprits
    assert (culprit.name, culprit.broken) == ("conv2", "qnnpack")
    assert "made anew" in culprit.explanation
    assert report.first is not None
    assert report.first.where == "node conv2"


def test_the_readable_kernels_are_no_witness_for_themselves() -> None:
    with pytest.raises(InputError, match="against themselves"):
        verify_against(small_net(), _LABKIT, images(1), kernels="reference")


def test_kernels_are_compared_under_the_rules_of_the_net() -> None:
    report = verify_against(small_net().like("qnnpack"), _LABKIT, images(2))
    assert report.passed
    assert report.like == "qnnpack"


def test_what_is_not_shown_is_judged_with_the_next_node(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()

    def blind(*_: Any) -> opened.Opened:
        def run(x: Any) -> dict[str, Any]:
            found = net.trace(dict(x), kernels="reference")
            return {name: found[name] for name in ("conv1", "fc", "output")}

        return opened.Opened("a runtime that hides", run, {})

    monkeypatch.setattr("labkit.parity.against_runtime.open_runtime", blind)
    report = verify_against(net, _LABKIT, images(3))
    verdicts = {node.name: node for node in report.nodes}
    assert report.passed
    assert verdicts["fc"].inputs == ("conv1",)
    assert verdicts["add"].own == verdicts["add"].through == (0, 0)
    assert "add" in report.unseen
    assert "does not show" in " ".join(report.remarks)


def test_saturated_products_are_named() -> None:
    graph, inputs = one_operator("linear", 1)
    node = graph["y"]
    op = node.op
    assert isinstance(op, int_ops.Linear)
    values = np.full_like(op.weight.values, 127)
    large = replace(node, op=replace(op, weight=replace(op.weight, values=values)))
    x = np.full_like(inputs["x0"], 255)
    exact = exact_value(large, graph.inputs_of(node), [x], (0, 0))
    assert exact is not None
    assert exact.pair == 2 * 255 * (127 - int(op.weight.params.zero_point.reshape(-1)[0]))


def test_as_far_as_the_rules_go() -> None:
    graph, _ = one_operator("requantize", 4)
    table = int_ops.Lookup("logistic", np.zeros(256, np.int32))
    logistic = IntNode("z", table, ("y",), graph["y"].output)
    further = IntGraph((*graph.nodes, logistic), ("z",))
    part, refusals = as_far_as(further, "fbgemm")
    assert [node.name for node in part] == ["x0", "y"]
    assert part.outputs == ("y",)
    assert len(refusals) == 1
    assert "logistic" in refusals[0]
    with pytest.raises(UnsupportedOperation, match="logistic"):
        as_far_as(
            IntGraph((graph.nodes[0], replace(logistic, inputs=("x0",), output=graph["x0"].output)), ("z",)), "fbgemm"
        )


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(opened, "import_module", absent)
    for runtime in ("fbgemm", "litert", "onnxruntime"):
        with pytest.raises(ModelError, match=r"not installed.*labkit\[parity\]"):
            verify_against(small_net(), runtime, images(1))


def test_usage_errors() -> None:
    with pytest.raises(InputError, match=r"labkit, litert.*got 'cuda'"):
        verify_against(small_net(), "cuda", images(1))
    with pytest.raises(InputError, match="at least one"):
        verify_against(small_net(), "fbgemm", lambda: [])


def _page(report: Certificate) -> str:
    return re.sub(
        r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", certificate_page("net <b>", report), flags=re.S)
    )


def test_the_page_says_what_the_certificate_says() -> None:
    good = verify_against(small_net(), "fbgemm", images(2), processor={"processor": "a processor"}, inputs="two images")
    text = _page(good)
    assert f"All {good.elements:,} elements are the same." in text
    assert "a processor" in text
    assert "two images" in text
    assert "Where they part" not in text
    assert "net &lt;b&gt; against" in certificate_page("net <b>", good)
    bad = verify_against(small_net(), "fbgemm", images(32), like=_LABKIT)
    text = _page(bad)
    assert "Where they part, and which rule parts them" in text
    for node in bad.culprits:
        assert node.explanation in text
        assert f"{node.own[1]:,} of {node.own[0]:,} differ" in text
