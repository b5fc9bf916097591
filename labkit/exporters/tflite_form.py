"""The network that a TFLite file holds: the same one, of operations that TFLite has and of which every rounding is known.

A mean over the whole image is MEAN, which changes the scale itself. Any other one is AVERAGE_POOL_2D, which keeps it, and a
QUANTIZE after it where the scale changes. Padding that counts as real 0 is a PAD before it. These are the pools that the
rules of LiteRT (`labkit.runtimes.litert`) make of a network, except that they refuse padding and pools to several pixels.

Weights of 4 bits and fewer are int4, but those of depthwise convolutions are int8: XNNPACK leaves int4 ones to kernels that
round some channels in another way than others, by the processor.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from labkit.arithmetic.windows import common_area
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.shapes import Padding
from labkit.runtimes import litert

__all__ = ["held_by_tflite", "is_depthwise", "mean_axes"]

_NONE: Padding = ((0, 0), (0, 0))
_Pool = int_ops.AveragePool2d | int_ops.AveragePoolFloat32


def held_by_tflite(graph: IntGraph) -> IntGraph:
    """``graph`` in operations of TFLite; under each runtime's rules it computes what the file does.

    Raises
    ------
    UnsupportedOperation
        An activation is no whole grid of 8 bits, or an adaptive pool has windows of differing sizes.
    """
    nodes: list[IntNode] = []
    for node in graph:
        _check_grid(node)
        source = graph[node.inputs[0]].output if node.inputs else node.output
        nodes += _without_padding(graph, _without_adaptive(_with_wide_depthwise(node, source), source), source)
    return litert.prepared(replace(graph, nodes=tuple(nodes)))


def mean_axes(node: IntNode, source: Tensor) -> tuple[int, ...]:
    """The axes of the image over whose whole length the pool ``node`` of ``source`` takes the mean: 0 rows, 1 columns.

    Empty where it is no such mean.
    """
    op, sizes = node.op, (*(1, 1), *source.shape[1:])[-2:]
    if isinstance(op, int_ops.AdaptiveAveragePool2d):
        return (0, 1)
    if not isinstance(op, int_ops.AveragePool2d) or op.padding != _NONE:
        return ()
    windows = list(zip(op.kernel, op.stride, sizes, strict=True))
    if not all(kernel == size or (kernel, stride) == (1, 1) for kernel, stride, size in windows):
        return ()
    axes = tuple(axis for axis, (kernel, _, size) in enumerate(windows) if kernel == size)
    return axes or (0, 1)


def _check_grid(node: IntNode) -> None:
    spec = node.output.spec
    if spec is None or (spec.bits == 8 and not spec.narrow):
        return
    if spec.is_wide:
        raise UnsupportedOperation(
            f"{node.name}: activations of 16 bits cannot be exported to TFLite: its operators are known here with 8 bits only. "
            f"Save the net as .lab and run it with labkit."
        )
    what = f"{spec.bits} bits" if spec.bits < 8 else "-127..127"
    raise UnsupportedOperation(
        f"{node.name}: an activation of TFLite has all integers of 8 bits, got a grid of {what}. Quantize with activations=8 "
        f"and the scheme affine, or export to ONNX, which can clamp integers."
    )


def _with_wide_depthwise(node: IntNode, source: Tensor) -> IntNode:
    op = node.op
    if not isinstance(op, int_ops.Conv2d) or not is_depthwise(op, source) or op.weight.spec.bits > 4:
        return node
    weight = replace(op.weight, spec=replace(op.weight.spec, bits=8))
    return replace(node, op=replace(op, weight=weight))


def is_depthwise(op: int_ops.Conv2d, source: Tensor) -> bool:
    """Whether each output channel of ``op`` depends on one channel of ``source`` only, of several."""
    return op.groups == source.shape[0] and op.groups > 1


def _without_adaptive(node: IntNode, source: Tensor) -> IntNode:
    """An adaptive pool to several pixels as the pool that it is; that to one pixel is a MEAN as it stands."""
    op = node.op
    if not isinstance(op, int_ops.AdaptiveAveragePool2d) or op.output_size == (1, 1):
        return node
    height, width = (*(1, 1), *source.shape[1:])[-2:]
    rows, columns = op.output_size
    if height % rows or width % columns:
        raise UnsupportedOperation(
            f"{node.name}: the windows of an adaptive pool from {height} x {width} to {rows} x {columns} differ in size, and "
            f"TFLite has no such pool. Choose an output size that divides the input size."
        )
    kernel = (height // rows, width // columns)
    assert common_area(height, width, op.output_size) == kernel[0] * kernel[1]  # so that the multiplier stays
    return replace(node, op=int_ops.AveragePool2d(kernel, kernel, _NONE, op.requantizer))


def _without_padding(graph: IntGraph, node: IntNode, source: Tensor) -> list[IntNode]:
    """A pool that counts its padding as a pool of a padded image, which has a node NAME.padded of its own."""
    op = node.op
    if not isinstance(op, _Pool) or not np.any(op.padding):
        return [node]
    if isinstance(op, int_ops.AveragePoolFloat32) and not op.counts_padding:
        return [node]
    name, taken = f"{node.name}.padded", graph.carriers()
    while name in taken:
        name += "_"
    channels, *sizes = source.shape
    edges = op.padding[-len(sizes) :]
    shape = (channels, *(size + sum(edge) for size, edge in zip(sizes, edges, strict=True)))
    padded = IntNode(name, int_ops.Pad(op.padding), node.inputs, replace(source, shape=shape, channels_last=False))
    return [padded, replace(node, op=replace(op, padding=_NONE), inputs=(name,))]
