"""A small network quantized by onnxruntime's own tool, in both formats: each tensor that onnxruntime can show is the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from parity.onnxruntime.cases import Model, has_vnni

from labkit.frontends.onnx.importing import IN_FLOAT
from labkit.frontends.onnx.reading import read_file
from labkit.graph import int_ops
from labkit.net import IntegerNet, load
from labkit.parity.runtimes.onnxruntime import run_onnxruntime

IMAGES = 16


class Images(CalibrationDataReader):  # type: ignore[misc]
    """A few random images, one batch after the other."""

    def __init__(self) -> None:
        self.batches: Iterator[NDArray[np.float32]] = iter(pictures(seed) for seed in range(4))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def pictures(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((IMAGES, 3, 12, 12)).astype(np.float32)


def float_network(path: Path, cell: str) -> None:
    """Convolutions of three kinds, both activations, all pools, a skip, a joint, a gate, a layer and the ``cell`` at the end."""
    model, rng = Model(), np.random.default_rng(0)
    model.inputs.append(helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 12, 12]))

    def parameters(name: str, *shape: int) -> list[str]:
        spread = 1 / np.sqrt(np.prod(shape[1:]))
        weight = model.constant(f"{name}.weight", rng.standard_normal(shape) * spread, np.float32)
        return [weight, model.constant(f"{name}.bias", rng.standard_normal(shape[0]) * 0.3, np.float32)]

    x = model.node("Conv", ["image", *parameters("first", 8, 3, 3, 3)], "/first/Conv_output_0", pads=[1, 1, 1, 1])
    x = model.node("Relu", [x], "/Relu_output_0")
    y = model.node("Conv", [x, *parameters("deep", 8, 1, 3, 3)], "/deep/Conv_output_0", pads=[1, 1, 1, 1], group=8)
    ends = [model.constant(name, value, np.float32) for name, value in (("zero", 0), ("six", 6))]
    y = model.node("Clip", [y, *ends], "/Clip_output_0")
    y = model.node("Conv", [y, *parameters("point", 8, 8, 1, 1)], "/point/Conv_output_0")
    x = model.node("Add", [x, y], "/Add_output_0")
    a = model.node("MaxPool", [x], "/MaxPool_output_0", kernel_shape=[2, 2], strides=[2, 2])
    b = model.node("AveragePool", [x], "/AveragePool_output_0", kernel_shape=[2, 2], strides=[2, 2])
    x = model.node("Concat", [a, b], "/Concat_output_0", axis=1)
    gate = model.node("GlobalAveragePool", [x], "/Mean_output_0")
    x = model.node("Mul", [x, gate], "/Mul_output_0")
    if cell == "Gemm":
        x = model.node("Flatten", [x], "/Flatten_output_0")
        x = model.node("Gemm", [x, *parameters("last", 10, 576)], "/Gemm_output_0", transB=1)
        model.node("Softmax", [x], "output", axis=-1)
    else:
        x = model.node("Transpose", [x], "/Transpose_output_0", perm=[0, 2, 3, 1])
        x = model.node("Reshape", [x, model.constant("flat", [0, -1], np.int64)], "/Reshape_output_0")
        weight = model.constant("last.weight", rng.standard_normal((576, 10)) / 24, np.float32)
        model.node("MatMul", [x, weight], "output")
    model.save(path, {"output": np.float32})


@pytest.mark.parametrize("cell", ["Gemm", "MatMul"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("style", [QuantFormat.QOperator, QuantFormat.QDQ], ids=lambda kind: kind.name)
def test_network_of_the_tool(style: Any, activations: Any, per_channel: bool, cell: str, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    float_network(tmp_path / "float.onnx", cell)
    quantize_static(
        tmp_path / "float.onnx",
        path,
        Images(),
        quant_format=style,
        per_channel=per_channel,
        reduce_range=not has_vnni(),  # weights of 7 bits, so that onnxruntime's sums of 16 bits do not saturate
        activation_type=activations,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": False},
    )
    x = pictures(99)
    net, names = load(path), read_file(path).names
    assert IN_FLOAT not in net.graph.notes
    theirs = run_onnxruntime(path, {"image": x})
    for kernels in ("reference", "numba"):
        mine = net.trace(x, kernels=kernels)
        differing = {name: int(np.count_nonzero(mine[names[name]] != result)) for name, result in theirs.items()}
        assert not any(differing.values()), (kernels, differing)
    assert len(theirs) >= 13
    assert np.array_equal(net.run(x, kernels="reference"), theirs["output"])
    # Without any fusing onnxruntime computes a QDQ file in float32; the integers of QOperator stay the same.
    plain = run_onnxruntime(path, {"image": x}, every_tensor=False, optimized=False)["output"]
    assert np.array_equal(plain, theirs["output"]) or style is QuantFormat.QDQ


def test_one_bias_off_by_one_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    float_network(tmp_path / "float.onnx", "Gemm")
    quantize_static(
        tmp_path / "float.onnx", path, Images(), quant_format=QuantFormat.QOperator, reduce_range=not has_vnni()
    )
    graph, x = load(path).graph, pictures(99)
    (first,) = (node for node in graph if isinstance(node.op, int_ops.Conv2d) and node.op.weight.values.shape[1] == 3)
    assert isinstance(first.op, int_ops.Conv2d)
    wrong = replace(first, op=replace(first.op, bias=first.op.bias + np.int32(1)))
    net = IntegerNet(replace(graph, nodes=tuple(wrong if node is first else node for node in graph)))
    mine, theirs = net.trace(x, kernels="reference"), run_onnxruntime(path, {"image": x})
    names = read_file(path).names
    assert any(np.any(mine[names[name]] != result) for name, result in theirs.items())
