"""What moves numbers: reshapes, permutations, pieces and joins, from PyTorch to a `FloatGraph` over sequences.

Each function takes a call of the trace and gives the view of its result, or None where it can only be taken apart further.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from labkit.errors import UnsupportedOperation
from labkit.frontends.torch_nodes import argument, exchanged_axes, flat, permuted_axes, shape_of, source_of
from labkit.frontends.torch_translation import Translation
from labkit.frontends.torch_views import View, permuted, regrouped
from labkit.graph import float_ops
from labkit.graph.shapes import symmetric_padding

__all__ = ["attribute", "joined", "mean", "part", "permute", "reshape", "squeeze", "transpose"]

_UNBIND: tuple[Any, ...] = (torch.unbind, "unbind")
_PIECES: tuple[Any, ...] = (*_UNBIND, torch.chunk, torch.split, "chunk", "split")


def reshape(t: Translation, node: fx.Node, name: str) -> View:
    """The same elements in another shape: an axis split into heads, heads joined again, flatten, unsqueeze, ...

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        The batch axis does not stay as it is.
    """
    source = source_of(node)
    view, have, want = t.view(source, name), shape_of(source), shape_of(node)
    if want == have:
        return view
    if not want or want[0] != have[0]:
        raise UnsupportedOperation(
            f"{name}: a reshape from {have} to {want} is not supported: it changes the batch axis, which must stay first. "
            f"Write x.reshape(x.size(0), ...), and keep heads on an axis of their own."
        )
    if view.addend is not None or view.mask is not None:
        view = t.builder.plain(view, name)
    found = regrouped(view, want[1:])
    if found is None:
        view = t.builder.ordered(view, view.axes)
        found = regrouped(view, want[1:])
    assert found is not None
    if found.shape == view.shape:
        return found
    op = float_ops.Flatten() if len(found.shape) == 1 else float_ops.Reshape(found.shape)
    return replace(found, name=t.builder.emit(name, op, (t.builder.unshaped(view.name),)))


def squeeze(t: Translation, node: fx.Node, name: str) -> View:
    """Axes of length 1 dropped.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It names no axis, or the batch axis: for a single image it would be dropped.
    """
    axes = argument(node, 1, "dim", None)
    if axes is None or 0 in {int(axis) % len(shape_of(source_of(node))) for axis in flat(axes)}:
        raise UnsupportedOperation(f"{name}: squeeze needs an axis, and not the batch axis (0). Write x.squeeze(-1).")
    return reshape(t, node, name)


def permute(t: Translation, node: fx.Node, name: str) -> View | None:
    """Axes in another order: nothing in the graph.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It moves the batch axis.
    """
    return _ordered(t, node, name, permuted_axes(node))


def transpose(t: Translation, node: fx.Node, name: str) -> View | None:
    """Two axes exchanged: nothing in the graph.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It moves the batch axis.
    """
    return _ordered(t, node, name, exchanged_axes(node))


def _ordered(t: Translation, node: fx.Node, name: str, axes: list[int]) -> View | None:
    if len(axes) > 2 and axes[1] == 0:  # (3, N, H, T, d): the next thing is to take queries, keys and values apart
        t.moved[node] = t.builder.plain(t.view(source_of(node), name), name), axes
        return None
    if axes[0] != 0:
        raise UnsupportedOperation(
            f"{name}: the order {tuple(axes)} moves the batch axis, which must stay first. Permute the others only."
        )
    view = t.view(source_of(node), name)
    if view.addend is not None or view.mask is not None:
        view = t.builder.plain(view, name)
    return permuted(view, [axis - 1 for axis in axes[1:]])


def attribute(t: Translation, node: fx.Node, name: str) -> View | None:
    """``x.mT``.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is another attribute.
    """
    rank = len(shape_of(node))
    if node.args[1] == "mT" and rank >= 3:
        return _ordered(t, node, name, [*range(rank - 2), rank - 1, rank - 2])
    raise UnsupportedOperation(f"{name}: the attribute {node.args[1]!r} of an activation is not supported.")


def mean(t: Translation, node: fx.Node, name: str) -> View:
    """The mean over all places of (N, T, D), that of images, (N, C, H, W) or (N, C, L), over all of theirs.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is the mean over something else.
    """
    view = t.builder.plain(t.view(source_of(node), name), name)
    dims = argument(node, 1, "dim", None)
    dim = dims[0] if isinstance(dims, list | tuple) and len(dims) == 1 else dims
    if isinstance(dim, int) and len(view.axes) == 2 and view.axes[dim % 3 - 1] == 1 and dim % 3 != 0:
        length = view.shape[1]
        made = t.builder.emit(
            name, float_ops.AveragePool2d((1, length), (1, length), symmetric_padding(0, 0)), (view.name,)
        )
        if argument(node, 2, "keepdim", False):
            return replace(view, name=made, shape=(view.shape[0], 1))
        made = t.builder.reshaped(made, (view.shape[0],), (view.shape[0], 1))
        return View(made, (view.shape[0],), (0,), (view.roles[0],))
    return t.other(node, name)


def part(t: Translation, node: fx.Node, name: str) -> View:
    """A piece of a tensor: an index, a slice, or one of what chunk, split or unbind give.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is neither some of the features that a linear layer puts out nor the first token.
    """
    source, index = argument(node, 0, "input", None), argument(node, 1, "index", None)
    call = node.args[0]
    assert isinstance(call, fx.Node)
    if call in t.attended and index == 0:
        return t.attended[call]
    if call in t.attended:
        raise UnsupportedOperation(
            f"{name}: the shares of nn.MultiheadAttention cannot be taken. Take the first of its results only."
        )
    if call.target not in _PIECES and call not in t.moved:
        t.view(call, name)  # a mask or an index is refused for what it is
    if isinstance(index, int) and call.target in _PIECES:
        source, pieces = source_of(call), call.meta["value"]
        dim = argument(call, 2 if call.target not in _UNBIND else 1, "dim", 0)
        if t.has_view(source) or source in t.moved:
            before = pieces[:index] if index >= 0 else pieces[: len(pieces) + index]
            if call.target in _UNBIND:
                return _taken(t, source, int(dim), len(before), 1, True, name)
            sizes = [piece.shape[int(dim)] for piece in pieces]
            return _taken(t, source, int(dim), sum(sizes[: len(before)]), sizes[index], False, name)
    elif t.has_view(source) or source in t.moved:
        entries = list(index) if isinstance(index, tuple) else [index]
        rank = 1 + len(t.views[source].axes) if t.has_view(source) else len(t.moved[source][1])
        if Ellipsis in entries:
            at = entries.index(Ellipsis)
            entries[at : at + 1] = [slice(None)] * (rank - len(entries) + 1)
        if all(entry is None or entry == slice(None) for entry in entries):  # new axes
            return reshape(t, node, name)
        found = [(dim, entry) for dim, entry in enumerate(entries) if entry != slice(None)]
        if len(found) == 1:
            dim, entry = found[0]
            length = shape_of(source)[dim]
            if isinstance(entry, int):
                return _taken(t, source, dim, entry % length, 1, True, name)
            if isinstance(entry, slice) and entry.step in (None, 1):
                start, stop, _ = entry.indices(length)
                return _taken(t, source, dim, start, stop - start, False, name)
    raise _no_part(name)


def _taken(t: Translation, source: fx.Node, dim: int, start: int, length: int, drops: bool, name: str) -> View:
    """``length`` elements from ``start`` of the traced axis ``dim`` of ``source``; the axis ``drops`` out, or stays."""
    if source in t.moved:
        view, order = t.moved[source]
        if dim % len(order) != 0 or not drops:
            t.view(source, name)
        piece = _piece(t, view, order[0] - 1, start, 1, True, name)
        left = [axis - (axis > order[0]) for axis in order[1:]]
        return permuted(piece, [axis - 1 for axis in left[1:]])
    view = t.view(source, name)
    axis = dim % (1 + len(view.axes)) - 1
    if axis < 0 or view.mask is not None:
        raise _no_part(name)
    return _piece(t, view, axis, start, length, drops, name)


def _piece(t: Translation, view: View, axis: int, start: int, length: int, drops: bool, name: str) -> View:
    if length == view.traced_shape[axis] and not drops:
        return view
    view = t.builder.plain(view, name)
    where = view.axes[axis]
    if where == 0 and (made := t.builder.rows(view, start, length, name)) is not None:
        view = replace(view, name=made, shape=(length, *view.shape[1:]))
    elif where == 1 and len(view.shape) == 2 and start == 0 and length == 1:  # the first token: a pool with one window
        tokens = view.shape[1]
        op = float_ops.MaxPool2d((1, 1), (1, tokens), symmetric_padding(0, 0), (1, 1), False)
        view = replace(view, name=t.builder.emit(name, op, (view.name,)), shape=(view.shape[0], 1))
    else:
        raise _no_part(name)
    if not drops:
        return view
    shape = tuple(size for position, size in enumerate(view.traced_shape) if position != axis)
    found = regrouped(view, shape)
    assert found is not None
    return replace(found, name=t.builder.reshaped(view.name, found.shape, view.shape))


def joined(t: Translation, node: fx.Node, name: str) -> View:
    """A concatenation: of constants and one tensor along its places, such as a token put in front, is a padding and a sum.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is neither that nor the concatenation of images along their channels.
    """
    parts = [n for n in flat(argument(node, 0, "tensors", ())) if isinstance(n, fx.Node)]
    views = [n for n in parts if t.has_view(n)]
    dim = argument(node, 1, "dim", 0)
    if len(views) == 1 and len(parts) > 1 and isinstance(dim, int):
        view = t.builder.plain(t.views[views[0]], name)
        axis = dim % (1 + len(view.axes)) - 1
        if len(view.shape) == 2 and axis >= 0 and view.axes[axis] == 1:
            lengths = [shape_of(n)[axis + 1] for n in parts]
            at = parts.index(views[0])
            edges = sum(lengths[:at]), sum(lengths[at + 1 :])
            shape = (view.shape[0], sum(lengths))
            addend = np.zeros([shape[a] for a in view.axes])
            for index, piece in enumerate(parts):
                if index == at:
                    continue
                size = list(addend.shape)
                size[axis] = lengths[index]
                values = t.constant(piece, tuple(size), name)
                start = sum(lengths[:index])
                addend[(slice(None),) * axis + (slice(start, start + lengths[index]),)] = values
            padded = t.builder.beside(name, "padded")
            made = t.builder.emit(padded, float_ops.Pad(((0, 0), edges)), (view.name,))
            return replace(view, name=made, shape=shape, addend=addend, total=name)
    return t.other(node, name)


def _no_part(name: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{name}: of a tensor only some of the features that a linear layer puts out can be taken, or the first of its tokens. "
        f"Write a linear layer for each part, or leave this outside of the network that you quantize."
    )
