"""Each operation of an `IntGraph` as ONNX operators, in the style QDQ or QOperator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from labkit.errors import UnsupportedOperation
from labkit.exporters.onnx_file import MICROSOFT
from labkit.exporters.onnx_values import BORDERS_IN, QDQ, QOPERATOR, OnnxValues, image_of, window_of
from labkit.exporters.onnx_weights import held_weights
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.graph.shapes import Padding

__all__ = ["OnnxNodes"]

_Softmax = int_ops.Softmax | int_ops.SoftmaxFixedPoint | int_ops.SoftmaxFloat32 | int_ops.SoftmaxByReciprocal
_Average = int_ops.AveragePool2d | int_ops.AveragePoolFloat32 | int_ops.AveragePoolOfValid


class OnnxNodes(OnnxValues):
    """Writes the nodes of ``graph`` into a file in a ``style``, one after the other.

    The value of a node's integers has the node's name. A name with a colon, which no node may have, is a value between.
    """

    def write(self, node: IntNode) -> None:
        """Add what computes ``node``.

        Raises
        ------
        UnsupportedOperation
            ONNX, or onnxruntime, has nothing that computes it in integers.
        """
        for kind, write in _WRITERS.items():
            if isinstance(node.op, kind):
                write(self, node)
                return
        raise UnsupportedOperation(
            f"{node.name}: {type(node.op).__name__} cannot be exported to ONNX: no operator of onnxruntime computes it in "
            f"integers that labkit knows."
        )

    def finish(self, version: str, notes: Mapping[str, str]) -> bytes:
        """The file's bytes once all nodes are written; ``version`` of labkit and ``notes`` are its metadata.

        Raises
        ------
        ModelError
            The network is too large for one file.
        """
        for name in self.graph.outputs:
            tensor = self.graph[name].output
            dtype: Any = np.int64 if tensor.is_index else np.float32 if tensor.spec is None else self._dtype(tensor)
            self.file.leaves(self._border(name), dtype, tensor.source_shape)
        return self.file.content(version, notes)

    # Borders

    def _quantize(self, node: IntNode) -> None:
        """The input keeps the node's name, so that its integers have another."""
        self.file.enters(node.name, np.float32, node.output.source_shape)
        spec, moves = node.output.quantized[0], node.output.channels_last
        output = f"{node.name}:entered" if moves else self._integers(node.name)
        terms = [node.name, *self._grid(node.name)]
        self._clamped(node, (spec.qmin, spec.qmax), "QuantizeLinear", terms, output=output)
        if moves:
            self._channels_first(node, output)

    def _input(self, node: IntNode) -> None:
        self.file.enters(node.name, self._dtype(node.output), node.output.source_shape)
        if node.output.channels_last:
            self._channels_first(node, node.name)

    def _dequantize(self, node: IntNode) -> None:
        value = self._integers(node.inputs[0])
        if node.output.channels_last:
            value = self._channels_last(node.output, value, f"{node.name}:leaving")
        self.file.node("DequantizeLinear", [value, *self._grid(node.inputs[0])], node.name)

    # Layers

    def _conv(self, node: IntNode) -> None:
        op = node.op
        assert isinstance(op, int_ops.Conv2d)
        axes = len(node.output.shape) - 1
        values = op.weight.values.shape[2:][-axes:]
        window = window_of(values, op.stride, op.padding, op.dilation, axes)
        self._layer(node, op, "Conv", "QLinearConv", {"group": op.groups, **window})

    def _linear(self, node: IntNode) -> None:
        op = node.op
        assert isinstance(op, int_ops.Linear)
        self._layer(node, op, "Gemm", "QGemm", {"transB": 1})

    def _layer(
        self, node: IntNode, op: int_ops.Conv2d | int_ops.Linear, real: str, integer: str, attributes: dict[str, Any]
    ) -> None:
        name, (source,) = node.name, node.inputs
        held = held_weights(name, op.weight, self._dtype(self.graph[source].output) == np.int8)
        dtype = held.values.dtype
        values = held.values
        if isinstance(op, int_ops.Conv2d) and len(node.output.shape) == 2:  # a sequence has no rows
            values = values[:, :, 0]
        weight = f"{name}:weight"
        if held.nibbles:
            kinds = self.file.package.TensorProto
            self.file.nibbles(f"{name}:nibbles", values)
            self.file.node("Cast", [f"{name}:nibbles"], weight, to=kinds.UINT8 if dtype == np.uint8 else kinds.INT8)
        else:
            self.file.constant(weight, values, dtype)
        weights = [
            weight,
            self.file.constant(f"{name}:weight_scale", held.scale, np.float32),
            self.file.constant(f"{name}:weight_zero_point", np.full(held.scale.shape, held.zero_point), dtype),
        ]
        bias = self.file.constant(f"{name}:bias", op.bias, np.int32)
        if self.style == QOPERATOR:
            terms = [self._integers(source), *self._grid(source), *weights]
            terms += [*self._grid(name), bias] if integer == "QLinearConv" else [bias, *self._grid(name)]
            domain = "" if integer == "QLinearConv" else MICROSOFT
            self._clamped(node, op.requantizer.clamp, integer, terms, domain, **attributes)
            return
        along: dict[str, Any] = {"axis": 0} if held.scale.ndim else {}
        scale = self.graph[source].output.quantized[1].scale * held.scale
        grid = [
            self.file.constant(f"{name}:bias_scale", scale, np.float32),
            self.file.constant(f"{name}:bias_zero_point", np.zeros(scale.shape), np.int32),
        ]
        terms = [
            self._as_real(source),
            self.file.node("DequantizeLinear", weights, f"{name}:real_weight", **along),
            self.file.node("DequantizeLinear", [bias, *grid], f"{name}:real_bias", **along),
        ]
        self._requantized(node, op.requantizer.clamp, real, terms, **attributes)

    # Pools, sums, products

    def _average(self, node: IntNode) -> None:
        op, shape = node.op, self.graph[node.inputs[0]].output.shape
        assert isinstance(op, _Average)
        counts = (
            op.counts_padding if isinstance(op, int_ops.AveragePoolFloat32) else isinstance(op, int_ops.AveragePool2d)
        )
        clamp = op.requantizer.clamp if isinstance(op, int_ops.AveragePool2d) else op.clamp
        self._averaged(node, clamp, op.kernel, op.stride, op.padding, counts, shape)

    def _adaptive(self, node: IntNode) -> None:
        op, shape = node.op, self.graph[node.inputs[0]].output.shape
        assert isinstance(op, int_ops.AdaptiveAveragePool2d)
        height, width = image_of(shape)[1:]
        rows, columns = op.output_size
        if height % rows or width % columns:
            raise UnsupportedOperation(
                f"{node.name}: the windows of an adaptive pool from {height} x {width} to {rows} x {columns} differ in size, and "
                f"ONNX has no such pool. Choose an output size that divides the input size."
            )
        kernel = (height // rows, width // columns)
        self._averaged(node, op.requantizer.clamp, kernel, kernel, ((0, 0), (0, 0)), True, shape)

    def _averaged(
        self,
        node: IntNode,
        clamp: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: Padding,
        counts: bool,
        shape: tuple[int, ...],
    ) -> None:
        if kernel == image_of(shape)[1:] and not np.any(padding):
            self._operation(node, clamp, "GlobalAveragePool", "QLinearGlobalAveragePool")
            return
        window = window_of(kernel, stride, padding, None, len(shape) - 1)
        self._operation(node, clamp, "AveragePool", "QLinearAveragePool", count_include_pad=int(counts), **window)

    def _add(self, node: IntNode) -> None:
        op = node.op
        assert isinstance(op, int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32)
        if np.any(op.multipliers < 0) if not isinstance(op, int_ops.AddFixedPoint) else op.subtracts:
            raise UnsupportedOperation(f"{node.name}: onnxruntime has no integer subtraction. Negate a layer instead.")
        self._operation(node, op.clamp, "Add", "QLinearAdd")

    def _multiply(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Multiply)
        self._operation(node, node.op.requantizer.clamp, "Mul", "QLinearMul")

    def _concat(self, node: IntNode) -> None:
        op = node.op
        assert isinstance(op, int_ops.Concat)
        clamp = op.requantizers[0].clamp
        if self.style == QDQ:
            self._requantized(node, clamp, "Concat", [self._as_real(name) for name in node.inputs], axis=1)
            return
        terms = self._grid(node.name)
        for name in node.inputs:
            terms += [self._integers(name), *self._grid(name)]
        self._clamped(node, clamp, "QLinearConcat", terms, MICROSOFT, axis=1)

    def _requantize(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Requantize)
        terms = [self._as_real(node.inputs[0]), *self._grid(node.name)]
        self._clamped(node, node.op.requantizer.clamp, "QuantizeLinear", terms, keeps_clip=self.style == QDQ)

    # Integers that move

    def _max_pool(self, node: IntNode) -> None:
        """Windows that end outside the image are padded to their end, so that no rounding of sizes is left to the reader."""
        op, source = node.op, self.graph[node.inputs[0]].output
        assert isinstance(op, int_ops.MaxPool2d)
        sizes, out = image_of(source.shape)[1:], image_of(node.output.shape)[1:]
        edges = []
        for axis in range(2):
            before, after = op.padding[axis]
            need = (out[axis] - 1) * op.stride[axis] + op.dilation[axis] * (op.kernel[axis] - 1) + 1
            edges.append((before, max(after, need - sizes[axis] - before)))
        x, padding = self._integers(node.inputs[0]), ((edges[0]), (edges[1]))
        if any(edge >= op.kernel[axis] for axis in range(2) for edge in padding[axis]):
            lowest = int(np.iinfo(self._dtype(source)).min)  # never wins
            x = self._padded(x, padding, lowest, f"{node.name}:padded", source)
            padding = ((0, 0), (0, 0))
        window = window_of(op.kernel, op.stride, padding, op.dilation, len(source.shape) - 1)
        self._moved(node, "MaxPool", [x], **window)

    def _pad(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Pad)
        zero = int(node.output.quantized[1].zero_point) + self._shift(node.output)
        source = self.graph[node.inputs[0]].output
        self._padded(self._integers(node.inputs[0]), node.op.padding, zero, self._integers(node.name), source)

    def _flatten(self, node: IntNode) -> None:
        self._moved(node, "Flatten", [self._integers(node.inputs[0])], axis=1)

    def _reshape(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Reshape)
        shape = self.file.constant(f"{node.name}:shape", [0, *node.op.shape], np.int64)
        self._moved(node, "Reshape", [self._integers(node.inputs[0]), shape])

    def _transpose(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Transpose)
        axes = [0, *(1 + axis for axis in node.op.axes)]
        self._moved(node, "Transpose", [self._integers(node.inputs[0])], perm=axes)

    def _upsample(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.UpsampleNearest2d)
        factors = node.op.factor[-(len(node.output.shape) - 1) :]
        scales = self.file.constant(f"{node.name}:factors", [1, 1, *factors], np.float32)
        way = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        self._moved(node, "Resize", [self._integers(node.inputs[0]), "", scales], **way)

    def _softmax(self, node: IntNode) -> None:
        op = node.op
        assert isinstance(op, _Softmax)
        opset = {} if self.style == QDQ else {"opset": 13}
        self._operation(node, op.clamp, "Softmax", "QLinearSoftmax", axis=1 + op.axis, **opset)

    def _argmax(self, node: IntNode) -> None:
        """Positions are int64 in ONNX."""
        op = node.op
        assert isinstance(op, int_ops.ArgMax)
        terms = [self._integers(node.inputs[0])]
        self.file.node("ArgMax", terms, self._integers(node.name), axis=1 + op.axis, keepdims=int(op.keepdims))


_WRITERS: Mapping[Any, Callable[[OnnxNodes, IntNode], None]] = {
    BORDERS_IN: OnnxNodes._quantize,
    int_ops.Input: OnnxNodes._input,
    int_ops.Dequantize: OnnxNodes._dequantize,
    int_ops.Conv2d: OnnxNodes._conv,
    int_ops.Linear: OnnxNodes._linear,
    _Average: OnnxNodes._average,
    int_ops.AdaptiveAveragePool2d: OnnxNodes._adaptive,
    int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32: OnnxNodes._add,
    int_ops.Multiply: OnnxNodes._multiply,
    int_ops.Concat: OnnxNodes._concat,
    int_ops.Requantize: OnnxNodes._requantize,
    int_ops.MaxPool2d: OnnxNodes._max_pool,
    int_ops.Flatten: OnnxNodes._flatten,
    int_ops.Pad: OnnxNodes._pad,
    int_ops.Reshape: OnnxNodes._reshape,
    int_ops.Transpose: OnnxNodes._transpose,
    int_ops.UpsampleNearest2d: OnnxNodes._upsample,
    _Softmax: OnnxNodes._softmax,
    int_ops.ArgMax: OnnxNodes._argmax,
}
