"""ONNX models built node by node: the float network, and labkit's own integer network for another runtime.

The integer model holds the same scales, zero points, integer weights and int32 biases as the `IntGraph`, so a runtime
that loads it computes the same sums; only how it rounds them to eight bits is its own affair. QLinearConv and
QuantizeLinear are ONNX's own operators; QGemm, QLinearAdd and the pools are those of onnxruntime ("com.microsoft"),
which is what its own quantizer writes in the format called QOperator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from labkit.errors import UnsupportedOperation
from labkit.graph import float_ops, int_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode, IntGraph, IntNode, Tensor
from labkit.graph.shapes import Padding

__all__ = ["float_model", "integer_model"]

_OPSET, _IR_VERSION = 17, 8  # old enough for every onnxruntime of the last years
_MICROSOFT = "com.microsoft"


def integer_model(graph: IntGraph, signed: bool = False) -> onnx.ModelProto:
    """``graph`` in the format QOperator: float32 input and output, 8-bit integers between.

    ``signed`` stores unsigned activations as int8: 128 is taken from each integer and from each zero point, so their
    meaning is the same. (Weights are int8 either way.)

    Raises
    ------
    UnsupportedOperation
        Activations of fewer than 8 bits, weights with zero points, or an operation without such an operator.
    """
    return _IntegerWriter(graph, 128 if signed else 0).model()


def float_model(graph: FloatGraph) -> onnx.ModelProto:
    """The float network of a simplified ``graph``: batch norm is folded already, activations follow as nodes.

    Raises
    ------
    UnsupportedOperation
        The graph is not simplified.
    """
    writer = _Writer()
    shapes = {}
    for node in graph:
        if isinstance(node.op, float_ops.Input):
            shapes[node.name] = node.op.shape
        else:
            _write_float(writer, node)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shapes[name]]) for name in graph.inputs]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in graph.outputs]
    return writer.model(inputs, outputs)


class _Writer:
    """Nodes and initializers as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))

    def model(self, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "labkit", inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="labkit")
        model.ir_version = _IR_VERSION
        return model


class _IntegerWriter(_Writer):
    def __init__(self, graph: IntGraph, shift: int) -> None:
        super().__init__()
        self.graph, self.shift = graph, shift

    def model(self, inputs: Any = None, outputs: Any = None) -> onnx.ModelProto:
        for node in self.graph:
            self._write(node)
        shapes = {name: self.graph[name].output.shape for name in (*self.graph.inputs, *self.graph.outputs)}
        inputs = [
            helper.make_tensor_value_info(f"{n}:real", TensorProto.FLOAT, ["N", *shapes[n]]) for n in self.graph.inputs
        ]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *shapes[n]]) for n in self.graph.outputs]
        return super().model(inputs, outputs)

    def _write(self, node: IntNode) -> None:
        op, name, x = node.op, node.name, list(node.inputs)
        if isinstance(op, int_ops.Quantize):
            self.node("QuantizeLinear", [f"{name}:real", *self._grid(name)], name)
        elif isinstance(op, int_ops.Dequantize):
            self.node("DequantizeLinear", [x[0], *self._grid(x[0])], name)
        elif isinstance(op, int_ops.Conv2d):
            weight, bias = self._weights(node, op)
            terms = [x[0], *self._grid(x[0]), *weight, *self._grid(name), bias]
            window = _window(op.weight.values.shape[2:], op.stride, op.padding, op.dilation)
            self._clamped(node, op.requantizer.clamp, "QLinearConv", terms, group=op.groups, **window)
        elif isinstance(op, int_ops.Linear):
            weight, bias = self._weights(node, op)
            terms = [x[0], *self._grid(x[0]), *weight, bias, *self._grid(name)]
            self._clamped(node, op.requantizer.clamp, "QGemm", terms, _MICROSOFT, transB=1)
        elif isinstance(op, int_ops.MaxPool2d):
            window = _window(op.kernel, op.stride, op.padding, op.dilation)
            self.node("MaxPool", x, name, ceil_mode=int(op.ceil_mode), **window)
        elif isinstance(op, int_ops.AveragePool2d):
            terms = [x[0], *self._grid(x[0]), *self._grid(name)]
            if op.kernel == self.graph[x[0]].output.shape[1:] and not np.any(op.padding):
                self._clamped(node, op.requantizer.clamp, "QLinearGlobalAveragePool", terms, _MICROSOFT)
            else:
                window = _window(op.kernel, op.stride, op.padding, None)
                kind = "QLinearAveragePool"
                self._clamped(node, op.requantizer.clamp, kind, terms, _MICROSOFT, count_include_pad=1, **window)
        elif isinstance(op, int_ops.Add):
            terms = [x[0], *self._grid(x[0]), x[1], *self._grid(x[1]), *self._grid(name)]
            self._clamped(node, op.clamp, "QLinearAdd", terms, _MICROSOFT)
        elif isinstance(op, int_ops.Concat):
            terms = self._grid(name) + [term for part in x for term in (part, *self._grid(part))]
            self._clamped(node, op.requantizers[0].clamp, "QLinearConcat", terms, _MICROSOFT, axis=1)
        elif isinstance(op, int_ops.Requantize):
            self.node("DequantizeLinear", [x[0], *self._grid(x[0])], f"{name}:real")
            self._clamped(node, op.requantizer.clamp, "QuantizeLinear", [f"{name}:real", *self._grid(name)])
        elif isinstance(op, int_ops.Flatten):
            self.node("Flatten", x, name, axis=1)
        else:
            raise UnsupportedOperation(f"{name}: {type(op).__name__} is not written for onnxruntime.")

    def _clamped(
        self, node: IntNode, clamp: tuple[int, int], kind: str, terms: list[str], domain: str = "", **attributes: Any
    ) -> None:
        """The node, and a Clip after it where its clamp is narrower than the grid (a ReLU that the grid does not do)."""
        spec, _ = node.output.quantized
        if clamp == (spec.qmin, spec.qmax):
            self.node(kind, terms, node.name, domain, **attributes)
            return
        self.node(kind, terms, f"{node.name}:unclamped", domain, **attributes)
        ends = [
            self.constant(f"{node.name}:{label}", end - self._shift_of(node.output), self._dtype(node.output))
            for label, end in zip(("low", "high"), clamp, strict=True)
        ]
        self.node("Clip", [f"{node.name}:unclamped", *ends], node.name)

    def _grid(self, name: str) -> list[str]:
        """Names of the scale and the zero point of the result of the node ``name``."""
        tensor = self.graph[name].output
        spec, params = tensor.quantized
        if spec.bits != 8:
            raise UnsupportedOperation(f"{name}: this format holds activations of 8 bits, got {spec.bits}.")
        zero_point = int(params.zero_point) - self._shift_of(tensor)
        return [
            self.constant(f"{name}:scale", params.scale, np.float32),
            self.constant(f"{name}:zero_point", zero_point, self._dtype(tensor)),
        ]

    def _shift_of(self, tensor: Tensor) -> int:
        return 0 if tensor.quantized[0].signed else self.shift

    def _dtype(self, tensor: Tensor) -> Any:
        return np.int8 if tensor.quantized[0].signed or self.shift else np.uint8

    def _weights(self, node: IntNode, op: int_ops.Conv2d | int_ops.Linear) -> tuple[list[str], str]:
        name, params = node.name, op.weight.params
        if np.any(params.zero_point) or op.weight.values.dtype != np.int8:
            raise UnsupportedOperation(f"{name}: this format is written for int8 weights without zero points.")
        weight = [
            self.constant(f"{name}:weight", op.weight.values, np.int8),
            self.constant(f"{name}:weight_scale", params.scale, np.float32),
            self.constant(f"{name}:weight_zero_point", params.zero_point, np.int8),
        ]
        return weight, self.constant(f"{name}:bias", op.bias, np.int32)


