"""The values and operators of an ONNX file as they come: integers with their grids, real numbers, clamps, borders."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.exporters.onnx_file import MICROSOFT, OnnxFile
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.shapes import Padding

__all__ = ["BORDERS_IN", "QDQ", "QOPERATOR", "OnnxValues", "image_of", "window_of"]

QDQ, QOPERATOR = "qdq", "qoperator"
BORDERS_IN = int_ops.Quantize | int_ops.QuantizeByReciprocal | int_ops.QuantizeAwayFromZero


class OnnxValues:
    """What is common to the operators of a file of ``graph`` in a ``style``.

    The value of a node's integers has the node's name. A name with a colon, which no node may have, is a value between.
    """

    def __init__(self, graph: IntGraph, style: str) -> None:
        self.graph, self.style, self.file = graph, style, OnnxFile()
        self._real: dict[str, str] = {}

    def _border(self, name: str) -> str:
        """The value with which the result of the node ``name`` leaves: in the source's order of axes."""
        tensor, value = self.graph[name].output, self._integers(name)
        if not tensor.channels_last or value == name:
            return value
        return self._channels_last(tensor, value, f"{name}:last" if name in self.graph.inputs else name)

    def _channels_last(self, tensor: Tensor, value: str, output: str) -> str:
        return self.file.node("Transpose", [value], output, perm=[0, *range(2, 1 + len(tensor.shape)), 1])

    def _channels_first(self, node: IntNode, value: str) -> None:
        """The integers ``value`` of the input ``node`` as (N, C, ...)."""
        last = len(node.output.shape)
        self.file.node("Transpose", [value], self._integers(node.name), perm=[0, last, *range(1, last)])

    def _padded(self, x: str, padding: Padding, value: int, output: str, tensor: Tensor) -> str:
        axes = len(tensor.shape) - 1
        edges = padding[-axes:]
        pads = [0, 0, *(before for before, _ in edges), 0, 0, *(after for _, after in edges)]
        terms = [
            x,
            self.file.constant(f"{output}:pads", pads, np.int64),
            self.file.constant(f"{output}:value", value, self._dtype(tensor)),
        ]
        return self.file.node("Pad", terms, output)

    def _moved(self, node: IntNode, kind: str, terms: list[str], **attributes: Any) -> None:
        self.file.node(kind, terms, self._integers(node.name), **attributes)

    def _operation(self, node: IntNode, clamp: tuple[int, int], real: str, integer: str, **attributes: Any) -> None:
        """The operator ``integer`` of onnxruntime, or ``real`` between DequantizeLinear and QuantizeLinear."""
        if self.style == QDQ:
            self._requantized(node, clamp, real, [self._as_real(name) for name in node.inputs], **attributes)
            return
        terms = [term for name in node.inputs for term in (self._integers(name), *self._grid(name))]
        self._clamped(node, clamp, integer, [*terms, *self._grid(node.name)], MICROSOFT, **attributes)

    def _requantized(
        self, node: IntNode, clamp: tuple[int, int], kind: str, terms: list[str], **attributes: Any
    ) -> None:
        real = self.file.node(kind, terms, f"{node.name}:real_result", **attributes)
        self._clamped(node, clamp, "QuantizeLinear", [real, *self._grid(node.name)])

    def _clamped(
        self,
        node: IntNode,
        clamp: tuple[int, int],
        kind: str,
        terms: list[str],
        domain: str = "",
        *,
        keeps_clip: bool = False,
        output: str = "",
        **attributes: Any,
    ) -> None:
        """The operator, and a Clip of its integers where the clamp is narrower than what their type holds.

        ``keeps_clip`` writes one that changes nothing, too: onnxruntime makes one pair of two pairs QuantizeLinear and
        DequantizeLinear that follow each other, which loses a rounding. ``output`` is the value that results, if it is not
        the node's.
        """
        output = output or self._integers(node.name)
        limits = np.iinfo(self._dtype(node.output))
        shift = self._shift(node.output)
        low, high = clamp[0] + shift, clamp[1] + shift
        if (low, high) == (limits.min, limits.max) and not keeps_clip:
            self.file.node(kind, terms, output, domain, **attributes)
            return
        self.file.node(kind, terms, f"{node.name}:unclamped", domain, **attributes)
        ends = [
            self.file.constant(f"{node.name}:{label}", end, self._dtype(node.output))
            for label, end in (("lowest", low), ("highest", high))
        ]
        self.file.node("Clip", [f"{node.name}:unclamped", *ends], output)

    def _integers(self, name: str) -> str:
        """The value that holds the result of the node ``name`` as (N, C, ...)."""
        node = self.graph[name]
        leaves = name in self.graph.outputs and not isinstance(node.op, int_ops.Dequantize)
        moves = node.output.channels_last and (leaves or isinstance(node.op, int_ops.Input))
        return f"{name}:integers" if moves or isinstance(node.op, BORDERS_IN) else name

    def _as_real(self, name: str) -> str:
        """The value that holds the real numbers of the integers of the node ``name``; made where first needed."""
        if name not in self._real:
            terms = [self._integers(name), *self._grid(name)]
            self._real[name] = self.file.node("DequantizeLinear", terms, f"{name}:real")
        return self._real[name]

    def _grid(self, name: str) -> list[str]:
        """Names of the scale and the zero point of the integers of the node ``name``."""
        tensor = self.graph[name].output
        params = tensor.quantized[1]
        return [
            self.file.constant(f"{name}:scale", params.scale, np.float32),
            self.file.constant(f"{name}:zero_point", int(params.zero_point) + self._shift(tensor), self._dtype(tensor)),
        ]

    def _shift(self, tensor: Tensor) -> int:
        """What is added to the integers of ``tensor``: 128 for int8 in the style QDQ, which is fast and exact for uint8 only."""
        return 128 if self.style == QDQ and tensor.quantized[0].signed else 0

    def _dtype(self, tensor: Tensor) -> np.dtype[Any]:
        return np.dtype(np.uint8) if self.style == QDQ else tensor.quantized[0].dtype


def image_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) of an image or of a sequence (C, L)."""
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


def window_of(
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int] | None,
    axes: int,
) -> dict[str, Any]:
    """The attributes of a window over the last ``axes`` axes: ``kernel``, ``stride``, ``padding``, and ``dilation`` if any."""
    edges = padding[-axes:]
    window = {
        "kernel_shape": list(kernel[-axes:]),
        "strides": list(stride[-axes:]),
        "pads": [*(before for before, _ in edges), *(after for _, after in edges)],
    }
    return window if dilation is None else {**window, "dilations": list(dilation[-axes:])}
