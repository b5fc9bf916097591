"""The networks that come with labkit, exported and run in onnxruntime and LiteRT: the integers of labkit, every one."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import labkit
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph

for package in ("onnx", "onnxruntime", "tflite", "flatbuffers", "ai_edge_litert"):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install 'labkit[parity]')")

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "certify_exports.py"
_SPEC = importlib.util.spec_from_file_location("certify_exports", _TOOL)
assert _SPEC is not None
assert _SPEC.loader is not None
tool = importlib.util.module_from_spec(_SPEC)
sys.modules["certify_exports"] = tool  # dataclasses look their module up
_SPEC.loader.exec_module(tool)


@cache
def graph(net: str, plan: str) -> IntGraph:
    return tool.quantized(net, plan, "mnist5k").graph


def images(number: int, seed: int = 0) -> np.ndarray:
    """``number`` of the test images, drawn at random."""
    x, _ = labkit.data.load("mnist5k").test(1000)
    return x[np.random.default_rng(seed).choice(len(x), number, replace=False)]


def assert_identical(net: str, plan: str, way: str, x: np.ndarray, folder: Path) -> None:
    held = graph(net, plan)
    found = tool.certify(held, tool.WAYS[way], x, folder)
    assert (found.differing, found.read_differing) == (0, 0), found.first
    assert found.read == len(x) * 10
    computed = [node.name for node in held if node.inputs and not isinstance(node.op, int_ops.Flatten)]
    assert found.shown >= set(computed)


@pytest.mark.parametrize("way", tool.WAYS)
@pytest.mark.parametrize("net", tool.NETS)
def test_exports_are_identical(net: str, way: str, tmp_path: Path) -> None:
    """Weights of 8 and 4 bits in turn."""
    assert_identical(net, "w84a8", way, images(6), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", tool.WAYS)
@pytest.mark.parametrize("plan", tool.PLANS)
@pytest.mark.parametrize("net", tool.NETS)
def test_exports_are_identical_on_all_images(net: str, plan: str, way: str, tmp_path: Path) -> None:
    assert_identical(net, plan, way, images(1000), tmp_path)


@pytest.mark.parametrize("way", tool.WAYS)
def test_a_changed_weight_is_found(way: str, tmp_path: Path) -> None:
    """The file of another network than the one that it is compared with."""
    held = graph("lenet", "w84a8")

    def changed(graph: IntGraph) -> IntGraph:
        layer = next(node for node in graph if isinstance(node.op, int_ops.Conv2d))
        assert isinstance(layer.op, int_ops.Conv2d)
        values = layer.op.weight.values.copy()
        values.flat[7] += 1 if values.flat[7] < layer.op.weight.spec.qmax else -1
        op = replace(layer.op, weight=replace(layer.op.weight, values=values))
        return replace(graph, nodes=tuple(replace(n, op=op) if n is layer else n for n in graph))

    honest = tool.WAYS[way]
    forged = replace(honest, content=lambda graph: honest.content(changed(graph)))
    assert tool.certify(held, forged, images(4), tmp_path).differing > 0
