"""The tensors and operators of a TFLite file as they come, and how the results of a graph's nodes are held in them.

An image (C, H, W) is held as (N, H, W, C), a sequence (C, L) as (N, 1, L, C), a vector (F,) as (N, F).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from labkit.errors import UnsupportedOperation
from labkit.exporters.tflite_file import FileOperator, FileTensor
from labkit.exporters.tflite_windows import fitted
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.shapes import Padding
from labkit.runtimes.bounds import RealBounds, real_bounds

__all__ = ["BORDERS_IN", "LOWEST", "TfliteTensors", "border_shape", "channels_last", "held_shape", "image_of"]

Shape = tuple[int, ...]
LOWEST = -128
BORDERS_IN = int_ops.Quantize | int_ops.QuantizeByReciprocal | int_ops.QuantizeAwayFromZero
_ACTIVATIONS: Mapping[RealBounds, str] = {
    (None, None): "NONE",
    (0.0, None): "RELU",
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
}


class TfliteTensors:
    """What is common to the operators: tensors by name, padding, activations, borders. ``graph`` is what `held_by_tflite` made.

    The tensor of a node's integers has the node's name. A name with a colon, which no node may have, is a tensor between.
    """

    def __init__(self, graph: IntGraph) -> None:
        self.graph = graph
        self.tensors: dict[str, FileTensor] = {}
        self.operators: list[FileOperator] = []
        self.inputs: list[str] = []
        self.takers: dict[str, list[IntNode]] = {node.name: [] for node in graph}
        for node in graph:
            for name in node.inputs:
                self.takers[name].append(node)

    def _name(self, node: IntNode) -> str:
        """The tensor that holds the result of ``node``."""
        name, shape = node.name, node.output.shape
        has_row = node.output.spec is not None and border_shape(shape) != held_shape(shape)
        if isinstance(node.op, BORDERS_IN):
            return f"{name}:image" if has_row else f"{name}:integers"
        return (
            f"{name}:image" if has_row and (name in self.graph.outputs or isinstance(node.op, int_ops.Input)) else name
        )

    def _result(self, node: IntNode) -> str:
        """Declare the tensor of the integers of ``node``; gives back its name."""
        grid = self._grid(node.output)
        return self._tensor(self._name(node), held_shape(node.output.shape), "int8", any_batch=True, **grid)

    def _tensor(self, name: str, shape: Shape, kind: str, **fields: Any) -> str:
        self.tensors[name] = FileTensor(name, shape, kind, **fields)
        return name

    def _integers(self, name: str, values: ArrayLike) -> str:
        """A constant of int32."""
        data = np.asarray(values, np.int32)
        return self._tensor(name, data.shape, "int32", data=data)

    def _operator(self, code: str, inputs: Sequence[str], output: str, **options: Any) -> str:
        self.operators.append(FileOperator(code, tuple(inputs), (output,), options))
        return output

    def _reshaped(self, x: str, output: str, shape: Shape) -> str:
        wanted = [-1, *shape[1:]]
        return self._operator("RESHAPE", [x, self._integers(f"{output}:shape", wanted)], output, NewShape=wanted)

    def _grid(self, tensor: Tensor) -> dict[str, Any]:
        """Scale and zero point of ``tensor`` as int8: 128 less where its integers are unsigned."""
        spec, params = tensor.quantized
        return {"scales": float(params.scale), "zero_points": int(params.zero_point) - (0 if spec.signed else 128)}

    def _activation(self, node: IntNode, clamp: tuple[int, int]) -> str:
        """The fused activation for ``clamp``."""
        spec = node.output.quantized[0]
        bounds = real_bounds(clamp, node.output)
        if bounds == (None, None) and clamp != (spec.qmin, spec.qmax):
            raise UnsupportedOperation(
                f"{node.name}: its clamp {clamp[0]}..{clamp[1]} is none of TFLite's fused activations (none, ReLU, ReLU6, "
                f"-1..1). Export to ONNX, which can clamp integers."
            )
        return _ACTIVATIONS[bounds]

    def _windowed(
        self,
        node: IntNode,
        source: Tensor,
        window: tuple[int, int],
        stride: tuple[int, int],
        padding: Padding,
        code: str,
    ) -> tuple[str, str]:
        """The tensor under the window, padded by the operator ``code`` where it must be, and VALID or SAME."""
        x, sizes, out = (
            self._name(self.graph[node.inputs[0]]),
            image_of(source.shape)[1:],
            image_of(node.output.shape)[1:],
        )
        scheme, edges = fitted((sizes[0], sizes[1]), window, stride, padding, (out[0], out[1]))
        if edges is None:
            return x, scheme
        return self._padded(x, source, edges, f"{node.name}:padded", code), scheme

    def _padded(self, x: str, source: Tensor, edges: Padding, output: str, code: str) -> str:
        """``x`` with real 0 around it (PAD), or with the lowest integer (PADV2), which never wins a maximum."""
        channels, height, width = image_of(source.shape)
        shape = (1, height + sum(edges[0]), width + sum(edges[1]), channels)
        self._tensor(output, shape, "int8", any_batch=True, **self._grid(source))
        terms = [x, self._integers(f"{output}:edges", [[0, 0], *edges, [0, 0]])]
        if code == "PADV2":
            lowest = np.array([LOWEST], np.int8)
            terms.append(self._tensor(f"{output}:lowest", (1,), "int8", data=lowest, **self._grid(source)))
        return self._operator(code, terms, output)

    def _transposed(self, x: str, tensor: Tensor, output: str) -> str:
        """``x`` with the channel axis first, still with an axis of one row where it is a sequence."""
        held = held_shape(tensor.shape)
        if len(held) == 2 or held[-1] == 1 or math.prod(held[:-1]) == 1:
            return x
        axes = [0, len(held) - 1, *range(1, len(held) - 1)]
        self._tensor(output, tuple(held[a] for a in axes), "int8", any_batch=True, **self._grid(tensor))
        return self._operator("TRANSPOSE", [x, self._integers(f"{output}:axes", axes)], output)

    def _at_border(self, node: IntNode, name: str) -> str:
        """Declare the tensor ``name`` of the integers of ``node`` in the shape in which they enter or leave."""
        return self._tensor(name, border_shape(node.output.shape), "int8", any_batch=True, **self._grid(node.output))

    def _leaving(self, name: str) -> str:
        """The tensor with which the result of the node ``name`` leaves: a sequence as (N, L, C)."""
        node = self.graph[name]
        value, shape = self._name(node), border_shape(node.output.shape)
        if node.output.spec is None or shape == held_shape(node.output.shape):
            return value
        return self._reshaped(value, self._at_border(node, f"{name}:last" if name in self.inputs else name), shape)


def image_of(shape: Shape) -> Shape:
    """(C, H, W) of an image or of a sequence (C, L)."""
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


def channels_last(shape: Shape) -> Shape:
    """``shape`` with the channel axis last."""
    return (*shape[1:], *shape[:1])


def border_shape(shape: Shape) -> Shape:
    """The shape of the file for a tensor of ``shape`` that enters or leaves."""
    return (1, *channels_last(shape))


def held_shape(shape: Shape) -> Shape:
    """The shape of the file for a tensor of ``shape`` between: a sequence has a row."""
    return (1, 1, *channels_last(shape)) if len(shape) == 2 else border_shape(shape)
