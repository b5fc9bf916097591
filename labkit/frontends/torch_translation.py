"""`Translation`: the graph of a sequence network in the making, and what each traced value is to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx, nn

from labkit.errors import UnsupportedOperation
from labkit.frontends.torch_builder import Builder
from labkit.frontends.torch_dependence import constant_of, depends_on
from labkit.frontends.torch_nodes import flat, is_tensor, shape_of
from labkit.frontends.torch_views import View
from labkit.graph import float_ops
from labkit.graph.float_ops import FloatOp, InputKind

__all__ = ["Others", "Translation"]

Others = Callable[[fx.Node, str, list[fx.Node]], tuple[FloatOp, list[fx.Node]]]


class Translation:
    """A graph in the making.

    Parameters
    ----------
    traced
        By `torch_fx.trace_module`.
    names
        Of its nodes.
    others
        Translates what images have too: gives an operation and the nodes that it takes, for a node, its name and the tensors
        that go in.
    """

    def __init__(self, traced: fx.GraphModule, names: Mapping[fx.Node, str], others: Others) -> None:
        self.traced, self.names, self.others = traced, names, others
        self.builder = Builder(tuple(names.values()))
        self.views: dict[fx.Node, View] = {}  # of what is neither a constant nor a mask nor an index
        self.masks: set[fx.Node] = set()
        self.indices: set[fx.Node] = set()
        self.attended: dict[fx.Node, View] = {}  # the first result of nn.MultiheadAttention
        self.moved: dict[fx.Node, tuple[View, list[int]]] = {}  # permutations with the batch axis second

    def enter(self, node: fx.Node, name: str) -> None:
        """Make an Input called ``name`` of the placeholder ``node``.

        Raises
        ------
        UnsupportedOperation
            Indices or a mask have other axes than (N, T).
        """
        kind = _kind(self.traced, node)
        shape = shape_of(node)[1:]
        if kind is not InputKind.REAL and len(shape) != 1:
            raise UnsupportedOperation(
                f"{name}: an input of indices or a mask has the shape (N, T), got {shape_of(node)}. Hand in one row a sentence."
            )
        self.builder.emit(name, float_ops.Input(shape, kind))
        if kind is InputKind.MASK:
            self.masks.add(node)
        elif kind is InputKind.INDEX:
            self.indices.add(node)
        else:
            self.views[node] = View(name, shape, tuple(range(len(shape))), ("",) * len(shape))

    def leave(self, node: fx.Node) -> str:
        """The node of the graph whose result is the traced ``node``, in its own order of axes.

        Raises
        ------
        UnsupportedOperation
            It depends on no real number.
        """
        if node in self.moved:
            self.view(node, self.names[node])
        if node not in self.views:
            raise UnsupportedOperation(
                f"{self.names[node]}: the network returns a tensor that holds nothing but its {self.what(node)}. Return only "
                f"what it computes from real numbers."
            )
        return self.builder.traced_order(self.views[node], self.names[node]).name

    def what(self, node: fx.Node) -> str:
        """What the traced ``node``, which has no view, is."""
        if constant_of(node) is not None:
            return "own constants"
        return "masks" if depends_on(node) <= self.masks else "inputs' indices"

    def view(self, value: Any, at: str) -> View:
        """The view that the argument ``value`` of the call ``at`` is.

        Raises
        ------
        UnsupportedOperation
            It has none: it is a constant, a mask, an index, or no tensor.
        """
        if self.has_view(value):
            return self.views[value]
        if isinstance(value, fx.Node) and value in self.moved:
            raise UnsupportedOperation(
                f"{self.names[value]}: the order {tuple(self.moved[value][1])} moves the batch axis, which must stay first. "
                f"Permute the others only."
            )
        what = self.what(value) if isinstance(value, fx.Node) else repr(value)
        advice = {
            "masks": "A mask can only hide elements from a softmax, as in (scores + hidden).softmax(-1) with hidden at most -1e3 "
            "where the mask is 0 and 0 elsewhere. Leave anything else, such as the mean of the tokens, outside of the "
            "network that you quantize.",
            "inputs' indices": "Indices can only be looked up in an nn.Embedding: compute a mask or positions from them outside, "
            "and hand them in as inputs.",
        }.get(what, "Compute it from the network's input, or leave it outside of the network that you quantize.")
        raise UnsupportedOperation(f"{at}: it takes {what} as if they were activations. {advice}")

    def only_masks(self, node: fx.Node) -> bool:
        """Whether the value of ``node`` depends on masks and on nothing else."""
        return constant_of(node) is None and depends_on(node) <= self.masks

    def has_view(self, value: Any) -> bool:
        """Whether the argument ``value`` is a tensor that the graph computes."""
        return isinstance(value, fx.Node) and value in self.views

    def number(self, value: Any) -> float | None:
        """``value`` as one number, if it is one that does not depend on the inputs."""
        if isinstance(value, bool | int | float):
            return float(value)
        if isinstance(value, fx.Node):
            constant = constant_of(value)
            if constant is not None and constant.numel() > 0:
                first = constant.reshape(-1)[0]
                return float(first) if bool((constant == first).all()) else None
            plain = value.meta.get("value")
            return float(plain) if isinstance(plain, int | float) else None
        return None

    def times(self, view: View, factor: float, name: str) -> View:
        """``view`` times ``factor``, which waits in it; ``name`` is that of the call.

        Raises
        ------
        UnsupportedOperation
            The factor is 0 or not finite, or turns masked scores round.
        """
        if not math.isfinite(factor) or factor == 0 or (view.mask is not None and factor < 0):
            raise UnsupportedOperation(f"{name}: activations cannot be multiplied by {factor} here.")
        if view.addend is None:
            return replace(view, factor=view.factor * factor)
        return replace(view, factor=view.factor * factor, addend=view.addend * factor, total=name)

    def other(self, node: fx.Node, name: str) -> View:
        """The call ``node`` as images have it too: by `others`, on tensors in the traced order of axes; ``name`` is its name.

        Raises
        ------
        UnsupportedOperation
            Images do not have it either, or it takes a mask or an index.
        """
        tensors = [n for n in flat((node.args, tuple(node.kwargs.values()))) if isinstance(n, fx.Node) and is_tensor(n)]
        for n in tensors:
            if constant_of(n) is None:
                self.view(n, name)  # a mask or an index is refused for what it is
        op, taken = self.others(node, name, tensors)
        given = [self.builder.traced_order(self.view(n, name), name).name for n in taken]
        shape = shape_of(node)[1:]
        channels = isinstance(op, float_ops.Conv2d) and len(shape) > 1
        roles = ("feature", *("place",) * (len(shape) - 1)) if channels else ("",) * len(shape)
        return View(self.builder.emit(name, op, given), shape, tuple(range(len(shape))), roles)

    def constant(self, value: Any, shape: tuple[int, ...], at: str) -> NDArray[np.float64]:
        """The constant ``value`` of the call ``at`` as an array of ``shape``, that of one image.

        Raises
        ------
        UnsupportedOperation
            It is no constant, does not fit, or differs from image to image.
        """
        number = self.number(value)
        if number is not None:
            return np.full(shape, number)
        constant = constant_of(value) if isinstance(value, fx.Node) else None
        if constant is None:
            self.view(value, at)
            raise UnsupportedOperation(f"{at}: a constant is needed here, but {value} depends on the network's input.")
        images = _images_of(self.traced)
        try:
            whole = np.broadcast_to(constant.to(torch.float64).cpu().numpy(), (images, *shape))
        except ValueError:
            raise UnsupportedOperation(
                f"{at}: a constant of shape {tuple(constant.shape)} makes a tensor of shape {('N', *shape)} larger. Expand the "
                f"tensor first where it is made."
            ) from None
        if not np.array_equal(whole, np.broadcast_to(whole[:1], whole.shape)):
            raise UnsupportedOperation(f"{at}: a constant that differs from image to image of a batch cannot be kept.")
        return np.array(whole[0])


def _images_of(traced: fx.GraphModule) -> int:
    """How many images ``traced`` was tried with."""
    return int(next(shape_of(node)[0] for node in traced.graph.nodes if node.op == "placeholder" and is_tensor(node)))


def _kind(traced: fx.GraphModule, node: fx.Node) -> InputKind:
    """What the input ``node`` holds: whole numbers that no embedding looks up are a mask."""
    if node.meta["dtype"].is_floating_point:
        return InputKind.REAL
    if node.meta["dtype"] is torch.bool:
        return InputKind.MASK
    looked_up = any(
        user.target is F.embedding
        or (user.op == "call_module" and isinstance(traced.get_submodule(str(user.target)), nn.Embedding))
        for user in node.users
    )
    return InputKind.INDEX if looked_up else InputKind.MASK
