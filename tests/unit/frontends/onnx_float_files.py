"""Float ONNX files for the tests: whole networks written layer by layer, and small models of one or two operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper, save

from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode

Array = NDArray[Any]


def small_model(
    nodes: list[Any],
    constants: dict[str, Array],
    shape: tuple[int | str, ...] = ("N", 3, 8, 8),
    outputs: tuple[str, ...] = ("y",),
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    """A model of ``nodes`` with the input "x"."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, shape)],
        [ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    return model


def write_graph(graph: FloatGraph, path: Path, batch: int | str = "N", matmul: bool = False) -> Path:
    """``graph``, not simplified, as a file with the names that torch's exporter gives: "/blocks/blocks.4/conv1/Conv".

    ``batch`` is the batch axis that the file declares; ``matmul`` writes linear layers as MatMul and Add.
    """
    constants: dict[str, Array] = {}
    nodes: list[Any] = []

    def put(node: FloatNode, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> None:
        parts = node.name.split(".")
        scopes = [".".join(parts[i - 1 : i + 1]) if parts[i].isdigit() and i else parts[i] for i in range(len(parts))]
        name = "/".join(["", *scopes, kind])
        nodes.append(helper.make_node(kind, inputs, [output or node.name], name=name, **attributes))

    def constant(node: FloatNode, label: str, value: Array) -> str:
        constants[f"{node.name}.{label}"] = np.asarray(value)
        return f"{node.name}.{label}"

    for node in graph:
        op, x = node.op, list(node.inputs)
        match op:
            case float_ops.Input():
                continue
            case float_ops.Conv2d():
                x.append(constant(node, "weight", op.weight))
                if op.bias is not None:
                    x.append(constant(node, "bias", op.bias))
                window = {"strides": op.stride, "dilations": op.dilation, "group": op.groups}
                put(node, "Conv", x, kernel_shape=op.weight.shape[2:], pads=_pads(op.padding), **window)
            case float_ops.Linear() if matmul:
                product = node.name if op.bias is None else f"{node.name}.product"
                put(node, "MatMul", [*x, constant(node, "weight", op.weight.T.copy())], product)
                if op.bias is not None:
                    put(node, "Add", [constant(node, "bias", op.bias), product])
            case float_ops.Linear():
                x.append(constant(node, "weight", op.weight))
                if op.bias is not None:
                    x.append(constant(node, "bias", op.bias))
                put(node, "Gemm", x, transB=1)
            case float_ops.BatchNorm2d():
                values = {"gamma": op.gamma, "beta": op.beta, "mean": op.mean, "variance": op.variance}
                x += [constant(node, label, value) for label, value in values.items()]
                put(node, "BatchNormalization", x, epsilon=op.epsilon)
            case float_ops.Relu(Activation.RELU):
                put(node, "Relu", x)
            case float_ops.MaxPool2d():
                put(node, "MaxPool", x, kernel_shape=op.kernel, strides=op.stride, pads=_pads(op.padding))
            case float_ops.AveragePool2d():
                put(node, "GlobalAveragePool", x)
            case float_ops.Flatten():
                put(node, "Flatten", x)
            case float_ops.Add():
                put(node, "Add", x)
            case float_ops.Identity():
                put(node, "Identity", x)
            case _:
                raise AssertionError(op)
    (entry,) = graph.inputs
    shape = graph[entry].op.shape  # type: ignore[union-attr]
    proto = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(entry, TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in graph.outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    save(model, path)
    return path


def _pads(padding: Any) -> list[int]:
    (top, bottom), (left, right) = padding
    return [top, left, bottom, right]


def node(kind: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    """A node called "the_Relu", or "the_Relu_r" where its result is "r"; ``inputs`` with commas between."""
    name = f"the_{kind}" if output == "y" else f"the_{kind}_{output}"
    return helper.make_node(kind, [one.strip() for one in inputs.split(",")], [output], name=name, **attributes)


def real(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


WEIGHT, BIAS, MATRIX = real(6, 3, 3, 3), real(6), real(192, 10)
OPERATORS: dict[str, tuple[list[Any], dict[str, Any], tuple[Any, ...], list[str]]] = {
    "conv": ([node("Conv", "x,w,b", pads=[1, 1, 1, 1])], {"w": WEIGHT, "b": BIAS}, (3, 8, 8), ["Conv2d"]),
    "conv same upper": (
        [node("Conv", "x,w", auto_pad="SAME_UPPER", strides=[2, 2])],
        {"w": WEIGHT},
        (3, 8, 8),
        ["Pad", "Conv2d"],
    ),
    "conv same lower": (
        [node("Conv", "x,w", auto_pad="SAME_LOWER")],
        {"w": real(6, 3, 2, 2)},
        (3, 8, 8),
        ["Pad", "Conv2d"],
    ),
    "conv valid": ([node("Conv", "x,w", auto_pad="VALID", dilations=[2, 1])], {"w": WEIGHT}, (3, 8, 8), ["Conv2d"]),
    "conv depthwise": ([node("Conv", "x,w", group=3)], {"w": real(6, 1, 3, 3)}, (3, 8, 8), ["Conv2d"]),
    "conv of a sequence": (
        [node("Conv", "x,w,b", strides=[2], pads=[2, 1])],
        {"w": real(4, 3, 5), "b": real(4)},
        (3, 20),
        ["Pad", "Conv2d"],
    ),
    "pools of a sequence": (
        [
            node("MaxPool", "x", "p", kernel_shape=[2], strides=[2]),
            node("AveragePool", "p", "q", kernel_shape=[3]),
            node("GlobalAveragePool", "q"),
        ],
        {},
        (3, 20),
        ["MaxPool2d", "AveragePool2d", "AveragePool2d"],
    ),
    "gemm": (
        [node("Flatten", "x", "f"), node("Gemm", "f,w,b", alpha=0.5, beta=2.0)],
        {"w": MATRIX, "b": real(1, 10)},
        (3, 8, 8),
        ["Flatten", "Linear"],
    ),
    "product and sum": (
        [node("Flatten", "x", "f"), node("MatMul", "f,w", "m"), node("Add", "m,b")],
        {"w": MATRIX, "b": real(10)},
        (3, 8, 8),
        ["Flatten", "Linear", "BatchNorm2d"],
    ),
    "batch norm": (
        [node("BatchNormalization", "x,g,b,m,v", epsilon=1e-3)],
        {"g": real(3), "b": real(3, seed=1), "m": real(3, seed=2), "v": np.abs(real(3, seed=3)) + np.float32(0.1)},
        (3, 8, 8),
        ["BatchNorm2d"],
    ),
    "normalised pixels": (
        [node("Sub", "x,m", "c"), node("Div", "c,s", "d"), node("Mul", "d,t", "e"), node("Sub", "one,e")],
        {"m": real(3, 1, 1), "s": np.abs(real(1, 3, 1, 1)) + np.float32(1), "t": np.float32(2), "one": np.float32([1])},
        (3, 8, 8),
        ["BatchNorm2d"] * 4,
    ),
    "relu6": ([node("Clip", "x,low,high")], {"low": np.float32(0), "high": np.float32(6)}, (3, 8, 8), ["Relu"]),
    "relu as clip": ([node("Clip", "x,low")], {"low": np.float32(0)}, (3, 8, 8), ["Relu"]),
    "max pool": (
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)],
        {},
        (3, 8, 8),
        ["MaxPool2d"],
    ),
    "max pool same": (
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")],
        {},
        (3, 8, 8),
        ["MaxPool2d"],
    ),
    "average pool counted": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        {},
        (3, 8, 8),
        ["AveragePool2d"],
    ),
    "average pool uneven": (
        [node("AveragePool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1)],
        {},
        (3, 8, 8),
        ["Pad", "AveragePool2d"],
    ),
    "global pools": (
        [node("GlobalMaxPool", "x", "g"), node("Mul", "x,g", "z"), node("GlobalAveragePool", "z")],
        {},
        (3, 8, 8),
        ["MaxPool2d", "Multiply", "AveragePool2d"],
    ),
    "mean": ([node("ReduceMean", "x,axes")], {"axes": np.array([2, 3])}, (3, 8, 8), ["AveragePool2d"]),
    "mean without axes": (
        [node("ReduceMean", "x,axes", keepdims=0)],
        {"axes": np.array([-1, -2])},
        (3, 8, 8),
        ["AveragePool2d", "Flatten"],
    ),
    "reshapes": (
        [
            node("Reshape", "x,s", "r"),
            node("Unsqueeze", "r,a", "u"),
            node("Squeeze", "u,a", "q"),
            node("Reshape", "q,f"),
        ],
        {"s": np.array([0, 6, 4, -1]), "a": np.array([1]), "f": np.array([-1, 192])},
        (3, 8, 8),
        ["Reshape", "Reshape", "Reshape", "Flatten"],
    ),
    "shape computed in the file": (
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape,zero", "n"),
            node("Concat", "n,rest", "wanted", axis=0),
            node("Reshape", "x,wanted"),
        ],
        {"zero": np.array([0]), "rest": np.array([-1])},
        (3, 8, 8),
        ["Flatten"],
    ),
    "transpose": ([node("Transpose", "x", perm=[0, 2, 3, 1])], {}, (3, 8, 8), ["Transpose"]),
    "add": ([node("Relu", "x", "r"), node("Add", "x,r")], {}, (3, 8, 8), ["Relu", "Add"]),
    "concat": ([node("Relu", "x", "r"), node("Concat", "x,r,x", axis=-3)], {}, (3, 8, 8), ["Relu", "Concat"]),
    "pad": ([node("Pad", "x,p")], {"p": np.array([0, 0, 1, 2, 0, 0, 0, 3])}, (3, 8, 8), ["Pad"]),
    "pad named axes": ([node("Pad", "x,p,,a")], {"p": np.array([1, 2]), "a": np.array([-1])}, (3, 8, 8), ["Pad"]),
    "softmax": ([node("Softmax", "x", axis=1)], {}, (3, 8, 8), ["Softmax"]),
    "arg max": ([node("ArgMax", "x", axis=-3, keepdims=0)], {}, (3, 8, 8), ["ArgMax"]),
    "nothing": (
        [node("Dropout", "x", "d"), node("Identity", "d", "i"), node("Cast", "i", "c", to=1), node("Relu", "c")],
        {},
        (3, 8, 8),
        ["Identity", "Identity", "Identity", "Relu"],
    ),
    "constant": (
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT, "c")),
            node("Conv", "x,c"),
        ],
        {},
        (3, 8, 8),
        ["Conv2d"],
    ),
    "constant that is computed": (
        [node("Transpose", "w", "t", perm=[1, 0]), node("Flatten", "x", "f"), node("MatMul", "f,t")],
        {"w": MATRIX.T.copy()},
        (3, 8, 8),
        ["Flatten", "Linear"],
    ),
    "resize by scales": (
        [node("Resize", "x,,s", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"s": np.float32([1, 1, 2, 3])},
        (3, 8, 8),
        ["UpsampleNearest2d"],
    ),
    "resize by sizes": ([node("Resize", "x,,,s")], {"s": np.array([2, 3, 16, 8])}, (3, 8, 8), ["UpsampleNearest2d"]),
}
