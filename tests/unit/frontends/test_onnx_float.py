"""A float ONNX file gives the integers of the module that it was written from; its operators, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")

from unit.frontends.onnx_float_files import OPERATORS, node, real, small_model, write_graph  # noqa: E402

import labkit  # noqa: E402
from labkit.benchmark.onnx_models import float_model  # noqa: E402
from labkit.errors import InputError, LabkitError, ModelError, UnsupportedOperation  # noqa: E402
from labkit.frontends.float_run import run_float  # noqa: E402
from labkit.frontends.onnx.evaluate import OnnxNet  # noqa: E402
from labkit.frontends.onnx.float_graph import read_float_onnx  # noqa: E402
from labkit.frontends.onnx.float_graph_module import module_of, read_module  # noqa: E402
from labkit.frontends.torch_fx import from_torch  # noqa: E402
from labkit.graph import float_ops  # noqa: E402
from labkit.graph.ir import FloatGraph, IntGraph  # noqa: E402
from labkit.graph.passes import simplify  # noqa: E402

Array = NDArray[Any]
IMAGE = (3, 32, 32)


def saved(model: Any, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def contents(value: Any) -> Any:
    """``value`` with every array as its type, shape and bytes, so that two of them can be compared whole."""
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, tuple | list):
        return [contents(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value).__name__, {name: contents(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def without_names(graph: IntGraph | FloatGraph) -> list[Any]:
    """Everything that ``graph`` computes: operations, tensors, and which node takes which."""
    places = {one.name: i for i, one in enumerate(graph)}
    nodes = [
        (contents(one.op), contents(getattr(one, "output", None)), [places[name] for name in one.inputs])
        for one in graph
    ]
    return [*nodes, [places[name] for name in graph.outputs]]


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return real(24, *IMAGE)


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
@pytest.mark.parametrize("bits", [(8, 8), (4, 8)])
def test_same_integers_as_the_module(name: str, bits: tuple[int, int], tmp_path: Path, images: Array) -> None:
    module = labkit.models.load(name, data="mnist5k")
    expected = labkit.quantize(module, images, *bits)
    graph = from_torch(module, IMAGE)
    folded = saved(float_model(simplify(graph)), tmp_path)
    for path in (folded, write_graph(graph, tmp_path / "layers.onnx")):
        net = labkit.quantize(path, images, *bits)
        assert without_names(net.graph) == without_names(expected.graph), path.name
        assert np.array_equal(net.run(images), expected.run(images))
        assert net.graph.notes["source"] == path.name
    assert [one.name for one in net.graph] == [one.name for one in expected.graph]  # the paths of the torch module


def test_linear_layers_as_a_product_and_a_sum(tmp_path: Path, images: Array) -> None:
    module = labkit.models.load("lenet-bias", data="mnist5k")
    path = write_graph(from_torch(module, IMAGE), tmp_path / "net.onnx", matmul=True)
    assert {"MatMul", "Add"} <= {one.op_type for one in onnx.load(path).graph.node}
    net, expected = labkit.quantize(path, images), labkit.quantize(module, images)
    assert without_names(net.graph) == without_names(expected.graph)


@pytest.mark.parametrize("batch", [1, 4])
def test_batch_axis_becomes_free(batch: int, tmp_path: Path, images: Array) -> None:
    module = labkit.models.load("lenet", data="mnist5k")
    path = write_graph(from_torch(module, IMAGE), tmp_path / "net.onnx", batch)
    net = labkit.quantize(path, images)
    assert np.array_equal(net.run(images[:7]), labkit.quantize(module, images).run(images[:7]))


def test_graph_itself_can_be_quantized(tmp_path: Path, images: Array) -> None:
    path = write_graph(from_torch(labkit.models.load("lenet", data="mnist5k"), IMAGE), tmp_path / "net.onnx")
    net = labkit.quantize(read_float_onnx(path), images)
    assert without_names(net.graph) == without_names(labkit.quantize(str(path), images).graph)
    with pytest.raises(InputError, match="images have shape"):
        labkit.quantize(read_float_onnx(path), images[..., :31])


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_certificate_from_the_files_module(name: str, tmp_path: Path, images: Array) -> None:
    graph = from_torch(labkit.models.load(name, data="mnist5k"), IMAGE)
    path = write_graph(graph, tmp_path / "net.onnx")
    read = read_float_onnx(path)
    again = from_torch(module_of(read), IMAGE)
    assert [one.name for one in again] == [one.name for one in read]
    assert without_names(again) == without_names(read)
    report = labkit.verify(labkit.quantize(path, images, 4, 8), read_module(path), images)
    assert report.passed, report
    other = write_graph(from_torch(labkit.models.build(name), IMAGE), tmp_path / "other.onnx")
    assert not labkit.verify(labkit.quantize(path, images), read_module(other), images).passed


def test_only_onnx_files_are_taken_by_path(images: Array) -> None:
    with pytest.raises(ModelError, match=r"\.onnx file"):
        labkit.quantize("weights.pth", images)


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str, tmp_path: Path) -> None:
    nodes, constants, shape, expected = OPERATORS[name]
    batch: int | str = 2 if name == "resize by sizes" else "N"
    path = saved(small_model(nodes, constants, (batch, *shape)), tmp_path)
    graph = read_float_onnx(path)
    assert [type(one.op).__name__ for one in graph if not isinstance(one.op, float_ops.Input)] == expected
    x = real(2 if batch == 2 else 5, *shape, seed=7)
    (y,) = run_float(graph, {graph.inputs[0]: x}, only_outputs=True).values()
    wanted = OnnxNet.load(path).run(x)
    assert y.shape == wanted.shape
    assert np.abs(y - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "name", sorted(set(OPERATORS) - {"arg max", "softmax", "normalised pixels", "shape computed in the file"})
)
def test_operator_can_be_quantized(name: str, tmp_path: Path) -> None:
    nodes, constants, shape, _ = OPERATORS[name]
    batch: int | str = 2 if name == "resize by sizes" else "N"
    path = saved(small_model(nodes, constants, (batch, *shape)), tmp_path)
    x = real(64, *shape, seed=8)
    net = labkit.quantize(path, x)
    graph = read_float_onnx(path)
    (wanted,) = run_float(graph, {graph.inputs[0]: x}, only_outputs=True).values()
    step = (wanted.max() - wanted.min()) / 255
    assert np.abs(net.run(x) - wanted).max() < 12 * step  # input, weights and sums round too


def test_epsilon_is_the_decimal_that_was_meant(tmp_path: Path) -> None:
    ones = np.ones(3, np.float32)
    nodes = [node("BatchNormalization", "x,g,b,m,v", epsilon=1e-5)]
    path = saved(small_model(nodes, {"g": ones, "b": ones, "m": ones, "v": ones}), tmp_path)
    op = read_float_onnx(path).nodes[1].op
    assert isinstance(op, float_ops.BatchNorm2d)
    assert op.epsilon == 1e-5  # and not float(np.float32(1e-5))


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "unknown operator": ([node("Elu", "x")], {}, "no integer form"),
    "operator that is only evaluated": ([node("Sigmoid", "x")], {}, "no integer form"),
    "quantized": (
        [node("QuantizeLinear", "x,s", "q"), node("DequantizeLinear", "q,s")],
        {"s": np.float32(1)},
        "quantized already",
    ),
    "batch axis moved": ([node("Transpose", "x", perm=[1, 0, 2, 3])], {}, "mixing images|batch axis"),
    "images mixed": ([node("Reshape", "x,s")], {"s": np.array([1, -1])}, "mixing images"),
    "batch size as a number": ([node("Reshape", "x,s")], {"s": np.array([2, 192])}, "cannot be computed|mixing images"),
    "clip to [-1, 1]": ([node("Clip", "x,a,b")], {"a": np.float32(-1), "b": np.float32(1)}, "ReLU6"),
    "product of two tensors": ([node("MatMul", "x,x")], {}, "flat input"),
    "linear layer on images": ([node("MatMul", "x,w")], {"w": real(8, 4)}, "flat input"),
    "weights that depend on images": ([node("Conv", "x,x")], {}, "mixing images"),
    "padding of ones": ([node("Pad", "x,p,v")], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "v": np.float32(1)}, "zeros"),
    "padding of channels": ([node("Pad", "x,p")], {"p": np.array([0, 1, 0, 0, 0, 0, 0, 0])}, "rows and columns"),
    "pool that does not count padding": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
        "count_include_pad",
    ),
    "mean of channels": ([node("ReduceMean", "x,a")], {"a": np.array([1])}, "height and width"),
    "concat of rows": ([node("Concat", "x,x", axis=2)], {}, "channel axis"),
    "sum of other shapes": ([node("GlobalAveragePool", "x", "g"), node("Add", "x,g")], {}, "one shape"),
    "softmax over the batch": ([node("Softmax", "x", axis=0)], {}, "batch axis"),
    "constant for each pixel": ([node("Mul", "x,c")], {"c": real(8, 8)}, "for each channel"),
    "scale of a flat tensor": (
        [node("Flatten", "x", "f"), node("Mul", "f,c")],
        {"c": np.float32(2)},
        "right after a linear layer",
    ),
    "down-sampling": ([node("Resize", "x,,s")], {"s": np.float32([1, 1, 0.5, 0.5])}, "whole factors"),
    "index that is used": ([node("ArgMax", "x", "a", axis=1), node("Cast", "a", to=1)], {}, "only be an output"),
    "another type": ([node("Cast", "x", to=10)], {}, "float16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    nodes, constants, reason = REFUSED[name]
    with pytest.raises(LabkitError, match=reason) as caught:
        read_float_onnx(saved(small_model(nodes, constants), tmp_path))
    assert "the_" in str(caught.value)  # the node is named


@pytest.mark.parametrize("shape", [("N", 3, "H", "W"), ("N",), ()])
def test_open_image_size_is_refused(shape: tuple[Any, ...], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match="fixed image size|no input with a shape"):
        read_float_onnx(saved(small_model([node("Relu", "x")], {}, shape), tmp_path))


def test_double_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match="float32"):
        read_float_onnx(saved(small_model([node("Relu", "x")], {}, kind=onnx.TensorProto.DOUBLE), tmp_path))


def test_uneven_max_pool_has_no_module_and_can_be_quantized(tmp_path: Path) -> None:
    nodes, constants, shape, _ = OPERATORS["max pool same"]
    path = saved(small_model(nodes, constants, ("N", *shape)), tmp_path)
    with pytest.raises(UnsupportedOperation, match="no layer in torch.nn"):
        read_module(path)
    net = labkit.quantize(path, real(16, *shape))
    assert len(str(net.graph.notes["parameters_sha256"])) == 64
