"""ONNX files are read with bounds: each hostile one loads soundly or is refused with a ModelError."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from labkit.errors import ModelError, UnsupportedOperation
from labkit.frontends.onnx import read_onnx, reading
from labkit.frontends.onnx.names import node_names
from labkit.frontends.onnx.reading import read_file, read_proto
from labkit.frontends.onnx.tensors import widened
from labkit.frontends.onnx.wire import check_wire


def value(name: str, shape: Any = ("N", 3), kind: int = TensorProto.UINT8) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: list[Any] | None = None, constants: list[Any] | None = None, **changes: Any) -> onnx.ModelProto:
    """A model with one Relu, or what is given instead."""
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")] if nodes is None else nodes
    inputs = changes.get("inputs", [value("x")])
    graph = helper.make_graph(nodes, "graph", inputs, changes.get("outputs", [value("y")]), constants or [])
    opsets = changes.get("opsets", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, opset_imports=opsets, ir_version=changes.get("ir_version", 8))


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refused(proto: onnx.ModelProto, match: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=match):
        read_file(saved(folder, proto))


# What is read.


def test_nodes_come_in_running_order(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["b"], ["y"]),
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
    ]
    file = read_file(saved(tmp_path, model(nodes)))
    assert [node.outputs for node in file.nodes] == [("a",), ("b",), ("y",)]
    assert (file.inputs[0].name, file.inputs[0].shape, file.inputs[0].dtype) == ("x", (None, 3), np.uint8)
    assert file.opsets == {"": 17}


def test_constants_of_every_kind(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(np.array([1, 2], np.int8), "")),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.5]),
        helper.make_node("Constant", [], ["c"], value_int=7),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    listed = helper.make_tensor("d", TensorProto.INT8, [3], [-1, 2, -128])
    raw = numpy_helper.from_array(np.arange(6, dtype=np.float16).reshape(2, 3), "e")
    flags = helper.make_tensor("f", TensorProto.BOOL, [2], b"\x02\x00", raw=True)
    constants = read_file(saved(tmp_path, model(nodes, [listed, raw, flags]))).constants
    assert {name: (array.dtype.name, array.tolist()) for name, array in constants.items()} == {
        "a": ("int8", [1, 2]),
        "b": ("float32", [1.0, 2.5]),
        "c": ("int64", 7),
        "d": ("int8", [-1, 2, -128]),
        "e": ("float16", [[0, 1, 2], [3, 4, 5]]),
        "f": ("bool", [True, False]),
    }
    assert not any(array.flags.writeable for array in constants.values())


@pytest.mark.parametrize(
    ("kind", "dtype", "values"),
    [
        (TensorProto.INT4, ml_dtypes.int4, [-8, 7, -1, 0, 3]),
        (TensorProto.UINT4, ml_dtypes.uint4, [15, 0, 9, 1, 8]),
        (TensorProto.INT2, ml_dtypes.int2, [-2, 1, 0, -1, 1]),
        (TensorProto.UINT2, ml_dtypes.uint2, [3, 0, 2, 1, 3]),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_integers_of_few_bits_are_unpacked(kind: int, dtype: Any, values: list[int], raw: bool, tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", kind, [5], np.array(values, dtype))
    if raw:
        tensor = numpy_helper.from_array(np.array(values, dtype), "w")
    array = read_file(saved(tmp_path, model(constants=[tensor]))).constants["w"]
    assert array.dtype == dtype
    assert widened(array).tolist() == values
    assert widened(array).dtype == (np.int8 if min(values) < 0 else np.uint8)


def test_random_tensors_are_those_of_onnx(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = [
        "float32",
        "float64",
        "float16",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "bool",
    ]
    arrays = [(rng.integers(0, 100, (2, 3)) % (2 if kind == "bool" else 101)).astype(kind) for kind in kinds]
    arrays += [
        rng.normal(size=4).astype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
    ]
    tensors = [numpy_helper.from_array(array, f"t{i}") for i, array in enumerate(arrays)]
    constants = read_file(saved(tmp_path, model(constants=tensors))).constants
    for i, array in enumerate(arrays):
        assert constants[f"t{i}"].dtype == array.dtype
        assert np.array_equal(constants[f"t{i}"], array)


# Names.


def test_names_do_for_nodes_and_differ() -> None:
    names = node_names(["/conv/out", "conv.out", "a:0", "a_0", "a?0", "", "..", "x" * 300, "x" * 301, "\n", "é"])
    assert names["/conv/out"] == "conv.out_2"  # the other one may keep its own
    assert (names["conv.out"], names["a_0"], names["é"]) == ("conv.out", "a_0", "é")
    assert len(set(names.values())) == len(names)
    assert all(0 < len(name) <= 200 and not name.startswith(".") and name.isprintable() for name in names.values())
    assert not set('/\\:*?"<>|') & set("".join(names.values()))


# External data.


def external(location: str, count: int = 4, **entries: int) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[count], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(text))
    return model(constants=[tensor])


def test_external_data_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "w.bin").write_bytes(bytes(range(20)))
    file = read_file(saved(tmp_path, external("deep/w.bin", offset=8, length=4)))
    assert file.constants["w"].tolist() == [8, 9, 10, 11]
    with pytest.raises(ModelError, match="save the model with its weights in it"):
        read_proto(external("deep/w.bin"))


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "",
        ".",
        "C:\\secret",
        "..\\secret",
        "link",
        "folder/secret",
        "a\0b",
    ],
)
def test_external_data_stays_in_the_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"12345678")
    (tmp_path / "net").mkdir()
    os.symlink(tmp_path / "secret", tmp_path / "net" / "link")
    os.symlink(tmp_path, tmp_path / "net" / "folder")
    refused(external(location), "own folder|leaves the model's folder|not an ordinary file", tmp_path / "net")


def test_external_data_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"123")
    refused(external("w.bin"), "has 3 bytes", tmp_path)
    refused(external("w.bin", offset=2), "has 3 bytes", tmp_path)
    refused(external("w.bin", length=3), "takes 4 bytes", tmp_path)
    refused(external("w.bin", offset=-1), "whole number", tmp_path)
    refused(external("w.bin", 2**26), "has 3 bytes", tmp_path)
    refused(external("missing.bin"), "Cannot read", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refused(external("pipe"), "not an ordinary file", tmp_path)


# Hostile files.


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ModelError, match="Cannot read"):
        read_file(path)
    with pytest.raises(ModelError, match="not an ordinary file"):
        read_file(tmp_path)
    for content in (b"", b"\0" * 1000, b"\xff" * 1000, b"not onnx", model().SerializeToString()[:-3]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"net\.onnx"):
            read_file(path)
    with path.open("wb") as file:
        file.truncate(reading.LARGEST_FILE + 1)
    with pytest.raises(ModelError, match="allowed"):
        read_file(path)


def message(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds another message."""
    size, length = len(content), b""
    while size >= 128:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = message(1, message(5, message(6, content)))  # a graph in an attribute of a node
    return message(7, content)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (message(7, b"\x0a\x00" * 3_000_000), "more than 500,000 fields"),  # nodes
        (message(7, message(1, b"\x2a\x00" * 3_000_000)), "more than 500,000 fields"),  # attributes
        (message(7, message(1, b"\x2a\x00" * 400_000)), "opset None"),
        (message(7, message(5, message(7, b"\0" * (2**23 + 1)))), "one by one"),
        (nested(40), "deep"),
        (b"\x3a\xff\xff\xff\xff\x0f", "cut off"),
        (b"\x08" + b"\xff" * 20, "does not end"),
        (b"\x0b" * 20, "unknown kind"),
    ],
)
def test_bombs_are_refused_before_they_are_parsed(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    gc.freeze()  # what earlier tests left behind is not to be looked through again and again
    before = time.process_time()
    with pytest.raises(ModelError, match=match):
        read_file(path)
    taken = time.process_time() - before
    gc.unfreeze()
    assert taken < 2


def test_wire_of_a_sound_model_is_sound() -> None:
    check_wire(model().SerializeToString(), onnx.ModelProto)


def twice(names: list[str]) -> list[Any]:
    return [helper.make_node("Relu", [name], ["y"]) for name in names]


def test_graphs_that_are_none(tmp_path: Path) -> None:
    circle = [helper.make_node("Add", ["x", "b"], ["a"], name="round"), helper.make_node("Relu", ["a"], ["b"])]
    refused(model([*circle, helper.make_node("Relu", ["b"], ["y"])]), "round .*circle", tmp_path)
    refused(model([helper.make_node("Relu", ["y"], ["y"])]), "circle", tmp_path)
    refused(model(twice(["x", "x"])), "made twice", tmp_path)
    refused(model([helper.make_node("Relu", ["nothing"], ["y"])]), "no input, constant or result", tmp_path)
    refused(model([]), "no network", tmp_path)
    refused(model(outputs=[value("z")]), "outputs", tmp_path)
    refused(model(outputs=[]), "outputs", tmp_path)
    refused(model(inputs=[value("x"), value("x")]), "one name", tmp_path)
    refused(model(opsets=[helper.make_opsetid("", 12)]), "opset 12", tmp_path)
    refused(model(opsets=[helper.make_opsetid("", 99)]), "opset 99", tmp_path)
    refused(model(ir_version=99), "IR version", tmp_path)
    refused(model(inputs=[value("x", ["N", 2**40])]), "too large", tmp_path)
    refused(model(inputs=[value("x", ["N", -1])]), "0 elements or more", tmp_path)
    refused(model(inputs=[value("x", [1] * 17)]), "16 axes", tmp_path)
    many = [helper.make_node("Relu", ["x"], [f"y{i}"]) for i in range(6000)]
    refused(model(many, outputs=[value("y0")]), "nodes", tmp_path)


def test_what_is_not_supported_is_said_so(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "branch", [], [value("z")])
    for nodes, match in (
        ([helper.make_node("Mine", ["x"], ["y"], domain="my.own", name="odd")], "odd: Mine .*'my.own'"),
        ([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch, name="fork")], "fork: .*GRAPH"),
    ):
        with pytest.raises(UnsupportedOperation, match=match):
            read_file(saved(tmp_path, model(nodes)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dims": [5]}, "takes 5 bytes"),
        ({"dims": [2**40]}, "too large"),
        ({"dims": [0, 2**40]}, "too large"),
        ({"dims": [-4]}, "0 elements or more"),
        ({"dims": [1] * 20}, "16 axes"),
        ({"data_type": 99}, "type 99"),
        ({"data_type": 0}, "type 0"),
        ({"data_type": 7}, "takes 32 bytes"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    entries: dict[str, Any] = {"name": "w", "data_type": TensorProto.UINT8, "dims": [4], "raw_data": b"1234", **change}
    refused(model(constants=[TensorProto(**entries)]), match, tmp_path)


def test_too_many_weights_together(tmp_path: Path) -> None:
    (tmp_path / "w.bin").touch()
    os.truncate(tmp_path / "w.bin", 2**27)  # no bytes on the disk
    proto = external("w.bin", 2**27)
    for i in range(3):
        proto.graph.initializer.append(proto.graph.initializer[0])
        proto.graph.initializer[-1].name = f"w{i}"
    refused(proto, "bytes. labkit reads", tmp_path)


def test_damaged_files_are_sound_or_refused(tmp_path: Path) -> None:
    """A byte changed, cut out or doubled, three hundred times: a ModelError, or a file that is read."""
    constant = numpy_helper.from_array(np.arange(-20, 20, dtype=np.int8), "w")
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[0, 1, 0, 1], name="pool")
    content = model(
        [node], [constant], inputs=[value("x", ["N", 2, 4, 4])], outputs=[value("y", None)]
    ).SerializeToString()
    path, rng = tmp_path / "net.onnx", np.random.default_rng(0)
    outcomes = set()
    for i in range(300):
        data = bytearray(content)
        at = int(rng.integers(len(data)))
        match i % 3:
            case 0:
                data[at] = int(rng.integers(256))
            case 1:
                del data[at : at + int(rng.integers(1, 9))]
            case _:
                data[at:at] = data[at : at + int(rng.integers(1, 9))]
        path.write_bytes(bytes(data))
        try:
            read_onnx(path)
            outcomes.add("read")
        except ModelError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
