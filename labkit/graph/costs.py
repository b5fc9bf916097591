"""What a network costs for one image: multiply-accumulates, bit operations, bytes of parameters and of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from labkit.graph import int_ops
from labkit.graph.ir import IntGraph

__all__ = ["Costs", "costs", "peak_activation_bytes"]


@dataclass(frozen=True)
class Costs:
    """macs : multiply-accumulates by layer, for one image or sequence.

    bops : MACs x weight bits x input bits by layer (the slides on HAWQ-V3 count so); of a product of two tensors, the bits of
        both.
    weight_bytes : integer weights by layer, four bits or fewer packed two to a byte; tables and constants, too.
    bias_bytes : int32 biases by layer, or float32 ones; gamma and beta of a LayerNorm.
    """

    macs: Mapping[str, int]
    bops: Mapping[str, int]
    weight_bytes: Mapping[str, int]
    bias_bytes: Mapping[str, int]

    @property
    def size_bytes(self) -> int:
        """Weights and biases of the whole network."""
        return sum(self.weight_bytes.values()) + sum(self.bias_bytes.values())

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of the whole network for one image."""
        return sum(self.macs.values())

    @property
    def total_bops(self) -> int:
        """Bit operations of the whole network for one image."""
        return sum(self.bops.values())


def costs(graph: IntGraph) -> Costs:
    """Count the convolutions, linear layers and products of ``graph``, and the bytes of all its parameters.

    Other operations accumulate no products: a Multiply makes one for each element, a Softmax looks its exponentials up.
    """
    macs: dict[str, int] = {}
    bops: dict[str, int] = {}
    weight_bytes: dict[str, int] = {}
    bias_bytes: dict[str, int] = {}
    for node in graph:
        op = node.op
        if isinstance(op, int_ops.Conv2d | int_ops.Linear):
            positions = int(np.prod(node.output.shape[1:]))  # 1 for a linear layer
            macs[node.name] = op.weight.values.size * positions
            bops[node.name] = macs[node.name] * op.weight.spec.bits * graph.inputs_of(node)[0].quantized[0].bits
            biases = (op.bias, op.requantizer.bias)  # integers, and real numbers where a runtime keeps them so
            bias_bytes[node.name] = sum(4 * bias.size for bias in biases if bias is not None and np.any(bias))
        elif isinstance(op, int_ops.MatMul):
            left, right = graph.inputs_of(node)
            inner = left.shape[1 if op.transpose_a else 2]
            macs[node.name] = int(np.prod(node.output.shape)) * inner
            bops[node.name] = macs[node.name] * left.quantized[0].bits * right.quantized[0].bits
        elif isinstance(op, int_ops.LayerNorm):
            bias_bytes[node.name] = op.multipliers.nbytes + op.addends.nbytes
        if isinstance(op, int_ops.Conv2d | int_ops.Linear | int_ops.Embedding):
            packed = op.weight.spec.bits <= 4
            weight_bytes[node.name] = (op.weight.values.size + 1) // 2 if packed else op.weight.values.size
        elif isinstance(op, int_ops.Constant):
            weight_bytes[node.name] = op.values.nbytes
    return Costs(*(MappingProxyType(table) for table in (macs, bops, weight_bytes, bias_bytes)))


def peak_activation_bytes(graph: IntGraph) -> int:
    """The most bytes of activations of ``graph`` that are needed at once for one image.

    Nodes run in their order, and a tensor is needed from the step that makes it to the last one that reads it, both included.
    Integers take a byte each, also those of fewer than eight bits, and two those of 16 bits; a Flatten or Reshape only renames
    its input. Real numbers before the first node and after the last one belong to the caller and do not count.
    """
    owner: dict[str, str] = {}
    alive: dict[str, list[int]] = {}  # first and last step
    for step, node in enumerate(graph):
        renames = isinstance(node.op, int_ops.Flatten | int_ops.Reshape)
        owner[node.name] = owner[node.inputs[0]] if renames else node.name
        for name in (*node.inputs, node.name):
            alive.setdefault(owner[name], [step, step])[1] = step
    last = len(graph.nodes) - 1
    for name in graph.outputs:
        alive[owner[name]][1] = last
    sizes = {
        node.name: int(np.prod(node.output.shape)) * node.output.dtype.itemsize
        for node in graph
        if not isinstance(node.op, int_ops.Dequantize)
    }
    return max(
        sum(sizes.get(name, 0) for name, (first, end) in alive.items() if first <= step <= end)
        for step in range(last + 1)
    )
