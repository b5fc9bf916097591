"""`Network`: the integer network that is being made from a file's operators, one after the other.

A file has its tensors as (N, ..., C), the graph has images as (N, C, H, W): a tensor of four axes is one whose channels come
last (`Tensor.channels_last`); all others keep the order of their axes. Where an operator depends on that order, the image is
transposed before and after it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QTensor, QuantSpec
from labkit.errors import ModelError, UnsupportedOperation
from labkit.frontends.onnx.names import node_names
from labkit.frontends.tflite.file import File, FileOperator, FileTensor
from labkit.frontends.tflite.schema import ACTIVATIONS, PADDINGS
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.shapes import Padding
from labkit.runtimes.bounds import RealBounds, is_certain
from labkit.runtimes.labkit_rules import NO_BOUNDS

__all__ = ["Network", "Source"]

MOST_NODES = 4_000
_CHANNEL = 8  # numbers that the multiplier of a channel counts for

Source = tuple[str, Tensor]
"""A node of the graph by its name, and the tensor that it puts out."""

_BOUNDS: dict[str, RealBounds] = {
    "NONE": NO_BOUNDS,
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


class Network:
    """The nodes made so far, and by the index of a tensor of ``file`` the node that puts it out.

    Raises
    ------
    ModelError, UnsupportedOperation
        The file's inputs cannot be those of an integer network.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.nodes: list[IntNode] = []
        self.made: dict[int, Source] = {}
        self.real: set[int] = set()  # float32 inputs that no QUANTIZE has taken yet
        self.lowest: dict[int, tuple[Source, Padding]] = {}  # images with the lowest integer around them
        self.names, self.carried = _names(file)
        self._taken = {*self.names.values(), *(name for names in self.carried.values() for name in names)}
        self._weights: dict[tuple[int, int, str], QTensor] = {}
        self._batch: int | None = None
        for index in file.inputs:
            self._enter(file.tensors[index])

    def graph(self) -> IntGraph:
        """The network with the outputs of the file; ``notes["tflite"]`` has the file's index of each tensor.

        Raises
        ------
        ModelError
            An output is never computed.
        UnsupportedOperation
            A real input is never quantized.
        """
        for index in self.real:
            raise UnsupportedOperation(
                f"The input {self.file.tensors[index].name} holds real numbers (float32), and no QUANTIZE takes it: labkit runs "
                f"networks of int8. Convert the network with full integer quantization."
            )
        for index in self.file.outputs:
            if self.file.tensors[index].is_constant and index not in self.made:
                self.constant(self.file.tensors[index])
            if index not in self.made:
                raise ModelError(f"{self.file.tensors[index].name} is an output, but nothing computes it.")
        outputs = tuple(dict.fromkeys(self.made[index][0] for index in self.file.outputs))
        indices = {self.names[index]: index for index in sorted(self.made)}
        return IntGraph(tuple(self.nodes), outputs, {"tflite": {"tensors": indices}})

    # What an operator has

    def tensor(self, op: FileOperator, position: int) -> FileTensor:
        """Input ``position`` of ``op`` as it is in the file.

        Raises
        ------
        ModelError
            It is left out.
        """
        if position >= len(op.inputs) or op.inputs[position] < 0:
            raise ModelError(f"{op.code} for {self.title(op)} lacks its input {position}.")
        return self.file.tensors[op.inputs[position]]

    def output(self, op: FileOperator) -> FileTensor:
        """The one output of ``op`` as it is in the file.

        Raises
        ------
        ModelError
            It has none or several, or something else computes it already.
        """
        if len(op.outputs) != 1:
            raise ModelError(f"{op.code} has one output, got {len(op.outputs)}.")
        tensor = self.file.tensors[op.outputs[0]]
        if tensor.index in self.made or tensor.index in self.real or tensor.is_constant:
            raise ModelError(f"{tensor.name} is computed twice, or is an input or a constant and computed besides.")
        return tensor

    def title(self, op: FileOperator) -> str:
        """The name of the tensor that ``op`` computes."""
        return self.file.tensors[op.outputs[0]].name if op.outputs else "nothing"

    def source(self, op: FileOperator, position: int) -> Source:
        """The node that puts out input ``position`` of ``op``, which is a quantized tensor.

        Raises
        ------
        ModelError
            Nothing computes it before ``op``, or it is a constant.
        UnsupportedOperation
            It holds real numbers.
        """
        tensor = self.tensor(op, position)
        if tensor.index in self.real or (tensor.index in self.made and self.made[tensor.index][1].spec is None):
            raise self.unsupported(op, f"the input {tensor.name} holds real numbers (float32)")
        if tensor.index in self.lowest:
            raise self.unsupported(op, f"{tensor.name} is padded by PADV2; a MAX_POOL_2D without padding can take it")
        if tensor.index not in self.made:
            kind = "is a constant" if tensor.is_constant else "is not computed before"
            raise ModelError(f"{op.code} for {self.title(op)} takes {tensor.name}, which {kind}.")
        return self.made[tensor.index]

    def integers(self, op: FileOperator, position: int) -> NDArray[np.int64]:
        """Input ``position`` of ``op``, a constant of int32 or int64 such as axes or a shape.

        Raises
        ------
        ModelError
            It is no constant of integers, or has more than a few.
        """
        tensor = self.tensor(op, position)
        if not tensor.is_constant or tensor.kind not in ("int32", "int64") or math.prod(tensor.shape) > 64:
            raise ModelError(f"{op.code} for {self.title(op)} needs constant integers as {tensor.name}.")
        return np.asarray(tensor.values(self.file.work), np.int64)

    def bounds(self, op: FileOperator) -> RealBounds:
        """The real bounds of the activation that is fused into ``op``.

        Raises
        ------
        UnsupportedOperation
            It is no clamp, or its ends on the output's grid are those of another one.
        """
        number = op.options["activation"]
        name = ACTIVATIONS[number] if 0 <= number < len(ACTIVATIONS) else str(number)
        if name not in _BOUNDS:
            raise self.unsupported(op, f"the fused activation {name}; {', '.join(_BOUNDS)} are supported")
        bounds, output = _BOUNDS[name], self.output(op)
        if bounds != NO_BOUNDS and not is_certain(bounds, self.quantized(output)):
            raise self.unsupported(
                op,
                f"{name} on the scale {float(output.scales[0]):g} of its output cannot be told from another activation",
            )
        return bounds

    def padding(
        self, op: FileOperator, image: tuple[int, ...], window: tuple[int, int]
    ) -> tuple[tuple[int, int], Padding]:
        """The stride of ``op`` and its padding on an ``image`` (C, H, W) for a ``window`` of so many rows and columns.

        SAME pads so that there is one result for each step inside the image, more after than before where it is odd.

        Raises
        ------
        ModelError
            A stride or window is below 1, or larger than any network needs.
        """
        stride = (op.options["stride_h"], op.options["stride_w"])
        way = PADDINGS[op.options["padding"]] if 0 <= op.options["padding"] < 2 else "?"
        if len(image) != 3 or way == "?" or not (min(*stride, *window) >= 1 and max(*stride, *window) <= 2**15):
            raise ModelError(
                f"{op.code} for {self.title(op)} takes an image [N, H, W, C] with a padding of SAME or VALID and a window and "
                f"stride of at least 1, got {list(image)}, window {window}, stride {stride}."
            )
        if way == "VALID":
            return stride, ((0, 0), (0, 0))
        edges = []
        for size, step, length in zip(image[1:], stride, window, strict=True):
            total = max((-(-size // step) - 1) * step + length - size, 0)
            edges.append((total // 2, total - total // 2))
        self.file.work.spend(image[1] + image[2] + sum(window))
        return stride, (edges[0], edges[1])

    def unsupported(self, op: FileOperator, what: str) -> UnsupportedOperation:
        """The error for ``op``, whose form ``what`` describes."""
        return UnsupportedOperation(f"{op.code} for {self.title(op)} is not supported in this form: {what}.")

    # What the graph gets

    def quantized(self, tensor: FileTensor) -> Tensor:
        """``tensor``, an activation of 8 bits, as the graph has it.

        Raises
        ------
        UnsupportedOperation
            It is of another kind, or has several scales.
        ModelError
            It has no scale, or its shape has no batch axis or another one than the inputs.
        """
        if tensor.kind not in ("int8", "uint8"):
            raise UnsupportedOperation(
                f"{tensor.name} is of type {tensor.kind}: labkit runs networks whose tensors are int8 (or uint8). Convert the "
                f"network with full integer quantization (post-training, with a representative data set)."
            )
        if len(tensor.scales) == 0:
            raise ModelError(f"{tensor.name} is {tensor.kind} without a scale: it is no quantized tensor.")
        if len(tensor.scales) != 1 or len(tensor.zero_points) > 1:
            raise UnsupportedOperation(f"{tensor.name} has {len(tensor.scales)} scales; an activation has one for all.")
        spec = QuantSpec(8, signed=tensor.kind == "int8", symmetric=False)
        zero_point = int(tensor.zero_points[0]) if len(tensor.zero_points) else 0
        if not spec.qmin <= zero_point <= spec.qmax:
            raise ModelError(f"{tensor.name} has the zero point {zero_point}, outside {spec.qmin}..{spec.qmax}.")
        params = QParams(np.array(tensor.scales[0], np.float32), np.array(zero_point, np.int32))
        return Tensor(self.shape(tensor), spec, params, channels_last=len(tensor.shape) == 4)

    def shape(self, tensor: FileTensor) -> tuple[int, ...]:
        """The shape of ``tensor`` in the graph: without the batch axis, channels first if it has four axes.

        Raises
        ------
        ModelError
            It has no batch axis, or another batch than the inputs.
        """
        if len(tensor.shape) < 2 or self._batch not in (None, tensor.shape[0]):
            raise ModelError(
                f"{tensor.name} has the shape {list(tensor.shape)}: every tensor must have two axes or more, the first for a "
                f"batch of {self._batch}."
            )
        rest = tensor.shape[1:]
        return (rest[2], rest[0], rest[1]) if len(rest) == 3 else rest

    def emit(self, op: FileOperator, made: IntOp, sources: tuple[Source, ...], tensor: Tensor) -> None:
        """Add the node that puts out the output of ``op``: the operation ``made``, which takes ``sources``, and its ``tensor``.

        Raises
        ------
        ModelError
            Something else computes the output already.
        """
        output = self.output(op)
        name = self.names[output.index]
        self.nodes.append(IntNode(name, made, tuple(name for name, _ in sources), tensor, self.carried[output.index]))
        self.made[output.index] = (name, tensor)

    def helper(self, op: FileOperator, label: str, made: IntOp, sources: tuple[Source, ...], tensor: Tensor) -> Source:
        """Add a node of which the file knows nothing, for ``op``: the operation ``made`` on ``sources`` and its ``tensor``.

        Its name is that of the output of ``op`` with ``label``.

        Raises
        ------
        ModelError
            There are far too many nodes.
        """
        if len(self.nodes) > MOST_NODES:
            raise ModelError(f"The network would have more than {MOST_NODES:,} nodes, which none here needs.")
        name = base = f"{self.names[op.outputs[0]]}.{label}"
        number = 1
        while name in self._taken:
            number += 1
            name = f"{base}{number}"
        self._taken.add(name)
        self.nodes.append(IntNode(name, made, tuple(name for name, _ in sources), tensor))
        return name, tensor

    def in_file_order(self, op: FileOperator, source: Source) -> Source:
        """``source`` with its axes, and so its numbers in memory, in the order of the file, for ``op``."""
        tensor = source[1]
        if not tensor.channels_last or tensor.shape[0] == 1 or tensor.shape[1] == tensor.shape[2] == 1:
            return source
        moved = replace(tensor, shape=(*tensor.shape[1:], tensor.shape[0]), channels_last=False)
        return self.helper(op, "hwc", int_ops.Transpose((1, 2, 0)), (source,), moved)

    def emit_reshaped(self, op: FileOperator, source: Source) -> None:
        """Add the output of ``op`` as the numbers of ``source``, which is in the file's order, in the output's own shape.

        Raises
        ------
        ModelError
            The output has another number of elements, or another scale.
        """
        target = self.quantized(self.output(op))
        rows, columns = target.shape[1:] if target.channels_last else (1, 1)
        if target.shape[0] == 1 or rows == columns == 1:
            self.emit(op, int_ops.Reshape(target.shape), (source,), target)
            return
        plain = replace(target, shape=(rows, columns, target.shape[0]), channels_last=False)
        if source[1].shape != plain.shape:
            source = self.helper(op, "hwc", int_ops.Reshape(plain.shape), (source,), plain)
        self.emit(op, int_ops.Transpose((2, 0, 1)), (source,), target)

    def constant(
        self, tensor: FileTensor, shape: tuple[int, ...] | None = None, op: FileOperator | None = None
    ) -> Source:
        """A node for the quantized constant ``tensor``, broadcast to ``shape`` (of the file, with a batch of 1) for ``op``.

        Raises
        ------
        ModelError
            It cannot be broadcast, or is no quantized constant.
        """
        wanted = tensor.shape if shape is None else shape
        try:
            values = np.broadcast_to(tensor.values(self.file.work), wanted)
        except ValueError:
            raise ModelError(f"{tensor.name}: {list(tensor.shape)} cannot be broadcast to {list(wanted)}.") from None
        if wanted[0] != 1:
            raise ModelError(
                f"{tensor.name}: a constant holds the same numbers for each image of a batch, got {list(wanted)}."
            )
        self.file.work.spend(math.prod(wanted))
        kind = replace(tensor, shape=(self._batch or 1, *wanted[1:]))
        output = self.quantized(kind)
        image = np.moveaxis(values[0], -1, 0) if output.channels_last else values[0]
        made = int_ops.Constant(np.ascontiguousarray(image))
        if op is not None:
            return self.helper(op, "constant", made, (), output)
        name = self.names[tensor.index]
        self.nodes.append(IntNode(name, made, (), output, self.carried[tensor.index]))
        self.made[tensor.index] = (name, output)
        return name, output

    def weights(self, tensor: FileTensor, axis: int, order: tuple[int, ...], channels: int) -> QTensor:
        """The weights in ``tensor``, a constant, with its axes in ``order``; the first of them counts the ``channels`` put out.

        ``axis`` is that along which the file has their scales.

        Raises
        ------
        ModelError
            They are no constant, their number of axes is another, or their scales do not fit.
        UnsupportedOperation
            They have zero points.
        """
        self.file.work.spend(_CHANNEL * channels)  # what makes their multipliers, also where the weights are known
        key = (tensor.index, axis, str(order))
        if key in self._weights:
            self.file.work.spend(math.prod(tensor.shape))
            return self._weights[key]
        if not tensor.is_constant or len(tensor.shape) != len(order) or tensor.kind not in ("int8", "int4"):
            raise UnsupportedOperation(
                f"{tensor.name}: weights are constants of int8 or int4 with {len(order)} axes, got {tensor.kind} "
                f"{list(tensor.shape)}{'' if tensor.is_constant else ', which are computed'}."
            )
        scales, zero_points = tensor.scales, tensor.zero_points
        if np.any(zero_points):
            raise UnsupportedOperation(
                f"{tensor.name}: weights have the zero point 0, got {zero_points[zero_points != 0][0]}."
            )
        if len(scales) not in (1, channels) or (len(scales) > 1 and tensor.axis != axis):
            raise ModelError(
                f"{tensor.name}: weights have one scale or one for each of {channels} channels along axis {axis}, got "
                f"{len(scales)} along {tensor.axis}."
            )
        granularity = PerTensor() if len(scales) == 1 else PerAxis(0)
        spec = QuantSpec(4 if tensor.kind == "int4" else 8, granularity=granularity)
        values = np.ascontiguousarray(tensor.values(self.file.work).transpose(order))
        scale = np.array(scales[0] if len(scales) == 1 else scales, np.float32)
        made = QTensor(values, QParams(scale, np.zeros(scale.shape, np.int32)), spec)
        self._weights[key] = made
        return made

    def bias(self, op: FileOperator, channels: int) -> NDArray[np.int32]:
        """The int32 bias of ``op``, its third input; zeros for ``channels`` where it has none.

        Raises
        ------
        UnsupportedOperation
            It is no constant int32 [channels].
        """
        if len(op.inputs) < 3 or op.inputs[2] < 0:
            return np.zeros(channels, np.int32)
        tensor = self.tensor(op, 2)
        if tensor.kind != "int32" or tensor.shape != (channels,) or not tensor.is_constant:
            raise UnsupportedOperation(
                f"{tensor.name}: a bias is a constant int32 [{channels}], got {tensor.kind} {list(tensor.shape)}."
            )
        return np.asarray(tensor.values(self.file.work), np.int32)

    def _enter(self, tensor: FileTensor) -> None:
        """The input ``tensor``: a node of its own if it holds integers; else the QUANTIZE that takes it will make one."""
        if tensor.index in self.made or tensor.index in self.real:
            return
        if self._batch is None and tensor.shape:
            self._batch = tensor.shape[0]
        if tensor.kind == "float32":
            self.real.add(tensor.index)
            return
        made, name = self.quantized(tensor), self.names[tensor.index]
        self.nodes.append(IntNode(name, int_ops.Input(made.shape), (), made, self.carried[tensor.index]))
        self.made[tensor.index] = (name, made)

    def enter_real(self, op: FileOperator) -> None:
        """The node for a QUANTIZE ``op`` of a float32 input; it has the input's name and carries that of the integers.

        Raises
        ------
        ModelError
            The input is quantized twice, or its shape is another than that of the integers.
        """
        source, output = self.tensor(op, 0), self.output(op)
        if source.index not in self.real:
            raise ModelError(
                f"{source.name} is quantized twice, or is no input: labkit quantizes each real input once."
            )
        made = self.quantized(output)
        if source.shape != output.shape:
            raise ModelError(f"{op.code} keeps the shape, got {list(source.shape)} and {list(output.shape)}.")
        self.real.remove(source.index)
        name = self.names[source.index]
        carried = (*self.carried[source.index], self.names[output.index], *self.carried[output.index])
        self.nodes.append(IntNode(name, int_ops.Quantize(made.shape), (), made, carried))
        self.made[output.index] = (name, made)


def _names(file: File) -> tuple[dict[int, str], dict[int, tuple[str, ...]]]:
    """By the index of a tensor, the name of its node, and the names that this node carries besides.

    A converter that fuses layers joins all their names with semicolons. The first of them is the node's, if no other tensor
    but a constant begins with it, and the node carries the whole.
    """
    whole = [tensor.name for tensor in file.tensors]
    first = [name.split(";")[0] for name in whole]
    counts = Counter(whole)
    counts.update(first[tensor.index] for tensor in file.tensors if not tensor.is_constant)
    counts.subtract(
        tensor.name for tensor in file.tensors if not tensor.is_constant and tensor.name == first[tensor.index]
    )
    short = [a if a.strip() and counts[a] == 1 else b for a, b in zip(first, whole, strict=True)]
    given = node_names((*whole, *short))
    names = {index: given[name] for index, name in enumerate(short)}
    return names, {i: (given[name],) if given[name] != names[i] else () for i, name in enumerate(whole)}
