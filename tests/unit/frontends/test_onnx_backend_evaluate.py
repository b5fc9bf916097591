"""ONNX models evaluated node by node: inputs, traces, bounds, errors; and `labkit run` on such a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402
from unit.frontends.onnx_float_files import node, real, small_model  # noqa: E402

from labkit.cli import main  # noqa: E402
from labkit.errors import InputError, LabkitError, ModelError, UnsupportedOperation  # noqa: E402
from labkit.frontends.onnx.evaluate import OnnxNet  # noqa: E402
from labkit.frontends.onnx.reading import read_proto  # noqa: E402

W = np.random.default_rng(0).integers(-64, 64, (192, 5)).astype(np.int8)


def dynamic() -> Any:
    """A linear layer whose input is quantized while it runs, with a float sigmoid after it."""
    nodes = [
        node("Flatten", "x", "f"),
        helper.make_node("DynamicQuantizeLinear", ["f"], ["q", "s", "z"]),
        node("MatMulInteger", "q,w,z", "sums"),
        node("Cast", "sums", "real", to=TensorProto.FLOAT),
        node("Mul", "s,ws", "scale"),
        node("Mul", "real,scale", "y/before"),
        node("Sigmoid", "y/before"),
    ]
    return small_model(nodes, {"w": W, "ws": np.float32(0.01)})


def net_of(model: Any) -> OnnxNet:
    return OnnxNet(read_proto(model))


def one(*nodes: Any, shape: tuple[Any, ...] = ("N", 4), **constants: Any) -> OnnxNet:
    return net_of(small_model(list(nodes), constants, shape))


def test_dynamic_quantization_by_hand() -> None:
    x = real(5, 3, 8, 8)
    net = net_of(dynamic())
    traced = net.trace(x)
    low, high = min(0, x.min()), max(0, x.max())
    scale = np.float32(np.float32(high - low) / np.float32(255))
    zero = int(np.rint(-low / scale))
    q = np.clip(np.rint(x.reshape(5, -1) / scale) + zero, 0, 255)
    assert np.array_equal(traced["q"], q)
    assert traced["z"] == zero
    sums = (q - zero).astype(int) @ W.astype(int)
    assert traced["sums"].dtype == np.int32
    assert np.array_equal(traced["sums"], sums)
    y = net.run(x)
    assert y.dtype == np.float32
    expected = 1 / (1 + np.exp(-(sums.astype(np.float32) * (scale * np.float32(0.01))).astype(np.float64)))
    assert np.array_equal(y, expected.astype(np.float32))
    assert set(traced) == {"f", "q", "s", "z", "sums", "real", "scale", "y.before", "y"}  # fit for files


def test_several_outputs_come_by_name() -> None:
    net = net_of(small_model([node("Relu", "x", "a"), node("Neg", "x", "b")], {}, outputs=("a", "b")))
    x = real(2, 3, 8, 8)
    found = net.run({"x": x})
    assert list(found) == ["a", "b"]
    assert np.array_equal(found["a"], np.maximum(x, 0))


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.zeros((2, 3, 8, 8), np.int8), "must hold float32"),
        (np.zeros((2, 3, 8, 9), np.float32), r"shape \[any, 3, 8, 8\]"),
        (np.zeros((3, 8, 8), np.float32), "shape"),
        ({"z": np.zeros((2, 3, 8, 8), np.float32)}, "takes the inputs x, got z"),
    ],
)
def test_wrong_inputs(x: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        net_of(dynamic()).run(x)


def test_small_integers_come_in_larger_types() -> None:
    model = small_model([node("Cast", "x", to=TensorProto.INT8)], {}, ("N", 3), kind=TensorProto.INT4)
    net = net_of(model)
    assert net.run(np.array([[-8, 0, 7]], np.int8)).tolist() == [[-8, 0, 7]]
    with pytest.raises(InputError, match="int4"):
        net.run(np.array([[-8, 0, 8]], np.int8))


def test_unknown_operator() -> None:
    with pytest.raises(UnsupportedOperation, match=r"the_Celu: labkit cannot evaluate Celu"):
        one(node("Celu", "x"))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (lambda: one(node("Resize", "x,,s", mode="linear"), s=np.float32([1, 2])), "mode 'linear'"),
        (lambda: one(node("Cast", "x", to=TensorProto.FLOAT8E4M3FN)), "element type 17"),
        (
            lambda: one(node("QuantizeLinear", "x,s,z", axis=3), s=np.ones(4, np.float32), z=np.zeros(4, np.int8)),
            "axis 3",
        ),
        (lambda: one(node("QuantizeLinear", "x,s"), s=np.ones(3, np.float32)), r"\[3\] for axis 1"),
        (lambda: one(node("QuantizeLinear", "x,s", output_dtype=1), s=np.float32(1)), "a result of float32"),
        (lambda: one(node("DequantizeLinear", "x,s"), s=np.float32(1)), "an input of float32"),
        (lambda: one(node("Flatten", "x", axis=7)), "axis 7"),
        (lambda: one(node("Add", "x,c"), c=np.ones(3, np.float32)), "cannot be computed for inputs"),
        (lambda: one(node("Reshape", "x,s"), s=np.array([5, 5])), "cannot be computed"),
        (lambda: one(node("Div", "i,i"), i=np.array([1, 0])), "integer by 0"),
        (lambda: one(node("Relu", "x,x")), "cannot be computed"),
    ],
)
def test_nodes_that_cannot_be_computed_are_named(net: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        net().run(np.ones((2, 4), np.float32))
    assert "the_" in str(caught.value)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", "huge")],
        [node("Expand", "x,wide")],
        [node("Tile", "x,repeats")],
        [node("Range", "zero,end,step")],
        [node("Pad", "x,pads")],
        [node("Resize", "x,,,sizes")],
        [node("Unsqueeze", "long,one", "column"), node("Add", "long,column")],
        [
            node("Unsqueeze", "long,one", "column"),
            node("Unsqueeze", "long,zeroth", "row"),
            node("MatMul", "column,row"),
        ],
        [node("Gather", "long,many")],
    ],
    ids=lambda nodes: nodes[-1].op_type,
)
def test_results_that_would_fill_the_memory_are_refused(nodes: list[Any]) -> None:
    constants = {
        "huge": np.array([1 << 20, 1 << 20]),
        "wide": np.array([1 << 30, 1, 4]),
        "repeats": np.array([1 << 20, 1 << 20]),
        "zero": np.int64(0),
        "end": np.int64(1 << 40),
        "step": np.int64(1),
        "pads": np.array([0, 0, 0, 1 << 40]),
        "sizes": np.array([2, 1 << 40]),
        "long": np.ones((1 << 16, 1), np.float32)[:, 0],
        "one": np.array([1]),
        "zeroth": np.array([0]),
        "many": np.broadcast_to(np.zeros((), np.int64), (1 << 16, 1)).copy(),
    }
    constants["many"] = np.zeros((1, 1), np.int64) if nodes[-1].op_type != "Gather" else constants["many"]
    if nodes[-1].op_type == "Gather":
        nodes = [node("Reshape", "long,square", "table"), node("Gather", "table,many", axis=1)]
        constants |= {"square": np.array([1 << 15, 2])}
    with pytest.raises(ModelError, match="elements are allowed"):
        net_of(small_model(nodes, constants, ("N", 4))).run(np.ones((2, 4), np.float32))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["labkit", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_labkit_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(dynamic(), "net.onnx")
    x = real(5, 3, 8, 8)
    np.save("x.npy", x)
    assert call(monkeypatch, "run", "net.onnx", "--input", "x.npy", "--output", "y.npy", "--trace", "nodes") == 0
    assert "evaluated node by node in NumPy" in capsys.readouterr().out
    assert np.array_equal(np.load("y.npy"), net_of(dynamic()).run(x))
    assert np.load("nodes/sums.npy").dtype == np.int32
    assert Path("nodes/y.before.npy").exists()


def test_labkit_run_writes_small_integers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = [node("Sigmoid", "x", "s"), node("QuantizeLinear", "s,step,zero")]
    model = small_model(nodes, {"step": np.float32(0.125)}, ("N", 4), opset=21)
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.INT4, [], [-8]))
    onnx.save(model, "net.onnx")
    np.save("x.npy", np.array([[-100, 0, 1, 100]], np.float32))
    assert call(monkeypatch, "run", "net.onnx", "--input", "x.npy", "--output", "y.npy") == 0
    assert np.load("y.npy", allow_pickle=False).tolist() == [[-8, -4, -2, 0]]


def test_labkit_run_as_another_runtime_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from labkit.cli.evaluated import load_or_evaluate

    path = tmp_path / "net.onnx"
    onnx.save(dynamic(), path)
    with pytest.raises(UnsupportedOperation):
        load_or_evaluate(path, "litert", print)
    onnx.save(small_model([node("Celu", "x")], {}), path)
    with pytest.raises(LabkitError, match="node by node either"):
        load_or_evaluate(path, None, print)
