"""Exported ONNX files compute in onnxruntime what labkit computes under its rules, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from unit.exporters.nets import NETS, Maker, made, real_inputs

import labkit
from labkit.arithmetic.affine import QParams, QTensor, QuantSpec
from labkit.errors import InputError, OutputError, UnsupportedOperation
from labkit.exporters.onnx import STYLES, onnx_bytes
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet
from labkit.parity.runtimes.exported import run_onnx
from labkit.runtimes.rules import as_run_by

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'labkit[parity]')")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'labkit[parity]')")

PLANS = {
    "8 bits": {},
    "8 bits with ties": {"ties": True},
    "4 and 8 bits": {"weights": (4, 8)},
    "all widths": {"weights": (1, 5, 2, 8, 3, 7, 4, 6), "activations": (8, 2, 7, 3, 6, 4, 5)},
    "all widths with ties": {"ties": True, "weights": (2, 8, 4), "activations": (4, 8, 5)},
    "per tensor": {"per_channel": False, "weights": (8, 4)},
}
SIGNED = {
    "int8": {"signed": True},
    "int8 with ties": {"signed": True, "ties": True},
    "symmetric, 4 and 8 bits": {"signed": True, "narrow": True, "weights": (4, 8), "activations": (8, 4)},
}


def ours(graph, inputs):
    return IntegerNet(as_run_by(graph, "onnxruntime")).trace(inputs, kernels="reference")


def assert_same(theirs, mine):
    assert theirs
    wrong = {name: int(np.count_nonzero(result != mine[name])) for name, result in theirs.items()}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETS)
def test_every_tensor_is_the_same(name, plan, style):
    graph = made(name, 7, **PLANS[plan])
    inputs = real_inputs(graph, 8)
    theirs = run_onnx(onnx_bytes(graph, style), graph, inputs)
    assert set(theirs) >= {node.name for node in graph if node.inputs}
    assert_same(theirs, ours(graph, inputs))


@pytest.mark.parametrize("plan", SIGNED)
@pytest.mark.parametrize("name", NETS)
def test_int8_activations_are_the_same(name, plan):
    if name == "heads":
        pytest.skip("the softmax of a quantized network is unsigned")
    graph = made(name, 8, **SIGNED[plan])
    inputs = real_inputs(graph, 8)
    assert_same(run_onnx(onnx_bytes(graph, "qoperator"), graph, inputs), ours(graph, inputs))


@pytest.mark.parametrize("plan", ["8 bits with ties", "all widths"])
@pytest.mark.parametrize("name", NETS)
def test_integer_operators_give_the_same_without_optimisation(name, plan):
    graph = made(name, 9, **PLANS[plan])
    inputs = real_inputs(graph, 8)
    theirs = run_onnx(onnx_bytes(graph, "qoperator"), graph, inputs, optimised=False)
    assert_same(theirs, ours(graph, inputs))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("plan", ["8 bits with ties", "4 and 8 bits", "all widths", "per tensor"])
@pytest.mark.parametrize("name", NETS)
def test_the_file_can_be_read_back(name, plan, style, tmp_path):
    graph = made(name, 10, **PLANS[plan])
    IntegerNet(graph).to_onnx(tmp_path / "net.onnx", style)
    inputs = real_inputs(graph, 8)
    theirs = run_onnx((tmp_path / "net.onnx").read_bytes(), graph, inputs)
    read = labkit.load(tmp_path / "net.onnx")
    mine = read.trace(inputs, kernels="reference")
    assert_same({name: theirs[name] for name in theirs if name in mine}, mine)
    assert set(graph.outputs) <= set(mine)
    assert set(read.graph.inputs) == set(graph.inputs)


@pytest.mark.parametrize("plan", SIGNED)
@pytest.mark.parametrize("name", ["convolutions", "sums", "joins", "mean_pools"])
def test_int8_activations_are_uint8_in_the_style_qdq(name, plan, tmp_path):
    """A tie of a sum may round the other way then: the file is the truth, not the net."""
    graph = made(name, 17, **SIGNED[plan])
    IntegerNet(graph).to_onnx(tmp_path / "net.onnx", "qdq")
    inputs = real_inputs(graph, 8)
    theirs = run_onnx((tmp_path / "net.onnx").read_bytes(), graph, inputs)
    mine = labkit.load(tmp_path / "net.onnx").trace(inputs, kernels="reference")
    names = set(theirs) & set(mine) - set(graph.inputs)  # a Clip follows the input's integers
    assert names >= set(graph.outputs)
    raised = {name: mine[name].astype(np.int16) - 128 if mine[name].dtype == np.uint8 else mine[name] for name in names}
    assert_same({name: theirs[name] for name in names}, raised)


def operators(content, tmp_path):
    """The operators that onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NETS)
