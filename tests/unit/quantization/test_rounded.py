"""Weights that were rounded elsewhere: taken as they are, and still certified from there to the logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import labkit
from labkit.arithmetic.affine import (
    PerAxis,
    PerTensor,
    QParams,
    QTensor,
    QuantSpec,
    params_from_values,
    quantize_tensor,
)
from labkit.errors import ModelError, QuantizationError
from labkit.frontends.torch_fx import from_torch, parameters_digest
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer

RNG = np.random.default_rng(3)
X = RNG.uniform(-1, 1, (32, 3, 8, 8)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(1)
    parts = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.Flatten())
    return nn.Sequential(*parts, nn.Linear(96, 5, bias=False)).eval()


MODULE = network()
GRAPH = simplify(from_torch(MODULE, X.shape[1:]))
CALIBRATION = calibrate(GRAPH, X)


def floored(name: str, spec: QuantSpec, bias: float = 0.1) -> RoundedLayer:
    weight = GRAPH[name].op.weight  # type: ignore[union-attr]
    params = params_from_values(weight, spec)
    scale = params.scale.reshape([-1] + [1] * (weight.ndim - 1)) if params.scale.ndim else params.scale
    values = np.clip(np.floor(weight / scale), spec.qmin, spec.qmax).astype(np.int8)
    return RoundedLayer(QTensor(values, params, spec), np.full(len(weight), bias, np.float32))


def made(rounded: dict[str, RoundedLayer], bits: int = 4, **options: Any) -> IntegerNet:
    plan = BitPlan.uniform(GRAPH, bits, 8, **options)
    return IntegerNet(
        convert(
            GRAPH, CALIBRATION, plan, {"rounding": "floor", "parameters_sha256": parameters_digest(MODULE)}, rounded
        )
    )


@pytest.mark.parametrize("granularity", [PerAxis(0), PerTensor()], ids=str)
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_given_weights_run_and_are_certified(bits: int, narrow: bool, granularity: PerAxis | PerTensor) -> None:
    spec = QuantSpec(bits, narrow=narrow, granularity=granularity)
    rounded = {name: floored(name, spec) for name in ("0", "3", "5")}
    net = made(rounded, bits)
    for name, layer in rounded.items():
        op = net.graph[name].op
        assert np.array_equal(op.weight.values, layer.weight.values)  # type: ignore[union-attr]
        scale = layer.weight.params.scale.astype(np.float64) * float(
            net.graph.inputs_of(net.graph[name])[0].quantized[1].scale
        )
        assert np.array_equal(op.bias, np.rint(layer.bias.astype(np.float64) / scale))  # type: ignore[union-attr]
    report = labkit.verify(net, MODULE, X)
    assert report.passed, report
    assert "which a rounding method decided (floor)" in str(report)
    assert not any(c.name.endswith((".weight", ".weight_scale")) for c in report.comparisons), (
        "compared with themselves"
    )
    for purpose in ("speed", "memory"):
        assert np.array_equal(net.run(X, purpose=purpose), net.run(X, kernels="reference"))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_of_their_own(bits: int, signed: bool) -> None:
    spec = QuantSpec(bits, signed=signed, symmetric=False, granularity=PerAxis(0))
    rounded = {}
    for name in ("0", "3", "5"):
        weight = GRAPH[name].op.weight  # type: ignore[union-attr]
        made_of = quantize_tensor(weight, params_from_values(weight, spec), spec)
        assert np.any(made_of.params.zero_point)
        rounded[name] = RoundedLayer(made_of, np.full(len(weight), 0.2, np.float32))
    net = made(rounded, bits)
    report = labkit.verify(net, MODULE, X)
    assert report.passed, report
    for purpose in ("speed", "memory"):
        assert np.array_equal(net.run(X, purpose=purpose), net.run(X, kernels="reference"))


def test_other_layers_are_rounded_as_ever_and_files_keep_all(tmp_path: Any) -> None:
    net = made({"3": floored("3", QuantSpec(4, narrow=True, granularity=PerAxis(0)))})
    plain = IntegerNet(convert(GRAPH, CALIBRATION, BitPlan.uniform(GRAPH, 4, 8)))
    for name in ("0", "5"):
        assert np.array_equal(net.graph[name].op.weight.values, plain.graph[name].op.weight.values)  # type: ignore[union-attr]
    net.save(tmp_path / "net.lab")
    again = labkit.load(tmp_path / "net.lab")
    assert np.array_equal(again.run(X), net.run(X))
    assert labkit.verify(again, MODULE, X).passed


def test_bias_too_large_for_the_given_scale_enlarges_it() -> None:
    layer = floored("0", QuantSpec(4, narrow=True, granularity=PerAxis(0)))
    scale = layer.weight.params.scale.copy()
    scale[2] = 1e-12
    tiny = replace(layer, weight=QTensor(layer.weight.values, QParams(scale, np.zeros(6)), layer.weight.spec))
    net = made({"0": tiny})
    op = net.graph["0"].op
    assert op.weight.params.scale[2] > 1e-12  # type: ignore[union-attr]
    assert abs(int(op.bias[2])) <= 2**30  # type: ignore[union-attr]
    kept = [0, 1, 3, 4, 5]
    assert np.array_equal(op.weight.values[kept], layer.weight.values[kept])  # type: ignore[union-attr]
    assert labkit.verify(net, MODULE, X).passed


def test_a_changed_bias_or_multiplier_is_caught() -> None:
    net = made({"0": floored("0", QuantSpec(4, narrow=True, granularity=PerAxis(0)))})
    op = net.graph["0"].op
    bias = np.array(op.bias)  # type: ignore[union-attr]
    bias[1] += 1
    nodes = tuple(replace(n, op=replace(n.op, bias=bias)) if n.name == "0" else n for n in net.graph)  # type: ignore[call-arg,arg-type]
    report = labkit.verify(IntegerNet(replace(net.graph, nodes=nodes)), MODULE, X)
    assert not report.passed
    assert "0.bias" in str(report.first)


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("7", floored("0", QuantSpec(4, narrow=True, granularity=PerAxis(0))), "'7', which is no layer"),
        ("3", floored("0", QuantSpec(4, narrow=True, granularity=PerAxis(0))), "shape .* the layer's have"),
        ("0", floored("0", QuantSpec(3, narrow=True, granularity=PerAxis(0))), "rounded to 3 bits, the plan gives 4"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, layer: RoundedLayer, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        made({name: layer})


def test_parts_that_make_no_sense_are_refused() -> None:
    layer = floored("0", QuantSpec(4, narrow=True, granularity=PerAxis(0)))
    with pytest.raises(QuantizationError, match="one bias for each of 6 outputs"):
        replace(layer, bias=np.zeros(5, np.float32))
    with pytest.raises(QuantizationError, match="bias of channel 3 is nan"):
        replace(layer, bias=np.array([0, 0, 0, np.nan, 0, 0], np.float32))
    sideways = QuantSpec(4, narrow=True, granularity=PerAxis(1))
    along = QTensor(np.zeros((6, 3), np.int8), QParams(np.ones(3, np.float32), np.zeros(3)), sideways)
    with pytest.raises(QuantizationError, match="axis 0"):
        RoundedLayer(along, np.zeros(6, np.float32))


def test_saved_biases_that_do_not_fit_are_refused() -> None:
    net = made({"0": floored("0", QuantSpec(4, narrow=True, granularity=PerAxis(0)))})
    notes = {**net.graph.notes, "rounded_biases": {"0": [0.0]}}
    with pytest.raises(ModelError, match="biases of rounded weights for '0', which do not fit"):
        labkit.verify(IntegerNet(replace(net.graph, notes=notes)), MODULE, X)


def test_another_module_of_the_same_shape_fails() -> None:
    torch.manual_seed(9)
    for method in ("gptq", "nearest"):
        net = labkit.quantize(MODULE, X, 4, 8, rounding=method)
        assert labkit.verify(net, MODULE, X).passed
        other = network()
        with torch.no_grad():
            other[0].weight.mul_(-1)  # type: ignore[operator,union-attr]
        report = labkit.verify(net, other, X)
        assert not report.passed
        assert "not those that were quantized" in str(report)


def test_changed_weights_are_no_decision_of_a_method() -> None:
    net = labkit.quantize(MODULE, X, 4, 8, rounding="gptq")

    def with_reversed_rows(net: IntegerNet, notes: dict[str, Any]) -> IntegerNet:
        op = net.graph["0"].op
        weight = QTensor(op.weight.values[::-1].copy(), op.weight.params, op.weight.spec)  # type: ignore[union-attr]
        nodes = tuple(replace(n, op=replace(n.op, weight=weight)) if n.name == "0" else n for n in net.graph)  # type: ignore[call-arg,arg-type]
        return IntegerNet(replace(net.graph, nodes=nodes, notes={**net.graph.notes, **notes}))

    with pytest.raises(ModelError, match="not those that were saved with the net"):
        labkit.verify(with_reversed_rows(net, {}), MODULE, X)
    plain = labkit.quantize(MODULE, X, 4, 8)
    forged = {"rounded_biases": {"0": [0.0] * 6}}
    with pytest.raises(ModelError, match="names none, or rounding to nearest"):
        labkit.verify(with_reversed_rows(plain, forged), MODULE, X)
