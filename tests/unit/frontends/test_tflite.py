"""`read_tflite`: names, layouts and operations of the graph, and what it refuses of sound and of hostile files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.errors import ModelError, UnsupportedOperation
from labkit.exporters.tflite_file import FileOperator, FileTensor, tflite_bytes
from labkit.frontends.tflite import SUPPORTED, read_tflite, read_tflite_bytes
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet, load

pytest.importorskip("tflite")

CONV = {"Padding": "SAME", "StrideW": 1, "StrideH": 1, "DilationWFactor": 1, "DilationHFactor": 1}
POOL = {"Padding": "VALID", "StrideW": 1, "StrideH": 1, "FilterWidth": 2, "FilterHeight": 2}


def tensor(name: str, *shape: int, kind: str = "int8", scale: Any = 0.5, zero_point: int = 3) -> FileTensor:
    return FileTensor(name, (1, *shape), kind, scale, zero_point, any_batch=True)


def real(name: str, *shape: int) -> FileTensor:
    return FileTensor(name, (1, *shape), "float32")


def constant(name: str, data: Any, kind: str = "", scale: Any = None, axis: int = 0) -> FileTensor:
    array = np.asarray(data)
    return FileTensor(name, array.shape, kind or str(array.dtype), scale, 0, axis, array)


def weights(name: str, *shape: int, kind: str = "int8", axis: int = 0) -> FileTensor:
    data = np.random.default_rng(1).integers(-8, 8, shape).astype(np.int8)
    return constant(name, data, kind, np.full(shape[axis], 0.01), axis)


def whole(name: str, *numbers: int) -> FileTensor:
    return constant(name, np.array(numbers, np.int32))


def file(
    tensors: Sequence[FileTensor],
    *operators: tuple[Any, ...],
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
) -> bytes:
    made = [FileOperator(op[0], op[1], op[2], op[3] if len(op) > 3 else {}) for op in operators]
    return tflite_bytes(tensors, made, inputs, outputs)


def read(tensors: Sequence[FileTensor], *operators: tuple[Any, ...], **ends: Any) -> IntGraph:
    return read_tflite_bytes(file(tensors, *operators, **ends))


# Names, borders and layouts


def test_a_slash_becomes_a_point_and_a_fused_name_is_carried() -> None:
    names = ("in/x:0", "model/relu;model/bias;model/conv", "model/relu;other")
    tensors = [
        tensor(names[0], 4),
        tensor(names[1], 4, scale=0.25),
        constant(names[2], np.zeros(1, np.int8), scale=0.5),
    ]
    graph = read(tensors, ("RELU", names[:1], names[1:2]), inputs=names[:1], outputs=names[1:2])
    assert [node.name for node in graph] == ["in.x_0", "model.relu"]
    assert graph["model.relu"].carries == ("model.relu;model.bias;model.conv",)
    assert graph.notes["tflite"]["tensors"] == {"in.x_0": 0, "model.relu": 1}
    trace = IntegerNet(graph).trace(np.zeros((1, 4), np.int8), kernels="reference")
    assert set(trace) == {"in.x_0", "model.relu", "model.relu;model.bias;model.conv"}


def test_tensors_of_one_name_stay_apart() -> None:
    graph = read(
        [tensor("x", 4), tensor("y", 4), tensor("z", 4)],
        ("RELU", ("x",), ("y",)),
        ("RELU", ("y",), ("z",)),
        outputs=("z",),
    )
    data = file(
        [tensor("x", 4), tensor("y", 4), tensor("z", 4)],
        ("RELU", ("x",), ("y",)),
        ("RELU", ("y",), ("z",)),
        outputs=("z",),
    )
    assert len({node.name for node in graph}) == 3
    same = data.replace(b"\x01\x00\x00\x00y\x00", b"\x01\x00\x00\x00x\x00").replace(
        b"\x01\x00\x00\x00z\x00", b"\x01\x00\x00\x00x\x00"
    )
    assert [node.name for node in read_tflite_bytes(same)] == ["x", "x 1", "x 2"]


def test_a_real_input_is_quantized_under_the_name_of_the_file() -> None:
    graph = read(
        [real("image", 2, 2, 3), tensor("q", 2, 2, 3), real("y", 2, 2, 3)],
        ("QUANTIZE", ("image",), ("q",)),
        ("DEQUANTIZE", ("q",), ("y",)),
        inputs=("image",),
    )
    assert graph.inputs == ("image",)
    assert graph["image"].carries == ("q",)
    net, x = IntegerNet(graph), np.random.default_rng(0).normal(0, 5, (3, 2, 2, 3)).astype(np.float32)
    assert net.run(x, kernels="reference").shape == (3, 2, 2, 3)
    np.testing.assert_allclose(net.run(x, kernels="reference"), np.clip(x, -65.5, 62), atol=0.26)


def test_a_real_input_that_nobody_quantizes_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match=r"input r holds real numbers \(float32\), and no QUANTIZE takes it"):
        read([tensor("x", 4), real("r", 4), tensor("y", 4)], ("RELU", ("x",), ("y",)), inputs=("x", "r"))


def test_several_inputs_and_outputs_in_their_order() -> None:
    graph = read(
        [tensor("a", 4), tensor("b", 4), tensor("s", 4), tensor("p", 4)],
        ("ADD", ("b", "a"), ("s",)),
        ("MUL", ("a", "s"), ("p",)),
        inputs=("b", "a"),
        outputs=("p", "s", "b"),
    )
    assert (graph.inputs, graph.outputs) == (("b", "a"), ("p", "s", "b"))
    assert set(
        IntegerNet(graph).run({"a": np.ones((2, 4), np.int8), "b": np.ones((2, 4), np.int8)}, kernels="reference")
    ) == {
        "p",
        "s",
        "b",
    }


def test_weights_and_padding_have_the_order_of_the_graph() -> None:
    kernel = weights("w", 3, 2, 4, 5)
    graph = read(
        [tensor("x", 7, 8, 5), kernel, whole("b", 1, 2, 3), tensor("y", 4, 4, 3)],
        ("CONV_2D", ("x", "w", "b"), ("y",), CONV | {"StrideW": 2, "StrideH": 2}),
    )
    op = graph["y"].op
    assert isinstance(op, int_ops.Conv2d)
    np.testing.assert_array_equal(op.weight.values, np.moveaxis(np.asarray(kernel.data), -1, 1))
    assert op.padding == ((0, 1), (1, 1))  # 7 rows by steps of 2 with 2 taps: 1 too few; 8 columns with 4 taps: 2
    assert (graph["x"].output.shape, graph["x"].output.source_shape) == ((5, 7, 8), (7, 8, 5))
    np.testing.assert_array_equal(op.bias, [1, 2, 3])


def test_a_depthwise_convolution_has_a_group_for_each_channel() -> None:
    kernel = weights("w", 1, 2, 2, 6, axis=3)
    graph = read(
        [tensor("x", 4, 4, 3), kernel, tensor("y", 3, 3, 6)],
        ("DEPTHWISE_CONV_2D", ("x", "w"), ("y",), CONV | {"Padding": "VALID", "DepthMultiplier": 2}),
    )
    op = graph["y"].op
    assert isinstance(op, int_ops.Conv2d)
    assert (op.groups, op.weight.values.shape, op.weight.params.scale.shape) == (3, (6, 1, 2, 2), (6,))
    np.testing.assert_array_equal(op.weight.values[4, 0], np.asarray(kernel.data)[0, :, :, 4])
    np.testing.assert_array_equal(op.bias, np.zeros(6))  # a bias that is left out is 0


def test_numbers_of_an_image_keep_the_order_of_the_file() -> None:
    x = np.arange(24, dtype=np.int8).reshape(2, 2, 2, 3)
    graph = read([tensor("x", 2, 2, 3), whole("s", -1, 12), tensor("y", 12)], ("RESHAPE", ("x", "s"), ("y",)))
    np.testing.assert_array_equal(IntegerNet(graph).run(x, kernels="reference"), x.reshape(2, 12))
    flat = read([tensor("x", 1, 1, 3), whole("s", -1, 3), tensor("y", 3)], ("RESHAPE", ("x", "s"), ("y",)))
    assert [type(node.op) for node in flat] == [int_ops.Input, int_ops.Reshape]


def test_attention_keeps_the_order_of_the_file() -> None:
    """Scores of 3 heads: (N, H, T, d) times (N, H, T, d) transposed, by the integers alone."""
    rng = np.random.default_rng(0)
    q, k = (rng.integers(-9, 10, (2, 3, 5, 4)).astype(np.int8) for _ in range(2))
    plain = {"scale": 0.5, "zero_point": 0}
    graph = read(
        [tensor("q", 3, 5, 4, **plain), tensor("k", 3, 5, 4, **plain), tensor("y", 3, 5, 5, scale=2.0, zero_point=0)],
        ("BATCH_MATMUL", ("q", "k"), ("y",), {"AdjY": True}),
        inputs=("q", "k"),
    )
    products = q.astype(int) @ k.astype(int).swapaxes(2, 3)
    for kernels in ("reference", "numba"):
        found = IntegerNet(graph).run({"q": q, "k": k}, kernels=kernels)
        np.testing.assert_array_equal(found, np.clip((products + 4) >> 3, -128, 127))


def test_a_uint8_input_is_lowered_by_a_quantize() -> None:
    graph = read([tensor("x", 4, kind="uint8", zero_point=131), tensor("y", 4)], ("QUANTIZE", ("x",), ("y",)))
    x = np.array([[0, 1, 131, 255]], np.uint8)
    np.testing.assert_array_equal(IntegerNet(graph).run(x, kernels="reference"), [[-128, -127, 3, 127]])


def test_load_takes_the_rules_of_the_reference_kernels(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(file([tensor("x", 4), tensor("y", 4, scale=0.3)], ("QUANTIZE", ("x",), ("y",))))
    assert load(path).graph.notes["like"] == "litert"
    assert load(path, like="xnnpack").graph.notes["like"] == "xnnpack"
    assert read_tflite(path).notes.get("like") is None


# What is refused, with its reason


@pytest.mark.parametrize(
    ("words", "tensors", "operator"),
    [
        (
            r"CONV_2D for y is not supported.*input x holds real numbers",
            [real("x", 4, 4, 2), weights("w", 2, 1, 1, 2), real("y", 4, 4, 2)],
            ("CONV_2D", ("x", "w"), ("y",), CONV),
        ),
        (
            r"y is of type int32: labkit runs networks whose tensors are int8",
            [tensor("x", 4), tensor("y", 4, kind="int32")],
            ("RELU", ("x",), ("y",)),
        ),
        (
            r"SOFTMAX for y .*beta = 2",
            [tensor("x", 4), tensor("y", 4, scale=2.0**-8, zero_point=-128)],
            ("SOFTMAX", ("x",), ("y",), {"Beta": 2.0}),
        ),
        (
            r"SOFTMAX for y .*scale 0.5 and zero point 3",
            [tensor("x", 4), tensor("y", 4)],
            ("SOFTMAX", ("x",), ("y",), {"Beta": 1.0}),
        ),
        (
            r"fused activation TANH; NONE, RELU",
            [tensor("x", 4), weights("w", 2, 4), tensor("y", 2)],
            ("FULLY_CONNECTED", ("x", "w"), ("y",), {"FusedActivationFunction": "TANH"}),
        ),
        (
            r"MEAN for y .*axes \[3\]",
            [tensor("x", 4, 4, 2), whole("a", 3), tensor("y", 4, 4)],
            ("MEAN", ("x", "a"), ("y",), {"KeepDims": False}),
        ),
        (
            r"MEAN for y .*axes \[0\]",
            [tensor("x", 4, 2), whole("a", 0), tensor("y", 4, 2)],
            ("MEAN", ("x", "a"), ("y",), {"KeepDims": True}),
        ),
        (
            r"BATCH_MATMUL for y .*x of shape \[1, 3\], with its batch axis multiplied or broadcast to \[1, 3\]",
            [tensor("x", 3), tensor("y", 3)],
            ("BATCH_MATMUL", ("x", "x"), ("y",), {"AdjX": True}),
        ),
        (
            r"BATCH_MATMUL for y .*v of shape \[1, 4, 3\], with its batch axis multiplied or broadcast",
            [tensor("x", 2, 3, 4), tensor("v", 4, 3), tensor("y", 2, 3, 3)],
            ("BATCH_MATMUL", ("x", "v"), ("y",)),
        ),
        (
            r"BATCH_MATMUL for y .*v of shape \[1, 1, 4, 3\], broadcast to \[1, 2, 3, 3\]",
            [tensor("x", 2, 3, 4), tensor("v", 1, 4, 3), tensor("y", 2, 3, 3)],
            ("BATCH_MATMUL", ("x", "v"), ("y",)),
        ),
        (
            r"BATCH_MATMUL for y .*the constant c of shape \[2, 4, 3\] for \[1, 3, 3\]",
            [tensor("x", 3, 4), constant("c", np.ones((2, 4, 3), np.int8), scale=0.1), tensor("y", 3, 3)],
            ("BATCH_MATMUL", ("x", "c"), ("y",)),
        ),
        (
            r"BATCH_MATMUL for y .*more than four axes",
            [tensor("x", 2, 2, 3, 3), tensor("y", 2, 2, 3, 3)],
            ("BATCH_MATMUL", ("x", "x"), ("y",)),
        ),
        (
            r"BATCH_MATMUL for y .*two constants",
            [tensor("x", 3), constant("c", np.ones((1, 2, 2), np.int8), scale=0.1), tensor("y", 2, 2)],
            ("BATCH_MATMUL", ("c", "c"), ("y",)),
        ),
        (
            r"BATCH_MATMUL for y .*tensors of int8 and uint8",
            [tensor("x", 2, 2), tensor("y", 2, 2, kind="uint8")],
            ("BATCH_MATMUL", ("x", "x"), ("y",)),
        ),
        (
            r"TRANSPOSE for y .*batch axis must stay first",
            [tensor("x", 4), whole("a", 1, 0), tensor("y", 4)],
            ("TRANSPOSE", ("x", "a"), ("y",)),
        ),
        (
            r"CONCATENATION for y .*the axis 0",
            [tensor("x", 4), tensor("y", 4)],
            ("CONCATENATION", ("x",), ("y",), {"Axis": 0}),
        ),
        (
            r"CONCATENATION for y .*scale or zero point of its output differ",
            [tensor("x", 4), tensor("y", 4, scale=0.25)],
            ("CONCATENATION", ("x",), ("y",), {"Axis": 1}),
        ),
        (
            r"ADD for y .*tensors of int8 and uint8",
            [tensor("x", 4), tensor("y", 4, kind="uint8")],
            ("ADD", ("x", "x"), ("y",)),
        ),
        (
            r"PAD for y .*rows and columns can be padded",
            [
                tensor("x", 2, 2, 2),
                constant("e", np.array([[0, 0], [0, 0], [0, 0], [1, 0]], np.int32)),
                tensor("y", 2, 2, 3),
            ],
            ("PAD", ("x", "e"), ("y",)),
        ),
        (
            r"FULLY_CONNECTED for y .*all numbers of an image must be one row",
            [tensor("x", 3, 4), weights("w", 2, 4), tensor("y", 3, 2)],
            ("FULLY_CONNECTED", ("x", "w"), ("y",)),
        ),
        (
            r"int4 weights on one channel",
            [tensor("x", 2, 2, 1), weights("w", 1, 1, 1, 1, kind="int4", axis=3), tensor("y", 2, 2, 1)],
            ("DEPTHWISE_CONV_2D", ("x", "w"), ("y",), CONV),
        ),
        (
            r"RELU_N1_TO_1 on the scale 2 .*cannot be told",
            [tensor("x", 4), tensor("y", 4, scale=2.0, zero_point=127)],
            ("MUL", ("x", "x"), ("y",), {"FusedActivationFunction": "RELU_N1_TO_1"}),
        ),
        (
            r"w: weights are constants of int8 or int4 .*got float32",
            [tensor("x", 4), constant("w", np.ones((2, 4), np.float32)), tensor("y", 2)],
            ("FULLY_CONNECTED", ("x", "w"), ("y",)),
        ),
    ],
)
def test_an_operator_in_a_form_that_is_not_supported(words: str, tensors: Any, operator: Any) -> None:
    with pytest.raises(UnsupportedOperation, match=words):
        read(tensors, operator)


@pytest.mark.parametrize(("half", "factor", "ok"), [(False, 40, True), (False, 41, False), (True, 41, True)])
def test_images_are_repeated_only_where_float32_does(half: bool, factor: int, ok: bool) -> None:
    tensors = [tensor("x", 3, 1, 1), whole("s", 3 * factor, factor), tensor("y", 3 * factor, factor, 1)]
    operator = ("RESIZE_NEAREST_NEIGHBOR", ("x", "s"), ("y",), {"HalfPixelCenters": half})
    if ok:
        op = read(tensors, operator)["y"].op
        assert isinstance(op, int_ops.UpsampleNearest2d)
        assert op.factor == (factor, factor)
    else:
        with pytest.raises(UnsupportedOperation, match="does not repeat each row and column alike"):
            read(tensors, operator)


def test_an_operator_that_is_not_supported_is_named_with_those_that_are() -> None:
    data = file([tensor("x", 4), tensor("y", 4)], ("RELU", ("x",), ("y",)))
    number = data.rindex(b"\x13\x00\x00\x00")  # RELU is 19, ELU 111
    with pytest.raises(UnsupportedOperation, match=r"ELU for y is not supported\. Supported are ADD, .*TRANSPOSE\.$"):
        read_tflite_bytes(data[:number] + b"\x6f\x00\x00\x00" + data[number + 4 :])
    assert {"CONV_2D", "MEAN", "SOFTMAX"} < set(SUPPORTED)


@pytest.mark.parametrize(
    ("words", "tensors", "operator"),
    [
        (
            r"y takes z, which is not computed before",
            [tensor("x", 4), tensor("z", 4), tensor("y", 4)],
            ("RELU", ("z",), ("y",)),
        ),
        (r"x is computed twice, or is an input", [tensor("x", 4), tensor("y", 4)], ("RELU", ("x",), ("x",))),
        (
            r"y is an output, but nothing computes it",
            [tensor("x", 4), tensor("y", 4), tensor("z", 4)],
            ("RELU", ("x",), ("z",)),
        ),
        (
            r"y has the shape \[2, 4\]: .*batch of 1",
            [tensor("x", 4), FileTensor("y", (2, 4), "int8", 0.5)],
            ("RELU", ("x",), ("y",)),
        ),
        (r"y is int8 without a scale", [tensor("x", 4), FileTensor("y", (1, 4), "int8")], ("RELU", ("x",), ("y",))),
        (
            r"y has the zero point 200, outside -128..127",
            [tensor("x", 4), tensor("y", 4, zero_point=200)],
            ("RELU", ("x",), ("y",)),
        ),
        (r"scale must be finite", [tensor("x", 4), tensor("y", 4, scale=np.nan)], ("RELU", ("x",), ("y",))),
        (
            r"its output has shape \(5,\) .*but \(4,\)|by its inputs",
            [tensor("x", 5), tensor("y", 4)],
            ("RELU", ("x",), ("y",)),
        ),
        (
            r"w: weights have one scale or one for each of 2 channels",
            [tensor("x", 4), constant("w", np.ones((2, 4), np.int8), scale=np.ones(3)), tensor("y", 2)],
            ("FULLY_CONNECTED", ("x", "w"), ("y",)),
        ),
        (
            r"RESHAPE to \[1, 5\] does not give y its shape",
            [tensor("x", 4), whole("s", 1, 5), tensor("y", 4)],
            ("RESHAPE", ("x", "s"), ("y",)),
        ),
        (
            r"BATCH_MATMUL for y: \[1, 3, 4\] and \[1, 3, 4\] do not give \[1, 3, 3\]",
            [tensor("x", 3, 4), tensor("y", 3, 3)],
            ("BATCH_MATMUL", ("x", "x"), ("y",)),
        ),
        (
            r"BATCH_MATMUL for y: \[1, 3, 4\] and \[1, 3, 4\] do not give \[1, 4, 3\]",
            [tensor("x", 3, 4), tensor("y", 4, 3)],
            ("BATCH_MATMUL", ("x", "x"), ("y",), {"AdjY": True}),
        ),
        (
            r"c: \[1, 3, 4, 3\] cannot be broadcast to \[1, 2, 3, 3\]",
            [tensor("x", 2, 3, 4), constant("c", np.ones((1, 3, 4, 3), np.int8), scale=0.1), tensor("y", 2, 3, 3)],
            ("BATCH_MATMUL", ("x", "c"), ("y",)),
        ),
        (
            r"MEAN for y gives \[2\], but the shape \[4\] is declared",
            [tensor("x", 4, 2), whole("a", 1), tensor("y", 4)],
            ("MEAN", ("x", "a"), ("y",), {"KeepDims": False}),
        ),
        (r"an image \[4\] cannot become \[5\]", [tensor("x", 4), tensor("y", 5)], ("RESHAPE", ("x",), ("y",))),
        (
            r"stride of at least 1, got .*stride \(1, 0\)",
            [tensor("x", 4, 4, 2), weights("w", 2, 1, 1, 2), tensor("y", 4, 4, 2)],
            ("CONV_2D", ("x", "w"), ("y",), CONV | {"StrideW": 0}),
        ),
        (
            r"MAX_POOL_2D for y keeps type, scale and zero point",
            [tensor("x", 4, 4, 2), tensor("y", 3, 3, 2, scale=0.25)],
            ("MAX_POOL_2D", ("x",), ("y",), POOL),
        ),
        (r"LOGISTIC puts out numbers of scale 1/256", [tensor("x", 4), tensor("y", 4)], ("LOGISTIC", ("x",), ("y",))),
        (
            r"int32 of shape \(2,\) takes 8 bytes, got 12|a bias is a constant int32 \[2\]",
            [tensor("x", 4), weights("w", 2, 4), whole("b", 1, 2, 3), tensor("y", 2)],
            ("FULLY_CONNECTED", ("x", "w", "b"), ("y",)),
        ),
    ],
)
def test_parts_that_do_not_fit(words: str, tensors: Any, operator: Any) -> None:
    with pytest.raises(ModelError, match=words):
        read(tensors, operator)


# Hostile files

SMALL = file(
    [
        tensor("x", 4, 4, 2),
        weights("w", 3, 2, 2, 2),
        whole("b", 1, 2, 3),
        tensor("y", 4, 4, 3),
        whole("s", -1, 48),
        tensor("z", 48),
    ],
    ("CONV_2D", ("x", "w", "b"), ("y",), CONV | {"FusedActivationFunction": "RELU"}),
    ("RESHAPE", ("y", "s"), ("z",)),
    outputs=("z",),
)


def loads_or_says_why(data: bytes) -> bool:
    """Whether the file is loaded; it may only raise a ModelError, and takes less than two seconds."""
    before, said = time.process_time(), ""
    try:
        read_tflite_bytes(data, "file.tflite")
    except ModelError as error:
        said = str(error)
    assert time.process_time() - before < 2
    assert not said or said.startswith("file.tflite")
    return not said


def test_a_file_cut_off_anywhere_is_refused() -> None:
    assert loads_or_says_why(SMALL)
    assert not any(loads_or_says_why(SMALL[:length]) for length in range(0, len(SMALL) - 8))


def test_no_four_bytes_can_do_harm() -> None:
    wild = [0, 1, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0, len(SMALL) - 4, len(SMALL), 1 << 20]
    loaded = sum(
        loads_or_says_why(SMALL[:at] + value.to_bytes(4, "little") + SMALL[at + 4 :])
        for at in range(0, len(SMALL) - 4, 4)
        for value in wild
    )
    assert 0 < loaded < len(SMALL) // 4 * len(wild)  # numbers of weights may be anything


def test_random_damage_is_refused_or_harmless() -> None:
    rng = np.random.default_rng(5)
    for _ in range(1500):
        data = bytearray(SMALL)
        for at in rng.integers(0, len(data), int(rng.integers(1, 12))):
            data[at] = int(rng.integers(256))
        loads_or_says_why(bytes(data))


def chain(count: int, code: str, shape: tuple[int, ...], options: Any, *extra: FileTensor) -> bytes:
    names = [f"t{i}" for i in range(count + 1)]
    steps = [(code, (a, *(t.name for t in extra)), (b,), options) for a, b in pairwise(names)]
    return file([*(tensor(n, *shape) for n in names), *extra], *steps, inputs=names[:1], outputs=names[-1:])


@pytest.mark.parametrize(
    ("words", "make"),
    [
        (
            "uses its constants again and again",
            lambda: chain(1900, "FULLY_CONNECTED", (400,), {}, weights("w", 400, 400)),
        ),
        (
            "uses its constants again and again",
            lambda: chain(
                900, "BATCH_MATMUL", (64, 4, 128), {}, constant("c", np.ones((128, 128), np.int8), scale=0.5)
            ),
        ),
        (
            "uses its constants again and again",
            lambda: chain(1900, "ADD", (512, 512, 32), {}, constant("c", np.ones(1, np.int8), scale=0.5)),
        ),
        (
            "windows far too large",
            lambda: chain(1900, "MAX_POOL_2D", (2**20, 1, 1), POOL | {"Padding": "SAME", "FilterWidth": 2**15}),
        ),
        ("A list in it has 3,001 entries", lambda: chain(3001, "RELU", (4,), {})),
        (
            "3,000 nodes|more than 4,000 nodes|inputs and outputs; 6,000 are read",
            lambda: file(
                [tensor("x", 3, 3, 3), tensor("y", 450, 3, 3)],
                *[("CONCATENATION", ("x",) * 150, ("y",), {"Axis": 1})] * 60,
            ),
        ),
        (
            "has 300 inputs or outputs",
            lambda: file([tensor("x", 3), tensor("y", 900)], ("CONCATENATION", ("x",) * 300, ("y",), {"Axis": 1})),
        ),
        (
            "tensor of shape .* is too large",
            lambda: file([tensor("x", 2**10, 2**10, 2**10), tensor("y", 4)], ("RELU", ("x",), ("y",))),
        ),
        (
            "window and stride|window \\(2147483647",
            lambda: chain(1, "MAX_POOL_2D", (9, 9, 1), POOL | {"FilterHeight": 2**31 - 1}),
        ),
    ],
)
def test_a_file_that_asks_for_too_much_is_refused_at_once(words: str, make: Any) -> None:
    data = make()
    before = time.process_time()
    with pytest.raises(ModelError, match=words):
        read_tflite_bytes(data)
    assert time.process_time() - before < 2


def test_a_file_that_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Cannot read .*none\.tflite: No such file"):
        read_tflite(tmp_path / "none.tflite")
    with pytest.raises(ModelError, match=r"is not an ordinary file\. Give the path of a \.tflite file"):
        read_tflite(tmp_path)  # nor is a pipe opened, from which nothing may ever come
    (tmp_path / "text.tflite").write_text("this is no network at all")
    with pytest.raises(
        ModelError, match=r"text\.tflite does not hold a sound TFLite network\. It does not have the mark 'TFL3'"
    ):
        read_tflite(tmp_path / "text.tflite")
