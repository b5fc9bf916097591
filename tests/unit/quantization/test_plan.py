"""`BitPlan`: bits by name, on JSON's way there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from unit.quantization.nets import branches, images, small

import labkit
from labkit.arithmetic.affine import PerAxis, PerTensor, QuantSpec
from labkit.errors import OutputError, QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.plan import BitPlan, tensor_names

GRAPH = simplify(from_torch(branches(), (3, 8, 8)))
SMALL = simplify(from_torch(small(), (3, 8, 8)))


def test_uniform_bits_keep_8_at_the_borders() -> None:
    plan = BitPlan.uniform(GRAPH, 4, 3)
    assert dict(plan.weights) == {"stem": 4, "depthwise": 4, "fc": 4}
    assert dict(plan.activations) == {"x": 8, "stem": 3, "depthwise": 3, "add": 3, "cat": 3, "mean": 3, "fc": 8}
    assert tuple(plan.activations) == tensor_names(GRAPH)


def test_the_border_is_where_the_outputs_scale_comes_from() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    plan = BitPlan.uniform(simplify(from_torch(module, (3, 8, 8))), 2, 2)
    assert dict(plan.activations) == {"input_1": 8, "0": 2, "1": 8}


def test_grids_of_weights_and_activations() -> None:
    plan = BitPlan({"a": 4, "b": 1}, {"x": 8})
    assert plan.weight_spec("a") == QuantSpec(4, narrow=True, granularity=PerAxis(0))
    assert plan.weight_spec("b").is_binary
    assert plan.activation_spec("x") == QuantSpec(8, signed=False, symmetric=False)
    lab = BitPlan({"a": 8}, {"x": 4}, per_channel=False, activation_scheme="symmetric")
    assert lab.weight_spec("a") == QuantSpec(8, narrow=True, granularity=PerTensor())
    assert lab.activation_spec("x") == QuantSpec(4, narrow=True)
    with pytest.raises(QuantizationError, match=r"no weight bits for 'z'; it names a, b"):
        plan.weight_spec("z")
    with pytest.raises(QuantizationError, match=r"no activation bits for 'a'; it names x"):
        plan.activation_spec("a")


BITS = [0, 9, -1, 2.5, 8.0, True, "8", None]


@pytest.mark.parametrize("bits", BITS)
def test_bits_that_are_no_bits_are_refused(bits: Any) -> None:
    for make in (lambda: BitPlan({"conv1": bits}, {}), lambda: BitPlan.uniform(SMALL, weights=bits)):
        with pytest.raises(QuantizationError, match=r": weight bits must be an integer in 1\.\.8, got"):
            make()
    for make in (lambda: BitPlan({}, {"conv1": bits}), lambda: BitPlan.uniform(SMALL, activations=bits)):
        with pytest.raises(QuantizationError, match=r": activation bits must be an integer in 2\.\.8, got"):
            make()


def test_one_bit_is_for_weights_only() -> None:
    assert BitPlan({"conv1": 1}, {"conv1": 2}).weight_spec("conv1").bits == 1
    with pytest.raises(QuantizationError, match=r"conv1: activation bits must be an integer in 2\.\.8, got 1"):
        BitPlan({}, {"conv1": 1})


@pytest.mark.parametrize("field", ["activation_scheme", "weight_ranges"])
def test_an_unknown_scheme_is_refused(field: str) -> None:
    with pytest.raises(QuantizationError, match=f"{field} must be one of .*, got 'other'"):
        BitPlan({}, {}, **{field: "other"})


def test_it_survives_json(tmp_path: Path) -> None:
    plan = BitPlan({"a": 4, "b": 1}, {"x": 8, "y": 3}, False, "symmetric", "3sigma")
    assert BitPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    plan.save(tmp_path / "plan.json")
    assert BitPlan.load(tmp_path / "plan.json") == plan
    assert BitPlan.from_json({"weights": {}, "activations": {}}) == BitPlan({}, {})
    with pytest.raises(OutputError):
        plan.save(tmp_path / "missing" / "plan.json")


def test_it_is_frozen() -> None:
    given = {"a": 4}
    plan = BitPlan(given, {})
    given["a"] = 8
    assert plan.weights["a"] == 4
    with pytest.raises(TypeError):
        plan.weights["a"] = 8  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Cannot read the bit plan"),
        ("[1, 2]", "does not hold a bit plan but a list"),
        ("{}", "A bit plan needs the keys weights and activations"),
        ('{"weights": {}, "activations": {}, "bits": 4}', "A bit plan has no key bits"),
        ('{"weights": [1], "activations": {}}', "not a bit plan"),
        ('{"weights": {"a": 9}, "activations": {}}', r"a: weight bits must be an integer in 1\.\.8, got 9"),
        ('{"weights": {"a": NaN}, "activations": {}}', "got nan"),
    ],
)
def test_files_that_hold_no_plan_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(QuantizationError, match=words):
        BitPlan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QuantizationError, match="Cannot read"):
        BitPlan.load(tmp_path / "plan.json")
    with pytest.raises(QuantizationError, match=r"Cannot read.*none\.json"):
        BitPlan.load(tmp_path / "none.json")


def test_a_mixed_plan_is_obeyed_layer_by_layer() -> None:
    plan = BitPlan(
        {"stem": 8, "depthwise": 1, "fc": 3},
        {"x": 8, "stem": 5, "depthwise": 8, "add": 2, "cat": 6, "mean": 7, "fc": 4},
    )
    net = labkit.quantize(branches(), images(), plan=plan)
    for layer, bits in plan.weights.items():
        assert net.graph[layer].op.weight.spec.bits == bits  # type: ignore[union-attr]
    for tensor, bits in plan.activations.items():
        spec, _ = net.graph[tensor].output.quantized
        assert (spec.bits, spec.qmax) == (bits, 2**bits - 1)
    trace = net.trace(images(8), kernels="reference")
    for tensor, bits in plan.activations.items():
        assert len(np.unique(trace[tensor])) > 1
        assert trace[tensor].max() < 2**bits
    assert json.loads(json.dumps(dict(net.graph.notes)))["plan"] == plan.to_json()


@pytest.mark.parametrize("lost", ["stem", "add"])
def test_a_plan_that_forgets_a_name_is_refused(lost: str) -> None:
    whole = BitPlan.uniform(GRAPH)
    weights = {name: bits for name, bits in whole.weights.items() if name != lost}
    activations = {name: bits for name, bits in whole.activations.items() if name != lost}
    with pytest.raises(QuantizationError, match=rf"The bit plan gives no (weight|activation) bits for '{lost}'"):
        labkit.quantize(branches(), images(), plan=BitPlan(weights, activations))


def test_the_graphs_of_this_file_come_from_torch() -> None:
    assert isinstance(branches(), torch.nn.Module)
    assert GRAPH.outputs == ("fc",)
