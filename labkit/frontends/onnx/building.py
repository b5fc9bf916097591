"""The state of an import: what each tensor of the file is, and the integer nodes made so far."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import ModelError
from labkit.frontends.onnx.reading import OnnxFile, OnnxNode
from labkit.frontends.onnx.values import Dequantized, Integers, Real, Value, Weights, activation_grid, refuse
from labkit.frontends.onnx.weights import make_weights
from labkit.frontends.work import Work
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntNode, Tensor
from labkit.graph.output_shapes import output_shape

__all__ = ["Building"]

_LARGEST_CONSTANT = 2**22  # numbers of a constant that is repeated for a tensor
_CHANNEL, _PART = 8, 2**12  # numbers that the multipliers of a channel, and of a tensor that is joined, count for


class Building:
    """What the functions that translate operators work on.

    file : what is imported.
    constants : by tensor's name, those of the file and what follows from them.
    values : by tensor's name, all others.
    batch : sizes of the batch axis that inputs declare.
    work : what is left of the work that a file of its size may ask for.
    in_float : names of nodes that onnxruntime computes in float32, or else not as its rules say.
    """

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.constants: dict[str, NDArray[Any]] = dict(file.constants)
        self.values: dict[str, Value] = {}
        self.batch: set[int] = set()
        self.work = Work(4 * sum(array.nbytes for array in file.constants.values()) + 2**25)
        self.in_float: list[str] = []
        self._nodes: dict[str, IntNode] = {}
        self._taken = set(file.names.values())
        self._real_outputs = {
            file.names[output.name]
            for output in file.outputs
            if output.name in file.names and output.dtype in (None, np.dtype(np.float32))
        }

    @property
    def nodes(self) -> tuple[IntNode, ...]:
        """The integer nodes in running order."""
        return tuple(self._nodes.values())

    def value(self, node: OnnxNode, index: int) -> Value:
        """What input ``index`` of ``node`` is.

        Raises
        ------
        UnsupportedOperation
            It is a constant.
        ModelError
            There is no such input.
        """
        name = self.name(node, index)
        if name in self.constants:
            raise refuse(node, f"its input {name!r} is a constant, where an activation is needed.")
        if name not in self.values:
            raise ModelError(f"{node}: its input {index} is missing.")
        return self.values[name]

    def name(self, node: OnnxNode, index: int) -> str:
        """The name of input ``index`` of ``node``, "" where it is left out."""
        return node.inputs[index] if index < len(node.inputs) else ""

    def has(self, node: OnnxNode, index: int) -> bool:
        """Whether ``node`` has an input ``index``."""
        return bool(self.name(node, index))

    def constant(self, node: OnnxNode, index: int, what: str) -> NDArray[Any]:
        """The constant that is input ``index`` of ``node``, of the file's shape and dtype; ``what`` it is stands in the error.

        Raises
        ------
        UnsupportedOperation
            It is computed, or left out.
        """
        found = self.constants.get(self.name(node, index))
        if found is None:
            raise refuse(node, f"its {what} ({self.name(node, index) or 'left out'}) is no constant.")
        return found

    def integers(self, node: OnnxNode, index: int) -> Integers:
        """The integers that input ``index`` of ``node`` is or stands for.

        Raises
        ------
        UnsupportedOperation
            They are real numbers that nothing has quantized, or a constant.
        """
        value = self.value(node, index)
        if isinstance(value, Dequantized):
            return value.of
        if isinstance(value, Integers):
            return value
        if isinstance(value, Weights):
            raise refuse(node, f"its input {self.name(node, index)!r} is a constant, where an activation is needed.")
        raise refuse(node, f"its input {self.name(node, index)!r} holds real numbers that are not quantized.")

    def activation(self, node: OnnxNode, index: int) -> Integers:
        """The integers that are input ``index`` of ``node``, whose scale and zero point are the next two inputs.

        Raises
        ------
        UnsupportedOperation
            They are no integers, or of another scale than ``node`` says.
        """
        value = self.value(node, index)
        if not isinstance(value, Integers):
            raise refuse(node, f"its input {self.name(node, index)!r} holds no 8-bit integers.")
        spec, params = activation_grid(node, *self.grid_arrays(node, index + 1, value.tensor.dtype))
        have_spec, have = value.tensor.quantized
        if spec != have_spec or (params.scale, params.zero_point) != (have.scale, have.zero_point):
            raise refuse(
                node,
                f"it reads {self.name(node, index)!r} as {spec}, scale {params.scale}, zero point {params.zero_point}, which was "
                f"written as {have_spec}, scale {have.scale}, zero point {have.zero_point}.",
            )
        return value

    def grid_arrays(self, node: OnnxNode, index: int, default: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scale and zero point, inputs ``index`` and the next of ``node``, of the file's shapes and dtypes.

        A zero point that is left out is 0 of the dtype ``default``.
        """
        scale = self.constant(node, index, "scale")
        if not self.has(node, index + 1):
            return scale, np.zeros((), default)
        return scale, self.constant(node, index + 1, "zero point")

    def weights(self, node: OnnxNode, index: int, axis: int) -> Weights:
        """The constant integers of input ``index`` of ``node``, scales (along ``axis``) and zero points in the next two.

        Raises
        ------
        UnsupportedOperation
            They are computed, or no integers of 8 bits.
        """
        values = self.constant(node, index, "weight")
        scale, zero_point = self.grid_arrays(node, index + 1, values.dtype)
        made = make_weights(node, values, scale, zero_point, axis)
        self.spend_on(made)
        return made

    def spend_on(self, weights: Weights) -> None:
        """Count what a layer makes of ``weights``: a copy, and a multiplier for each scale.

        Raises
        ------
        ModelError
            The file has asked for too much.
        """
        self.work.spend(weights.values.size + _CHANNEL * weights.scale.size)

    def spend_on_parts(self, count: int) -> None:
        """Count ``count`` tensors that are joined, each of which takes a multiplier.

        Raises
        ------
        ModelError
            The file has asked for too much.
        """
        self.work.spend(_PART * count)

    def add(
        self, tensor: str, op: IntOp, inputs: tuple[Integers, ...], output: Tensor, names: tuple[str, ...] = ()
    ) -> Integers:
        """A new node for the file's tensor ``tensor`` that runs ``op`` on ``inputs`` and carries the tensors ``names``.

        ``output`` says grid and scale of the result; its shape is computed.
        """
        name = self.file.names[tensor]
        if name in self._real_outputs and output.spec is not None:
            name = self._new_name(f"{name}.integers")  # the name is the real output's
        sources = tuple(source.node for source in inputs)
        node = IntNode(name, op, sources, output)
        shaped = replace(output, shape=output_shape(node, tuple(source.tensor for source in inputs)))
        self._nodes[name] = replace(node, output=shaped)
        made = Integers(name, shaped)
        for fused in names:
            self.carry(made, fused)
        return made

    def constant_integers(self, node: OnnxNode, weights: Weights, shape: tuple[int, ...]) -> Integers:
        """A node that puts out ``weights`` for every image, broadcast to ``shape`` as NumPy does; ``node`` computes with it.

        Raises
        ------
        UnsupportedOperation
            They have more than one scale, no 8 bits, or other numbers for each image.
        """
        grid = activation_grid(node, weights.scale, weights.zero_point.astype(weights.values.dtype))
        values = weights.values
        if weights.bits != 8 or (values.ndim > len(shape) and values.shape[0] != 1):
            raise refuse(node, f"its constant is {values.dtype} of shape {values.shape}, not 8 bits for {shape}.")
        values = values[0] if values.ndim > len(shape) else values
        try:
            whole = np.broadcast_to(values, shape)  # a view
        except ValueError as error:
            raise refuse(node, f"its constant of shape {values.shape} does not fit {shape}.") from error
        if whole.size > _LARGEST_CONSTANT:
            raise refuse(node, f"its constant is repeated {whole.size:,} times; {_LARGEST_CONSTANT:,} are allowed.")
        self.work.spend(whole.size)
        name = self._new_name(f"{self.file.names[node.outputs[0]]}.constant")
        tensor = Tensor(shape, *grid)
        self._nodes[name] = IntNode(name, int_ops.Constant(np.array(whole)), (), tensor)
        return Integers(name, tensor)

    def constant_first(self, node: OnnxNode, weights: Weights, shape: tuple[int, ...]) -> Integers:
        """As `constant_integers` with ``node``, ``weights`` and ``shape``, for the first operand.

        Where it is repeated, onnxruntime adds the operands in the other order, so that a sum may round differently.
        """
        made = self.constant_integers(node, weights, shape)
        if node.kind in ("Add", "QLinearAdd") and weights.values.size < math.prod(shape):
            self.in_float.append(node.name)
        return made

    def entry(self, node: OnnxNode, real: Real, output: Tensor) -> Integers:
        """The border at which the input ``real`` is quantized by ``node`` to the grid of ``output``.

        Raises
        ------
        UnsupportedOperation
            Another node quantizes it to another grid.
        """
        name = self.file.names[real.name]
        if name in self._nodes:
            have_spec, have = self._nodes[name].output.quantized
            spec, params = output.quantized
            if have_spec != spec or (have.scale, have.zero_point) != (params.scale, params.zero_point):
                raise refuse(node, f"the input {real.name!r} is quantized twice, to different grids.")
        else:
            self._nodes[name] = IntNode(name, int_ops.Quantize(real.shape), (), output)
        made = Integers(name, output)
        self.carry(made, node.outputs[0])
        return made

    def add_between(self, tensor: str, op: IntOp, inputs: tuple[Integers, ...], output: Tensor) -> Integers:
        """A node that the file has no tensor for, on the way to ``tensor``; ``op``, ``inputs`` and ``output`` as in `add`."""
        name = self._new_name(f"{self.file.names[tensor]}.before")
        sources = tuple(source.node for source in inputs)
        node = IntNode(name, op, sources, output)
        shaped = replace(output, shape=output_shape(node, tuple(source.tensor for source in inputs)))
        self._nodes[name] = replace(node, output=shaped)
        return Integers(name, shaped)

    def carry(self, integers: Integers, tensor: str) -> None:
        """Let the file's ``tensor`` be found at the node of ``integers``, unless a node has its name."""
        name, node = self.file.names[tensor], self._nodes[integers.node]
        if name not in (node.name, *node.carries) and name not in self._nodes and name not in self._real_outputs:
            self._nodes[integers.node] = replace(node, carries=(*node.carries, name))

    def _new_name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken or name in self._nodes:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name
