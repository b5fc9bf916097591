"""Weights whose range a search chose: nothing differs, and ends that were tampered with are found."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from parity.nets import case, images
from parity.zoo import SHAPE, build
from torch import nn

import labkit
from labkit.errors import ModelError, QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.clipping.weights import DERIVED, WEIGHT_METHODS, weight_ends
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan

CHOSEN = [method for method in WEIGHT_METHODS if method not in DERIVED]
NETS = ["residual", "depthwise with ReLU6", "groups", "sequences", "batch norm of a shared result", "sequential"]


@cache
def made(name: str, method: str, bits: int, per_channel: bool) -> tuple[IntegerNet, nn.Module]:
    module = build(case(name))
    options: dict[str, Any] = {"weights": bits, "per_channel": per_channel, "weight_ranges": method}
    return labkit.quantize(module, images(32, seed=2), **options), module


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("bits", "per_channel"), [(8, True), (4, False), (3, True), (2, True), (1, True)])
@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_nothing_differs(name: str, method: str, bits: int, per_channel: bool) -> None:
    net, module = made(name, method, bits, per_channel)
    report = labkit.verify(net, module, images())
    assert report.passed, report
    ends = [found for found in report.comparisons if found.name.endswith((".weight_low", ".weight_high"))]
    layers = [node for node in net.graph if hasattr(node.op, "weight")]
    expected = 2 * len(layers) if method in CHOSEN and bits > 1 else 0
    assert len(ends) == expected
    assert sum(found.elements for found in ends) == (
        2 * sum(node.op.weight.params.scale.size for node in layers) if expected else 0
    )
    assert ("weight_ends" in net.graph.notes) == bool(expected)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_certificate_of_lenet(method: str, per_channel: bool, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Also after the file: JSON keeps every bit of the ends."""
    data = labkit.data.load("mnist5k")
    module = labkit.models.load("lenet", data="mnist5k")
    net = labkit.quantize(module, data.calibration(64), weights=4, per_channel=per_channel, weight_ranges=method)
    net.save(tmp_path / "net.lab")
    again = labkit.load(tmp_path / "net.lab")
    report = labkit.verify(again, module, data.test(20)[0])
    assert report.passed, report
    assert ("(" + method + ")" in " ".join(report.remarks)) == (method in CHOSEN)
    scales = {
        node.name: node.op.weight.params.scale
        for node in labkit.quantize(module, data.calibration(64), weights=4, per_channel=per_channel).graph
        if hasattr(node.op, "weight")
    }
    narrower = [np.any(again.graph[name].op.weight.params.scale < scale) for name, scale in scales.items()]  # type: ignore[union-attr]
    cuts_nothing = method == "minmax" or (
        method == "percentile" and per_channel
    )  # 99.99 % of fewer than 10,000 weights
    assert any(narrower) != cuts_nothing


def tampered(net: IntegerNet, name: str, change: Any) -> IntegerNet:
    notes = json.loads(json.dumps(dict(net.graph.notes)))
    change(notes["weight_ends"][name])
    return IntegerNet(replace(net.graph, notes=notes))


@pytest.mark.parametrize("factor", [1 + 1e-6, 1 - 1e-6, 0.5])
@pytest.mark.parametrize("method", CHOSEN)
def test_ends_changed_in_the_notes_alone(method: str, factor: float) -> None:
    net, module = made("sequential", method, 4, False)

    def change(ends: Any) -> None:
        ends[1][0] *= factor

    report = labkit.verify(tampered(net, "3", change), module, images())
    assert report.first is not None
    _, high = net.graph.notes["weight_ends"]["3"]
    within = factor * high[0] <= float(np.asarray(module[3].weight.detach()).max())  # type: ignore[index]
    assert report.first.where == ("3.weight_high" if within else "3.weight_low")
    if within:
        assert float(report.first.got) == high[0] * factor
        assert float(report.first.expected) == pytest.approx(high[0], rel=1e-9)


