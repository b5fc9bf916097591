"""Matrix products, softmaxes and the masks before them, from PyTorch to a `FloatGraph` over sequences.

Each function takes a call of the trace and gives the view of its result.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from labkit.errors import UnsupportedOperation
from labkit.frontends.torch_builder import pointwise
from labkit.frontends.torch_dependence import adds_mask, constant_of, hides
from labkit.frontends.torch_nodes import argument, array_of, optional_array, shape_of, source_of
from labkit.frontends.torch_translation import Translation
from labkit.frontends.torch_views import View, permuted, regrouped
from labkit.graph import float_ops

__all__ = ["LOWEST", "attention", "filled", "hidden", "linear", "multihead", "no_mask", "product", "softmax"]

LOWEST = -1e3  # what hides a score is at most this


def linear(
    t: Translation, view: View, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, name: str
) -> View:
    """A linear layer on the last axis of ``view`` as the node ``name`` of ``t``; float32 ``weight`` [O, I], ``bias`` [O]."""
    if len(view.shape) == 1:
        made = t.builder.emit(name, float_ops.Linear(weight, bias), (t.builder.plain(view, name).name,))
        return View(made, (len(weight),), (0,), ("feature",))
    whole, columns = t.builder.columns(view, name)
    made = t.builder.emit(name, pointwise(weight, bias), (columns.name,))
    return t.builder.from_columns(whole, made, len(weight))


def product(t: Translation, node: fx.Node, name: str) -> View:
    """A product of two tensors, or of one with a constant matrix, which is a linear layer.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        The leading axes differ, or there are none.
    """
    left, right = argument(node, 0, "input", None), argument(node, 1, "other", argument(node, 1, "mat2", None))
    known = constant_of(right) if isinstance(right, fx.Node) else None
    if known is not None and known.ndim == 2 and t.has_view(left):
        return linear(t, t.views[left], array_of(known.T), None, name)
    return _multiplied(t, t.view(left, name), t.view(right, name), name, name)


def _multiplied(t: Translation, a: View, b: View, name: str, at: str) -> View:
    """The matrix product of the last two traced axes of ``a`` and ``b`` as the node ``name``; ``at`` names the call."""
    if len(a.axes) < 2 or len(b.axes) < 2 or a.traced_shape[:-2] != b.traced_shape[:-2]:
        raise UnsupportedOperation(
            f"{at}: a matrix product takes two tensors (N, ..., m, k) and (N, ..., k, n) with the same leading axes, got "
            f"{('N', *a.traced_shape)} and {('N', *b.traced_shape)}. Keep the heads on an axis of their own, next to the "
            f"batch's, for both."
        )
    factor = 1.0
    if a.addend is None and a.mask is None:
        factor, a = factor * a.factor, replace(a, factor=1.0)
    if b.addend is None and b.mask is None:
        factor, b = factor * b.factor, replace(b, factor=1.0)
    batch, (m, n) = a.traced_shape[:-2], (a.traced_shape[-2], b.traced_shape[-1])
    roles = a.roles[a.axes[-2]], b.roles[b.axes[-1]]
    (left, a_swapped), (right, b_swapped) = t.builder.matrices(a, at), t.builder.matrices(b, at)
    flipped = roles == ("place", "feature")
    if flipped:  # the features come first, so that heads can be joined again: (A B)' = B' A'
        op = float_ops.MatMul(not b_swapped, not a_swapped, factor)
        given, last, roles = (right, left), (n, m), (roles[1], roles[0])
    else:
        op, given, last = float_ops.MatMul(a_swapped, b_swapped, factor), (left, right), (m, n)
    made = t.builder.emit(name, op, given)
    shape = (*batch, *last)
    made = t.builder.reshaped(made, shape, (math.prod(batch), *last))
    axes = list(range(len(shape)))
    if flipped:
        axes[-2:] = [axes[-1], axes[-2]]
    return View(made, shape, tuple(axes), ("",) * len(batch) + roles)


def attention(t: Translation, node: fx.Node, name: str) -> View:
    """F.scaled_dot_product_attention: a product, a softmax and another product.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It is causal or drops shares, or its mask is no mask of the network.
    """
    q, k, v, mask = (argument(node, i, key, None) for i, key in enumerate(("query", "key", "value", "attn_mask")))
    if argument(node, 4, "dropout_p", 0.0) or argument(node, 5, "is_causal", False):
        raise UnsupportedOperation(
            f"{name}: attention with dropout or a causal mask is not supported. Give dropout_p=0.0 in inference, and "
            f"is_causal=False."
        )
    if argument(node, 7, "enable_gqa", False):
        raise UnsupportedOperation(f"{name}: attention with fewer heads of keys than of queries is not supported.")
    query, key = t.view(q, name), t.view(k, name)
    scale = argument(node, 6, "scale", None)
    scale = query.traced_shape[-1] ** -0.5 if scale is None else float(scale)
    order = (*range(len(key.axes) - 2), len(key.axes) - 1, len(key.axes) - 2)
    query = t.times(query, scale, name)
    scores = _multiplied(t, query, permuted(key, order), t.builder.beside(name, "scores"), name)
    if mask is not None:
        shape = (shape_of(q)[0], *scores.traced_shape)
        found = _hiding(t, mask, shape, name)
        scores = replace(scores, mask=found)
    shares = _shares(t, scores, t.builder.beside(name, "shares"), name)
    return _multiplied(t, shares, t.view(v, name), name, name)


def multihead(t: Translation, part: nn.MultiheadAttention, node: fx.Node, name: str) -> View:
    """The first result of nn.MultiheadAttention, written out.

    ``part`` is the layer, ``node`` its call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It takes the batch second or a mask of queries, or adds keys of its own.
    """
    if not part.batch_first or part.bias_k is not None or part.add_zero_attn:
        raise UnsupportedOperation(
            f"{name}: only nn.MultiheadAttention(..., batch_first=True), without add_bias_kv and add_zero_attn, is supported. "
            f"Make it so and hand in (N, T, D)."
        )
    if argument(node, 5, "attn_mask", None) is not None or argument(node, 7, "is_causal", False):
        raise no_mask(name)
    if part.in_proj_weight is not None:
        weights = list(part.in_proj_weight.chunk(3))
    else:
        weights = [part.q_proj_weight, part.k_proj_weight, part.v_proj_weight]
    biases = [None] * 3 if part.in_proj_bias is None else [array_of(bias) for bias in part.in_proj_bias.chunk(3)]
    apart = []
    for index, key in enumerate(("query", "key", "value")):
        view = t.view(argument(node, index, key, None), name)
        made = linear(t, view, array_of(weights[index]), biases[index], t.builder.beside(name, key))
        heads = _regrouped(t, made, (made.traced_shape[0], part.num_heads, part.head_dim))
        apart.append(permuted(heads, (1, 0, 2)))
    q, k, v = apart
    scores = _multiplied(
        t, t.times(q, part.head_dim**-0.5, name), permuted(k, (0, 2, 1)), t.builder.beside(name, "scores"), name
    )
    padding = argument(node, 3, "key_padding_mask", None)
    if padding is not None:
        is_mask = isinstance(padding, fx.Node) and padding.meta["dtype"] is torch.bool and t.only_masks(padding)
        found = hides(t.traced, padding, shape_of(padding), True) if is_mask else None
        if found is None:
            raise no_mask(name)
        scores = replace(scores, mask=t.names[found])
    shares = _shares(t, scores, t.builder.beside(name, "shares"), name)
    context = permuted(_multiplied(t, shares, v, t.builder.beside(name, "context"), name), (1, 0, 2))
    joined = _regrouped(t, context, (context.traced_shape[0], part.embed_dim))
    out = part.out_proj
    return linear(t, joined, array_of(out.weight), optional_array(out.bias), name)


def _regrouped(t: Translation, view: View, shape: tuple[int, ...]) -> View:
    """``view`` reshaped to heads, or heads joined."""
    found = regrouped(view, shape)
    assert found is not None
    return replace(found, name=t.builder.reshaped(view.name, found.shape, view.shape))


def _hiding(t: Translation, mask: Any, shape: tuple[int, ...], at: str) -> str:
    """The input by which ``mask``, added to scores of ``shape`` (N, ..., n) or True where they count, hides some of them.

    Raises
    ------
    UnsupportedOperation
        It does something else. ``at`` names the call.
    """
    if isinstance(mask, fx.Node) and t.only_masks(mask):
        boolean = mask.meta["dtype"] is torch.bool
        found = hides(t.traced, mask, shape, False) if boolean else adds_mask(t.traced, mask, shape)
        if found is not None:
            return t.names[found]
    raise no_mask(at)


def no_mask(at: str) -> UnsupportedOperation:
    """The error to raise where something in the call ``at`` looks like a mask and is none."""
    return UnsupportedOperation(
        f"{at}: a mask must be an input (N, T) of the network, True or 1 for the elements that take part, that hides the same "
        f"elements along the last axis from every row. Causal masks and masks of other shapes are not supported: leave them out."
    )


def softmax(t: Translation, node: fx.Node, name: str, dim: Any) -> View:
    """A softmax along ``dim``, of masked scores along their last axis.

    ``node`` is the call, ``name`` its name in the graph, ``dim`` the axis and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        It names no axis, or the batch axis.
    """
    view = t.view(source_of(node), name)
    rank = 1 + len(view.axes)
    if dim is None or int(dim) % rank == 0:
        raise UnsupportedOperation(
            f"{name}: softmax needs an axis, and not the batch axis (0), got {dim}. Write dim=-1."
        )
    axis = int(dim) % rank - 1
    if view.mask is None:
        view = t.builder.plain(view, name)
        made = t.builder.emit(name, float_ops.Softmax(view.axes[axis]), (view.name,))
        return replace(view, name=made)
    if axis != len(view.axes) - 1:
        raise UnsupportedOperation(f"{name}: masked scores take a softmax along their last axis, got dim={dim}.")
    return _shares(t, view, name, name)


def _shares(t: Translation, scores: View, name: str, at: str) -> View:
    """The softmax along the last traced axis of ``scores`` as the node ``name``; ``at`` names the call."""
    mask, view = scores.mask, t.builder.plain(replace(scores, mask=None), at)
    if mask is None:
        return replace(view, name=t.builder.emit(name, float_ops.Softmax(view.axes[-1]), (view.name,)))
    if view.axes[-1] != len(view.shape) - 1:
        view = t.builder.ordered(view, view.axes)
    return replace(view, name=t.builder.emit(name, float_ops.MaskedSoftmax(), (view.name, mask)))


def filled(t: Translation, node: fx.Node, name: str) -> View:
    """Scores with a low number where a mask says so: masked_fill and where.

    ``node`` is the call, ``name`` its name in the graph and ``t`` the translation.

    Raises
    ------
    UnsupportedOperation
        The number is not low, or it is no mask of the network that says so.
    """
    if node.target in (torch.where, "where"):
        condition, chosen, other = (
            argument(node, i, key, None) for i, key in enumerate(("condition", "input", "other"))
        )
        if node.target == "where":  # x.where(condition, other)
            chosen, condition = condition, chosen
        hidden_where, source, low = False, chosen, other
        if not t.has_view(source):
            hidden_where, source, low = True, other, chosen
    else:
        source, condition, low = (argument(node, i, key, None) for i, key in enumerate(("input", "mask", "value")))
        hidden_where = True
    view, number = t.view(source, name), t.number(low)
    if number is None or number > LOWEST:
        raise UnsupportedOperation(
            f"{name}: only a number of at most {LOWEST:g} can be filled in, to hide scores from a softmax, got {low}."
        )
    found = None
    if isinstance(condition, fx.Node) and t.only_masks(condition):
        found = hides(t.traced, condition, (shape_of(source)[0], *view.traced_shape), hidden_where)
    if found is None:
        raise no_mask(name)
    return hidden(t, view, t.names[found], name)


def hidden(t: Translation, view: View, mask: str, name: str) -> View:
    """``view`` as scores that the input ``mask`` hides; ``t`` and ``name`` as elsewhere.

    Raises
    ------
    UnsupportedOperation
        Another mask hides some already.
    """
    if view.mask not in (None, mask):
        raise UnsupportedOperation(f"{name}: scores can be hidden by one mask only, got {view.mask} and {mask}.")
    return replace(view, mask=mask)
