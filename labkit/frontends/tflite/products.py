"""BATCH_MATMUL: products of two tensors, or of one and a constant, as an operation of the graph under labkit's own rules.

The graph has one product for each index of the first axis, (B, m, k) times (B, k, n). A file's tensor (N, H, m, k) has the heads
H there, one of (N, m, k) or (N, k) has one. The batch axis N is never one of a product's own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from labkit.errors import ModelError
from labkit.frontends.tflite.file import FileOperator, FileTensor
from labkit.frontends.tflite.network import Network, Source
from labkit.graph import int_ops
from labkit.runtimes.labkit_rules import matmul

__all__ = ["batch_matmul"]


def batch_matmul(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, BATCH_MATMUL of int8 tensors with 2 to 4 axes; a constant is broadcast.

    Raises
    ------
    ModelError
        Its shapes do not fit.
    UnsupportedOperation
        Both sides are constants, a computed one would be broadcast, or the batch axis is one that is multiplied.
    """
    left, right, file_output = net.tensor(op, 0), net.tensor(op, 1), net.output(op)
    output = net.quantized(file_output)
    _check_kinds(net, op, left, right, file_output)
    if max(len(tensor.shape) for tensor in (left, right, file_output)) > 4:
        raise net.unsupported(op, f"{list(left.shape)} and {list(right.shape)}, more than four axes")
    heads, rows, columns = _as_products(file_output.shape)
    a, b = (_factor(net, op, position, file_output.shape) for position in (0, 1))
    across, down = bool(op.options["adj_x"]), bool(op.options["adj_y"])
    inner, inner_b = a[1].shape[1 if across else 2], b[1].shape[2 if down else 1]
    if inner != inner_b or (rows, columns) != (a[1].shape[2 if across else 1], b[1].shape[1 if down else 2]):
        raise ModelError(
            f"BATCH_MATMUL for {net.title(op)}: {list(left.shape)} and {list(right.shape)} do not give "
            f"{list(file_output.shape)}."
        )
    tensor = replace(output, shape=(heads, rows, columns), channels_last=False)
    made = matmul((a[1], b[1]), tensor, across, down)
    net.emit_reshaped(op, net.helper(op, "product", made, (a, b), tensor))


def _as_products(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """How many matrices of how many rows and columns a tensor of the file, of ``shape`` with 2 to 4 axes, has for each image."""
    heads, rows, columns = (*(1,) * (4 - len(shape)), *shape[1:])
    return heads, rows, columns


def _factor(net: Network, op: FileOperator, position: int, output: tuple[int, ...]) -> Source:
    """Input ``position`` of ``op`` as (heads, rows, columns), for an ``output`` of the file's shape."""
    tensor = net.tensor(op, position)
    if tensor.is_constant:
        return _constant(net, op, tensor, output)
    wanted = _as_products(tensor.shape)
    transposed = op.options["adj_x" if position == 0 else "adj_y"]
    if len(tensor.shape) != len(output) or (len(output) == 2 and (position == 1 or transposed)):
        raise net.unsupported(
            op,
            f"{tensor.name} of shape {list(tensor.shape)}, with its batch axis multiplied or broadcast to {list(output)}",
        )
    if wanted[0] != _as_products(output)[0]:
        raise net.unsupported(op, f"{tensor.name} of shape {list(tensor.shape)}, broadcast to {list(output)}")
    source = net.in_file_order(op, net.source(op, position))
    if source[1].shape == wanted and not source[1].channels_last:
        return source
    plain = replace(source[1], shape=wanted, channels_last=False)
    return net.helper(op, "plain", int_ops.Reshape(wanted), (source,), plain)


def _constant(net: Network, op: FileOperator, tensor: FileTensor, output: tuple[int, ...]) -> Source:
    """The constant ``tensor`` as a node (heads, rows, columns), for an ``output``: the same numbers for each image of a batch."""
    heads, lead = _as_products(output)[0], tensor.shape[:-2]
    if not 2 <= len(tensor.shape) <= len(output) or (len(tensor.shape) == len(output) > 2 and lead[0] != 1):
        raise net.unsupported(op, f"the constant {tensor.name} of shape {list(tensor.shape)} for {list(output)}")
    if math.prod(lead) not in (1, heads):
        raise ModelError(f"{tensor.name}: {list(tensor.shape)} cannot be broadcast to {list(output)}.")
    wanted = (heads, *tensor.shape[-2:])
    net.file.work.spend(math.prod(wanted))
    values = np.broadcast_to(tensor.values(net.file.work).reshape(-1, *wanted[1:]), wanted)
    grid = net.quantized(replace(tensor, shape=(output[0], math.prod(wanted))))
    made = int_ops.Constant(np.ascontiguousarray(values))
    return net.helper(op, "constant", made, (), replace(grid, shape=wanted))


def _check_kinds(net: Network, op: FileOperator, *tensors: FileTensor) -> None:
    kinds = sorted({tensor.kind for tensor in tensors})
    if kinds != ["int8"]:
        raise net.unsupported(op, f"tensors of {' and '.join(kinds)}; int8 is supported")
    if tensors[0].is_constant and tensors[1].is_constant:
        raise net.unsupported(op, "two constants")
