"""A softmax from the attributes of a node."""

from __future__ import annotations

import numpy as np

from labkit.frontends.onnx.layers import Make
from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.values import refuse
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import Tensor
from labkit.runtimes import labkit_rules
from labkit.runtimes.bounds import RealBounds
from labkit.runtimes.onnxruntime import softmax_float32

__all__ = ["softmax"]


def softmax(node: OnnxNode, source: Tensor) -> Make:
    """The softmax of ``source`` along the axis that ``node`` says.

    labkit's own where the output's scale is one of 1/2 to 1/256, else that of onnxruntime, which takes any.

    Raises
    ------
    UnsupportedOperation
        It is taken over the images of a batch.
    """
    rank = len(source.shape) + 1
    axis = int(node.attributes.get("axis", -1))
    axis += rank if axis < 0 else 0
    if not 1 <= axis < rank:
        raise refuse(node, f"its axis is {axis} of {rank}; axis 0 holds the images.")

    def make(output: Tensor, bounds: RealBounds) -> IntOp:
        if bounds != (None, None):
            raise refuse(node, "its result is clamped.")
        bits = -np.log2(float(output.quantized[1].scale))
        if bits in range(1, 9):
            return labkit_rules.softmax(axis - 1, source, output)
        return softmax_float32(axis - 1, source, output)

    return make