@pytest.mark.parametrize("method", CHOSEN)
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_net_made_with_other_ends_than_the_method_gives(monkeypatch: Any, method: str, per_channel: bool) -> None:
    """Scales and integers fit the ends, so that nothing but the method run again can tell."""
    from labkit.quantization import convert as conversion

    module = build(case("sequential"))
    plain, _ = made("sequential", method, 4, per_channel)
    graph = simplify(from_torch(module, SHAPE))
    plan = BitPlan.from_json(plain.graph.notes["plan"])
    from labkit.quantization.calibration import Calibration

    calibration = Calibration.from_json(plain.graph.notes["calibration"])

    def planted(weight: Any, spec: Any, how: str = "minmax", vanished: Any = ()) -> Any:
        low, high = weight_ends(weight, spec, how, vanished)
        return low * 0.9, high * 0.9

    monkeypatch.setattr(conversion, "weight_ends", planted)
    wrong = IntegerNet(convert(graph, calibration, plan, {}))
    report = labkit.verify(wrong, module, images())
    differing = {found.name for found in report.comparisons if found.differing}
    assert differing == {f"{name}.weight_{side}" for name in ("0", "3", "6") for side in ("low", "high")}


def test_ends_beyond_the_weights_are_found_without_the_method() -> None:
    net, module = made("sequential", "mse", 4, True)

    def change(ends: Any) -> None:
        ends[1][2] *= 3

    report = labkit.verify(tampered(net, "0", change), module, images())
    assert report.first is not None
    assert report.first.where == "0.weight_low"
    assert "in row 2" in report.first.expected


def test_a_scale_that_does_not_follow_from_the_ends_is_found() -> None:
    net, module = made("sequential", "percentile", 4, True)
    node = net.graph["3"]
    params = node.op.weight.params  # type: ignore[union-attr]
    scale = params.scale.copy()
    scale[1] = np.nextafter(scale[1], np.float32(1))
    weight = replace(node.op.weight, params=replace(params, scale=scale))  # type: ignore[union-attr]
    nodes = tuple(replace(n, op=replace(n.op, weight=weight)) if n.name == "3" else n for n in net.graph)  # type: ignore[type-var]
    report = labkit.verify(IntegerNet(replace(net.graph, nodes=nodes)), module, images())
    assert report.first is not None
    assert (report.first.where, report.first.index) == ("3.weight_scale", (1,))


DAMAGE: dict[str, Any] = {
    "an end that is missing": lambda ends: ends[0].pop(),
    "no numbers": lambda ends: ends[0].__setitem__(0, "x"),
    "a NaN": lambda ends: ends[1].__setitem__(0, float("nan")),
    "turned round": lambda ends: ends.reverse(),
    "one side only": lambda ends: ends.pop(),
    "a channel too many": lambda ends: [side.append(side[0]) for side in ends],
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_ends_are_refused(what: str) -> None:
    net, module = made("sequential", "mse", 4, True)
    with pytest.raises(ModelError, match="labkit.quantize"):
        labkit.verify(tampered(net, "3", DAMAGE[what]), module, images())
    notes = {key: value for key, value in net.graph.notes.items() if key != "weight_ends"}
    with pytest.raises(ModelError, match="carries no ends for '0'"):
        labkit.verify(IntegerNet(replace(net.graph, notes=notes)), module, images())


def test_another_module_is_found() -> None:
    net, _ = made("sequential", "mse", 4, True)
    other = build(case("sequential"), seed=1)
    assert not labkit.verify(net, other, images()).passed
    wider = labkit.quantize(nn.Sequential(nn.Conv2d(3, 5, 3)), images(32, seed=2), weight_ranges="mse")
    narrower = labkit.verify(wider, nn.Sequential(nn.Conv2d(3, 4, 3)), images())
    assert narrower.first is not None
    assert (narrower.first.where, narrower.first.expected) == ("0.weight_low", "4 ends")


def test_other_roundings_choose_their_own_grid() -> None:
    module = build(case("sequential"))
    with pytest.raises(QuantizationError, match=r"weight_ranges='mse' are for rounding='nearest'; 'gptq'"):
        labkit.quantize(module, images(32, seed=2), weight_ranges="mse", rounding="gptq")
    with pytest.raises(QuantizationError, match="weight_ranges must be one of minmax, 3sigma, percentile"):
        labkit.quantize(module, images(32, seed=2), weight_ranges="widest")
    plan = BitPlan.uniform(simplify(from_torch(module, SHAPE)), 4, 8)
    with pytest.raises(QuantizationError, match="and weight_ranges"):
        labkit.quantize(module, images(32, seed=2), plan=plan, weight_ranges="mse")
    clipped = BitPlan.uniform(simplify(from_torch(module, SHAPE)), 4, 8, weight_ranges="3sigma")
    with pytest.raises(QuantizationError, match=r"weight_ranges='3sigma' are for rounding='nearest'; 'gptq'"):
        labkit.quantize(module, images(32, seed=2), plan=clipped, rounding="gptq")
