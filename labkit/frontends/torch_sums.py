"""Sums and factors, from PyTorch to a `FloatGraph` over sequences: numbers and constants wait in the view where they can.

Each function takes a call of the trace and gives the view of its result.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from labkit.errors import UnsupportedOperation
from labkit.frontends.torch_attention import LOWEST, hidden, no_mask
from labkit.frontends.torch_dependence import adds_mask
from labkit.frontends.torch_nodes import argument, is_tensor, shape_of, source_of
from labkit.frontends.torch_translation import Translation
from labkit.frontends.torch_views import View
from labkit.graph import float_ops

__all__ = ["add", "divide", "multiply", "negative", "subtract"]


def add(t: Translation, node: fx.Node, name: str) -> View:
    """The sum of two tensors of one shape, of a tensor and a constant, or of scores and what hides some of them.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is none of these.
    """
    return _sum(t, node, name, 1.0)


def subtract(t: Translation, node: fx.Node, name: str) -> View:
    """The difference of two tensors of one shape, or of a tensor and a constant.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is none of these.
    """
    return _sum(t, node, name, -1.0)


def _sum(t: Translation, node: fx.Node, name: str, sign: float) -> View:
    """``a + sign * b`` for the operands of ``node``."""
    if node.kwargs.get("alpha", 1) != 1:
        raise UnsupportedOperation(
            f"{name}: a sum with alpha is not supported. Multiply before you add, or fold it away."
        )
    a, b = _operands(node)
    if not t.has_view(a) and t.has_view(b):
        a, b, first, second = b, a, sign, 1.0  # sign * tensor + constant
    else:
        first, second = 1.0, sign
    view = t.view(a, name)
    if t.has_view(b):
        return _added(t, view, t.views[b] if second == 1.0 else t.times(t.views[b], second, name), name)
    _keeps_shape(node, view, name)
    if isinstance(b, fx.Node) and is_tensor(b) and t.only_masks(b):
        found = adds_mask(t.traced, b, shape_of(node)) if first == second == 1.0 else None
        if found is None:
            raise no_mask(name)
        return hidden(t, view, t.names[found], name)
    constant = t.constant(b, view.traced_shape, name) * second
    if (
        constant.size and constant.min() <= LOWEST and constant.max() > LOWEST
    ):  # it hides scores, and would take all their bits
        raise no_mask(name)
    if first != 1.0:
        view = t.times(view, first, name)
    if view.addend is None and not constant.any():
        return view
    return replace(view, addend=constant + (0 if view.addend is None else view.addend), total=name)


def _keeps_shape(node: fx.Node, view: View, name: str) -> None:
    if shape_of(node)[1:] != view.traced_shape:
        raise UnsupportedOperation(
            f"{name}: a constant makes a tensor of shape {('N', *view.traced_shape)} as large as {('N', *shape_of(node)[1:])}, "
            f"which is not supported. Give it one axis for each of the tensor's, of its length or of length 1."
        )


def _added(t: Translation, a: View, b: View, name: str) -> View:
    if a.traced_shape != b.traced_shape:
        raise UnsupportedOperation(
            f"{name}: only the sum of two tensors of one shape is supported, got {('N', *a.traced_shape)} and "
            f"{('N', *b.traced_shape)}."
        )
    a, b = _alike(t, a, b, name)
    roles = tuple(x or y for x, y in zip(a.roles, b.roles, strict=True))
    return replace(a, name=t.builder.emit(name, float_ops.Add(), (a.name, b.name)), roles=roles)


def _alike(t: Translation, a: View, b: View, name: str) -> tuple[View, View]:
    """``a`` and ``b``, of one traced shape, with the same order of axes in the graph."""
    a, b = t.builder.plain(a, name), t.builder.plain(b, name)
    if a.axes != b.axes:
        if "feature" in a.roles or "feature" not in b.roles:
            b = t.builder.ordered(b, tuple(b.axes[axis] for axis in np.argsort(a.axes)))
        else:
            a = t.builder.ordered(a, tuple(a.axes[axis] for axis in np.argsort(b.axes)))
    return a, b


def multiply(t: Translation, node: fx.Node, name: str) -> View:
    """The product of two tensors, or of one with a number, or with one number for each of its features.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is none of these.
    """
    a, b = _operands(node)
    if t.has_view(a) and t.has_view(b):
        op, _ = t.others(node, name, [a, b])
        left, right = _alike(t, t.views[a], t.views[b], name)
        large = left if math.prod(left.shape) >= math.prod(right.shape) else right
        return replace(large, name=t.builder.emit(name, op, (left.name, right.name)))
    if not t.has_view(a):
        a, b = b, a
    view, number = t.view(a, name), t.number(b)
    _keeps_shape(node, view, name)
    if number is not None:
        return t.times(view, number, name)
    return _gained(t, view, b, name)


def _gained(t: Translation, view: View, gains: Any, name: str) -> View:
    """``view`` times a number for each of its features."""
    values = t.constant(gains, view.traced_shape, name)
    whole, columns = t.builder.columns(view, name)
    row = values.reshape(-1, whole.shape[0])
    if not (row == row[:1]).all():
        raise UnsupportedOperation(
            f"{name}: only a number, or one for each feature of the last axis, can be multiplied, got a constant of shape "
            f"{values.shape} that differs from place to place."
        )
    zeros, ones = np.zeros(len(row[0]), np.float32), np.ones(len(row[0]), np.float32)
    op = float_ops.BatchNorm2d(row[0].astype(np.float32), zeros, zeros, ones, 0.0)
    return t.builder.from_columns(whole, t.builder.emit(name, op, (columns.name,)), whole.shape[0])


def divide(t: Translation, node: fx.Node, name: str) -> View:
    """A tensor over a number.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is divided by something else.
    """
    a, b = _operands(node)
    number = t.number(b)
    if number is None or number == 0 or node.kwargs.get("rounding_mode") is not None:
        raise UnsupportedOperation(
            f"{name}: activations can only be divided by a number. Write a layer norm as nn.LayerNorm, and shares as a softmax."
        )
    return t.times(t.view(a, name), 1 / number, name)


def negative(t: Translation, node: fx.Node, name: str) -> View:
    """A tensor with the other sign.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.
    """
    return t.times(t.view(source_of(node), name), -1.0, name)


def _operands(node: fx.Node) -> tuple[Any, Any]:
    return argument(node, 0, "input", None), argument(node, 1, "other", None)
