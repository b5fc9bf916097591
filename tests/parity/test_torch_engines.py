"""The rules of PyTorch's engines give the integers that the engines themselves compute, operator by operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity.operator_graphs import OPERATORS, one_operator

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QTensor, QuantSpec
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.storage import dumps, loads
from labkit.net import IntegerNet
from labkit.parity.runtimes.torch_engines import ENGINES, run_torch
from labkit.runtimes.labkit_rules import requantizer, scale_of
from labkit.runtimes.rules import as_run_by

_LAYERS = ("conv", "depthwise", "linear")
_CASES = 500
_SHARE = 10  # one case in so many is run by default

pytestmark = pytest.mark.skipif(
    not set(ENGINES) <= set(torch.backends.quantized.supported_engines), reason="PyTorch without all of its engines"
)


def cases(engine: str, kind: str, seeds: Iterator[int]) -> Iterator[tuple[int, IntGraph, dict[str, np.ndarray]]]:
    """Networks that the rules of ``engine`` do not refuse, with inputs."""
    pooled = kind.endswith("_pool") and engine != "qnnpack"
    for seed in seeds:
        channels = 16 * (1 + seed % 4) if pooled else None
        graph, inputs = one_operator(kind, seed, zero_points=engine != "onednn", channels=channels)
        op = graph["y"].op
        if engine == "onednn" and kind == "depthwise":
            assert isinstance(op, int_ops.Conv2d)
            if any(max(p) >= k for p, k in zip(op.padding, op.weight.values.shape[2:], strict=True)):
                continue
        yield seed, graph, inputs


def differing(engine: str, kind: str, seeds: Iterator[int]) -> tuple[int, int]:
    """How many elements differ, and how many there are; of oneDNN's layers, those that are no near-ties."""
    wrong = elements = 0
    for seed, graph, inputs in cases(engine, kind, seeds):
        theirs = run_torch(graph, inputs, engine)["y"]
        ours = IntegerNet(as_run_by(graph, engine)).run(inputs, kernels="reference")
        differs = theirs != ours
        if engine == "onednn" and kind in _LAYERS and seed % 3:
            differs &= ~near_ties(graph, inputs)
        wrong += int(np.count_nonzero(differs))
        elements += differs.size
    return wrong, elements


