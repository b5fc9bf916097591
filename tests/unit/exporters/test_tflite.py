"""Exported TFLite files compute in LiteRT what labkit computes under its rules, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from unit.exporters.nets import NETS, RELU6, Maker, made, real_inputs

import labkit
from labkit.errors import InputError, OutputError, UnsupportedOperation
from labkit.exporters.tflite import tflite_content
from labkit.exporters.tflite_form import held_by_tflite
from labkit.exporters.tflite_windows import fitted
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet
from labkit.parity.runtimes.exported import run_tflite
from labkit.runtimes.rules import as_run_by

tflite = pytest.importorskip("tflite", reason="tflite is not installed (pip install 'labkit[parity]')")
interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="LiteRT is not installed (pip install 'labkit[parity]')"
)

PLANS = {
    "8 bits": {},
    "8 bits with ties": {"ties": True},
    "4 and 8 bits": {"weights": (4, 8)},
    "all widths": {"weights": (1, 5, 2, 8, 3, 7, 4, 6)},
    "4 bits with ties": {"ties": True, "weights": (4, 2)},
    "per tensor": {"per_channel": False},
    "int8": {"signed": True},
}
RUNTIMES = ("litert", "xnnpack")


def held(name, seed, plan):
    options = PLANS[plan]
    if name == "heads" and options.get("signed"):
        pytest.skip("the softmax of a quantized network is unsigned")
    return made(name, seed, **options)


def assert_same(theirs, mine):
    assert theirs
    wrong = {name: int(np.count_nonzero(result != mine[name])) for name, result in theirs.items()}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETS)
def test_every_tensor_is_the_same(name, plan, runtime):
    """All but those of a Flatten in the middle, which may flatten in another order."""
    graph = held_by_tflite(held(name, 7, plan))
    inputs = real_inputs(graph, 8)
    theirs = run_tflite(tflite_content(graph), graph, inputs, runtime)
    moved = int_ops.Input | int_ops.Flatten
    assert set(theirs) >= {node.name for node in graph if not isinstance(node.op, moved)} | set(graph.outputs)
    assert_same(theirs, IntegerNet(as_run_by(graph, runtime)).trace(inputs, kernels="reference"))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("plan", ["8 bits with ties", "4 and 8 bits"])
@pytest.mark.parametrize("name", NETS)
def test_outputs_are_the_same(name, plan, runtime):
    graph = held(name, 8, plan)
    inputs = real_inputs(graph, 8)
    theirs = run_tflite(tflite_content(graph), graph, inputs, runtime)
    mine = IntegerNet(as_run_by(held_by_tflite(graph), runtime)).trace(inputs, kernels="reference")
    assert set(theirs) >= set(graph.outputs)
    assert_same(theirs, mine)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("plan", ["8 bits with ties", "4 and 8 bits", "all widths", "per tensor"])
@pytest.mark.parametrize("name", NETS)
def test_the_file_can_be_read_back(name, plan, runtime, tmp_path):
    graph = held(name, 9, plan)
    IntegerNet(graph).to_tflite(tmp_path / "net.tflite")
    inputs = real_inputs(graph, 8)
    theirs = run_tflite((tmp_path / "net.tflite").read_bytes(), graph, inputs, runtime)
    read = labkit.load(tmp_path / "net.tflite", like=runtime)
    given = {x: np.moveaxis(signed(graph[x].output, array), 1, -1) for x, array in inputs.items()}
    mine = read.run({name: given[name] for name in read.graph.inputs})
    results = mine if isinstance(mine, dict) else {graph.outputs[0]: mine}
    assert set(results) == set(graph.outputs)
    for name, result in results.items():
        there = signed(graph[name].output, theirs[name])
        if there.ndim > 2 and not graph[name].output.is_index:
            there = np.moveaxis(there, 1, -1)
        assert np.array_equal(result, there), name


def signed(tensor, array):
    """Integers as int8, the rest as it is."""
    return (array.astype(np.int16) - 128).astype(np.int8) if array.dtype == np.uint8 else array


def codes(content):
    """The operators of a file by name."""
    model = tflite.Model.GetRootAs(content)
    names = {value: key for key, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
    graph = model.Subgraphs(0)
    used = [graph.Operators(i).OpcodeIndex() for i in range(graph.OperatorsLength())]
    return [names[model.OperatorCodes(i).BuiltinCode()] for i in used]


def test_the_file_says_where_it_comes_from():
    graph = made("convolutions", 10)
    content = tflite_content(graph)
    assert content == tflite_content(graph)
    assert content[4:8] == b"TFL3"
    model = tflite.Model.GetRootAs(content)
    assert model.Description().decode() == f"labkit {labkit.__version__}, like labkit"
    inside = model.Subgraphs(0)
    assert inside.Tensors(inside.Inputs(0)).Name() == b"x"
    assert inside.Tensors(inside.Outputs(0)).Name() == b"output"
    assert list(inside.Tensors(inside.Inputs(0)).ShapeSignatureAsNumpy()) == [-1, 9, 8, 4]


def test_weights_of_four_bits_take_half_the_bytes():
    def size(bits):
        m = Maker(1, weights=(bits,))
        x = m.linear(m.flatten(m.image((8, 5, 5), "x")), 400)
        return len(tflite_content(m.graph(m.dequantize(m.linear(x, 100), "output"))))

    assert 0.5 < size(4) / size(5) < 0.6


@pytest.mark.parametrize("images", [1, 3])
def test_any_number_of_images(images):
    graph = made("moves", 11)
    inputs = real_inputs(graph, images)
    theirs = run_tflite(tflite_content(graph), graph, inputs, "litert")
    assert_same(theirs, IntegerNet(as_run_by(graph, "litert")).trace(inputs, kernels="reference"))


@pytest.mark.parametrize("rules", ["litert", "xnnpack", "onnxruntime"])
@pytest.mark.parametrize("name", ["convolutions", "sums", "heads"])
def test_the_rules_of_a_network_do_not_matter(name, rules):
    """A file holds what is computed, and the runtime knows how it rounds."""
    graph = made(name, 12)
    other = as_run_by(graph, rules)
    inputs = real_inputs(graph, 6)
    given = {x: run_tflite(tflite_content(g), graph, inputs) for x, g in {"plain": graph, "other": other}.items()}
    assert f"like {rules}".encode() in tflite_content(other)
    assert_same(given["other"], given["plain"])


def test_padding_is_written_as_the_scheme_that_it_is():
    same = {"sizes": (8, 8), "window": (3, 3), "stride": (1, 1), "out": (8, 8)}
    assert fitted(**same, padding=((1, 1), (1, 1))) == ("SAME", None)
    assert fitted(**same, padding=((2, 0), (1, 1))) == ("VALID", ((2, 0), (1, 1)))
    strided = {"sizes": (8, 8), "window": (3, 3), "stride": (2, 2), "out": (4, 4)}
    assert fitted(**strided, padding=((1, 1), (1, 1))) == ("VALID", ((1, 0), (1, 0)))
    assert fitted(**strided, padding=((0, 1), (0, 1))) == ("SAME", None)
    assert fitted((8, 8), (2, 2), (2, 2), ((0, 0), (0, 0)), (4, 4)) == ("VALID", None)
    assert fitted((9, 9), (2, 2), (2, 2), ((0, 0), (0, 0)), (5, 5)) == ("SAME", None)


def test_what_tflite_cannot_hold_is_refused():
    with pytest.raises(UnsupportedOperation, match=r"^\w+: an activation of TFLite .* got a grid of 4 bits"):
        tflite_content(made("convolutions", 1, activations=(4,)))
    with pytest.raises(UnsupportedOperation, match=r"^x: an activation of TFLite .* got a grid of -127..127"):
        tflite_content(made("convolutions", 1, signed=True, narrow=True))
    m = Maker(1)
    x = m.image((2, 5, 5), "x")
    with pytest.raises(UnsupportedOperation, match=r"^adaptiveaveragepool2d1: the windows .* differ in size"):
        tflite_content(m.graph(m.adaptive_pool(x, (2, 2))))
    m = Maker(1)
    x = m.max_pool(m.image((2, 5, 5), "x"), (2, 2), dilation=(2, 1))
    with pytest.raises(UnsupportedOperation, match=r"^maxpool2d1: the windows of TFLite's pools have no dilation"):
        tflite_content(m.graph(x))
    m = Maker(1)
    graph = m.graph(m.argmax(m.image((2, 5, 5), "x"), 0, keepdims=True))
    with pytest.raises(UnsupportedOperation, match=r"^argmax1: TFLite's ARG_MAX keeps no axis"):
        tflite_content(graph)
    m = Maker(1)
    graph = m.graph(m.conv(m.image((2, 5, 5), "x"), 2, (1, 1), bounds=RELU6))
    layer = graph.nodes[-1]
    op = replace(layer.op, requantizer=replace(layer.op.requantizer, clamp=(3, 201)))
    odd = IntGraph((graph.nodes[0], replace(layer, op=op)), graph.outputs)
    with pytest.raises(UnsupportedOperation, match=r"^conv2d1: its clamp 3..201 is none of TFLite's fused activations"):
        tflite_content(odd)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    net = IntegerNet(made("convolutions", 1))
    with pytest.raises(OutputError, match="there is no folder"):
        net.to_tflite(tmp_path / "missing" / "net.tflite")
    with pytest.raises(UnsupportedOperation):
        IntegerNet(made("convolutions", 1, activations=(4,))).to_tflite(tmp_path / "net.tflite")
    assert not list(tmp_path.iterdir())


def test_unknown_runtimes_are_refused():
    graph = made("max_pools", 1)
    with pytest.raises(InputError, match="litert, litert-opt, xnnpack; got 'tvm'"):
        run_tflite(tflite_content(graph), graph, real_inputs(graph, 1), "tvm")
