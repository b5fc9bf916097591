"""Nothing that is handed out or read from a file can change a net, run code or leave its folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import labkit
from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.cli import main
from labkit.errors import InputError, LabkitError, ModelError, QuantizationError
from labkit.graph.ir import IntGraph
from labkit.kernels import reference
from labkit.kernels.kernel_set import REFERENCE
from labkit.net import IntegerNet

X = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def net() -> IntegerNet:
    torch.manual_seed(0)
    return labkit.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), X)


def test_a_kernel_cannot_change_the_weights(net: IntegerNet) -> None:
    def spoiling(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        weight *= 0
        return reference.conv2d(x, weight, bias, **options)

    before = net.run(X)
    with pytest.raises(ValueError, match="read-only"):
        net.run(X, kernels=REFERENCE.with_override("conv2d", spoiling))
    assert np.array_equal(net.run(X), before)
    assert np.array_equal(net.run(X, kernels="reference"), before)


def test_arrays_of_the_caller_are_copied() -> None:
    values, scale = np.array([[1, 2]], np.int8), np.array([0.5], np.float32)
    tensor = QTensor(values, QParams(scale, np.zeros(1, np.int32)), QuantSpec(8, granularity=PerAxis(0)))
    values[0, 0], scale[0] = 9, 9
    assert np.array_equal(tensor.dequantized(), [[0.5, 1.0]])


@pytest.mark.parametrize("zero_point", [-32000, -129, 128])
def test_zero_points_of_weights_lie_on_their_grid(net: IntegerNet, zero_point: int) -> None:
    def moved(node: Any) -> Any:
        if node.name != "0":
            return node
        old = node.op.weight
        params = QParams(old.params.scale, np.full_like(old.params.zero_point, zero_point))
        spec = replace(old.spec, narrow=False, symmetric=False)
        return replace(node, op=replace(node.op, weight=QTensor(old.values, params, spec)))

    with pytest.raises(ModelError, match="^0: the zero points of its weights must be in -128..127"):
        IntGraph(tuple(moved(node) for node in net.graph), net.graph.outputs)


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "a\\b", "", ".hidden", "a\0b", "a\nb", "x" * 201])
def test_names_that_are_no_file_names_are_refused(net: IntegerNet, name: str) -> None:
    nodes = tuple(replace(node, carries=(name,)) if node.name == "3" else node for node in net.graph)
    with pytest.raises(ModelError, match="A node cannot be called"):
        IntGraph(nodes, net.graph.outputs)


@pytest.mark.parametrize("model", ["evil_module:go", "os:abort", 5, None, ["lenet"]])
def test_verify_runs_no_code_that_a_file_names(
    net: IntegerNet, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text("open('proof', 'w').close()\ndef go():\n    return None\n")
    net.with_notes(model=model, data=["nothing"], weights="/nowhere").save("evil.lab")
    np.save("x.npy", X)
    monkeypatch.setattr(sys, "argv", ["labkit", "verify", "evil.lab", "--input", "x.npy"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0  # the net's own integers are compared, and they are right
    assert "own integers" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "proof").exists()


def test_a_runtime_that_does_not_exist_is_refused(net: IntegerNet, tmp_path: Path) -> None:
    net.save(tmp_path / "net.lab")
    for act in (lambda: labkit.load(tmp_path / "net.lab", like="tensorrt"), lambda: net.like("tensorrt")):
        with pytest.raises(InputError, match="A net can be run like labkit, litert, .*; got 'tensorrt'"):
            act()
    again = labkit.load(tmp_path / "net.lab", like="labkit")
    assert np.array_equal(again.run(X), net.run(X))


def test_arguments_that_contradict_each_other_are_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(QuantizationError, match="drop one"):
        labkit.quantize(module, X, ranges="3sigma", method="minmax")
    plan = labkit.BitPlan({"0": 4}, {"input_1": 8, "0": 8})
    with pytest.raises(QuantizationError, match="give either plan"):
        labkit.quantize(module, X, weights=4, plan=plan)


def test_a_huge_tensor_is_refused_at_once(net: IntegerNet) -> None:
    first = net.graph["input_1"]
    huge = replace(
        first, op=replace(first.op, shape=(3, 60000, 60000)), output=replace(first.output, shape=(3, 60000, 60000))
    )
    with pytest.raises(LabkitError, match="too large"):
        IntGraph((huge, *net.graph.nodes[1:]), net.graph.outputs)
