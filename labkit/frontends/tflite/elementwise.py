"""Operators that work number by number, softmax, and the borders: how each becomes an operation of the graph."""

from __future__ import annotations

from dataclasses import replace

from labkit.errors import ModelError
from labkit.frontends.tflite.file import FileOperator
from labkit.frontends.tflite.network import Network, Source
from labkit.graph import int_ops
from labkit.graph.ir import Tensor
from labkit.runtimes.labkit_rules import add, requantizer, scale_of, softmax
from labkit.runtimes.lookups import labkit_lookup

__all__ = ["arg_max", "dequantize", "function", "multiply", "quantize", "shares", "sum_or_difference"]

_TABLE = 2**20  # what an exact table of exponentials counts for


def sum_or_difference(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, ADD and SUB of two tensors of one shape; a constant is broadcast."""
    output = net.quantized(net.output(op))
    a, b = _operands(net, op, output)
    _check_kinds(net, op, a[1], b[1], output)
    net.emit(op, add((a[1], b[1]), output, net.bounds(op), op.code == "SUB"), (a, b), output)


def multiply(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, MUL of one shape, or of an image and a number a channel; constants broadcast."""
    output = net.quantized(net.output(op))
    a, b = _operands(net, op, output)
    _check_kinds(net, op, a[1], b[1], output)
    multiplier = scale_of(a[1]) * scale_of(b[1]) / scale_of(output)
    net.emit(op, int_ops.Multiply(requantizer(multiplier, output, net.bounds(op))), (a, b), output)


def function(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, LOGISTIC, TANH, GELU, RELU, RELU6 and RELU_N1_TO_1: a table.

    Raises
    ------
    ModelError
        Its shapes or numbers do not fit.
    """
    source, output = net.source(op, 0), net.quantized(net.output(op))
    if op.code == "LOGISTIC" and float(scale_of(output)) != 2.0**-8:
        raise ModelError(
            f"LOGISTIC puts out numbers of scale 1/256, but {scale_of(output):g} is declared for {net.title(op)}."
        )
    _check_kinds(net, op, source[1], output)
    name = "gelu_tanh" if op.code == "GELU" and op.options["approximate"] else op.code.lower()
    net.emit(op, labkit_lookup(name, source[1], output), (source,), output)


def shares(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, SOFTMAX along the last axis, without a factor (beta) of its own."""
    source, output = net.source(op, 0), net.quantized(net.output(op))
    spec, params = output.quantized
    if op.options["beta"] != 1:
        raise net.unsupported(op, f"beta = {op.options['beta']:g}; 1 is supported")
    if (float(params.scale), int(params.zero_point)) != (2.0**-8, spec.qmin):
        raise net.unsupported(
            op, f"scale {float(params.scale):g} and zero point {int(params.zero_point)} of its output"
        )
    _check_kinds(net, op, source[1], output)
    net.file.work.spend(_TABLE)
    axis = 0 if source[1].channels_last else len(source[1].shape) - 1
    net.emit(op, softmax(axis, source[1], output), (source,), output)


def quantize(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, QUANTIZE: a real input's way in, or a change of scale, zero point or sign."""
    if net.tensor(op, 0).kind == "float32":
        net.enter_real(op)
        return
    source, output = net.source(op, 0), net.quantized(net.output(op))
    multiplier = scale_of(source[1]) / scale_of(output)
    net.emit(op, int_ops.Requantize(requantizer(multiplier, output)), (source,), output)


def dequantize(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, DEQUANTIZE: a way out."""
    source, output = net.source(op, 0), net.output(op)
    if output.kind != "float32":
        raise net.unsupported(op, f"an output of {output.kind}")
    real = Tensor(net.shape(output), None, None, channels_last=len(output.shape) == 4)
    net.emit(op, int_ops.Dequantize(), (source,), real)


def arg_max(net: Network, op: FileOperator) -> None:
    """Make the nodes of ``net`` for ``op``, ARG_MAX along one axis, a way out.

    Raises
    ------
    ModelError
        Its shapes or numbers do not fit.
    """
    source, output = net.in_file_order(op, net.source(op, 0)), net.output(op)
    count, axes = len(net.tensor(op, 0).shape), net.integers(op, 1).reshape(-1).tolist()
    if len(axes) != 1 or not -count <= axes[0] < count or axes[0] % count == 0 or output.kind != "int32":
        raise net.unsupported(op, f"the axes {axes} and a result of {output.kind}; one axis and int32 are")
    tensor, axis = source[1], axes[0] % count - 1
    if tensor.channels_last:  # its numbers lie in the file's order already, with axes of length 1 elsewhere
        plain = replace(tensor, shape=net.tensor(op, 0).shape[1:], channels_last=False)
        source = net.helper(op, "plain", int_ops.Reshape(plain.shape), (source,), plain)
        tensor = plain
    index = Tensor((*tensor.shape[:axis], *tensor.shape[axis + 1 :]), None, None, is_index=True)
    if output.shape[1:] != index.shape:
        raise ModelError(
            f"ARG_MAX for {net.title(op)} gives {list(index.shape)}, but {list(output.shape)} is declared."
        )
    net.emit(op, int_ops.ArgMax(axis, False), (source,), index)


def _operands(net: Network, op: FileOperator, output: Tensor) -> tuple[Source, Source]:
    """Both inputs of ``op``, constants as nodes."""
    tensors = net.tensor(op, 0), net.tensor(op, 1)
    if all(tensor.is_constant for tensor in tensors):
        raise net.unsupported(op, "two constants")
    found: list[Source] = []
    for position, tensor in enumerate(tensors):
        if not tensor.is_constant:
            found.append(net.source(op, position))
            continue
        shape = (1, *net.output(op).shape[1:])
        if op.code == "MUL" and output.channels_last and _is_channelwise(tensor.shape):
            shape = (1, 1, 1, shape[3])
        found.append(net.constant(tensor, shape, op))
    return found[0], found[1]


def _is_channelwise(shape: tuple[int, ...]) -> bool:
    """Whether a constant of ``shape`` has one number for each channel of an image, or one for all."""
    return all(size == 1 for size in shape[:-1])


def _check_kinds(net: Network, op: FileOperator, *tensors: Tensor) -> None:
    kinds = sorted({str(tensor.dtype) for tensor in tensors})
    if kinds != ["int8"]:
        raise net.unsupported(op, f"tensors of {' and '.join(kinds)}; int8 is supported")
