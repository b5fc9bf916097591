"""Each operation of an `IntGraph` as TFLite operators, with the channel axis last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import UnsupportedOperation
from labkit.exporters.tflite_file import tflite_bytes
from labkit.exporters.tflite_form import is_depthwise, mean_axes
from labkit.exporters.tflite_tensors import (
    BORDERS_IN,
    LOWEST,
    TfliteTensors,
    border_shape,
    channels_last,
    held_shape,
    image_of,
)
from labkit.exporters.tflite_windows import fitted
from labkit.graph import int_ops
from labkit.graph.ir import IntNode, Tensor

__all__ = ["TfliteNodes"]

_Average = (
    int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d | int_ops.AveragePoolFloat32 | int_ops.AveragePoolOfValid
)
_Softmax = int_ops.Softmax | int_ops.SoftmaxFixedPoint | int_ops.SoftmaxFloat32 | int_ops.SoftmaxByReciprocal


class TfliteNodes(TfliteTensors):
    """Writes the nodes of ``graph``, which `held_by_tflite` made, one after the other.

    The tensor of a node's integers has the node's name. A name with a colon, which no node may have, is a tensor between.
    An image (C, H, W) is held as (N, H, W, C), a sequence (C, L) as (N, 1, L, C), a vector (F,) as (N, F).
    """

    def write(self, node: IntNode) -> None:
        """Add what computes ``node``.

        Raises
        ------
        UnsupportedOperation
            TFLite has nothing that computes it.
        """
        for kind, write in _WRITERS.items():
            if isinstance(node.op, kind):
                write(self, node)
                return
        raise UnsupportedOperation(
            f"{node.name}: {type(node.op).__name__} cannot be exported to TFLite, which has no such integer operator."
        )

    def finish(self, description: str) -> bytes:
        """The file's bytes once all nodes are written; ``description`` is its line of text.

        Raises
        ------
        ModelError
            The packages that write the file are not installed.
        """
        outputs = [self._leaving(name) for name in self.graph.outputs]
        return tflite_bytes(list(self.tensors.values()), self.operators, self.inputs, outputs, description)

    # Borders

    def _quantize(self, node: IntNode) -> None:
        """The input keeps the node's name, so that its integers have another."""
        shape = border_shape(node.output.shape)
        self.inputs.append(self._tensor(node.name, shape, "float32", any_batch=True))
        self._entered(node, self._operator("QUANTIZE", [node.name], self._at_border(node, f"{node.name}:integers")))

    def _input(self, node: IntNode) -> None:
        self.inputs.append(self._at_border(node, node.name))
        self._entered(node, node.name)

    def _entered(self, node: IntNode, name: str) -> None:
        """A sequence gets a row."""
        if self._name(node) != name:
            self._reshaped(name, self._result(node), held_shape(node.output.shape))

    def _dequantize(self, node: IntNode) -> None:
        """A sequence loses its row before."""
        source = self.graph[node.inputs[0]]
        x, shape = self._name(source), border_shape(source.output.shape)
        if shape != held_shape(source.output.shape):
            x = self._reshaped(x, self._at_border(source, f"{node.name}:before"), shape)
        self._operator("DEQUANTIZE", [x], self._tensor(node.name, shape, "float32", any_batch=True))

    # Layers

    def _conv(self, node: IntNode) -> None:
        op, source = node.op, self.graph[node.inputs[0]].output
        assert isinstance(op, int_ops.Conv2d)
        kernel = op.weight.values.shape[2:]
        window = tuple(d * (k - 1) + 1 for d, k in zip(op.dilation, kernel, strict=True))
        x, padding = self._windowed(node, source, (window[0], window[1]), op.stride, op.padding, "PAD")
        options = {
            **_steps(op.stride, padding),
            "DilationHFactor": op.dilation[0],
            "DilationWFactor": op.dilation[1],
            "FusedActivationFunction": self._activation(node, op.requantizer.clamp),
        }
        depthwise = is_depthwise(op, source)
        if depthwise:
            values, axis = op.weight.values[:, 0].transpose(1, 2, 0)[None], 3
            options["DepthMultiplier"] = len(op.weight.values) // op.groups
        else:
            values, axis = op.weight.values.transpose(0, 2, 3, 1), 0
        terms = [x, *self._weights(node, op, values, axis, source)]
        self._operator("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", terms, self._result(node), **options)

    def _linear(self, node: IntNode) -> None:
        """The columns of the weights follow the order in which the file flattens an image: rows, columns, channels."""
        op, source = node.op, self.graph[node.inputs[0]]
        assert isinstance(op, int_ops.Linear)
        values = op.weight.values
        if isinstance(source.op, int_ops.Flatten) and self._flattens_channels_last(source):
            shape = self.graph[source.inputs[0]].output.shape
            values = np.moveaxis(values.reshape(-1, *shape), 1, -1).reshape(values.shape)
        terms = [self._name(source), *self._weights(node, op, values, 0, source.output)]
        activation = self._activation(node, op.requantizer.clamp)
        self._operator("FULLY_CONNECTED", terms, self._result(node), FusedActivationFunction=activation)

    def _weights(
        self,
        node: IntNode,
        op: int_ops.Conv2d | int_ops.Linear,
        values: NDArray[np.integer],
        axis: int,
        source: Tensor,
    ) -> list[str]:
        """The tensors of weights and bias."""
        name, weight = node.name, op.weight
        if not weight.spec.signed or np.any(weight.params.zero_point):
            raise UnsupportedOperation(
                f"{name}: the weights of TFLite are signed, with the zero point 0. Quantize the weights symmetrically."
            )
        scale = weight.params.scale
        kind = "int4" if weight.spec.bits <= 4 else "int8"
        data = np.ascontiguousarray(values, np.int8)
        self._tensor(f"{name}:weight", data.shape, kind, scales=scale, zero_points=0, axis=axis, data=data)
        grid = {"scales": source.quantized[1].scale * scale, "zero_points": 0}
        self._tensor(f"{name}:bias", op.bias.shape, "int32", **grid, data=op.bias)
        return [f"{name}:weight", f"{name}:bias"]

    # Pools

    def _max_pool(self, node: IntNode) -> None:
        op, source = node.op, self.graph[node.inputs[0]].output
        assert isinstance(op, int_ops.MaxPool2d)
        if op.dilation != (1, 1):
            raise UnsupportedOperation(
                f"{node.name}: the windows of TFLite's pools have no dilation, got {op.dilation}."
            )
        code = "PAD" if self._grid(source)["zero_points"] == LOWEST else "PADV2"  # either way with what never wins
        x, padding = self._windowed(node, source, op.kernel, op.stride, op.padding, code)
        options = {**_steps(op.stride, padding), "FilterHeight": op.kernel[0], "FilterWidth": op.kernel[1]}
        self._operator("MAX_POOL_2D", [x], self._result(node), **options)

    def _average(self, node: IntNode) -> None:
        """MEAN over whole rows and columns, else AVERAGE_POOL_2D."""
        op, source = node.op, self.graph[node.inputs[0]].output
        assert isinstance(op, _Average)
        clamp = (
            op.requantizer.clamp if isinstance(op, int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d) else op.clamp
        )
        activation = self._activation(node, clamp)
        if axes := mean_axes(node, source):
            self._mean(node, axes, activation)
            return
        assert not isinstance(op, int_ops.AdaptiveAveragePool2d)  # held_by_tflite made all others a pool of one kernel
        sizes, out = image_of(source.shape)[1:], image_of(node.output.shape)[1:]
        padding, edges = fitted((sizes[0], sizes[1]), op.kernel, op.stride, op.padding, (out[0], out[1]))
        if edges is not None:
            raise UnsupportedOperation(
                f"{node.name}: a mean of the elements in the image only has no padding but SAME in TFLite, got {op.padding}."
            )
        options = {
            **_steps(op.stride, padding),
            "FilterHeight": op.kernel[0],
            "FilterWidth": op.kernel[1],
            "FusedActivationFunction": activation,
        }
        self._operator("AVERAGE_POOL_2D", [self._name(self.graph[node.inputs[0]])], self._result(node), **options)

    def _mean(self, node: IntNode, axes: tuple[int, ...], activation: str) -> None:
        """A MEAN has no activation: one follows it, at the same scale."""
        terms = [
            self._name(self.graph[node.inputs[0]]),
            self._integers(f"{node.name}:axes", [1 + axis for axis in axes]),
        ]
        output = self._result(node)
        if activation == "NONE":
            self._operator("MEAN", terms, output, KeepDims=True)
            return
        between = f"{node.name}:mean"
        self._tensor(between, held_shape(node.output.shape), "int8", any_batch=True, **self._grid(node.output))
        self._operator("MEAN", terms, between, KeepDims=True)
        self._operator(activation, [between], output)

    # Sums, products

    def _add(self, node: IntNode) -> None:
        op = node.op
        assert isinstance(op, int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32)
        subtracts = op.subtracts if isinstance(op, int_ops.AddFixedPoint) else bool(op.multipliers[1] < 0)
        activation = self._activation(node, op.clamp)
        terms = [self._name(self.graph[name]) for name in node.inputs]
        self._operator("SUB" if subtracts else "ADD", terms, self._result(node), FusedActivationFunction=activation)

    def _multiply(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Multiply)
        activation = self._activation(node, node.op.requantizer.clamp)
        terms = [self._name(self.graph[name]) for name in node.inputs]
        self._operator("MUL", terms, self._result(node), FusedActivationFunction=activation)

    def _concat(self, node: IntNode) -> None:
        """The parts must have the output's scale: a QUANTIZE brings those to it that have another."""
        op = node.op
        assert isinstance(op, int_ops.Concat)
        if any(self._activation(node, requantizer.clamp) != "NONE" for requantizer in op.requantizers):
            raise UnsupportedOperation(
                f"{node.name}: TFLite joins tensors without an activation. Put it before or behind."
            )
        grid, terms = self._grid(node.output), []
        for index, name in enumerate(node.inputs):
            part = self.graph[name].output
            if self._grid(part) == grid:
                terms.append(self._name(self.graph[name]))
                continue
            output = self._tensor(f"{node.name}:part{index}", held_shape(part.shape), "int8", any_batch=True, **grid)
            terms.append(self._operator("QUANTIZE", [self._name(self.graph[name])], output))
        self._operator("CONCATENATION", terms, self._result(node), Axis=len(held_shape(node.output.shape)) - 1)

    def _requantize(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Requantize)
        activation = self._activation(node, node.op.requantizer.clamp)
        code = "QUANTIZE" if activation == "NONE" else activation
        self._operator(code, [self._name(self.graph[node.inputs[0]])], self._result(node))

    def _lookup(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Lookup)
        function = node.op.function
        codes = {"gelu": "GELU", "gelu_tanh": "GELU", "logistic": "LOGISTIC", "tanh": "TANH", "rescale": "QUANTIZE"}
        if function not in codes:
            raise UnsupportedOperation(f"{node.name}: a table for {function!r} is no operator of TFLite.")
        options = {"Approximate": function == "gelu_tanh"} if codes[function] == "GELU" else {}
        self._operator(codes[function], [self._name(self.graph[node.inputs[0]])], self._result(node), **options)

    # Integers that move

    def _flatten(self, node: IntNode) -> None:
        source = self.graph[node.inputs[0]]
        if self._flattens_channels_last(node):
            self._reshaped(self._name(source), self._result(node), held_shape(node.output.shape))
        else:
            self._reshape(node)

    def _flattens_channels_last(self, node: IntNode) -> bool:
        """Whether all that take the flat tensor are layers, whose weights can follow another order of its elements."""
        layers = all(isinstance(taker.op, int_ops.Linear) for taker in self.takers[node.name])
        return layers and bool(self.takers[node.name]) and node.name not in self.graph.outputs

    def _reshape(self, node: IntNode) -> None:
        """In the order of the source: the channel axis comes first before, and last again behind."""
        source = self.graph[node.inputs[0]]
        x = self._transposed(self._name(source), source.output, f"{node.name}:first")
        shape = node.output.shape
        if channels_last(shape) == shape:
            self._reshaped(x, self._result(node), held_shape(shape))
            return
        plain = f"{node.name}:plain"
        self._tensor(plain, (1, *shape), "int8", any_batch=True, **self._grid(node.output))
        self._reshaped(x, plain, (1, *shape))
        axes = [0, *range(2, 1 + len(shape)), 1]
        if len(shape) == 2:
            flat = f"{node.name}:flat"
            self._tensor(flat, (1, *channels_last(shape)), "int8", any_batch=True, **self._grid(node.output))
            self._operator("TRANSPOSE", [plain, self._integers(f"{flat}:axes", axes)], flat)
            self._reshaped(flat, self._result(node), held_shape(shape))
            return
        self._operator("TRANSPOSE", [plain, self._integers(f"{plain}:axes", axes)], self._result(node))

    def _transpose(self, node: IntNode) -> None:
        op, source = node.op, self.graph[node.inputs[0]]
        assert isinstance(op, int_ops.Transpose)
        rank = len(op.axes)
        rows = 1 if rank == 2 else 0  # a sequence is held with a row
        places = {axis: rank + rows if axis == 0 else axis + rows for axis in range(rank)}  # of each axis in the file
        axes = [0, *range(1, 1 + rows), *(places[axis] for axis in (*op.axes[1:], op.axes[0]))]
        terms = [self._name(source), self._integers(f"{node.name}:axes", axes)]
        self._operator("TRANSPOSE", terms, self._result(node))

    def _pad(self, node: IntNode) -> None:
        assert isinstance(node.op, int_ops.Pad)
        source = self.graph[node.inputs[0]]
        edges = [[0, 0], *node.op.padding, [0, 0]]
        terms = [self._name(source), self._integers(f"{node.name}:edges", edges)]
        self._operator("PAD", terms, self._result(node))

    def _upsample(self, node: IntNode) -> None:
        _, height, width = image_of(node.output.shape)
        size = self._integers(f"{node.name}:size", [height, width])
        terms = [self._name(self.graph[node.inputs[0]]), size]
        # the middle of a pixel is far from any other: its edge, in float32, falls short of a factor such as 41
        self._operator("RESIZE_NEAREST_NEIGHBOR", terms, self._result(node), HalfPixelCenters=True)

    # Heads

    def _softmax(self, node: IntNode) -> None:
        op, source = node.op, self.graph[node.inputs[0]].output
        assert isinstance(op, _Softmax)
        scale, zero_point = float(node.output.quantized[1].scale), self._grid(node.output)["zero_points"]
        if op.axis != 0 or (scale, zero_point) != (1 / 256, LOWEST):
            raise UnsupportedOperation(
                f"{node.name}: TFLite's softmax runs along the channels, to the scale 1/256 with real 0 at the lowest integer; "
                f"got axis {op.axis} of {source.shape} and the scale {scale:g}."
            )
        self._operator("SOFTMAX", [self._name(self.graph[node.inputs[0]])], self._result(node), Beta=1.0)

    def _argmax(self, node: IntNode) -> None:
        op, source = node.op, self.graph[node.inputs[0]]
        assert isinstance(op, int_ops.ArgMax)
        x, tensor = self._name(source), source.output
        rank = len(tensor.shape)
        if rank > 1:  # positions are counted in the order of the source
            plain = f"{node.name}:first"
            x = self._transposed(x, tensor, plain)
            held = (1, *tensor.shape)
            self._tensor(f"{node.name}:plain", held, "int8", any_batch=True, **self._grid(tensor))
            x = self._reshaped(x, f"{node.name}:plain", held)
        if op.keepdims:
            raise UnsupportedOperation(
                f"{node.name}: TFLite's ARG_MAX keeps no axis. Take keepdims=False, and add it behind."
            )
        self._tensor(node.name, (1, *node.output.shape), "int32", any_batch=True)
        self._operator("ARG_MAX", [x, self._integers(f"{node.name}:axis", 1 + op.axis)], node.name, OutputType="INT32")