def test_nothing_is_computed_in_real_numbers(name, style, tmp_path):
    graph = made(name, 11, weights=(8, 4))
    found = operators(onnx_bytes(graph, style), tmp_path)
    real = {"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Softmax"}
    assert not real & set(found)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_weights_have_the_sign_of_the_activations(style, signed):
    """uint8 times int8 saturates on some processors."""
    graph = made("convolutions", 12, signed=signed, weights=(8, 4))
    model = onnx.load_from_string(onnx_bytes(graph, style))
    kinds = {constant.name: constant.data_type for constant in model.graph.initializer}
    layers = [node.name for node in graph if isinstance(node.op, int_ops.Conv2d | int_ops.Linear)]
    wanted = onnx.TensorProto.INT8 if signed and style == "qoperator" else onnx.TensorProto.UINT8
    assert {kinds[f"{name}:weight_zero_point"] for name in layers} == {wanted}


@pytest.mark.parametrize("style", STYLES)
def test_weights_of_four_bits_take_half_the_bytes(style):
    sizes = [len(onnx_bytes(wide(bits), style)) for bits in (4, 5)]
    assert 0.5 < sizes[0] / sizes[1] < 0.6


def wide(bits):
    m = Maker(1, weights=(bits,))
    x = m.linear(m.flatten(m.image((8, 5, 5), "x")), 400)
    return m.graph(m.dequantize(m.linear(x, 100), "output"))


@pytest.mark.parametrize("style", STYLES)
def test_the_file_says_where_it_comes_from_and_is_valid(style):
    graph = made("convolutions", 13)
    content = onnx_bytes(graph, style)
    assert content == onnx_bytes(graph, style)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=style == "qdq")
    assert (model.producer_name, model.producer_version) == ("labkit", labkit.__version__)
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert notes == {"labkit_like": "labkit", "labkit_style": style}
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.parametrize("images", [1, 3])
def test_any_number_of_images(images):
    graph = made("moves", 14)
    inputs = real_inputs(graph, images)
    assert_same(run_onnx(onnx_bytes(graph, "qdq"), graph, inputs), ours(graph, inputs))


@pytest.mark.parametrize("style", STYLES)
def test_an_argmax_can_keep_its_axis(style):
    m = Maker(16)
    graph = m.graph(m.argmax(m.conv(m.image((4, 3, 5), "x"), 4, (1, 1)), 1, keepdims=True))
    inputs = real_inputs(graph, 3)
    theirs = run_onnx(onnx_bytes(graph, style), graph, inputs)
    assert theirs[graph.outputs[0]].shape == (3, 4, 1, 5)
    assert_same(theirs, ours(graph, inputs))


def test_channels_that_come_last_do_so_in_the_file():
    graph = made("sums", 15)
    last = IntGraph(
        tuple(
            replace(node, output=replace(node.output, channels_last=True))
            if node.name in (*graph.inputs, *graph.outputs)
            else node
            for node in graph
        ),
        graph.outputs,
    )
    inputs = {name: np.moveaxis(x, 1, -1) for name, x in real_inputs(graph, 3).items()}
    mine = IntegerNet(as_run_by(last, "onnxruntime")).run(inputs)
    for style in STYLES:
        session = onnxruntime.InferenceSession(onnx_bytes(last, style), providers=["CPUExecutionProvider"])
        for name, result in zip(graph.outputs, session.run(list(graph.outputs), inputs), strict=True):
            assert np.array_equal(result, mine[name]), (style, name)


def test_what_onnx_cannot_hold_is_refused():
    m = Maker(1)
    x = m.adaptive_pool(m.image((2, 5, 5), "x"), (2, 2))
    with pytest.raises(UnsupportedOperation, match=r"^adaptiveaveragepool2d1: the windows .* differ in size"):
        onnx_bytes(m.graph(x))
    graph = made("convolutions", 1)
    layer = next(node for node in graph if isinstance(node.op, int_ops.Conv2d))
    weight = layer.op.weight
    zeros = QParams(weight.params.scale, np.arange(len(weight.values), dtype=np.int32))
    spec = QuantSpec(8, symmetric=False, granularity=weight.spec.granularity)
    op = replace(layer.op, weight=QTensor(weight.values, zeros, spec))
    changed = tuple(replace(node, op=op) if node is layer else node for node in graph)
    with pytest.raises(UnsupportedOperation, match=f"^{layer.name}: .* one zero point for all channels .* 0..7"):
        onnx_bytes(IntGraph(changed, graph.outputs))
    with pytest.raises(InputError, match="style must be one of qdq, qoperator, got 'float'"):
        onnx_bytes(graph, "float")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    net = IntegerNet(made("convolutions", 1))
    with pytest.raises(OutputError, match="there is no folder"):
        net.to_onnx(tmp_path / "missing" / "net.onnx")
    with pytest.raises(InputError):
        net.to_onnx(tmp_path / "net.onnx", "float")
    assert not list(tmp_path.iterdir())