def _write_float(writer: _Writer, node: FloatNode) -> None:
    op, x = node.op, list(node.inputs)
    kind = node.op.kind if isinstance(node.op, float_ops.Relu) else node.activation
    name = node.name if kind is Activation.NONE else f"{node.name}:before"
    if isinstance(op, float_ops.Conv2d):
        window = _window(op.weight.shape[2:], op.stride, op.padding, op.dilation)
        writer.node("Conv", x + _parameters(writer, node.name, op.weight, op.bias), name, group=op.groups, **window)
    elif isinstance(op, float_ops.Linear):
        writer.node("Gemm", x + _parameters(writer, node.name, op.weight, op.bias), name, transB=1)
    elif isinstance(op, float_ops.MaxPool2d):
        window = _window(op.kernel, op.stride, op.padding, op.dilation)
        writer.node("MaxPool", x, name, ceil_mode=int(op.ceil_mode), **window)
    elif isinstance(op, float_ops.AveragePool2d):
        writer.node("AveragePool", x, name, count_include_pad=1, **_window(op.kernel, op.stride, op.padding, None))
    elif isinstance(op, float_ops.Add):
        writer.node("Add", x, name)
    elif isinstance(op, float_ops.Concat):
        writer.node("Concat", x, name, axis=1)
    elif isinstance(op, float_ops.Flatten):
        writer.node("Flatten", x, name, axis=1)
    elif isinstance(op, float_ops.Relu):
        name = x[0]
    else:
        raise UnsupportedOperation(f"{node.name}: simplify the graph first; {type(op).__name__} is not written.")
    if kind is Activation.RELU:
        writer.node("Relu", [name], node.name)
    elif kind is Activation.RELU6:
        ends = [writer.constant(f"relu6:{end}", end, np.float32) for end in (0, 6)]
        writer.node("Clip", [name, *ends], node.name)


def _parameters(writer: _Writer, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> list[str]:
    names = [writer.constant(f"{name}:weight", weight, np.float32)]
    return names if bias is None else [*names, writer.constant(f"{name}:bias", bias, np.float32)]


def _window(
    kernel: tuple[int, ...], stride: tuple[int, int], padding: Padding, dilation: tuple[int, int] | None
) -> dict[str, Any]:
    (top, bottom), (left, right) = padding
    window = {"kernel_shape": list(kernel), "strides": list(stride), "pads": [top, left, bottom, right]}
    return window if dilation is None else {**window, "dilations": list(dilation)}
