"""Models that are no pure integer network, evaluated by labkit, against onnxruntime: dynamic quantization and float islands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from labkit.frontends.onnx.evaluate import OnnxNet, run_node  # noqa: E402

Array = NDArray[Any]
EXACT = {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "Cast", "Mul", "Add", "Relu", "Reshape", "Flatten"}
EXACT |= {"QuantizeLinear", "DequantizeLinear", "MaxPool", "Identity", "Transpose"}


def float_model(rng: np.random.Generator) -> Any:
    """Two convolutions, a pool and two matrix products with biases: what quantize_dynamic makes integers of."""

    def constant(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(
            (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name
        )

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], strides=[2, 2]),
        helper.make_node("Flatten", ["c2"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["m3"]),
        helper.make_node("Add", ["m3", "b3"], ["a3"]),
        helper.make_node("Sigmoid", ["a3"], ["s3"]),
        helper.make_node("MatMul", ["s3", "w4"], ["y"]),
    ]
    constants = [constant("w1", 6, 3, 3, 3), constant("b1", 6), constant("w2", 8, 6, 3, 3), constant("w3", 72, 20)]
    constants += [constant("b3", 20), constant("w4", 20, 10)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])
    model = helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    return model


def dynamic_model(folder: Path, **options: Any) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    onnx.save(float_model(np.random.default_rng(1)), folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx", **options)
    return folder / "dynamic.onnx"


def every_tensor(path: Path, x: Array) -> dict[str, Array]:
    """What onnxruntime makes of each tensor, unoptimised, by its name in the file."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("kind", ["QUInt8", "QInt8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantization(tmp_path: Path, kind: str, per_channel: bool, capsys: pytest.CaptureFixture[str]) -> None:
    from onnxruntime.quantization import QuantType

    # 7-bit weights, for processors on which u8 x s8 products saturate; onnxruntime has no ConvInteger with int8 weights or
    # with a zero point for each channel
    signed = kind == "QInt8"
    only = {"op_types_to_quantize": ["MatMul"]} if signed or per_channel else {}
    options = {"weight_type": QuantType[kind], "per_channel": per_channel, "reduce_range": signed, **only}
    path = dynamic_model(tmp_path, **options)
    net = OnnxNet.load(path)
    kinds = {node.kind for node in net.file.nodes}
    assert {"DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul"} <= kinds
    assert ("ConvInteger" in kinds) is (not only)
    x = np.random.default_rng(2).standard_normal((5, 3, 16, 16)).astype(np.float32)
    theirs = {**every_tensor(path, x), **net.file.constants, "x": x}
    largest = 0.0
    for node in net.file.nodes:  # each on onnxruntime's own tensors
        results = run_node(node, net.file.opsets, [theirs[name] if name else None for name in node.inputs])
        for name, ours in zip(node.outputs, results, strict=True):
            assert (ours.dtype, ours.shape) == (theirs[name].dtype, theirs[name].shape), name
            if node.kind in EXACT:
                assert np.array_equal(ours, theirs[name]), node
            else:
                largest = max(largest, float(np.abs(ours - theirs[name]).max() / np.abs(theirs[name]).max()))
    end = float(np.abs(net.run(x) - theirs["y"]).max() / np.abs(theirs["y"]).max())
    with capsys.disabled():
        print(
            f" [{kind}: integers and sums of them exact; floats within {largest:.1e}, from end to end {end:.1e}] ",
            end="",
        )
    assert largest < 1e-5  # float32 sums in another order
    assert end < 0.02  # one float that rounds to another integer is worth a step of 1/255 of its range
