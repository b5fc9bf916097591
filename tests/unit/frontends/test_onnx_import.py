"""What `read_onnx` makes of files in the formats QOperator and QDQ. That it computes as onnxruntime does: tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from parity.onnxruntime.cases import Model

from labkit.errors import LabkitError, ModelError, UnsupportedOperation
from labkit.frontends.onnx import read_onnx
from labkit.frontends.onnx.importing import IN_FLOAT
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet, load


class File(Model):
    """A model with QuantizeLinear and DequantizeLinear at hand; every scale is 1/8 and every zero point 10 if not given."""

    def real(self, name: str, *shape: int) -> str:
        return self.entry(name, np.zeros((1, *shape), np.float32))

    def grid(self, name: str, scale: Any = 0.125, zero_point: Any = 10, dtype: Any = np.uint8) -> list[str]:
        return [
            self.constant(f"{name}_scale", scale, np.float32),
            self.constant(f"{name}_zero", np.broadcast_to(zero_point, np.shape(scale)), dtype),
        ]

    def quantize(self, source: str, name: str, **grid: Any) -> str:
        return self.node("QuantizeLinear", [source, *self.grid(name, **grid)], name)

    def both(self, source: str, name: str, **grid: Any) -> str:
        terms = self.grid(name, **grid)
        self.node("QuantizeLinear", [source, *terms], name)
        return self.node("DequantizeLinear", [name, *terms], f"{name}_real")

    def weights(self, values: Any, scale: Any = 0.5, name: str = "w", dtype: Any = np.int8, **attributes: Any) -> str:
        terms = [self.constant(name, values, dtype), *self.grid(name, scale, 0, dtype)]
        return self.node("DequantizeLinear", terms, f"{name}_real", **attributes)

    def read(self, folder: Path, **outputs: Any) -> IntGraph:
        self.save(folder / "net.onnx", outputs or {"y": np.float32})
        return read_onnx(folder / "net.onnx")


def ops(graph: IntGraph) -> list[str]:
    return [type(node.op).__name__ for node in graph]


def refused(
    file: File, folder: Path, match: str, error: type[LabkitError] = UnsupportedOperation, **outputs: Any
) -> None:
    with pytest.raises(error, match=match):
        file.read(folder, **outputs)


# QDQ


def test_relu_becomes_the_clamp_and_names_are_carried(tmp_path: Path) -> None:
    file = File()
    x = file.both(file.real("image", 2, 4, 4), "image_q", scale=0.25)
    file.node(
        "Conv", [x, file.weights(np.ones((3, 2, 3, 3)), scale=[0.5, 1, 2], axis=0)], "/conv/out", pads=[1, 0, 1, 2]
    )
    file.node("Relu", ["/conv/out"], "/relu/out")
    file.both("/relu/out", "q", scale=0.5)
    file.node("Identity", ["q_real"], "y")
    graph = file.read(tmp_path)
    assert ops(graph) == ["Quantize", "Conv2d", "Dequantize"]
    assert (graph.inputs, graph.outputs) == (("image",), ("y",))
    conv = graph["q"].op
    assert isinstance(conv, int_ops.Conv2d)
    assert conv.requantizer.clamp == (10, 255)
    assert conv.padding == ((1, 1), (0, 2))
    assert np.array_equal(conv.requantizer.multiplier.to_real(), [0.25, 0.5, 1])  # type: ignore[union-attr]
    assert set(graph["q"].carries) >= {"conv.out", "relu.out", "q_real"}
    assert set(graph["image"].carries) == {"image_q", "image_q_real"}
    assert graph.notes[IN_FLOAT] == ["the /conv/out"]  # the grid has numbers below real 0, so that the Relu stays
    assert graph.notes["source"] == {"file": "net.onnx", "format": "onnx", "opset": 17}


@pytest.mark.parametrize(
    ("low", "high", "clamp"), [(0, 6, (10, 58)), (-1, 1, (2, 18)), (None, 3, (0, 34)), (-0.5, None, (6, 255))]
)
def test_clip_becomes_the_clamp(low: float | None, high: float | None, clamp: tuple[int, int], tmp_path: Path) -> None:
    file = File()
    x = file.both(file.real("x", 4), "xq")
    ends = ["" if end is None else file.constant(name, end, np.float32) for name, end in (("low", low), ("high", high))]
    file.node("MatMul", [x, file.weights(np.ones((4, 2)), axis=1)], "c")
    file.node("Clip", ["c", *ends], "d")
    file.both("d", "q")
    file.node("Identity", ["q_real"], "y")
    linear = file.read(tmp_path)["q"].op
    assert isinstance(linear, int_ops.Linear)
    assert linear.requantizer.clamp == clamp


def linear_of(file: File, folder: Path) -> int_ops.Linear:
    file.both("c", "q")
    file.node("Identity", ["q_real"], "y")
    found = file.read(folder)["q"].op
    assert isinstance(found, int_ops.Linear)
    return found


VALUES = np.arange(-6, 6).reshape(3, 4)


def test_gemm_and_its_biases(tmp_path: Path) -> None:
    for i, kind in enumerate(("none", "integers", "reals")):
        file = File()
        x = file.both(file.real("x", 4), "xq", scale=0.25)
        inputs = [x, file.weights(VALUES, scale=[0.5, 1, 2], axis=0)]
        if kind == "integers":
            terms = [file.constant("bias", [1, -2, 3], np.int32), *file.grid("bias", [0.125, 0.25, 0.5], 0, np.int32)]
            inputs.append(file.node("DequantizeLinear", terms, "bias_real", axis=0))
        elif kind == "reals":
            inputs.append(
                file.constant("bias", [0.2, -0.5, 0.75], np.float32)
            )  # 1.6, -2 and the tie 1.5 at their scales
        file.node("Gemm", inputs, "c", transB=1)
        linear = linear_of(file, tmp_path)
        assert np.array_equal(linear.weight.values, VALUES)
        assert linear.bias.tolist() == ([0, 0, 0], [1, -2, 3], [2, -2, 2])[i]


def test_weights_in_other_forms_are_the_same(tmp_path: Path) -> None:
    scales = np.array([0.5, 1, 2], np.float32)
    found = []
    for form in ("matmul", "transposed", "real", "per tensor", "four bits"):
        file = File()
        x = file.both(file.real("x", 4), "xq")
        if form == "matmul":
            w = file.weights(VALUES.T, scale=scales, axis=1)
        elif form == "transposed":
            w = file.node("Transpose", [file.weights(VALUES, scale=scales, axis=0)], "wt", perm=[1, 0])
        elif form == "real":
            terms = file.grid("w", scales, 0, np.int8)
            real = file.constant("weight", VALUES.T * scales + 0.01, np.float32)
            file.node("QuantizeLinear", [real, *terms], "wq", axis=1)
            w = file.node("DequantizeLinear", ["wq", *terms], "w_real", axis=1)
        elif form == "per tensor":
            w = file.weights(VALUES.T, scale=0.5)
        else:
            file.opset = 21
            w = file.weights(VALUES.T, scale=scales, axis=1, dtype=ml_dtypes.int4)
        file.node("MatMul", [x, w], "c")
        found.append(linear_of(file, tmp_path))
        assert np.array_equal(found[-1].weight.values, VALUES), form
        assert found[-1].weight.spec.bits == (4 if form == "four bits" else 8)
    assert all(np.array_equal(found[i].weight.params.scale, scales) for i in (0, 1, 2, 4))
    assert found[3].weight.params.scale.shape == ()


def test_changes_of_scale_and_what_keeps_it(tmp_path: Path) -> None:
    file = File()
    x = file.both(file.real("x", 2, 4, 4), "xq")
    a = file.node("MaxPool", [x], "a", kernel_shape=[2, 2], strides=[2, 2])
    b = file.both(a, "same")  # the scale of x
    c = file.both(b, "other", scale=0.5)
    file.both(c, "y_q", scale=0.5, dtype=np.int8, zero_point=-3)
    file.node("Identity", ["y_q_real"], "y")
    graph = file.read(tmp_path)
    assert ops(graph) == ["Quantize", "MaxPool2d", "Requantize", "Requantize", "Dequantize"]
    assert "same" in graph["a"].carries
    assert graph["y_q"].output.dtype == np.int8


def test_mean_over_height_and_width(tmp_path: Path) -> None:
    for keeps, shape in ((1, (2, 1, 1)), (0, (2,))):
        file = File()
        x = file.both(file.real("x", 2, 4, 4), "xq")
        file.node("ReduceMean", [x], "m", axes=[-1, -2], keepdims=keeps)
        file.both("m", "q")
        file.node("Identity", ["q_real"], "y")
        graph = file.read(tmp_path)
        assert graph["q"].output.shape == shape
        assert graph.notes[IN_FLOAT] == ["the m"]
        assert sum(isinstance(node.op, int_ops.AveragePool2d) for node in graph) == 1


def test_difference_has_a_negative_multiplier_and_no_rule_of_onnxruntime(tmp_path: Path) -> None:
    file = File()
    a, b = file.both(file.real("a", 3), "aq"), file.both(file.real("b", 3), "bq", scale=0.5)
    file.both(file.node("Sub", [a, b], "c"), "q")
    file.node("Identity", ["q_real"], "y")
    graph = file.read(tmp_path)
    op = graph["q"].op
    assert isinstance(op, int_ops.Add)
    assert op.multipliers[0] > 0 > op.multipliers[1]
    x = np.array([[1.0, 2, 3]], np.float32)
    assert IntegerNet(graph).run({"a": x, "b": x / 2}, kernels="reference").tolist() == [[0.5, 1, 1.5]]
    with pytest.raises(UnsupportedOperation, match="no subtraction"):
        load(tmp_path / "net.onnx")


def test_integers_between_quantize_and_dequantize(tmp_path: Path) -> None:
    file = File()
    x = file.quantize(file.real("x", 2, 2), "q")
    file.node("Clip", [x, file.constant("low", 3, np.uint8), file.constant("high", 20, np.uint8)], "c")
    file.node("Transpose", ["c"], "t", perm=[0, 2, 1])
    file.node("DequantizeLinear", ["t", "q_scale", "q_zero"], "y")
    net = IntegerNet(file.read(tmp_path))
    x_values = np.array([[[-10, 0], [0.5, 10]]], np.float32)
    for kernels in ("reference", "numba"):
        assert net.trace(x_values, kernels)["c"].tolist() == [[[3, 10], [14, 20]]]
        assert net.run(x_values, kernels).tolist() == [[[-0.875, 0.5], [0, 1.25]]]


def test_one_tensor_leaves_as_integers_and_as_real_numbers(tmp_path: Path) -> None:
    file = File()
    terms = file.grid("q")
    file.node("QuantizeLinear", [file.real("x", 3), *terms], "q")
    file.node("DequantizeLinear", ["q", *terms], "r")
    file.node("Relu", ["q"], "s")
    graph = file.read(tmp_path, q=np.uint8, r=np.float32, s=np.uint8)
    assert graph.outputs == ("q", "r", "s")
    outputs = IntegerNet(graph).run(np.ones((1, 3), np.float32), kernels="reference")
    assert [outputs[name].tolist()[0][0] for name in "qrs"] == [18, 1.0, 18]


# QOperator


def integer_input(file: File, *shape: int, dtype: Any = np.uint8) -> str:
    return file.entry("x", np.zeros((1, *shape), dtype))


def test_integer_input_takes_its_scale_from_who_reads_it(tmp_path: Path) -> None:
    file = File()
    x = integer_input(file, 4, 4, 4)
    file.node("MaxPool", [x], "m", kernel_shape=[2, 2])
    file.node("Relu", ["m"], "r")
    file.node("DequantizeLinear", ["r", *file.grid("x", 0.25, 7)], "y")
    graph = file.read(tmp_path)
    assert isinstance(graph["x"].op, int_ops.Input)
    _, params = graph["x"].output.quantized
    assert (float(params.scale), int(params.zero_point)) == (0.25, 7)
    assert graph.inputs == ("x",)


def test_names_with_slashes_are_found_in_a_trace(tmp_path: Path) -> None:
    file = File()
    x = integer_input(file, 2, 4)
    file.node("Reshape", [x, file.constant("shape", [0, 4, 2], np.int64)], "/a/b:0")
    file.node("Unsqueeze", ["/a/b:0", file.constant("axes", [3], np.int64)], "/a/b_0")
    file.node("Squeeze", ["/a/b_0", "axes"], "y")
    graph = file.read(tmp_path, y=np.uint8)
    assert [node.output.shape for node in graph] == [(2, 4), (4, 2), (4, 2, 1), (4, 2)]
    trace = IntegerNet(graph).trace(np.arange(8, dtype=np.uint8).reshape(1, 2, 4), "reference")
    assert list(trace) == ["x", "a.b_0", "a.b_0_2", "y"]


def test_argmax_of_integers(tmp_path: Path) -> None:
    file = File()
    file.node("ArgMax", [integer_input(file, 5)], "y", axis=-1, keepdims=0)
    net = IntegerNet(file.read(tmp_path, y=np.int64))
    assert net.run(np.array([[1, 9, 3, 9, 0]], np.uint8), "reference").tolist() == [1]


def test_readers_must_agree_with_the_writer(tmp_path: Path) -> None:
    file = File()
    terms = [*file.grid("x"), *file.grid("w", 0.5, 0, np.int8), *file.grid("y")]
    file.node(
        "QLinearMatMul", [integer_input(file, 2), *terms[:2], file.constant("w", np.eye(2), np.int8), *terms[2:]], "y"
    )
    file.node("DequantizeLinear", ["y", *file.grid("z", 0.25)], "z")
    refused(file, tmp_path, r"the z \(DequantizeLinear\): it reads 'y' as u8, scale 0.25", z=np.float32)


def test_constant_operands(tmp_path: Path) -> None:
    """They become nodes of their own; one that is repeated and stands first is summed in another order by onnxruntime."""
    for first, noted in ((True, True), (False, False)):
        file = File()
        terms = [integer_input(file, 3, 2, 2), *file.grid("x")]
        constant = [file.constant("c", np.array([20, 30, 40]).reshape(1, 3, 1, 1), np.uint8), *file.grid("c", 0.25)]
        both = constant + terms if first else terms + constant
        file.node("QLinearAdd", [*both, *file.grid("y")], "y", "com.microsoft")
        graph = file.read(tmp_path, y=np.uint8)
        assert sorted(ops(graph)) == ["Add", "Constant", "Input"]
        assert (graph.notes.get(IN_FLOAT) == ["the y"]) is noted
        x = np.full((2, 3, 2, 2), 12, np.uint8)
        assert IntegerNet(graph).run(x, "reference")[1, :, 0, 0].tolist() == [32, 52, 72]


# What is refused


def test_float_islands_name_the_node_and_the_way_out(tmp_path: Path) -> None:
    for kind, count in (("Erf", 1), ("Sigmoid", 1), ("Conv", 2), ("Add", 2)):
        file = File()
        file.both(file.real("other", 4), "q")  # else it is a float network
        file.node(kind, [file.real("x", 2, 4, 4), *["x"] * (count - 1)], "y")
        refused(file, tmp_path, rf"net.onnx: the y \({kind}\): .* `labkit run` evaluates it node by node")
    file = File()
    file.both(file.node("Relu", [file.both(file.real("x", 4), "q")], "r"), "s")
    file.node("MatMul", ["r", file.weights(np.eye(4))], "y")
    refused(file, tmp_path, "'r' does not come from a DequantizeLinear")
    file = File()
    file.node("MatMul", [file.both(file.real("x", 4), "q"), file.weights(np.eye(4))], "y")
    refused(file, tmp_path, "'y' holds real numbers that do not stand for integers")


@pytest.mark.parametrize("kind", ["ConvInteger", "MatMulInteger"])
def test_integers_without_scales_are_evaluated_node_by_node(kind: str, tmp_path: Path) -> None:
    file = File()
    weight = np.ones((2, 2, 1, 1) if kind == "ConvInteger" else (2, 2))
    shape = (2, 2, 2) if kind == "ConvInteger" else (2,)
    file.node(kind, [integer_input(file, *shape), file.constant("w", weight, np.uint8)], "y")
    refused(file, tmp_path, rf"the y \({kind}\): its operator has no integer form here.*`labkit run`", y=np.int32)


def matmul(file: File, weights: str) -> None:
    file.both(file.node("MatMul", [file.both(file.real("x", 4), "xq"), weights], "c"), "q")
    file.node("Identity", ["q_real"], "y")


def test_weights_that_labkit_has_not(tmp_path: Path) -> None:
    file = File()
    matmul(file, file.weights(VALUES.T, scale=[1, 2, 3, 4], axis=0))
    refused(file, tmp_path, "scales along axis 1, not one for each output")
    file = File()
    matmul(file, file.weights(VALUES.T, scale=[1, 2], axis=1))
    refused(file, tmp_path, r"shape \(4, 3\), scales \(2,\)", ModelError)
    file = File()
    matmul(file, file.weights(VALUES.T, dtype=np.int16))
    refused(file, tmp_path, "holds int16")
    file = File()
    matmul(file, file.weights(VALUES.T, scale=0.0))
    refused(file, tmp_path, "scale must be finite", ModelError)


def test_bias_of_another_scale(tmp_path: Path) -> None:
    file = File()
    x = file.both(file.real("x", 4), "xq", scale=0.25)
    terms = [file.constant("bias", [1, 2, 3], np.int32), *file.grid("bias", 0.25, 0, np.int32)]
    bias = file.node("DequantizeLinear", terms, "bias_real")
    file.both(file.node("Gemm", [x, file.weights(VALUES), bias], "c", transB=1), "q")
    file.node("Identity", ["q_real"], "y")
    refused(file, tmp_path, "its bias has the scale 0.25, not 0.125")


def test_zeros_are_a_bias_at_any_scale(tmp_path: Path) -> None:
    file = File()
    x = file.both(file.real("x", 4), "xq")
    terms = [file.constant("bias", np.zeros(3), np.int32), *file.grid("bias", 0.25, 0, np.int32)]
    bias = file.node("DequantizeLinear", terms, "bias_real")
    file.node("Gemm", [x, file.weights(VALUES), bias], "c", transB=1)
    assert linear_of(file, tmp_path).bias.tolist() == [0, 0, 0]
    assert read_onnx(tmp_path / "net.onnx").notes[IN_FLOAT] == ["the c"]  # onnxruntime does not fuse it


def qdq(
    folder: Path, kind: str, shape: tuple[int, ...], extra: tuple[NDArray[Any], ...] = (), **attributes: Any
) -> IntGraph:
    file = File()
    more = [file.constant(f"k{i}", values) for i, values in enumerate(extra)]
    file.both(file.node(kind, [file.both(file.real("x", *shape), "xq"), *more], "c", **attributes), "q")
    file.node("Identity", ["q_real"], "y")
    return file.read(folder)


@pytest.mark.parametrize(
    ("kind", "extra", "attributes", "match"),
    [
        ("Reshape", ([2, 16],), {}, "each image must stay by itself"),
        ("Reshape", ([1, 3, -1],), {}, "cannot become"),
        ("Transpose", (), {"perm": [1, 0, 2, 3]}, "moves the batch axis"),
        ("Flatten", (), {"axis": 2}, "flattens from axis 2"),
        ("Pad", ([0, 0, 0, 0, 0, 0, 1, 1], 2.0), {}, "not real 0"),
        ("Pad", ([0, 0, 0, 0, 0, 0, -1, 0],), {}, "only rows and columns are added"),
        ("Pad", ([0, 0, 0, 0, 0, 0, 1, 1],), {"mode": "edge"}, "edge"),
        ("MaxPool", (), {"kernel_shape": [2, 2], "pads": [300, 0, 0, 0]}, "too large"),
        ("MaxPool", (), {"kernel_shape": [2, 2], "pads": [5, 5, 5, 5]}, "padding"),
        ("MaxPool", (), {"kernel_shape": [2]}, "2 whole numbers"),
        ("AveragePool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, "partial"),
        ("ReduceMean", (), {"axes": [1]}, "height and width together"),
        ("Softmax", (), {"axis": 0}, "holds the images"),
        ("Squeeze", ([1],), {}, "takes the axes"),
        ("Cast", (), {"to": 10}, "changes the type"),
    ],
)
def test_what_a_node_may_not_do(
    kind: str, extra: tuple[Any, ...], attributes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    arrays = tuple(np.array(values, np.float32 if isinstance(values, float) else np.int64) for values in extra)
    with pytest.raises(ModelError, match=match) as caught:
        qdq(tmp_path, kind, (2, 4, 4), arrays, **attributes)
    assert "net.onnx" in str(caught.value)


def test_images_are_repeated_only_where_that_is_meant(tmp_path: Path) -> None:
    factors = np.array([1, 1, 2, 3], np.float32)
    for mode, nearest, ok in (
        ("asymmetric", "floor", True),
        ("half_pixel", "round_prefer_floor", True),
        ("pytorch_half_pixel", "round_prefer_ceil", True),
        ("asymmetric", "ceil", False),
        ("asymmetric", "round_prefer_ceil", False),
        ("align_corners", "floor", False),
        ("half_pixel", "floor", False),
    ):
        options = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": nearest}
        file = File()
        inputs = [file.both(file.real("x", 2, 3, 3), "xq"), "", file.constant("factors", factors)]
        file.both(file.node("Resize", inputs, "c", **options), "q")
        file.node("Identity", ["q_real"], "y")
        if ok:
            assert file.read(tmp_path)["c"].output.shape == (2, 6, 9)
        else:
            refused(file, tmp_path, "does not repeat each row and column alike")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
        ({"coordinate_transformation_mode": "asymmetric", "keep_aspect_ratio_policy": "not_larger"}, "not_larger"),
    ],
)
def test_a_resize_that_crops_or_keeps_the_aspect_is_refused(
    options: dict[str, str], match: str, tmp_path: Path
) -> None:
    file = File()
    file.opset = 19
    inputs = [file.both(file.real("x", 2, 3, 3), "xq"), "", "", file.constant("sizes", [1, 2, 3, 3], np.int64)]
    file.both(file.node("Resize", inputs, "c", nearest_mode="floor", **options), "q")
    file.node("Identity", ["q_real"], "y")
    refused(file, tmp_path, match)


def test_inputs_need_known_sizes_and_types(tmp_path: Path) -> None:
    file = File()
    file.node("Relu", [integer_input(file, 3, dtype=np.int32)], "y")
    refused(file, tmp_path, "holds int32", y=np.int32)
    file = File()
    file.node("Relu", [integer_input(file, 3)], "y")
    file.inputs[0].type.tensor_type.shape.dim[1].dim_param = "unknown"
    refused(file, tmp_path, "all sizes but the first", ModelError, y=np.uint8)
    file = File()
    file.both(file.real("x", 3), "q")
    file.both("x", "r", scale=0.5)
    file.node("Add", ["q_real", "r_real"], "y")
    refused(file, tmp_path, "quantized twice, to different grids")


@pytest.mark.parametrize("kind", ["weights", "channels", "repeated", "parts", "quantized"])
def test_constants_are_not_used_without_end(kind: str, tmp_path: Path) -> None:
    file, many = File(), 2**20
    x = file.both(file.real("x", *((4, 512, 512) if kind == "repeated" else (1,))), "xq")
    terms = file.grid("shared", 0.5, 0, np.uint8)
    if kind == "weights":
        taken, operator = file.weights(np.ones((1, many))), "MatMul"
    elif kind == "channels":
        taken, operator = file.weights(np.ones((1, many)), np.full(many, 0.5, np.float32), axis=1), "MatMul"
    else:
        taken, operator = file.weights(np.ones((4, 1, 1))), "Add"
    for i in range(60):
        if kind == "quantized":
            real = "real" if i else file.constant("real", np.ones(many), np.float32)
            file.node("QuantizeLinear", [real, *terms], f"c{i}")
        elif kind != "parts":
            file.node("QuantizeLinear", [file.node(operator, [x, taken], f"c{i}"), *terms], f"q{i}")
    if kind == "parts":
        x = file.node("Reshape", [x, file.constant("to", [0, 1, 1])], "r")
        file.node("Concat", [x] * 10_000, "c", axis=1)
    file.node("Identity", [x], "y")
    refused(file, tmp_path, "uses its constants again and again", ModelError)


def test_a_float_network_is_called_so(tmp_path: Path) -> None:
    file = File()
    file.node("Relu", [file.real("x", 4)], "y")
    refused(file, tmp_path, "It is a float network: nothing in it is quantized.*labkit quantize")


def test_dynamic_quantization_is_called_so(tmp_path: Path) -> None:
    file = File()
    file.node("Reshape", [file.constant("b", np.ones(4), np.float32), file.constant("to", [1, 4])], "bias")
    file.node("DynamicQuantizeLinear", [file.real("x", 4)], "y")
    refused(
        file,
        tmp_path,
        r"the y \(DynamicQuantizeLinear\): it takes a scale of its own from each.*`labkit run`",
        y=np.uint8,
    )


def test_many_inputs_are_refused(tmp_path: Path) -> None:
    file = File()
    for i in range(201):
        file.both(file.real(f"x{i}", 1), f"q{i}")
    file.node("Identity", ["q0_real"], "y")
    refused(file, tmp_path, "201 inputs; 200 are allowed", ModelError)


# Products of two activations


def two_factors(a: NDArray[Any], b: NDArray[Any]) -> File:
    """A file whose ``y`` are the matrix products of the uint8 inputs a and b; scales 1/8, 1/8 and 1, zero points 10."""
    file = File()
    terms = [file.entry("a", a), *file.grid("a"), file.entry("b", b), *file.grid("b")]
    file.node("QLinearMatMul", [*terms, *file.grid("y", scale=1.0)], "y")
    return file


@pytest.mark.parametrize("lead", [(3,), (3, 2)], ids=["matrices", "heads"])
def test_matrices_of_two_activations_are_multiplied_image_by_image(lead: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 30, (*lead, *shape)).astype(np.uint8) for shape in ((4, 5), (5, 6)))
    graph = two_factors(a, b).read(tmp_path, y=np.uint8)
    assert ops(graph).count("MatMul") == 1
    sums = (a.astype(int) - 10) @ (b.astype(int) - 10)
    for kernels in ("reference", "numba"):
        np.testing.assert_array_equal(IntegerNet(graph).run({"a": a, "b": b}, kernels=kernels), ((sums + 32) >> 6) + 10)


@pytest.mark.parametrize(("a", "b"), [((2, 4, 5), (2, 3, 5, 4)), ((2, 1, 4, 5), (2, 3, 5, 4)), ((2, 4, 5), (2, 4, 5))])
def test_a_broadcast_or_a_batch_in_a_product_is_refused(a: tuple[int, ...], b: tuple[int, ...], tmp_path: Path) -> None:
    file = two_factors(np.zeros(a, np.uint8), np.zeros(b, np.uint8))
    refused(file, tmp_path, r"labkit multiplies \(N, B, m, k\) and \(N, B, k, n\)", y=np.uint8)