def near_ties(graph: IntGraph, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Where the real number in front of the rounding is so near to a half that roundings of float32 decide."""
    node = graph["y"]
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    source = graph.inputs_of(node)[0]
    x = torch.from_numpy(inputs["x0"].astype(np.float64) - float(source.quantized[1].zero_point))
    weight = torch.from_numpy(op.weight.values.astype(np.float64))
    if isinstance(op, int_ops.Conv2d):
        padding = tuple(edge for edge, _ in op.padding)
        sums = torch.nn.functional.conv2d(x, weight, None, op.stride, padding, op.dilation, op.groups).numpy()
    else:
        sums = (x @ weight.T).numpy()
    column = (-1, *(1,) * (sums.ndim - 2))
    scales = op.weight.params.scale.astype(np.float64) * np.float64(source.quantized[1].scale)
    real = (sums + op.bias.reshape(column)) * (scales.reshape(column) if scales.ndim else scales)
    steps = real / np.float64(node.output.quantized[1].scale)
    largest = np.maximum(np.abs(steps), np.abs(op.bias.reshape(column) * scales.reshape(column) if scales.ndim else 0))
    near = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 2.0**-22 * np.maximum(largest, 256)
    assert near.mean() < 0.01  # it excuses few
    return np.asarray(near)


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_operator_is_what_the_engine_computes(engine: str, kind: str) -> None:
    wrong, elements = differing(engine, kind, iter(range(0, _CASES, _SHARE)))
    assert elements > 4000
    assert wrong == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_all_cases_of_an_operator(engine: str, kind: str) -> None:
    seeds = (seed for seed in range(_CASES) if seed % _SHARE)
    wrong, elements = differing(engine, kind, seeds)
    assert elements > 40_000
    assert wrong == 0


@pytest.mark.parametrize("kind", ["conv", "linear", "add", "average_pool", "requantize", "quantize", "multiply"])
def test_labkits_own_rules_are_not_the_engines(kind: str) -> None:
    """The cases can tell rules apart: without the remake they differ."""
    graph, inputs = one_operator(kind, 0, channels=16)
    found = 0
    for seed in range(0, 90, 3):
        graph, inputs = one_operator(kind, seed, channels=16)
        theirs = run_torch(graph, inputs, "fbgemm")["y"]
        found += int(np.count_nonzero(theirs != IntegerNet(graph).run(inputs, kernels="reference")))
    assert found > 0


def _near_halves(seed: int, per_channel: bool) -> tuple[IntGraph, dict[str, np.ndarray]]:
    """A linear layer whose sums are its biases alone, each as near to a half-way number as an integer sum can be.

    There the last bit of a multiplier decides, which random sums meet once in a million.
    """
    rng = np.random.default_rng(seed)
    spec = QuantSpec(8, signed=False)
    source_scale, output_scale = (np.float32(np.exp(rng.uniform(-6, -3))) for _ in range(2))
    scales = np.exp(rng.uniform(-8, -6, 200)).astype(np.float32)
    if not per_channel:
        scales[:] = scales[0]
    real = scales.astype(np.float64) * np.float64(source_scale) / np.float64(output_scale)
    bias = np.rint((rng.integers(0, 255, 200) + 0.5) / real).astype(np.int32)
    entry = Tensor((1,), spec, QParams(np.asarray(source_scale), np.asarray(0, np.int32)))
    output = Tensor((200,), spec, QParams(np.asarray(output_scale), np.asarray(0, np.int32)))
    granularity = PerAxis(0) if per_channel else PerTensor()
    params = QParams(scales if per_channel else np.asarray(scales[0]), np.zeros(200 if per_channel else (), np.int32))
    weight = QTensor(np.ones((200, 1), np.int8), params, QuantSpec(8, granularity=granularity))
    op = int_ops.Linear(weight, bias, requantizer(real if per_channel else real[0], output))
    nodes = (IntNode("x0", int_ops.Input((1,)), (), entry), IntNode("y", op, ("x0",), output))
    return IntGraph(nodes, ("y",)), {"x0": np.zeros((1, 1), np.uint8)}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_the_last_bit_of_a_multiplier(engine: str, per_channel: bool) -> None:
    wrong = told = 0
    for seed in range(300):
        graph, inputs = _near_halves(seed, per_channel)
        theirs = run_torch(graph, inputs, engine)["y"]
        wrong += int(np.count_nonzero(theirs != IntegerNet(as_run_by(graph, engine)).run(inputs, kernels="reference")))
        told += int(
            np.count_nonzero(theirs != IntegerNet(as_run_by(graph, "onnxruntime")).run(inputs, kernels="reference"))
        )
    assert wrong == 0
    assert told > 0 if engine == "qnnpack" else True


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_is_its_images(engine: str) -> None:
    """The place of an element in the vectors is counted within its image, so a batch changes nothing."""
    graph, inputs = one_operator("add", 3, channels=7)
    net = IntegerNet(as_run_by(graph, engine))
    whole = net.run({name: np.concatenate([x, x, x]) for name, x in inputs.items()}, kernels="reference")
    assert np.array_equal(whole[-len(inputs["x0"]) :], net.run(inputs, kernels="reference"))


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_remade_net_is_saved_and_brought_back(engine: str, kind: str) -> None:
    graph, inputs = one_operator(kind, 6, zero_points=False, channels=16)
    remade = as_run_by(graph, engine)
    again = loads(dumps(remade))
    ours = IntegerNet(remade).run(inputs, kernels="reference")
    assert np.array_equal(IntegerNet(again).run(inputs, kernels="reference"), ours)
    back, direct = as_run_by(again, "labkit"), as_run_by(graph, "labkit")
    got, expected = (IntegerNet(g).run(inputs, kernels="reference") for g in (back, direct))
    assert np.array_equal(got, expected)


def _with(node: IntNode, graph: IntGraph) -> IntGraph:
    return IntGraph((*graph.nodes[:-1], node), graph.outputs)


def test_what_is_not_known_is_refused() -> None:
    graph, _ = one_operator("average_pool", 1, channels=10)
    with pytest.raises(UnsupportedOperation, match=r"y: .*10 channels.*qnnpack"):
        as_run_by(graph, "fbgemm")
    graph, _ = one_operator("conv", 1, zero_points=True)
    with pytest.raises(UnsupportedOperation, match=r"y: .*zero point"):
        as_run_by(graph, "onednn")
    table = int_ops.Lookup("logistic", np.zeros(256, np.int32))
    graph, _ = one_operator("requantize", 4)
    lookup = IntNode("y", table, ("x0",), graph["y"].output)
    with pytest.raises(UnsupportedOperation, match=r"y: .*logistic"):
        as_run_by(_with(lookup, graph), "qnnpack")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pool_that_changes_the_scale_is_two_operations(engine: str) -> None:
    graph, inputs = one_operator("average_pool", 5, channels=16)
    other, _ = one_operator("requantize", 5, channels=16)
    node = graph["y"]
    changed = other["y"].output
    output = type(node.output)(node.output.shape, changed.spec, changed.params)
    op = node.op
    assert isinstance(op, int_ops.AveragePool2d)
    multiplier = scale_of(graph["x0"].output) / (scale_of(output) * op.kernel[0] * op.kernel[1])
    pool = replace(node, op=replace(op, requantizer=requantizer(multiplier, output)), output=output)
    graph = _with(pool, graph)
    theirs = run_torch(graph, inputs, engine)
    ours = IntegerNet(as_run_by(graph, engine)).trace(inputs, kernels="reference")
    assert set(theirs) == set(ours) == {"x0", "y.mean", "y"}
    assert all(np.array_equal(theirs[name], ours[name]) for name in ours)
