"""`Builder`: the nodes of a `FloatGraph` in the making, with views that are put into effect where an operation needs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labkit.errors import UnsupportedOperation
from labkit.frontends.torch_views import View
from labkit.graph import float_ops
from labkit.graph.float_ops import FloatOp
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.passes import remove_dead_nodes
from labkit.graph.shapes import symmetric_padding

__all__ = ["Builder", "pointwise"]

_ROWS = (float_ops.Conv2d, float_ops.Linear, float_ops.Embedding)
_MOVES = (float_ops.Reshape, float_ops.Transpose, float_ops.Flatten)


def pointwise(weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> float_ops.Conv2d:
    """A linear layer, float32 ``weight`` [O, I] and ``bias`` [O] or None, at each place of (I, ...): a convolution of width 1."""
    return float_ops.Conv2d(weight[:, :, None, None], bias, (1, 1), symmetric_padding(0, 0), (1, 1), 1)


class Builder:
    """Nodes by name, in running order."""

    def __init__(self, taken: Sequence[str]) -> None:
        self._taken = set(taken)  # names that traced calls will want
        self._nodes: dict[str, FloatNode] = {}
        self._copies: dict[str, str] = {}  # a scaled copy and what it was copied from
        self._made: dict[tuple[object, ...], str] = {}

    def emit(self, name: str, op: FloatOp, inputs: Sequence[str] = ()) -> str:
        """Append ``op`` on ``inputs`` as the node ``name``, which no other has; the name again."""
        assert name not in self._nodes
        self._nodes[name] = FloatNode(name, op, tuple(inputs))
        return name

    def beside(self, name: str, what: str) -> str:
        """A new name made of ``name`` and ``what`` is beside it."""
        fresh = f"{name}.{what}"
        while fresh in self._taken or fresh in self._nodes:
            fresh += "_"
        return fresh

    def graph(self, outputs: Sequence[str]) -> FloatGraph:
        """All that the ``outputs`` need, and the inputs."""
        kept = remove_dead_nodes(FloatGraph(tuple(self._nodes.values()), tuple(outputs)))
        left = {node.name for node in kept}
        back: dict[str, str] = {}
        for copy, source in self._copies.items():  # a copy whose original is gone takes its name
            if copy in left and source not in left and source not in back.values():
                back[copy] = source
        nodes = tuple(
            replace(n, name=back.get(n.name, n.name), inputs=tuple(back.get(i, i) for i in n.inputs)) for n in kept
        )
        return FloatGraph(nodes, tuple(back.get(name, name) for name in kept.outputs))

    def ordered(self, view: View, order: Sequence[int]) -> View:
        """``view`` with the axes of the graph's tensor in ``order``: behind a Transpose, unless they are already."""
        order = tuple(order)
        if list(order) == sorted(order):
            return view
        key = ("transpose", view.name, order)
        if key not in self._made:
            name = self.beside(view.name, "transposed")
            self._made[key] = self.emit(name, float_ops.Transpose(order), (view.name,))
        place = {axis: position for position, axis in enumerate(order)}
        return replace(
            view,
            name=self._made[key],
            shape=tuple(view.shape[axis] for axis in order),
            axes=tuple(place[axis] for axis in view.axes),
            roles=tuple(view.roles[axis] for axis in order),
        )

    def reshaped(self, name: str, shape: tuple[int, ...], have: tuple[int, ...]) -> str:
        """The node that gives ``name``, of shape ``have``, the ``shape``: itself where it has it."""
        if shape == have:
            return name
        name = self.unshaped(name)
        key = ("reshape", name, shape)
        if key not in self._made:
            op = float_ops.Flatten() if len(shape) == 1 else float_ops.Reshape(shape)
            self._made[key] = self.emit(self.beside(name, "reshaped"), op, (name,))
        return self._made[key]

    def unshaped(self, name: str) -> str:
        """What the node ``name`` only reshapes, or itself: a reshape of a reshape is one."""
        node = self._nodes[name]
        return self.unshaped(node.inputs[0]) if isinstance(node.op, float_ops.Reshape | float_ops.Flatten) else name

    def plain(self, view: View, at: str) -> View:
        """``view`` with its factor and its addend put into effect; ``at`` names the call that needs it.

        Raises
        ------
        UnsupportedOperation
            It waits for a softmax, or nothing can be multiplied.
        """
        if view.mask is not None:
            raise UnsupportedOperation(
                f"{at}: it takes scores to which a mask was applied, and only a softmax along their last axis can. "
                f"Apply the mask right before the softmax."
            )
        if view.factor != 1.0:
            view = replace(view, name=self._scaled(view.name, view.factor, at, view.shape), factor=1.0)
        if view.addend is not None:
            key = ("sum", view.total)
            if key not in self._made:
                values = np.ascontiguousarray(view.in_graph_order(view.addend), np.float32)
                constant = self.emit(self.beside(view.total, "constant"), float_ops.Constant(values))
                self._made[key] = self.emit(view.total, float_ops.Add(), (view.name, constant))
            view = replace(view, name=self._made[key], addend=None, total="")
        return view

    def traced_order(self, view: View, at: str) -> View:
        """``view``, plain, with the axes of the graph's tensor in the order of the traced one's; ``at`` as in `plain`."""
        return self.ordered(self.plain(view, at), view.axes)

    def columns(self, view: View, at: str) -> tuple[View, View]:
        """``view``, plain, with its last traced axis first in the graph; and the same as (D, T). ``at`` as in `plain`.

        A layer on features takes the second, and `from_columns` leads back to the axes of the first.
        """
        view = self.plain(view, at)
        channel = view.axes[-1]
        rest = [axis for axis in range(len(view.shape)) if axis != channel]
        if channel != 0:
            rest = list(view.axes[:-1])
        whole = self.ordered(view, (channel, *rest))
        size = whole.shape[0]
        flat = (size, math.prod(whole.shape[1:]))
        name = self.reshaped(whole.name, flat, whole.shape)
        return whole, View(name, flat, (1, 0), ("feature", "place"))

    def from_columns(self, whole: View, name: str, channels: int) -> View:
        """What a layer made of the columns of ``whole``: the node ``name``, of ``channels`` features."""
        shape = (channels, *whole.shape[1:])
        flat = (channels, math.prod(whole.shape[1:]))
        roles = ("feature", *(role or "place" for role in whole.roles[1:]))
        return View(self.reshaped(name, shape, flat), shape, whole.axes, roles)

    def matrices(self, view: View, at: str) -> tuple[str, bool]:
        """The tensor of ``view``, (..., r, c) in the traced order, as (B, r, c), or as (B, c, r); whether it is the latter.

        ``view`` is plain; ``at`` as in `plain`.
        """
        view = self.plain(view, at)
        batch = view.axes[:-2]
        given = tuple(range(len(view.shape)))
        swapped = (*batch, view.axes[-1], view.axes[-2]) == given
        if not swapped:
            view = self.ordered(view, view.axes)
        shape = (math.prod(view.shape[:-2]), *view.shape[-2:])
        return self.reshaped(view.name, shape, view.shape), swapped

    def rows(self, view: View, start: int, length: int, at: str) -> str | None:
        """A layer that puts out only ``length`` from ``start`` of the first axis of ``view``; ``at`` is its name.

        None where that is no layer's choice of features.
        """
        node = self._nodes[view.name]
        if isinstance(node.op, float_ops.Reshape):
            source = self._nodes[node.inputs[0]]
            if not isinstance(source.op, float_ops.Conv2d) or len(source.op.weight) % node.op.shape[0]:
                return None
            each = len(source.op.weight) // node.op.shape[0]
            found = self._rows_of(source, start * each, length * each, at)
            return self.reshaped(found, (length, *view.shape[1:]), ())
        return self._rows_of(node, start, length, at) if isinstance(node.op, _ROWS) else None

    def _rows_of(self, node: FloatNode, start: int, length: int, at: str) -> str:
        key = ("rows", node.name, start, length)
        if key not in self._made:
            op, kept = node.op, slice(start, start + length)
            part: FloatOp
            if isinstance(op, float_ops.Embedding):
                part = replace(op, weight=np.ascontiguousarray(op.weight[:, kept]))
            else:
                assert isinstance(op, float_ops.Conv2d | float_ops.Linear)
                part = replace(op, weight=op.weight[kept], bias=None if op.bias is None else op.bias[kept])
            self._made[key] = self.emit(at, part, node.inputs)
        return self._made[key]

    def _scaled(self, name: str, factor: float, at: str, shape: tuple[int, ...]) -> str:
        """A node whose result is ``factor`` times that of ``name``, which has ``shape``."""
        key = ("scaled", name, factor)
        if key in self._made:
            return self._made[key]
        node = self._nodes[name]
        op = node.op
        inputs = node.inputs
        scaled: FloatOp
        if isinstance(op, _MOVES):
            scaled, inputs = op, (self._scaled(inputs[0], factor, at, ()),)
        elif isinstance(op, float_ops.Conv2d | float_ops.Linear):
            bias = None if op.bias is None else _times(op.bias, factor)
            scaled = replace(op, weight=_times(op.weight, factor), bias=bias)
        elif isinstance(op, float_ops.Embedding):
            scaled = replace(op, weight=_times(op.weight, factor))
        elif isinstance(op, float_ops.LayerNorm):
            scaled = replace(op, gamma=_times(op.gamma, factor), beta=_times(op.beta, factor))
        elif isinstance(op, float_ops.MatMul):
            scaled = replace(op, factor=op.factor * factor)
        elif len(shape) in (2, 3):
            ones, zeros = np.ones(shape[0], np.float32), np.zeros(shape[0], np.float32)
            gains = float_ops.BatchNorm2d(_times(ones, factor), zeros, zeros, ones, 0.0)
            self._made[key] = self.emit(self.beside(name, "scaled"), gains, (name,))
            return self._made[key]
        else:
            raise UnsupportedOperation(
                f"{at}: a tensor of {1 + len(shape)} axes that {type(op).__name__} puts out is multiplied by a number. Multiply "
                f"the result of a linear layer or of a matrix product, or fold the number into the weights."
            )
        copy = self.emit(self.beside(name, "scaled"), scaled, inputs)
        self._copies[copy] = name
        self._made[key] = copy
        return copy


def _times(values: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    return (values.astype(np.float64) * factor).astype(np.float32)