def _steps(stride: tuple[int, int], padding: str) -> dict[str, Any]:
    return {"StrideH": stride[0], "StrideW": stride[1], "Padding": padding}


_WRITERS: Mapping[Any, Callable[[TfliteNodes, IntNode], None]] = {
    BORDERS_IN: TfliteNodes._quantize,
    int_ops.Input: TfliteNodes._input,
    int_ops.Dequantize: TfliteNodes._dequantize,
    int_ops.Conv2d: TfliteNodes._conv,
    int_ops.Linear: TfliteNodes._linear,
    int_ops.MaxPool2d: TfliteNodes._max_pool,
    _Average: TfliteNodes._average,
    int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32: TfliteNodes._add,
    int_ops.Multiply: TfliteNodes._multiply,
    int_ops.Concat: TfliteNodes._concat,
    int_ops.Requantize: TfliteNodes._requantize,
    int_ops.Lookup: TfliteNodes._lookup,
    int_ops.Flatten: TfliteNodes._flatten,
    int_ops.Reshape: TfliteNodes._reshape,
    int_ops.Transpose: TfliteNodes._transpose,
    int_ops.Pad: TfliteNodes._pad,
    int_ops.UpsampleNearest2d: TfliteNodes._upsample,
    _Softmax: TfliteNodes._softmax,
    int_ops.ArgMax: TfliteNodes._argmax,
}
