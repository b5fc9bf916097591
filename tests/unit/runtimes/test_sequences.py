"""Transformers under each runtime's rules: products of two tensors, GELU by a table, and what no other runtime has."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.graph.transformer_block import block, sentences, tensor

from labkit.arithmetic.affine import QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import UnsupportedOperation
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.net import IntegerNet
from labkit.quantization import convert_sequences
from labkit.runtimes.labkit_rules import factor_of, matmul
from labkit.runtimes.lookups import labkit_lookup
from labkit.runtimes.rules import RUNTIMES, as_run_by

INT8, UINT8 = QuantSpec(8, signed=True, symmetric=False), QuantSpec(8, signed=False, symmetric=False)
WITH_PRODUCTS = ("labkit", "litert", "litert-opt", "xnnpack", "onnxruntime")
OTHERS = tuple(runtime for runtime in RUNTIMES if runtime != "labkit")


def of(op: Any, output: Tensor, *inputs: Tensor) -> IntGraph:
    nodes = [IntNode(f"x{i}", int_ops.Input(t.shape), (), t) for i, t in enumerate(inputs)]
    return IntGraph((*nodes, IntNode("y", op, tuple(node.name for node in nodes), output)), ("y",))


def products(spec: QuantSpec = INT8, right: int = 0, factor: float = 1.0) -> IntGraph:
    """(3, 6, 40) times (3, 40, 6), scales of powers of two; ``right``: the int8 zero point of the second tensor."""
    up = 0 if spec.signed else 128
    a, b = tensor((3, 40, 6), 2.0**-5, up - 7, spec), tensor((3, 40, 6), 2.0**-4, up + right, spec)
    output = tensor((3, 6, 6), 2.0**-1, up - 3, spec)
    return of(convert_sequences.matmul(float_ops.MatMul(True, False, factor), (a, b), output), output, a, b)


def images(graph: IntGraph, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {}
    for name in graph.inputs:
        spec, _ = graph[name].output.quantized
        found[name] = (rng.integers(spec.qmin, spec.qmax + 1, (30, *graph[name].output.shape)) // 4 * 4).astype(
            spec.dtype
        )
    return found


def test_labkits_own_rules_keep_a_transformer() -> None:
    graph = block()
    again, x = as_run_by(graph, "labkit"), sentences(graph, 20)
    ours = IntegerNet(graph).trace(x, kernels="reference")
    for name, array in IntegerNet(again).trace(x, kernels="reference").items():
        np.testing.assert_array_equal(array, ours[name], err_msg=name)


@pytest.mark.parametrize("runtime", OTHERS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("embedding", "a scale of their own, looked up and rescaled, are labkit's own"),
        ("norm", "i-LayerNorm is labkit's own operation; others normalise real numbers"),
        ("shares", "i-softmax is labkit's own operation"),
        ("gelu", "i-GELU is labkit's own operation; others have a table of 256 entries"),
        ("attention", "activations of 16 bits are labkit's own"),
        ("narrow", "activations of 16 bits are labkit's own"),
    ],
)
def test_what_no_other_runtime_has_is_refused_with_the_reason(runtime: str, name: str, words: str) -> None:
    graph = block(masked=False)
    node = graph[name]
    if name == "embedding":
        alone = IntGraph((graph["ids"], node), (name,))
    else:
        alone = of(node.op, node.output, *graph.inputs_of(node))
    with pytest.raises(UnsupportedOperation, match=words):
        as_run_by(alone, runtime)


@pytest.mark.parametrize("runtime", ["fbgemm", "qnnpack", "onednn"])
def test_pytorch_has_no_products_of_two_quantized_tensors(runtime: str) -> None:
    with pytest.raises(
        UnsupportedOperation, match=f"MatMul cannot be run like {runtime}: {runtime} has no such operation"
    ):
        as_run_by(products(), runtime)


def test_each_runtime_rounds_products_in_its_own_way() -> None:
    rules = {runtime: as_run_by(products(), runtime)["y"].op.requantizer.rule for runtime in WITH_PRODUCTS}
    assert rules == {
        "labkit": RoundingRule.SINGLE,
        "litert": RoundingRule.GEMMLOWP,
        "litert-opt": RoundingRule.GEMMLOWP,
        "xnnpack": RoundingRule.FLOAT32_EVEN,
        "onnxruntime": RoundingRule.FLOAT32_EVEN,
    }
    graph = products()
    results = {r: IntegerNet(as_run_by(graph, r)).run(images(graph), kernels="reference") for r in rules}
    assert np.any(results["labkit"] != results["litert"])
    assert np.any(results["labkit"] != results["xnnpack"])


@pytest.mark.parametrize("spec", [INT8, UINT8], ids=["int8", "uint8"])
def test_xnnpack_leaves_a_right_side_with_a_zero_point_to_the_built_in_kernel(spec: QuantSpec) -> None:
    assert as_run_by(products(spec), "xnnpack")["y"].op.requantizer.rule is RoundingRule.FLOAT32_EVEN
    assert as_run_by(products(spec, 1), "xnnpack")["y"].op.requantizer.rule is RoundingRule.GEMMLOWP


@pytest.mark.parametrize("last", WITH_PRODUCTS)
@pytest.mark.parametrize("first", WITH_PRODUCTS)
def test_products_are_made_from_scales_and_not_from_other_rules(first: str, last: str) -> None:
    graph = products(right=5)
    direct = IntegerNet(as_run_by(graph, last)).run(images(graph), kernels="reference")
    around = IntegerNet(as_run_by(as_run_by(graph, first), last)).run(images(graph), kernels="reference")
    np.testing.assert_array_equal(direct, around)


@pytest.mark.parametrize("runtime", WITH_PRODUCTS[1:])
def test_a_constant_factor_is_no_scale(runtime: str) -> None:
    graph = products(factor=1 / math.sqrt(3))
    assert factor_of(graph["y"].op, graph.inputs_of(graph["y"]), graph["y"].output) == pytest.approx(3**-0.5, rel=1e-9)
    with pytest.raises(UnsupportedOperation, match=r"got 0\.57735\. Put (the factor|it) into the weights before it"):
        as_run_by(graph, runtime)
    kept = as_run_by(graph, "labkit")["y"].op.requantizer.multiplier
    assert kept.to_real() == graph["y"].op.requantizer.multiplier.to_real()


@pytest.mark.parametrize("runtime", WITH_PRODUCTS)
def test_no_factor_is_seen_where_there_is_none(runtime: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        scales = np.float32(2.0 ** rng.uniform(-9, -2, 3))
        a, b, output = (tensor(shape, scale, 0, INT8) for shape, scale in zip(((1, 4, 4),) * 3, scales, strict=True))
        graph = as_run_by(of(matmul((a, b), output), output, a, b), runtime)
        assert factor_of(graph["y"].op, (a, b), output) == 1


def test_litert_has_no_clamp_behind_products() -> None:
    graph = products()
    node = graph["y"]
    relu = replace(node.op, requantizer=replace(node.op.requantizer, clamp=(-3, 127)))
    clamped = IntGraph((*graph.nodes[:2], replace(node, op=relu)), ("y",))
    with pytest.raises(UnsupportedOperation, match=r"no fused activation elsewhere, got the clamp \(-3, 127\)"):
        as_run_by(clamped, "litert")
    assert as_run_by(clamped, "onnxruntime")["y"].op.requantizer.clamp == (-3, 127)


# GELU as a table


def real_gelu(x: float) -> float:
    return x / 2 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("function", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("spec", [INT8, UINT8], ids=["int8", "uint8"])
def test_a_table_of_gelu_is_the_real_function_rounded(function: str, spec: QuantSpec) -> None:
    up = 0 if spec.signed else 128
    source, output = tensor((256,), 0.05, up - 11, spec), tensor((256,), 0.04, up - 90, spec)
    every = np.arange(spec.qmin, spec.qmax + 1).astype(spec.dtype)[None]
    graph = of(labkit_lookup(function, source, output), output, source)
    x = (every[0].astype(float) - (up - 11)) * float(source.params.scale)  # type: ignore[union-attr]
    real = np.array([real_gelu(v) for v in x])
    tanh = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    wanted = (real if function == "gelu" else tanh) / float(output.params.scale) + (up - 90)  # type: ignore[union-attr]
    for kernels in ("reference", "numba"):
        found = IntegerNet(graph).run({"x0": every}, kernels=kernels)[0].astype(float)
        assert np.abs(found - np.clip(wanted, spec.qmin, spec.qmax)).max() <= 0.5 + 1e-9
    assert np.abs(real - tanh).max() > 1e-4


@pytest.mark.parametrize("function", ["gelu", "gelu_tanh"])
def test_litert_rounds_its_table_away_from_zero(function: str) -> None:
    """Far above 0 the function is its argument: 2 q at these scales, and its half, which ties."""
    source, output = tensor((256,), 0.5, -128, INT8), tensor((256,), 1.0, 0, INT8)
    graph = of(labkit_lookup(function, source, output), output, source)
    for runtime in ("litert", "litert-opt", "xnnpack"):
        table = as_run_by(graph, runtime)["y"].op.table
        q = np.arange(20, 255)
        np.testing.assert_array_equal(table[20:255], np.minimum((q + 1) // 2, 127))
    with pytest.raises(UnsupportedOperation, match="own table of the gelu"):
        as_run_by(graph, "onnxruntime")


def test_a_gelu_of_eight_bits_becomes_a_table() -> None:
    import torch
    from torch import nn

    from labkit.frontends.torch_fx import from_torch
    from labkit.graph.passes import simplify
    from labkit.quantization.calibration import calibrate
    from labkit.quantization.convert import convert
    from labkit.quantization.plan import BitPlan

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(4, 8, 1), nn.GELU(), nn.Conv1d(8, 3, 1)).eval()
    x = torch.randn(64, 4, 10)
    graph = simplify(from_torch(module, (4, 10)))
    calibration, plan = calibrate(graph, [x.numpy()]), BitPlan.uniform(graph)
    (source,) = [graph[node.inputs[0]].name for node in graph if isinstance(node.op, float_ops.Gelu)]
    assert plan.activations[source] == 16
    short = replace(plan, activations={**plan.activations, source: 8})
    wide, narrow = (IntegerNet(convert(graph, calibration, p)) for p in (plan, short))
    kinds = [next(type(n.op).__name__ for n in net.graph if n.inputs == (source,)) for net in (wide, narrow)]
    assert kinds == ["GeluPolynomial", "Lookup"]
    (table,) = [node for node in narrow.graph if isinstance(node.op, int_ops.Lookup)]
    assert table.op.function == "gelu"  # type: ignore[union-attr]
    with torch.inference_mode():
        real = module(x).numpy()
    step = float(narrow.graph[source].output.params.scale)  # type: ignore[union-attr]
    assert np.abs(narrow.run(x) - real).max() < 2 * step
    np.testing.assert_array_equal(narrow.run(x), narrow.run(x, kernels="reference"))


@pytest.mark.parametrize("runtime", ["litert", "xnnpack"])
@pytest.mark.parametrize("function", ["gelu", "gelu_tanh"])
def test_a_table_of_gelu_is_written_to_tflite(function: str, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert.interpreter")
    from labkit.parity.runtimes.litert import run_litert

    source, output = tensor((4, 64), 0.06, -9, INT8), tensor((4, 64), 0.05, -100, INT8)
    net = IntegerNet(of(labkit_lookup(function, source, output), output, source))
    net.to_tflite(tmp_path / "net.tflite")
    x = np.arange(-128, 128).astype(np.int8).reshape(1, 4, 64)
    (theirs,) = run_litert(tmp_path / "net.tflite", [x.transpose(0, 2, 1)], runtime).values()
    np.testing.assert_array_equal(net.like(runtime).run(x), theirs.transpose(0, 2, 1))
