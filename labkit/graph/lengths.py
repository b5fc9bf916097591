"""The same network for sequences of another length.

A network of sequences has the length as the last axis of every input. Its weights know nothing of it: only inputs, constants
(the embeddings of positions), reshapes and, in an `IntGraph`, the declared shapes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from labkit.errors import InputError, LabkitError, ModelError
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, IntGraph, IntNode, Tensor
from labkit.graph.output_shapes import output_shape

__all__ = ["at_length", "length_of"]

_Graph = TypeVar("_Graph", FloatGraph, IntGraph)

# Where the length is part of the numbers: flattened, counted into a mean's multiplier, or the number of a layer's inputs.
_OF_ONE_LENGTH = (
    *(float_ops.Flatten, float_ops.Linear, float_ops.AdaptiveAveragePool2d),
    *(int_ops.Flatten, int_ops.Linear, int_ops.AdaptiveAveragePool2d, int_ops.MeanFloat32),
)


def length_of(graph: FloatGraph | IntGraph) -> int:
    """How long the sequences are that ``graph`` takes.

    Raises
    ------
    ModelError
        Its inputs are no sequences, (T,) or (D, T), or not of one length.
    """
    shapes = _input_shapes(graph)
    lengths = {shape[-1] if shape else 0 for shape in shapes}
    if any(len(shape) not in (1, 2) for shape in shapes) or len(lengths) != 1:
        raise ModelError(
            f"This is no network of sequences: its inputs have the shapes {', '.join(map(str, shapes))}, and need (T,) or (D, T) "
            f"with one length T. Make the network for the shape that you have."
        )
    return lengths.pop()


def at_length(graph: _Graph, length: int) -> _Graph:
    """``graph`` for sequences of ``length`` tokens; parameters are shared, not copied.

    Raises
    ------
    ModelError
        ``graph`` is no network of sequences, or one of its operations knows the length.
    InputError
        ``length`` is not positive, or longer than a constant of the network.
    """
    if not isinstance(length, int | np.integer) or isinstance(length, bool) or length < 1:
        raise InputError(f"A length must be a whole number, 1 or more, got {length!r}.")
    length = int(length)
    before = length_of(graph)
    if length == before:
        return graph
    return _floats(graph, before, length) if isinstance(graph, FloatGraph) else _integers(graph, before, length)


def _input_shapes(graph: FloatGraph | IntGraph) -> list[tuple[int, ...]]:
    if isinstance(graph, FloatGraph):
        return [tuple(node.op.shape) for node in graph if isinstance(node.op, float_ops.Input)]
    return [graph[name].output.shape for name in graph.inputs]


def _floats(graph: FloatGraph, before: int, length: int) -> FloatGraph:
    nodes = tuple(replace(node, op=_resized(node.name, node.op, before, length)) for node in graph)
    return FloatGraph(nodes, graph.outputs)


def _integers(graph: IntGraph, before: int, length: int) -> IntGraph:
    tensors: dict[str, Tensor] = {}
    nodes: list[IntNode] = []
    for node in graph:
        changed = replace(node, op=_resized(node.name, node.op, before, length))
        try:
            shape = output_shape(changed, _of(tensors, node.inputs))
        except LabkitError as error:
            raise ModelError(f"The network cannot be had at another length than {before}: {error}") from error
        tensors[node.name] = replace(node.output, shape=shape)
        nodes.append(replace(changed, output=tensors[node.name]))
    return IntGraph(tuple(nodes), graph.outputs, graph.notes)


def _of(tensors: dict[str, Tensor], names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(tensors[name] for name in names)


def _resized(name: str, op: Any, before: int, length: int) -> Any:
    """The operation ``op`` of the node ``name`` for another length; of a FloatGraph or an IntGraph."""
    # of all places, or of the first
    is_pool = hasattr(op, "kernel") and before > 1 and before in (op.kernel[1], op.stride[1])
    if isinstance(op, _OF_ONE_LENGTH) or is_pool:
        raise ModelError(
            f"{name}: {type(op).__name__} is made for sequences of length {before} and cannot be had at {length}. Make the "
            f"network anew for that length."
        )
    shape = getattr(op, "shape", None)
    if shape is not None:  # inputs and reshapes
        if tuple(shape)[-1:] != (before,):
            raise ModelError(
                f"{name}: the shape {tuple(shape)} does not end with the length {before} of the inputs, so nothing says what it "
                f"is at {length}. Keep the length as the last axis."
            )
        return replace(op, shape=(*tuple(shape)[:-1], length))
    if isinstance(op, float_ops.Constant | int_ops.Constant):
        if op.values.shape[-1:] != (before,):
            raise ModelError(
                f"{name}: a constant of the shape {op.values.shape} does not end with the length {before} of the inputs."
            )
        if length > before:
            raise InputError(
                f"{name}: a constant says what belongs to each of {before} places, so the network takes no sequence of {length}. "
                f"Make it for the longest sequence and cut it."
            )
        values: Any = np.ascontiguousarray(op.values[..., :length])
        return type(op)(values)
    return op
